"""Settings that do not suit the length of a run, its device or its network, or one another."""

from collections.abc import Callable, Iterator

import torch

from mlcore.run.build import CoreConfig
from mlcore.training.batch_norm import batch_norms
from mlcore.training.engine import autocast, unwrap
from mlcore.training.schedules import STEP_SIZE
from mlcore.training.trainer import Trainer

__all__ = ["Finding", "unsuitable"]

Finding = tuple[bool, str]
"""Whether a run must not start like this, and what is wrong and what to do."""

_HARDLY = 0.9  # share of the highest learning rate that is left at the end of a schedule that hardly lowers it


def unsuitable(config: CoreConfig, trainer: Trainer, *, chosen: Callable[[str], bool]) -> Iterator[Finding]:
    """What does not suit.

    Args:
        config: The settings.
        trainer: What was built from them.
        chosen: Whether the user gave the setting at a dotted path for a run of this length. A length of the schedule
            that was given and of which nothing would come is a mistake; one of a preset, which may be tried, is told.
    """
    yield from _schedule(config, trainer, chosen)
    yield from _precision(config, trainer)
    if trainer.evaluator is not None:
        yield from ((False, text) for text in _never(config, trainer, chosen))
    yield from ((False, text) for text in _batch_norms(config, trainer))
    plateau, monitor = trainer.plateau, trainer.monitor
    if plateau is not None and plateau.metric != monitor.metric:
        yield (
            False,
            f"scheduler.mode=min, but a larger {monitor.metric} is better: the plateau schedule watches val "
            f"{plateau.metric} instead",
        )


def _schedule(config: CoreConfig, trainer: Trainer, chosen: Callable[[str], bool]) -> Iterator[Finding]:
    settings, total = config.scheduler, trainer.total_steps
    unit = settings.resolved_unit
    given = {**({"step_size": STEP_SIZE} if settings.name == "step" else {}), **settings.params()}
    lengths = {
        name: value * (trainer.steps_per_epoch if unit == "epoch" else 1)
        for name, value in given.items()
        if name in ("warmup_steps", "step_size", "T_max", "max_steps")
    }
    warmup = lengths.pop("warmup_steps", 0.0)
    if warmup >= total:
        yield (
            chosen("scheduler.warmup_steps"),
            f"the warm-up takes {warmup:.0f} steps, the run only {total}, so --lr is never reached; set --warmup_steps "
            "lower, or train longer",
        )
        return
    rates = trainer.engine.table[:, 0]
    left = float(rates[-1] / max(rates.max(), 1e-300))
    for name, length in lengths.items():
        if length > total:
            yield (
                chosen(f"scheduler.{name}") and left > _HARDLY,
                f"scheduler.{name} is {length:.0f} steps ({given[name]:g} {unit}s), the run only "
                f"{total}: the learning rate ends at {left:.0%} of its highest; lower it, or leave it out",
            )


def _precision(config: CoreConfig, trainer: Trainer) -> Iterator[Finding]:
    precision, device = config.train.precision, trainer.engine.device
    try:
        with torch.no_grad(), autocast(precision, device):
            torch.mm(torch.ones(8, 8, device=device), torch.ones(8, 8, device=device))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        yield True, f"--precision {precision}: {device} does not compute it ({reason}); use auto or fp32"


def _never(config: CoreConfig, trainer: Trainer, chosen: Callable[[str], bool]) -> Iterator[str]:
    """What was asked for and will not happen in so short a run."""
    total, per_epoch = trainer.total_steps, trainer.steps_per_epoch
    epochs, every = -(-total // per_epoch), config.train.eval_every
    evaluations = (epochs if config.train.eval_unit == "epochs" else total) // every
    if not evaluations:
        yield f"the run has {epochs} epochs of {per_epoch} steps: evaluated is only its end; lower --eval_every {every}"
    patience = config.train.early_stopping.patience
    if patience is not None and patience >= max(evaluations, 1) and chosen("train.early_stopping.patience"):
        yield f"--patience {patience} stops nothing early: there are {max(evaluations, 1)} evaluations in all"
    saves = {"save_every_steps": total, "keep_every_epochs": epochs}
    for name, most in saves.items():
        value = getattr(config.checkpoint, name)
        if value is not None and value > most:
            yield f"--{name} {value} is more than the run has ({most}): it saves nothing"


def _batch_norms(config: CoreConfig, trainer: Trainer) -> Iterator[str]:
    batch, windows, ranks = config.train.batch_size, trainer.accumulation, trainer.engine.world.size
    together = batch * (ranks if config.train.sync_batch_norm else 1)
    whole = batch * ranks * windows
    norms = len(batch_norms(unwrap(trainer.engine.model)))
    if norms and together < whole:
        cut = " x ".join([str(batch), *([f"{ranks} ranks"] if ranks > 1 else []), f"{windows} accumulated"])
        yield (
            f"{norms} batch norms take their statistics from {together} samples at a time, not from the {whole} of a "
            f"step ({cut}), so its gradient is not that of one batch of {whole}. A larger --batch_size"
            f"{', --sync_batch_norm' if together < batch * ranks else ''} or a network without batch norm comes closer"
        )

"""`--batch_size auto`: a step is cut into the largest micro-batches that fit the memory; its samples stay the same."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from mlcore.base.distributed import barrier, gather_objects
from mlcore.base.errors import UserError
from mlcore.base.files import format_bytes
from mlcore.base.seeding import seed_everything
from mlcore.config.layers import Rank, Source
from mlcore.run.build import build_trainer
from mlcore.run.opened import OpenRun
from mlcore.training.batch_norm import batch_norms
from mlcore.training.checkpoint import State
from mlcore.training.engine import unwrap
from mlcore.training.memory import available_bytes, largest_windows, plan_memory
from mlcore.training.trainer import Trainer

__all__ = ["fit_batch"]

_log = logging.getLogger(__name__)

_CUT = ("batch_size", "gradient_accumulation_steps")
_SHARE = {"cpu": 0.8, "cuda": 0.9}  # of the memory that is free; the rest is for fragments and for what comes later


def fit_batch(run: OpenRun, *, state: State | None, rehearsal: bool) -> None:
    """Settle batch size and accumulation of a run that asks for it, in its configuration; every rank calls it.

    A run that goes on with as many samples a step keeps the numbers that it began with, whatever is free now.

    Args:
        run: What asks.
        state: The checkpoint that it goes on from.
        rehearsal: As of `preflight.start`.

    Raises:
        UserError: Not one sample at a time fits.
    """
    train = run.config.train
    window = train.batch_size * train.gradient_accumulation_steps
    kept = {} if state is None else state["config"]["train"]
    if kept.get("auto_batch_size") and kept[_CUT[0]] * kept[_CUT[1]] == window:
        size, why = kept[_CUT[0]], "as the run began"
    else:
        size, why = _choose(run, window, rehearsal=rehearsal)
    cut = dict(zip(_CUT, (size, window // size), strict=True))
    run.config = run.config.model_copy(update={"train": train.model_copy(update=cut)})
    composed = run.invocation.composed
    chosen = Source(Rank.COMMAND_LINE, f"chosen for {window} samples a step")
    sources = {**composed.sources, **{f"train.{name}": chosen for name in cut}}
    run.invocation = replace(run.invocation, composed=replace(composed, sources=sources))
    _log.info("batch size: %d at a time, %d accumulated, %s", size, window // size, why)


def _choose(run: OpenRun, window: int, *, rehearsal: bool) -> tuple[int, str]:
    """The size, and why. What is built for it goes again, so that a run is what it would be with the size given."""
    config, world, app = run.config, run.world, run.app
    seed_everything(config.run.seed, rank=world.rank, deterministic=config.run.deterministic)
    setup = app.build(app.dry_run_config(config) if rehearsal and app.dry_run_config is not None else config, world)
    barrier()
    trainer = build_trainer(config, setup, world=world)
    least = min(2 if batch_norms(unwrap(trainer.engine.model)) else 1, window)
    sizes = [size for size in range(window, least - 1, -1) if window % size == 0]
    by_trial = world.device.type == "cuda" and world.size == 1  # ranks would wait for one that fails
    size, why = (_by_trial if by_trial else _by_plan)(trainer, sizes)
    size = min(gather_objects(size))
    if not size:
        raise UserError(
            f"--batch_size auto: not even {least} at a time fit, {why}; free some memory, or use "
            "--gradient_checkpointing, a smaller model, shorter sequences or smaller images"
        )
    del trainer, setup
    _clean_up(world.device)
    return size, f"the most that fit: {why}"


def _by_plan(trainer: Trainer, sizes: Sequence[int]) -> tuple[int, str]:
    """The largest size that should fit, 0 for none, and the figures."""
    device = trainer.engine.device
    plan = plan_memory(trainer, micro_batches=2)
    _clean_up(device)
    free = available_bytes(device)
    needed = {size: plan.peak(size, accumulation=sizes[0] // size) - sum(plan.held.values()) for size in sizes}
    room = int(_SHARE[device.type] * free)
    size = next((size for size in sizes if needed[size] <= room), 0)
    told = format_bytes(needed[size or sizes[-1]])
    return size, f"{told} are planned and {format_bytes(room)} of {format_bytes(free)} may be used"


def _by_trial(trainer: Trainer, sizes: Sequence[int]) -> tuple[int, str]:
    """The largest size with which two steps fit into a share of the GPU's memory, 0 for none, and the figures."""
    device = trainer.engine.device
    free, total = torch.cuda.mem_get_info(device)
    room = int(_SHARE["cuda"] * (free + torch.cuda.memory_reserved(device)))
    torch.cuda.set_per_process_memory_fraction(room / total, device)
    size = next((size for size in sizes if _fits(trainer, size)), 0)
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    return size, f"tried within {format_bytes(room)} of {format_bytes(total)}"


def _fits(trainer: Trainer, size: int) -> bool:
    """Whether two steps of two micro-batches of so many samples find memory."""
    fits = False
    try:
        for window in largest_windows(trainer, (size, size), 2):
            trainer.engine.run_window(trainer.task.training_step, window)
        torch.cuda.synchronize(trainer.engine.device)
        fits = True
    except torch.OutOfMemoryError:
        trainer.engine.model.zero_grad(set_to_none=True)
    _clean_up(trainer.engine.device)  # here, where nothing of the failed step is held any more
    return fits


def _clean_up(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

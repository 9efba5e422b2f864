"""What the log says at the start of settings that do not suit the run, or one another."""

import logging

from mlcore.run.build import CoreConfig
from mlcore.training.batch_norm import batch_norms
from mlcore.training.engine import unwrap
from mlcore.training.trainer import Trainer

__all__ = ["warn_of_settings"]

_log = logging.getLogger(__name__)


def warn_of_settings(config: CoreConfig, trainer: Trainer) -> None:
    """Say in the log which settings do not suit the length of the run, the network, or one another."""
    _warn_of_plateau(trainer)
    _warn_of_batch_norms(config, trainer)
    epochs = config.scheduler.resolved_unit == "epoch"
    warmup = config.scheduler.params().get("warmup_steps", 0) * (trainer.steps_per_epoch if epochs else 1)
    if warmup >= trainer.total_steps:
        _log.warning(
            "the warm-up takes %d steps, the run only %d, so --lr is never reached; set --warmup_steps",
            warmup,
            trainer.total_steps,
        )


def _warn_of_plateau(trainer: Trainer) -> None:
    plateau, monitor = trainer.plateau, trainer.monitor
    if plateau is not None and plateau.metric != monitor.metric:
        _log.warning(
            "scheduler.mode=min, but a larger %s is better: the plateau schedule watches val %s instead",
            monitor.metric,
            plateau.metric,
        )


def _warn_of_batch_norms(config: CoreConfig, trainer: Trainer) -> None:
    batch, windows, ranks = config.train.batch_size, trainer.accumulation, trainer.engine.world.size
    together = batch * (ranks if config.train.sync_batch_norm else 1)
    whole = batch * ranks * windows
    norms = len(batch_norms(unwrap(trainer.engine.model)))
    if norms and together < whole:
        _log.warning(
            "%d batch norms take their statistics from %d samples at a time, not from the %d of a step (%s), so its "
            "gradient is not that of one batch of %d. A larger --batch_size%s or a network without batch norm comes "
            "closer",
            norms,
            together,
            whole,
            " x ".join([str(batch), *([f"{ranks} ranks"] if ranks > 1 else []), f"{windows} accumulated"]),
            whole,
            ", --sync_batch_norm" if together < batch * ranks else "",
        )

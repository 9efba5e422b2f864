"""What an evaluation decides: whether it is the best so far, and whether learning rates fall."""

import logging
from collections.abc import Collection, Mapping

from mlcore.base.errors import UserError
from mlcore.training.engine import Engine
from mlcore.training.progress import Monitor, Progress
from mlcore.training.schedules import Plateau

__all__ = ["check_metrics", "judge"]

_log = logging.getLogger(__name__)


def check_metrics(known: Collection[str], *, monitor: Monitor, plateau: Plateau | None) -> None:
    """Refuse to watch what evaluations do not give.

    Args:
        known: Names of what they give.
        monitor: Watches one of them.
        plateau: Watches one, too, if there is a plateau schedule.

    Raises:
        UserError: One of the two is not among `known`.
    """
    for metric in (monitor.metric, *(() if plateau is None else (plateau.metric,))):
        if metric not in known:
            raise UserError(
                f"--metric: the monitored metric '{metric}' is not among the evaluation's: {', '.join(sorted(known))}"
            )


def judge(
    metrics: Mapping[str, float], *, progress: Progress, monitor: Monitor, plateau: Plateau | None, engine: Engine
) -> None:
    """Compare an evaluation with the best so far, which `progress` remembers; tell the plateau schedule.

    Raises:
        UserError: See `check_metrics`.
    """
    check_metrics(metrics, monitor=monitor, plateau=plateau)
    value = metrics[monitor.metric]
    sign = 1.0 if monitor.mode == "max" else -1.0
    # A NaN compares as no improvement; the first finite value always is one.
    if value == value and (progress.best is None or sign * (value - progress.best) > monitor.min_delta):
        progress.best, progress.best_step, progress.stale = value, progress.step, 0
    else:
        progress.stale += 1
    if plateau is not None:
        _lower_rates(plateau, metrics[plateau.metric], engine=engine, step=progress.step)


def _lower_rates(plateau: Plateau, value: float, *, engine: Engine, step: int) -> None:
    before, scale = plateau.scale, plateau.update(value)
    engine.scale_learning_rates(scale)
    if scale < before:
        said = "step %d: val %s has stopped improving, so the learning rate falls from %.3g to %.3g"
        rate = engine.learning_rates()[0]
        _log.info(said, step, plateau.metric, rate, rate * scale / before)

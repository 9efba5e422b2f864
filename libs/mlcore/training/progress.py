"""What steers the loop and what it remembers: limits, cadence, the monitored metric, progress, outcome."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Limits:
    """When training is over: whichever comes first.

    Attributes:
        epochs: Passes over the training set.
        max_steps: Optimiser steps of the cut that the run began with, or None.
        max_seconds: Wall time of this process, or None; the run can be resumed later.
    """

    epochs: int
    max_steps: int | None = None
    max_seconds: float | None = None


@dataclass(frozen=True)
class Cadence:
    """How often things happen.

    Attributes:
        log_every: Steps between log lines; the only regular host sync.
        evaluate_every: Epochs, or steps of the cut that the run began with, between evaluations.
        evaluate_unit: What `evaluate_every` counts.
        save_every_steps: Steps between checkpoints, besides one at every evaluation; None for no others.
        save_every_seconds: Seconds between checkpoints, likewise.
        milestone_every_epochs: Keep the checkpoint of every so many epochs for good.
    """

    log_every: int = 50
    evaluate_every: int = 1
    evaluate_unit: Literal["epochs", "steps"] = "epochs"
    save_every_steps: int | None = None
    save_every_seconds: float | None = None
    milestone_every_epochs: int | None = None

    def milestone(self, progress: "Progress") -> str | None:
        """Name under which the checkpoint of `progress` is kept for good, or None."""
        every = self.milestone_every_epochs
        is_one = progress.position == 0 and every is not None and progress.epoch % every == 0
        return f"epoch_{progress.epoch:04d}" if is_one else None


@dataclass(frozen=True)
class Monitor:
    """The metric that says which checkpoint is best and when to stop early.

    Attributes:
        metric: Name as the log shows it, without the "val/" prefix.
        mode: Whether larger or smaller is better.
        patience: Evaluations without improvement before training stops; None never stops.
        min_delta: Smallest change that counts as an improvement.
    """

    metric: str = "loss"
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    min_delta: float = 0.0


@dataclass
class Progress:
    """Where a run is. A checkpoint holds exactly this; a resumed run takes it over.

    Attributes:
        epoch: Finished epochs.
        position: Samples of the current epoch that are consumed, on all ranks.
        step: Windows run, of whatever size.
        best: Best monitored value so far.
        best_step: Its step.
        stale: Evaluations since the best one.
        seconds: Training time of all processes so far.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    best: float | None = None
    best_step: int = -1
    stale: int = 0
    seconds: float = 0.0


Status = Literal["finished", "stopped early", "time is up", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a call of `Trainer.fit` ended.

    Attributes:
        status: "finished" (all epochs or steps), "stopped early" (no improvement), "time is up" or "interrupted"
            (a signal); the last two can be resumed.
        progress: Where the run is now.
        metrics: The last evaluation's figures.
        skipped: Non-finite windows that were skipped.
    """

    status: Status
    progress: Progress
    metrics: Mapping[str, float]
    skipped: int

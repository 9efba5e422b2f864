"""From the section `tracking` to the trackers that a run's figures go to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlcore.config.dump import to_values
from mlcore.trackers.base import Tracker, Trackers
from mlcore.trackers.console import ConsoleTracker
from mlcore.trackers.table import TableTracker, read_history
from mlcore.trackers.tensorboard import TensorBoardTracker
from mlcore.trackers.wandb import RUN_ID, WandbTracker

__all__ = ["build_tracker"]


def build_tracker(config: Any, *, app: str, folder: Path, resume_step: int | None, known: Mapping[str, str]) -> Tracker:
    """The trackers that a run's figures go to.

    Args:
        config: The app's configuration.
        app: Its name.
        folder: The run folder.
        resume_step: Step from which the run goes on; None for a new one.
        known: `Tracker.state` of the run that goes on.
    """
    settings = config.tracking
    starters: dict[str, Callable[[], Tracker]] = {
        "table": lambda: TableTracker(folder, resume_step=resume_step),
        "console": ConsoleTracker,
    }
    if settings.tensorboard:
        starters["TensorBoard"] = lambda: TensorBoardTracker(folder / "tensorboard", resume_step=resume_step)
    if settings.use_wandb and settings.wandb_mode != "disabled":
        starters["W&B"] = lambda: WandbTracker(
            folder,
            project=settings.wandb_project or app,
            entity=settings.wandb_entity,
            name=f"{folder.parent.name}/{folder.name}",
            config=to_values(config),
            mode=settings.wandb_mode,
            run_id=known.get(RUN_ID),
            history=[] if resume_step is None else read_history(folder),
        )
    return Trackers(starters, state=dict(known))

"""From the checkpoint of a run back to its parts: what every app's predict and evaluation scripts begin with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from pydantic import ValidationError
from torch import Tensor

from mlcore.config.difference import of_today
from mlcore.config.validation import ConfigT
from mlcore.training.checkpoint import CheckpointError, inference_weights, load_checkpoint

_TRIED = 3  # checkpoints beside a damaged one that are read to name a whole one

__all__ = ["RunCheckpoint", "load_run_checkpoint", "run_folder"]


@dataclass(frozen=True, kw_only=True)
class RunCheckpoint(Generic[ConfigT]):
    """A run's checkpoint, read for use.

    Attributes:
        path: The file.
        weights: The weights to predict with (averaged where the run kept an average).
        metadata: What the app's task noted for its users.
        config: The run's configuration.
        step: Training step.
    """

    path: Path
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    config: ConfigT
    step: int


def load_run_checkpoint(path: Path, *, app: str, config_cls: type[ConfigT]) -> RunCheckpoint[ConfigT]:
    """Read a checkpoint that `app` wrote.

    Args:
        path: `best_model.pth` or any other checkpoint of a run.
        app: Name of the app.
        config_cls: Its configuration.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or no checkpoint of this app.
    """
    try:
        state = load_checkpoint(path)
    except CheckpointError as error:
        raise _with_advice(error, Path(path)) from None
    weights = inference_weights(state, source=path)
    if state.get("app") != app:
        raise CheckpointError(f"{path}: a checkpoint of the app '{state.get('app')}', not of {app}")
    try:
        config = config_cls.model_validate(of_today(state["config"], config_cls), strict=False)
        metadata, step = state["task"], int(state["progress"]["step"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise another_version(path, error) from None
    return RunCheckpoint(path=Path(path), weights=weights, metadata=metadata, config=config, step=step)


def _with_advice(error: CheckpointError, path: Path) -> CheckpointError:
    """The error, and which checkpoint beside the damaged one is whole."""
    others = sorted((other for other in path.parent.glob("*.pth") if other != path), key=_age)
    for other in others[:_TRIED] if path.is_file() else ():
        try:
            load_checkpoint(other)
        except CheckpointError:
            continue
        return CheckpointError(f"{error}. The newest whole checkpoint beside it is {other}")
    return error


def _age(path: Path) -> float:
    """Seconds, growing with age."""
    return -path.stat().st_mtime


def another_version(path: Path, error: Exception) -> CheckpointError:
    """What to say where the contents of a checkpoint are not what this version of the app writes."""
    reason = str(error).splitlines()[0]
    return CheckpointError(f"{path}: not written by this version of the app ({reason})")


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; the checkpoint's own folder where it lies elsewhere."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder

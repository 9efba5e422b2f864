"""From the checkpoint of a run back to its parts: what every app's predict and evaluation scripts begin with."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.cli.app import App
from mlcore.config.difference import of_today
from mlcore.config.validation import ConfigT
from mlcore.run.decision import Decision, read_decision
from mlcore.training.checkpoint import CheckpointError, check_model_weights, inference_weights, load_checkpoint

__all__ = [
    "RunCheckpoint",
    "load_run_checkpoint",
    "of_this_version",
    "outline",
    "read_run_checkpoint",
    "rebuild",
    "run_folder",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_TRIED = 3  # checkpoints beside a damaged one that are read to name a whole one


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

    @cached_property
    def decision(self) -> Decision | None:
        """What the run's validation data chose; None: an older run, or a checkpoint that left its run."""
        return read_decision(run_folder(self.path))

    @cached_property
    def digest(self) -> str:
        """Of the weights, 32 hexadecimal digits: the same for the same names and values."""
        found = hashlib.blake2b(digest_size=16)
        for name, weight in sorted(self.weights.items()):
            found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()


def load_run_checkpoint(path: Path, *, app: str, config_cls: type[ConfigT]) -> RunCheckpoint[ConfigT]:
    """Read a checkpoint that `app` wrote.

    Args:
        path: `best_model.pth` or any other checkpoint of a run.
        app: Name of the app.
        config_cls: Its configuration.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or no checkpoint of this app.
    """
    state = _read(path)
    weights = inference_weights(state, source=path)
    if state.get("app") != app:
        raise CheckpointError(f"{path}: a checkpoint of the app '{state.get('app')}', not of {app}")
    return _as_run(path, state, weights, config_cls)


def read_run_checkpoint(path: Path, find_app: Callable[[str], App[Any]]) -> tuple[App[Any], RunCheckpoint[Any]]:
    """Read a checkpoint of whichever app wrote it.

    Args:
        path: `best_model.pth` or any other checkpoint of a run.
        find_app: Gives the app of a name, or raises `UserError`.

    Raises:
        CheckpointError: The file is missing, damaged or unsafe, or of an app that is not here.
    """
    state = _read(path)
    weights = inference_weights(state, source=path)
    try:
        app = find_app(str(state.get("app")))
    except UserError as error:
        raise CheckpointError(f"{path}: a checkpoint of the app '{state.get('app')}': {error}") from None
    return app, _as_run(path, state, weights, app.config_cls)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise _with_advice(error, Path(path)) from None


def _as_run(
    path: Path, state: Mapping[str, Any], weights: Mapping[str, Tensor], config_cls: type[ConfigT]
) -> RunCheckpoint[ConfigT]:
    with of_this_version(path):
        config = config_cls.model_validate(of_today(state["config"], config_cls), strict=False)
        metadata, step = state["task"], int(state["progress"]["step"])
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


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Say of whatever fails in the block that a checkpoint does not hold what this version of the app writes.

    Errors that name it already say what is wrong themselves.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # what is noted in it can be anything
        if isinstance(error, UserError) and str(error).startswith(f"{path}: "):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not written by this version of the app ({reason})") from None


def outline(make: Callable[[], ModuleT], weights: Mapping[str, Tensor], *, source: Path) -> ModuleT:
    """The model that `make` builds of what a checkpoint notes of it, on the device "meta", where it takes no memory.

    Raises:
        CheckpointError: No model can be built of it, or the weights are of another.
    """
    with of_this_version(source), torch.device("meta"):
        model = make()
    check_model_weights(model, weights, source=source)
    return model


def rebuild(make: Callable[[], ModuleT], weights: Mapping[str, Tensor], *, source: Path) -> ModuleT:
    """The same with its weights, in evaluation mode; the outline comes first, as a model of any size can be noted."""
    outline(make, weights, source=source)
    model = make()
    model.load_state_dict(dict(weights))
    return model.eval()


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; the checkpoint's own folder where it lies elsewhere."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder

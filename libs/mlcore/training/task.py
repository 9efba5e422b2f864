"""What the trainer needs to know of a task: how to compute a loss, how to predict, how to evaluate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from mlcore.config.difference import config_differences
from mlcore.training.checkpoint import CheckpointError
from mlcore.training.engine import StepOutput

_SHARED = ("class_names", "frozen_weights", "target_names", "teacher")


class Task(Protocol):
    """The one interface between an app and the loop."""

    @property
    def model(self) -> nn.Module:
        """The module whose parameters are trained; its state dict is what checkpoints hold."""
        ...

    def training_step(self, model: nn.Module, batch: Any) -> StepOutput:
        """Loss of one micro-batch as a sum over samples.

        Args:
            model: `self.model`, or a DDP wrapper of it: call this one, so that ranks exchange gradients.
            batch: A collated batch on the model's device.
        """
        ...

    def evaluation_step(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Predictions for one batch, without gradients.

        Returns:
            Tensors whose first dimension counts the batch's samples, in order; the same keys for every batch.
        """
        ...

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures over a data set or any part of it: the same names always, NaN for what is not defined there.

        Args:
            predictions: What `evaluation_step` returned, on the host, one row per sample, in dataset order.
        """
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Plain values and tensors a checkpoint carries for whoever loads the model alone (class names, statistics).

        Of these, `class_names`, `target_names` (of numbers), `frozen_weights` (fingerprints of weights that the
        checkpoint does not hold) and `teacher` (a fingerprint of what answers are learned of) must be the same wherever
        a run goes on from the checkpoint.
        """
        ...


def check_metadata(task: Task, state: Mapping[str, Any], *, source: Path) -> None:
    """Refuse a training checkpoint whose weights fit, but belong to other classes or other frozen weights.

    Args:
        task: What goes on with it. It may have a method `former_metadata` that gives its metadata as earlier versions
            of the app would have noted them; a checkpoint with these belongs to it, too.
        state: The checkpoint's contents.
        source: Its file, for the message.

    Raises:
        CheckpointError: Its metadata are not those of `task`.
    """
    differing = _differences(state["task"], task.metadata)
    former = getattr(task, "former_metadata", None)
    if differing and not (former and not _differences(state["task"], former())):
        raise CheckpointError(
            f"{source}: was trained with other classes or encoders, or by another teacher, than found now "
            f"({'; '.join(differing)}); "
            "put back what the run was trained with, or start another run in a folder of its own"
        )


def _differences(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return config_differences(*({key: values[key] for key in _SHARED if key in values} for values in (kept, found)))

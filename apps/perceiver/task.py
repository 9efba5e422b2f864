"""Classification of sequences with a Perceiver, as the trainer sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlcore.report.classification import measure
from mlcore.training import losses
from mlcore.training.engine import StepOutput

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The training loss.

    Attributes:
        focal_gamma: Gamma of the focal loss; None is cross entropy.
        label_smoothing: Share of the target spread over all classes, alike whatever their weights.
        class_weights: float [C], by which a sample counts according to its class, or None for equal weights.
    """

    focal_gamma: float | None = None
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, label: Tensor) -> tuple[Tensor, int | Tensor]:
        """Loss sum and count of a batch: logits [B, C], label int64 [B], or, where samples are mixed, shares [B, C]."""
        weight = self.class_weights
        if self.focal_gamma is None:
            values = losses.cross_entropy(logits, label, weight=weight, label_smoothing=self.label_smoothing)
        else:
            values = losses.focal(
                logits, label, gamma=self.focal_gamma, alpha=weight, label_smoothing=self.label_smoothing
            )
        count = len(label) if weight is None else losses.class_weight_count(label, weight)
        return values.sum(), count


@dataclass(frozen=True, kw_only=True)
class PerceiverTask:
    """A model of sequences and what it is trained for.

    Attributes:
        model: `model(input [B, M, C], mask [B, M] or None) -> logits [B, classes]`.
        class_names: Names of the classes, in the order of the logits.
        objective: The training loss.
        extra: Metadata besides the class names: plain values for whoever loads the model alone.
    """

    model: nn.Module
    class_names: Sequence[str]
    objective: Callable[[Tensor, Tensor], tuple[Tensor, int | Tensor]] = field(default_factory=Objective)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Loss and accuracy sums of a batch with "input" [B, M, C], "mask" [B, M] (where padded), "label" [B].

        Where samples are mixed, "target" [B, classes] is what they are of.
        """
        logits = model(batch["input"], batch.get("mask"))
        loss_sum, count = self.objective(logits, batch.get("target", batch["label"]))
        right = (logits.detach().argmax(dim=1) == batch["label"]).sum()
        # Logs are divided by the loss's count; with class weights that is not the number of samples.
        return StepOutput(loss_sum, count, {"accuracy": right.float() * (count / len(batch["label"]))})

    def evaluation_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Label [B], class probabilities [B, classes] and plain cross entropy [B] of a batch."""
        logits = model(batch["input"], batch.get("mask")).float()
        return {
            "label": batch["label"],
            "probabilities": torch.softmax(logits, dim=1),
            "loss": losses.cross_entropy(logits, batch["label"]),
        }

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """Accuracy, macro F1, AUROC, calibration and the rest of the classification report's figures."""
        return measure(predictions, class_names=self.class_names).scalars()

    @property
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint carries for whoever loads the model alone."""
        return {"class_names": list(self.class_names), **self.extra}

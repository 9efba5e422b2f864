"""Classes of pages, as the trainer sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlcore.report.classification import measure
from mlcore.training import losses
from mlcore.training.engine import StepOutput

__all__ = ["DocTask", "Objective"]

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The training loss.

    Attributes:
        focal_gamma: Gamma of the focal loss; None is cross entropy.
        focal_alpha: Factor of the focal loss.
        label_smoothing: Share of the target spread over all classes, alike whatever their weights.
        class_weights: float [C], by which a page counts according to its class, or, where pages are mixed, to its
            classes' shares; None for equal weights.
        temperature: By which logits are divided where a teacher's answers are learned.
        taught: Share of these in the loss.
    """

    focal_gamma: float | None = None
    focal_alpha: float = 1.0
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    temperature: float = 1.0
    taught: float = 0.0

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, int | Tensor]:
        """Loss sum and count of a batch: logits [B, C], target float [B, C] whose rows sum to 1."""
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        count = len(target) if weight is None else losses.class_weight_count(target, weight)
        return self._values(logits, target, weight).sum(), count

    def with_teacher(self, logits: Tensor, target: Tensor, teacher: Tensor, labelled: Tensor) -> tuple[Tensor, int]:
        """Loss sum and count of a batch whose teacher's answers are learned, too (Hinton, Vinyals, Dean 2015).

        (1 - w) loss(logits, target) + w T^2 KL(teacher || softmax(logits / T)) of a page, w being `taught`. A page
        counts once whatever the class weights, whose mean over the training pages is 1.

        Args:
            logits: [B, C].
            target: float [B, C]; of pages without a label anything.
            teacher: The teacher's answers at the temperature, float [B, C], rows summing to 1.
            labelled: bool [B]; other pages have no hard term.
        """
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        hard = torch.where(labelled, self._values(logits, target, weight), 0.0)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        student = functional.log_softmax(exact / self.temperature, dim=1)
        apart = functional.kl_div(student, teacher.to(student.dtype), reduction="none").sum(dim=1)
        values = (1 - self.taught) * hard + self.taught * self.temperature**2 * apart
        return values.sum(), len(target)

    def _values(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of each page's label, [B]."""
        smoothing = self.label_smoothing
        if self.focal_gamma is None:
            return losses.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)
        alpha = self.focal_alpha if weight is None else self.focal_alpha * weight
        return losses.focal(logits, target, gamma=self.focal_gamma, alpha=alpha, label_smoothing=smoothing)


@dataclass(frozen=True, kw_only=True)
class DocTask:
    """A classifier of pages and what it is trained for.

    Attributes:
        model: From pixels float [B, channels, H, W] in 0..1 to logits [B, classes].
        class_names: In the order of the logits.
        objective: The training loss.
        extra: Metadata besides the class names: plain values for whoever loads the model alone.
    """

    model: nn.Module
    class_names: Sequence[str]
    objective: Objective = field(default_factory=Objective)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Loss and accuracy of a batch with "pixels", "label" int64 [B], and "target" [B, classes] where mixed.

        With a teacher also "teacher" [B, classes]; pages without a label have -1.
        """
        logits, label = model(_channels_last(batch["pixels"])), batch["label"]
        target, teacher = batch.get("target"), batch.get("teacher")
        pages: int | Tensor = len(label)
        if target is None:
            known = label if teacher is None else label.clamp(min=0)
            target = functional.one_hot(known, len(self.class_names)).float()
        if teacher is None:
            loss_sum, count = self.objective(logits, target)
        else:
            loss_sum, count = self.objective.with_teacher(logits, target, teacher, label >= 0)
            pages = (label >= 0).sum().clamp(min=1)
        right = (logits.detach().argmax(dim=1) == label).sum()
        # Logs are divided by the loss's count; with class weights that is not the number of samples.
        return StepOutput(loss_sum, count, {"accuracy": right.float() * (count / pages)})

    def evaluation_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Rows "label" int64 [B], "logits" and "probabilities" float32 [B, classes], "loss" [B] (cross entropy)."""
        logits = model(_channels_last(batch["pixels"])).float()
        return {
            "label": batch["label"],
            "logits": logits,
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


def _channels_last(pixels: Tensor) -> Tensor:
    """In memory as convolutions like it; the values are the same."""
    return pixels.contiguous(memory_format=torch.channels_last)

"""Tasks other than classification, as the trainer sees them: losses, rows of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlcore.training import losses
from mlcore.training.engine import StepOutput
from quartet.apps.perceiver.measures import figures
from quartet.apps.perceiver.outputs import Outputs

__all__ = ["OutputTask"]

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class OutputTask:
    """A model of sequences and what it is asked for.

    Attributes:
        model: `(input, mask) -> [B, outputs]`, or `(input, mask, query) -> [B, K, outputs]`.
        outputs: What it gives.
        length: Longest sequence of an evaluation, in positions.
        extra: Plain values for whoever loads the model alone.
    """

    model: nn.Module
    outputs: Outputs
    length: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """The loss of a batch, in which each sample counts once, whatever is asked of it."""
        values = self._losses(self._found(model, batch), batch)
        return StepOutput(values.sum(), len(values))

    def evaluation_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Rows with "loss", "target" and "predicted", or for labels "probabilities", in the units of the data.

        Of positions these are [B, length, numbers] (of a forecast [B, horizon, numbers]), NaN where nothing is asked,
        or [B, length] of classes, -1 there.
        """
        return self.rows(self._found(model, batch), batch)

    def rows(self, found: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same of what a network gives, [B, outputs] or [B, K, outputs]."""
        rows = {"loss": self._losses(found, batch)}
        if self.outputs.kind == "multilabel":
            return {**rows, "target": batch["target"], "probabilities": found.sigmoid()}
        target = batch["target"]
        if self.outputs.classes:
            pair = {"target": target, "predicted": found.argmax(dim=2)}
            return rows | {key: self._placed(value, batch, nothing=-1) for key, value in pair.items()}
        mean, std = torch.tensor([self.outputs.mean, self.outputs.std], dtype=torch.float64, device=found.device)
        pair = {"target": target.double() * std + mean, "predicted": found.double() * std + mean}
        if self.outputs.by_position:
            pair = {key: self._placed(value, batch, nothing=torch.nan) for key, value in pair.items()}
        return rows | pair

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of `measures`."""
        return figures(predictions)

    @property
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint carries for whoever loads the model alone."""
        named = "target_names" if self.outputs.mean else "class_names"
        return {named: list(self.outputs.names), "task": self.outputs.plain(), **self.extra}

    def _found(self, model: nn.Module, batch: Batch) -> Tensor:
        asked = [batch["query"]] if self.outputs.by_position else []
        found: Tensor = model(batch["input"], batch.get("mask"), *asked)
        return found.float()

    def _losses(self, found: Tensor, batch: Batch) -> Tensor:
        """Of each sample [B]: cross entropies, or squared errors in deviations, mean over what is asked."""
        target = batch["target"]
        if self.outputs.kind == "multilabel":
            return losses.binary_cross_entropy(found, target)
        if not self.outputs.by_position:
            return functional.mse_loss(found, target, reduction="none").mean(dim=1)
        if self.outputs.classes:
            values = functional.cross_entropy(found.transpose(1, 2), target, reduction="none")  # [B, K]
            asked = batch["asked"]
        else:
            asked = batch["asked"] & target.isfinite().all(dim=2)
            values = torch.where(asked[..., None], found - target, 0.0).square().mean(dim=2)
        return torch.where(asked, values, 0.0).sum(dim=1) / asked.sum(dim=1).clamp(min=1)

    def _placed(self, values: Tensor, batch: Batch, *, nothing: float) -> Tensor:
        """Values of what is asked [B, K, ...] where they belong, of the same length in every batch."""
        asked, forecast = batch["asked"], self.outputs.kind == "forecast"
        length = self.outputs.horizon if forecast else self.length
        place = torch.arange(asked.shape[1], device=asked.device).expand_as(asked) if forecast else batch["query"]
        place = torch.where(asked, place, length)  # what is padded goes where it is cut off
        place = place.reshape(*place.shape, *[1] * (values.dim() - 2)).expand_as(values)
        whole = values.new_full((len(values), length + 1, *values.shape[2:]), nothing)
        return whole.scatter(1, place, values)[:, :length]

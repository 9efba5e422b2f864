"""What each modality tells a multimodal model alone: its validation samples again with the other modalities hidden."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlcore.report.classification import measure_interval
from mlcore.report.page import Section, Table
from mlcore.training.evaluator import Predictions
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.task import PerceiverTask

__all__ = ["Ablation", "only"]

_METRIC = "accuracy"
_NOTE = (
    "The one model, on the samples that have the modality, with the others hidden and not; of a model that was trained "
    "without modality dropout (--modality_dropout) this is less than the modality could tell."
)


def only(batch: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A batch of `RawCollate` with one modality; samples that do not have it keep what they have."""
    length = batch["input"]["length"]
    others = torch.arange(length.shape[1], device=length.device) != number
    length = length.masked_fill((length[:, number : number + 1] > 0) & others, 0)
    mask = torch.arange(batch["mask"].shape[1], device=length.device) < length.sum(dim=1, keepdim=True)
    return {**batch, "input": {**batch["input"], "length": length}, "mask": mask}


@dataclass(frozen=True, kw_only=True)
class _Alone:
    """The task with one modality; `has` says which samples have it."""

    task: PerceiverTask
    number: int

    def evaluation_step(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """As the task's."""
        has = batch["input"]["length"][:, self.number] > 0
        return {**self.task.evaluation_step(model, only(batch, self.number)), "has": has}


@dataclass
class Ablation:
    """Figures of each modality alone, beside those of all on the same samples.

    Attributes:
        task: The model's.
        modalities: Those of the model.
    """

    task: PerceiverTask
    modalities: Sequence[Modality]
    _alone: dict[str, Predictions] = field(default_factory=dict)
    _found: dict[str, Any] = field(default_factory=dict)

    def choose(self, predict: Callable[[Any], Predictions]) -> None:
        """Predict the validation samples with each modality alone; see `EvaluationSetup.choose`."""
        for number, modality in enumerate(self.modalities):
            self._alone[modality.name] = predict(_Alone(task=self.task, number=number))

    def sections(self, predictions: Predictions) -> list[Section]:
        """The table, given the predictions with all modalities."""
        rows = [["all", len(predictions["label"]), "", "", *_figure(predictions)]]
        for name, alone in self._alone.items():
            has = alone["has"]
            if has.any():
                own, both = ({key: rows[has] for key, rows in of.items()} for of in (alone, predictions))
                rows.append([name, int(has.sum()), *_figure(own), *_figure(both)])
        self._found = {
            str(name): {"samples": samples, "alone": alone or None, "all": together}
            for name, samples, alone, _, together, _ in rows
        }
        columns = ["modality", "samples", f"{_METRIC} alone", "95 % interval", f"{_METRIC} of all", "95 % interval"]
        return [Table("Validation: each modality alone", columns, rows, note=_NOTE)] if self._alone else []

    def figures(self) -> dict[str, Any]:
        """The same for `summary.json`."""
        return {"modalities": self._found} if self._alone else {}


def _figure(predictions: Predictions) -> list[Any]:
    low, high = measure_interval(predictions, _METRIC)
    right = predictions["probabilities"].argmax(dim=1) == predictions["label"]
    return [float(right.double().mean()), f"{low:.4f} to {high:.4f}"]

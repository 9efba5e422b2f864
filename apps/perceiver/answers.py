"""Predictions of tasks other than classification, as rows of a table and for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.run.scorer import Shown
from quartet.apps.perceiver.outputs import Outputs

__all__ = ["Answer", "answers", "columns", "listed"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says of one sequence.

    Attributes:
        values: Float64: probabilities of labels [K], numbers [T], of positions [M, T], or the probabilities of their
            classes [M, C].
        outputs: What they are.
    """

    values: NDArray[np.float64]
    outputs: Outputs

    def row(self) -> list[object]:
        """In the order of `columns`."""
        outputs, values = self.outputs, self.values
        if outputs.kind == "multilabel":
            return ["; ".join(self._labels()), *values.tolist()]
        if outputs.classes:
            best = values.argmax(axis=1)
            return [listed([outputs.names[place] for place in best]), listed(values.max(axis=1).tolist())]
        return values.tolist() if values.ndim == 1 else [listed(column.tolist()) for column in values.T]

    def shown(self, *, curves: Mapping[str, Any], notes: Sequence[str] = ()) -> Shown:
        """For people: the input's `curves`, and those of the answer where it is of positions."""
        outputs, values = self.outputs, self.values
        if outputs.kind == "multilabel":
            chances = dict(zip(outputs.names, values.tolist(), strict=True))
            return Shown(
                answer="; ".join(self._labels()) or "none", bars={"probability": chances}, curves=curves, notes=notes
            )
        if outputs.kind == "regression":
            said = (f"{name} {value:.5g}" for name, value in zip(outputs.names, values, strict=True))
            return Shown(answer=", ".join(said), curves=curves, notes=notes)
        called = "forecast" if outputs.horizon else "probability of" if outputs.classes else "predicted"
        before = np.full(max(map(len, curves.values())) - len(values), np.nan)  # what a forecast looks back to
        lines = {f"{called} {name}": np.concatenate([before, values[:, k]]) for k, name in enumerate(outputs.names)}
        return Shown(answer=f"{len(values)} positions", curves={**curves, **lines}, notes=notes)

    @staticmethod
    def mean(several: Sequence["Answer"]) -> "Answer":
        """The mean of what several models say of the same sequence."""
        return Answer(np.mean([one.values for one in several], axis=0), several[0].outputs)

    def _labels(self) -> list[str]:
        return [name for name, chance in zip(self.outputs.names, self.values, strict=True) if chance >= 0.5]


def columns(outputs: Outputs) -> list[str]:
    """Names of what `Answer.row` gives; of positions each cell is a JSON list, one value a position."""
    if outputs.kind == "multilabel":
        return ["labels", *(f"p_{name}" for name in outputs.names)]
    return ["classes", "probabilities"] if outputs.classes else [str(name) for name in outputs.names]


def answers(found: Tensor, batch: Mapping[str, Tensor], outputs: Outputs) -> list[Answer]:
    """The answers to the samples of a batch.

    Args:
        found: What the network gives, [B, outputs] or [B, K, outputs].
        batch: The batch; "asked" [B, K] says what is padded.
        outputs: What the network's outputs are.

    Raises:
        UserError: They are not finite.
    """
    if not bool(found.isfinite().all()):
        raise UserError(
            "the model's answers are not finite: its training has diverged, or it overflows in this precision"
        )
    if outputs.kind == "multilabel":
        found = found.double().sigmoid()
    elif outputs.classes:
        found = found.double().softmax(dim=2)
    values = found.double().numpy() if not outputs.mean else outputs.in_units(found.numpy())
    if not outputs.by_position:
        return [Answer(value, outputs) for value in values]
    return [Answer(value[asked], outputs) for value, asked in zip(values, batch["asked"].numpy(), strict=True)]


def listed(values: Sequence[Any]) -> str:
    """Values of positions as one cell of a table: a JSON list, null where there is none."""
    numbers = (float(f"{value:.7g}") if isinstance(value, float) else value for value in values)
    return json.dumps([None if value != value else value for value in numbers], ensure_ascii=False)

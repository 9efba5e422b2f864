"""The files of an ensemble: `ensemble_predictions.csv`, `ensemble_predictions_meta.json`, `tta_predictions.csv`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_json, write_text
from mlcore.metrics.arrays import FloatArray, IntArray
from quartet.apps.doc_ensemble.ensemble.disagreement import disagreement
from quartet.apps.doc_ensemble.ensemble.selection import fast_macro_f1, log_loss
from quartet.apps.doc_ensemble.ensemble.views import View

__all__ = [
    "META",
    "PREDICTIONS",
    "TTA_PREDICTIONS",
    "EnsemblePredictions",
    "write_ensemble_meta",
    "write_ensemble_predictions",
    "write_tta_predictions",
]

PREDICTIONS = "ensemble_predictions.csv"
META = "ensemble_predictions_meta.json"
TTA_PREDICTIONS = "tta_predictions.csv"


@dataclass(frozen=True, kw_only=True)
class EnsemblePredictions:
    """What an ensemble and its members say of pages.

    Attributes:
        pages: N names, such as "scans/a.pdf#3".
        class_names: C.
        member_names: K.
        ensemble: [N, C] probabilities; the decision is the largest.
        members: [K, N, C] of each member, its views averaged.
        labels: [N] class indices, -1 where unknown; None where all are.
    """

    pages: Sequence[str]
    class_names: Sequence[str]
    member_names: Sequence[str]
    ensemble: FloatArray
    members: FloatArray
    labels: IntArray | None = None

    def __post_init__(self) -> None:
        """Raise `UserError` where the parts do not fit together."""
        rows, classes, members = len(self.pages), len(self.class_names), len(self.member_names)
        labels = rows if self.labels is None else len(self.labels)
        if (
            self.ensemble.shape != (rows, classes)
            or self.members.shape != (members, rows, classes)
            or not 0 < rows == labels
        ):
            raise UserError(
                f"{rows} pages, {labels} labels, {classes} classes and {members} members do not fit probabilities "
                f"{self.ensemble.shape} and {self.members.shape}"
            )

    def scores(self, probabilities: FloatArray) -> dict[str, float] | None:
        """Accuracy, macro F1 and log loss of [N, C] on the labelled pages; None without any."""
        if self.labels is None or not (self.labels >= 0).any():
            return None
        known = np.flatnonzero(self.labels >= 0)
        truth, chances = self.labels[known], probabilities[known]
        predicted = chances.argmax(axis=1)
        return {
            "accuracy": float((predicted == truth).mean()),
            "macro_f1": fast_macro_f1(predicted, truth, classes=len(self.class_names)),
            "log_loss": log_loss(chances, truth),
        }


def write_ensemble_predictions(folder: Path, predictions: EnsemblePredictions) -> Path:
    """Write the decisions: class, its probability, label (where known), how many members vote for it, ...

    ... the entropy of all votes (nats), the probabilities of all classes, and each member's vote.

    Returns:
        The file.

    Raises:
        UserError: It cannot be written.
    """
    decided, compared = predictions.ensemble.argmax(axis=1), disagreement(predictions.members)
    names = np.asarray(predictions.class_names, dtype=object)
    header = [
        "image",
        "predicted",
        "probability",
        *([] if predictions.labels is None else ["label"]),
        "votes",
        "entropy",
    ]
    header += [f"p_{name}" for name in names] + [f"member_{name}" for name in predictions.member_names]
    rows = []
    for row, page in enumerate(predictions.pages):
        chances, votes = predictions.ensemble[row], compared.votes[:, row]
        rows.append(
            [page, names[decided[row]], f"{chances[decided[row]]:.6f}", *_label(predictions, row)]
            + [int((votes == decided[row]).sum()), f"{compared.entropy[row]:.6f}"]
            + [f"{chance:.6f}" for chance in chances]
            + list(names[votes])
        )
    return _write_table(folder / PREDICTIONS, header, rows)


def write_tta_predictions(
    folder: Path, predictions: EnsemblePredictions, *, views: Sequence[View], by_view: FloatArray
) -> Path:
    """Write what looking at several views did: the decision with them and without, how many agree, each view's class.

    Args:
        folder: Where the file goes.
        predictions: With all views.
        views: V, the first of which is the page as it is.
        by_view: [V, N, C] the ensemble's probabilities from each view alone.

    Returns:
        The file.

    Raises:
        UserError: Shapes do not fit together, or it cannot be written.
    """
    if by_view.shape != (len(views), *predictions.ensemble.shape):
        raise UserError(f"probabilities by view {by_view.shape} for {len(views)} views of {predictions.ensemble.shape}")
    names = np.asarray(predictions.class_names, dtype=object)
    decided, chosen = predictions.ensemble.argmax(axis=1), by_view.argmax(axis=2)  # [N], [V, N]
    header = ["image", "predicted", "probability", *([] if predictions.labels is None else ["label"])]
    header += ["without_tta", "views_agreeing", *(f"p_{name}" for name in names), *(f"view_{v.name}" for v in views)]
    rows = []
    for row, page in enumerate(predictions.pages):
        chances = predictions.ensemble[row]
        rows.append(
            [page, names[decided[row]], f"{chances[decided[row]]:.6f}", *_label(predictions, row)]
            + [names[chosen[0, row]], int((chosen[:, row] == decided[row]).sum())]
            + [f"{chance:.6f}" for chance in chances]
            + list(names[chosen[:, row]])
        )
    return _write_table(folder / TTA_PREDICTIONS, header, rows)


def write_ensemble_meta(
    folder: Path,
    predictions: EnsemblePredictions,
    *,
    method: str,
    average: str,
    views: Sequence[View],
    members: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write how the predictions came about, with scores where there are labels, and how far members disagree.

    Args:
        folder: Where the file goes.
        predictions: What the table of predictions holds.
        method: "voting", "averaging", "weighted" or "stacking".
        average: What was averaged: "probabilities" or "logits".
        views: The views that were averaged.
        members: [K] what is known of each: checkpoint, weight, images_per_second, ...; its name and scores are added.
        extra: More keys, such as the selection or the times.

    Returns:
        The file.

    Raises:
        UserError: Not one entry per member, or it cannot be written.
    """
    if len(members) != len(predictions.member_names):
        raise UserError(f"metadata of {len(members)} members for {len(predictions.member_names)} members")
    compared = disagreement(predictions.members)
    scores = predictions.scores(predictions.ensemble)
    if scores is not None and method == "voting":
        del scores["log_loss"]  # shares of votes are no probabilities
    values = {
        "method": method,
        "average": average,
        "num_models": len(members),
        "num_pages": len(predictions.pages),
        "class_names": list(predictions.class_names),
        "scores": scores,
        "models": [
            {"name": name, **metadata, "scores": predictions.scores(predictions.members[index])}
            for index, (name, metadata) in enumerate(zip(predictions.member_names, members, strict=True))
        ],
        "tta": {"enabled": len(views) > 1, "views": [{"name": view.name, "weight": view.weight} for view in views]},
        "disagreement": {
            "mean": compared.mean,
            "pairs": compared.pairs.tolist(),
            "mean_entropy": float(compared.entropy.mean()),
        },
    }
    write_json(folder / META, values | dict(extra or {}))
    return folder / META


def _label(predictions: EnsemblePredictions, row: int) -> list[str]:
    if predictions.labels is None:
        return []
    return [predictions.class_names[predictions.labels[row]] if predictions.labels[row] >= 0 else ""]


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    write_text(path, csv_text(chain([header], rows)))
    return path

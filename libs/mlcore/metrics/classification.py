"""Single-label classification: accuracy, precision, recall, F1, confusion, loss per class, and all of it as one report.

Policy for absent classes (scikit-learn's default, ``zero_division=0``):
a class that is labelled but never predicted has precision 0; one that is predicted but never labelled has recall 0;
both count in the macro averages. A class that is neither is undefined: NaN in its row, left out of the averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_floats, as_labels, as_probabilities
from mlcore.metrics.calibration import brier_score, expected_calibration_error
from mlcore.metrics.ranking import auroc, average_precision

__all__ = [
    "ClassRow",
    "ClassScores",
    "ClassificationReport",
    "accuracy",
    "class_scores",
    "classification_report",
    "confusion_matrix",
]


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1, each 0..1.

    Attributes:
        precision: ``[C]``, NaN where a class is neither labelled nor predicted.
        recall: ``[C]``, NaN likewise; what is often called per-class accuracy.
        f1: ``[C]``, NaN likewise.
        support: ``[C]`` int64, labelled samples.
        macro: plain averages over defined classes: precision, recall, F1. Micro averages, over all decisions, all
            equal the accuracy, as there is one label per sample.
    """

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: IntArray
    macro: tuple[float, float, float]


@dataclass(frozen=True)
class ClassRow:
    """One class of a `ClassificationReport`, in the order of a CSV row; see `ClassScores` for what is NaN."""

    index: int
    name: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float
    loss: float


@dataclass(frozen=True)
class ClassificationReport:
    """Everything about one evaluation of a classifier.

    Attributes:
        samples: N.
        accuracy: 0..1.
        loss: mean of the losses given; NaN when none were.
        scores: precision, recall, F1 of classes and averages.
        auroc: area under the ROC curve, macro one-versus-rest for more than two classes; NaN when undefined.
        average_precision: likewise.
        ece: expected calibration error, 15 bins, 0..1.
        brier: Brier score (see `brier_score`).
        confusion: ``[C, C]`` counts, row = label, column = prediction.
        rows: one `ClassRow` per class.
        notes: why a value is NaN, and which classes were left out of an average.
    """

    samples: int
    accuracy: float
    loss: float
    scores: ClassScores
    auroc: float
    average_precision: float
    ece: float
    brier: float
    confusion: IntArray
    rows: tuple[ClassRow, ...]
    notes: tuple[str, ...]

    def scalars(self) -> dict[str, float]:
        """The numbers for trackers and tables, always the same keys (but ``loss`` only if given); undefined is NaN."""
        precision, recall, f1 = self.scores.macro
        values = {
            "accuracy": self.accuracy,
            "macro_precision": precision,
            "macro_recall": recall,
            "macro_f1": f1,
            "micro_f1": self.accuracy,
            "auroc": self.auroc,
            "average_precision": self.average_precision,
            "ece": self.ece,
            "brier": self.brier,
        }
        return values if np.isnan(self.loss) else {"loss": self.loss} | values


def accuracy(labels: Array, *, predicted: Array) -> float:
    """Share of samples whose prediction is the label, 0..1.

    Args:
        labels: ``[N]`` class indices.
        predicted: ``[N]`` class indices.

    Raises:
        UserError: empty, or lengths differ.
    """
    truth, guess = _pair(labels, predicted, classes=None)
    return float(np.mean(truth == guess))


def confusion_matrix(labels: Array, *, predicted: Array, classes: int) -> IntArray:
    """Counts ``[C, C]`` int64: row = label, column = prediction.

    Args:
        labels: ``[N]`` class indices, 0..classes-1.
        predicted: ``[N]`` class indices, 0..classes-1.
        classes: C.

    Raises:
        UserError: empty, lengths differ, or an index out of range (row named).
    """
    from sklearn.metrics import confusion_matrix as count  # a second to import; scripts that only train do not pay

    truth, guess = _pair(labels, predicted, classes=classes)
    return np.asarray(count(truth, guess, labels=range(classes)), dtype=np.int64)


def class_scores(labels: Array, *, predicted: Array, classes: int) -> ClassScores:
    """Precision, recall, F1 and support of each class, with macro averages; policy in the module's docstring.

    Args:
        labels: ``[N]`` class indices, 0..classes-1.
        predicted: ``[N]`` class indices, 0..classes-1.
        classes: C.

    Raises:
        UserError: empty, lengths differ, or an index out of range (row named).
    """
    from sklearn.metrics import precision_recall_fscore_support as measure

    truth, guess = _pair(labels, predicted, classes=classes)
    values = measure(truth, guess, labels=range(classes), average=None, zero_division=0.0)
    support = np.asarray(values[3], dtype=np.int64)
    seen = (support > 0) | (np.bincount(guess, minlength=classes) > 0)
    precision, recall, f1 = (np.where(seen, value, np.nan) for value in values[:3])
    macro = (float(np.nanmean(precision)), float(np.nanmean(recall)), float(np.nanmean(f1)))
    return ClassScores(precision, recall, f1, support, macro=macro)


def classification_report(
    labels: Array,
    *,
    probabilities: Array,
    losses: Array | None = None,
    class_names: Sequence[str] | None = None,
) -> ClassificationReport:
    """Measure a classifier on complete arrays; the predicted class is the most probable one.

    Args:
        labels: ``[N]`` class indices, 0..C-1.
        probabilities: ``[N, C]``; or ``[N]``, the probability of class 1 of two.
        losses: ``[N]``, one value per sample.
        class_names: C names; None uses the indices.

    Raises:
        UserError: empty, lengths or counts that do not fit, a label out of range, or values that are no probabilities.
    """
    truth = as_labels(labels)
    chances = as_probabilities(probabilities, rows=len(truth))
    classes = chances.shape[1]
    guess = chances.argmax(axis=1)
    names = [str(index) for index in range(classes)] if class_names is None else list(class_names)
    if len(names) != classes:
        raise UserError(f"{len(names)} class names for {classes} classes; give one name per column of the output")
    scores = class_scores(truth, predicted=guess, classes=classes)
    area, precision = auroc(truth, scores=chances), average_precision(truth, scores=chances)
    return ClassificationReport(
        samples=len(truth),
        accuracy=accuracy(truth, predicted=guess),
        loss=float("nan") if losses is None else float(as_floats(losses, name="losses", rows=len(truth)).mean()),
        scores=scores,
        auroc=area.value,
        average_precision=precision.value,
        ece=expected_calibration_error(truth, probabilities=chances),
        brier=brier_score(truth, probabilities=chances),
        confusion=confusion_matrix(truth, predicted=guess, classes=classes),
        rows=_rows(names, scores, guess, _losses_by_class(losses, truth, classes)),
        notes=tuple(dict.fromkeys(note for note in (area.reason, precision.reason) if note)),
    )


def _rows(names: Sequence[str], scores: ClassScores, guess: IntArray, losses: FloatArray) -> tuple[ClassRow, ...]:
    predicted = np.bincount(guess, minlength=len(names))
    columns = (scores.support, predicted, scores.precision, scores.recall, scores.f1, losses)
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    return tuple(ClassRow(index, *row) for index, row in enumerate(rows))


def _losses_by_class(losses: Array | None, truth: IntArray, classes: int) -> FloatArray:
    """Mean loss of each class's samples, ``[C]``; NaN for a class without samples, and for all without losses."""
    if losses is None:
        return np.full(classes, np.nan)
    values = as_floats(losses, name="losses", rows=len(truth)).reshape(len(truth))
    support = np.bincount(truth, minlength=classes)
    total = np.bincount(truth, weights=values, minlength=classes)
    return np.where(support > 0, total / np.maximum(support, 1), np.nan)


def _pair(labels: Array, predicted: Array, *, classes: int | None) -> tuple[IntArray, IntArray]:
    truth = as_labels(labels, classes=classes)
    guess = as_labels(predicted, name="predicted", classes=classes)
    if len(truth) != len(guess):
        raise UserError(f"predicted has {len(guess)} rows, expected {len(truth)}, one per label")
    return truth, guess

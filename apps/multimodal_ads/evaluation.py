"""What an evaluation says: the figures of training, results.json, and the pictures of the report.

Predictions are the evaluator's rows, in the order of the data: "label" int [N] (1: ad, 0: not), "logit" float [N],
"loss" float [N], for a gated fusion "gate" float [N], and where each modality has a logit of its own "picture_logit"
and "text_logit" float [N]. A sample is taken for an ad where its probability, the sigmoid of its logit, is at least the
threshold.

Policy for undefined figures: AUROC and average precision are undefined where only one class is labelled, precision,
recall and F1 of ads where no sample is labelled or taken as one. They are NaN among the figures of training and null,
with a reason, in results.json. With ads labelled and none found, precision, recall and F1 are 0 (as in scikit-learn).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mlcore.metrics.arrays import FloatArray, IntArray, as_floats, as_labels, as_probabilities
from mlcore.metrics.calibration import brier_score, expected_calibration_error, reliability_bins
from mlcore.metrics.classification import accuracy, class_scores, confusion_matrix
from mlcore.metrics.ranking import auroc, auroc_interval, average_precision
from mlcore.report.page import Picture, Section, Text
from mlcore.report.plots.classes import plot_confusion_matrix
from mlcore.report.plots.confidence import plot_confidence_histogram, plot_reliability
from mlcore.run.decision import Decision

__all__ = [
    "CLASS_NAMES",
    "ad_metrics",
    "ad_sections",
    "probabilities_of",
    "results",
    "split_results",
    "undefined_figures",
]

CLASS_NAMES = ("not an ad", "ad")
"""Of the labels 0 and 1."""

_LEVEL = 0.95  # of confidence intervals
_DECISIONS = ("precision", "recall", "f1")
_RANKINGS = ("auroc", "average_precision")


def probabilities_of(predictions: Mapping[str, Tensor]) -> FloatArray:
    """Probability of an ad per sample, float64 ``[N]``, 0..1.

    Raises:
        UserError: no samples, or a logit is not finite (a diverged model).
    """
    from scipy.special import expit

    logits = as_floats(predictions["logit"], name="logit")
    return as_probabilities(expit(logits), rows=len(logits))[:, 1]


def ad_metrics(predictions: Mapping[str, Tensor], threshold: float = 0.5) -> dict[str, float]:
    """Figures for the trainer, the same keys always; what is NaN, and why, says `undefined_figures`.

    Args:
        predictions: See the module.
        threshold: Least probability of what is taken for an ad.

    Returns:
        "loss" (mean), "auroc", "average_precision", "accuracy", "precision", "recall", "f1" (all three of ads), "ece",
        "brier", "positives" (share labelled as ads), and where each modality has a logit of its own "picture_auroc" and
        "text_auroc"; all but the loss 0..1.

    Raises:
        UserError: no samples, a label other than 0 and 1, or a logit that is not finite.
    """
    truth, chances, taken = _decide(predictions, threshold)
    scores = class_scores(truth, predicted=taken, classes=2)
    return {
        "loss": float(as_floats(predictions["loss"], name="loss", rows=len(truth)).mean()),
        "auroc": auroc(truth, scores=chances).value,
        "average_precision": average_precision(truth, scores=chances).value,
        "accuracy": accuracy(truth, predicted=taken),
        "precision": float(scores.precision[1]),
        "recall": float(scores.recall[1]),
        "f1": float(scores.f1[1]),
        "ece": expected_calibration_error(truth, probabilities=chances),
        "brier": brier_score(truth, probabilities=chances),
        "positives": float(truth.mean()),
        **{
            f"{name}_auroc": auroc(truth, scores=as_floats(predictions[f"{name}_logit"], name=name)).value
            for name in ("picture", "text")
            if f"{name}_logit" in predictions
        },
    }


def undefined_figures(predictions: Mapping[str, Tensor], threshold: float = 0.5) -> dict[str, str]:
    """Why figures of `ad_metrics` are NaN, by name; empty where all are defined."""
    values = ad_metrics(predictions, threshold)
    labelled = CLASS_NAMES[int(values["positives"])]
    reasons = dict.fromkeys(_RANKINGS, f"every sample is labelled as '{labelled}': there is nothing to rank")
    reasons |= dict.fromkeys(_DECISIONS, "no sample is labelled or taken as an ad")
    return {name: reason for name, reason in reasons.items() if math.isnan(values[name])}


def results(decision: Decision, splits: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """The contents of results.json: all splits at the decision that validation chose.

    Args:
        decision: The run's.
        splits: Predictions by split: "val", "test".

    Returns:
        "threshold" (its value, what it was chosen on and by, and a note where what was asked for is not reached), and
        what `split_results` gives of each split; plain values for `mlcore.base.files.write_json`.

    Raises:
        UserError: As in `ad_metrics`.
    """
    about: dict[str, Any] = {"value": decision.threshold, "chosen_on": decision.chosen_on}
    if decision.chosen_on is not None:
        about |= {"maximises": "f1"} if decision.rule == "f1" else {"rule": decision.rule, "asked": decision.value}
    about |= {} if decision.lower is None else {"lower": decision.lower}
    about |= {"note": decision.note} if decision.note else {}
    at = decision.threshold
    return {"threshold": about, **{name: split_results(rows, threshold=at) for name, rows in splits.items()}}


def split_results(predictions: Mapping[str, Tensor], *, threshold: float) -> dict[str, Any]:
    """One split of results.json, such as `test.py` writes for any table.

    Args:
        predictions: See the module.
        threshold: Chosen on other data.

    Returns:
        "n", "positives" (count), "threshold", the figures of `ad_metrics`, "auroc_interval" (95 % bootstrap),
        "confusion_matrix" (with the names of rows and columns), "reliability_bins" (by confidence in the more probable
        class), and "undefined": the reasons for null.

    Raises:
        UserError: As in `ad_metrics`.
    """
    truth, chances, taken = _decide(predictions, threshold)
    figures = ad_metrics(predictions, threshold)
    area = auroc_interval(truth, scores=chances, level=_LEVEL)
    known = not math.isnan(area.low)
    return {
        "n": len(truth),
        "positives": int(truth.sum()),
        "threshold": threshold,
        **{name: _number(value) for name, value in figures.items() if name != "positives"},
        "auroc_interval": {"level": _LEVEL, "low": area.low, "high": area.high} if known else None,
        "confusion_matrix": {
            "rows": [f"labelled: {name}" for name in CLASS_NAMES],
            "columns": [f"predicted: {name}" for name in CLASS_NAMES],
            "counts": confusion_matrix(truth, predicted=taken, classes=2).tolist(),
        },
        "reliability_bins": _bins(truth, chances),
        "undefined": undefined_figures(predictions, threshold),
    }


def ad_sections(
    predictions: Mapping[str, Tensor], *, threshold: float, folder: Path, prefix: str = ""
) -> list[Section]:
    """Draw an evaluation for the report.

    Writes `{prefix}confusion_matrix.png`, `{prefix}reliability.png` and `{prefix}confidence_histogram.png`.

    Args:
        predictions: See the module.
        threshold: Least probability of what is taken for an ad.
        folder: Where the files go; it exists.
        prefix: Start of every file's name, such as "test_".

    Raises:
        UserError: As in `ad_metrics`, or a file cannot be written.
    """
    truth, chances, taken = _decide(predictions, threshold)
    title = {"": "Validation"}.get(prefix, prefix.strip("_").capitalize())
    matrix = plot_confusion_matrix(
        confusion_matrix(truth, predicted=taken, classes=2),
        class_names=CLASS_NAMES,
        path=folder / f"{prefix}confusion_matrix.png",
    )
    bins = reliability_bins(truth, probabilities=chances)
    reliability = plot_reliability(bins, path=folder / f"{prefix}reliability.png")
    # How sure the model is does not depend on where the threshold is.
    confidence, right = np.maximum(chances, 1 - chances), (chances >= 0.5) == truth
    histogram = plot_confidence_histogram(confidence, right=right, path=folder / f"{prefix}confidence_histogram.png")
    sections: list[Section] = [
        Picture(f"{title}: confusion matrix", matrix, note=f"threshold {threshold:.3g}"),
        Picture(f"{title}: reliability", reliability, note="threshold 0.5"),
        Picture(f"{title}: confidence", histogram, note="threshold 0.5"),
    ]
    reasons = undefined_figures(predictions, threshold)
    if reasons:
        lines = "\n".join(f"{name}: {reason}" for name, reason in reasons.items())
        sections.append(Text(f"{title}: undefined figures", lines))
    return sections


def _decide(predictions: Mapping[str, Tensor], threshold: float) -> tuple[IntArray, FloatArray, IntArray]:
    """Labels, probabilities and decisions, ``[N]`` each."""
    truth = as_labels(predictions["label"], name="label", classes=2)
    chances = probabilities_of(predictions)
    return truth, chances, (chances >= threshold).astype(np.int64)


def _bins(truth: IntArray, chances: FloatArray) -> list[dict[str, float | int | None]]:
    """The reliability diagram as rows."""
    bins = reliability_bins(truth, probabilities=chances)
    return [
        {
            "from": float(bins.edges[place]),
            "to": float(bins.edges[place + 1]),
            "count": int(bins.count[place]),
            "confidence": _number(float(bins.confidence[place])),
            "accuracy": _number(float(bins.accuracy[place])),
        }
        for place in range(len(bins.count))
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value

"""Differences of cross-validations that held out the same samples: by pairs, so that what both find hard cancels."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlcore.metrics.arrays import FloatArray, IntArray
from mlcore.metrics.ranking import Interval, bootstrap_interval
from mlcore.report.classification import resampled_macro_f1
from mlcore.run.out_of_fold import read_out_of_fold

__all__ = ["Difference", "difference"]

Rows = Mapping[str, Any]
"""What a cross-validation kept: "name" and "unit" [N], predictions [seeds, N, ...]."""


class Difference(NamedTuple):
    """Of a figure of one run from that of another one, on the same samples.

    Attributes:
        value: The difference.
        interval: Its 95 % interval; what belongs together is drawn together.
    """

    value: float
    interval: Interval

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.interval.low <= 0 <= self.interval.high


def difference(folder: Path, other: Path, *, metric: str) -> Difference | None:
    """How a figure of one cross-validation differs from another's; None where it cannot be told by pairs.

    Args:
        folder: Of the one; its figure less the other's.
        other: Of the other one, with the same samples.
        metric: "accuracy", "macro_f1", "auroc" (of two classes) or "loss".

    Raises:
        UserError: A file of predictions is damaged.
    """
    if folder == other:
        return None
    one, two = read_out_of_fold(folder), read_out_of_fold(other)
    if (
        one is None
        or two is None
        or one["name"].tolist() != two["name"].tolist()
        or not np.array_equal(one["label"][0], two["label"][0])
    ):
        return None
    figures = [_figure(rows, metric) for rows in (one, two)]
    first, second = figures
    if first is None or second is None:
        return None

    def of(times: IntArray) -> float:
        return first(times) - second(times)

    value = of(np.ones(len(one["name"]), dtype=np.int64))
    return Difference(value, bootstrap_interval(of, units=one["unit"])) if math.isfinite(value) else None


def _figure(rows: Rows, metric: str) -> Callable[[IntArray], float] | None:
    """The figure's mean over seeds, from how often each sample counts; None for a figure that is not known here."""
    label = rows["label"][0]
    scores = rows.get("probabilities", rows.get("logit"))
    if metric == "loss" and "loss" in rows:
        return partial(_weighted, rows["loss"].mean(axis=0))
    if scores is None:
        return None
    guesses = scores.argmax(axis=2) if scores.ndim == 3 else (scores >= 0).astype(np.int64)
    if metric == "accuracy":
        return partial(_weighted, (guesses == label).mean(axis=0))
    if metric == "macro_f1":
        classes = int(max(label.max(), guesses.max())) + 1
        return lambda times: float(
            np.mean([resampled_macro_f1(label, guess, times=times, classes=classes) for guess in guesses])
        )
    if metric == "auroc" and set(label.tolist()) == {0, 1}:
        positive = scores[..., 1] if scores.ndim == 3 else scores
        return lambda times: float(np.mean([_auroc(label, score, times) for score in positive]))
    return None


def _weighted(values: FloatArray, times: IntArray) -> float:
    return float(np.average(values, weights=times))


def _auroc(label: IntArray, scores: FloatArray, times: IntArray) -> float:
    from sklearn.metrics import roc_auc_score  # takes a second to import

    drawn = times > 0
    if len(set(label[drawn].tolist())) < 2:
        return math.nan
    return float(roc_auc_score(label[drawn], scores[drawn], sample_weight=times[drawn]))

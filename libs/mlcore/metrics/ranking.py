"""How well scores rank samples: AUROC and average precision, and intervals around a number.

Both are undefined for a class without positives or without negatives. Such a value is NaN
and says why; it never raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_floats, as_labels

__all__ = ["Interval", "Score", "auroc", "auroc_interval", "average_precision", "bootstrap_interval"]


class Score(NamedTuple):
    """A value that may be undefined.

    Attributes:
        value: NaN when undefined.
        reason: why it is NaN, or which classes were left out of the average; empty when there is nothing to say.
    """

    value: float
    reason: str


class Interval(NamedTuple):
    """A two-sided confidence interval; NaN when undefined."""

    low: float
    high: float


def auroc(labels: Array, *, scores: Array) -> Score:
    """Area under the ROC curve, 0..1; with more than two classes the macro average of one-versus-rest areas.

    Args:
        labels: ``[N]`` class indices; 0 and 1 for binary scores.
        scores: ``[N]`` (higher means class 1), ``[N, 2]`` (column 1 is the score), or ``[N, C]`` with one column per
            class. Any monotonic score will do for ``[N]``; columns should be comparable, as probabilities are.

    Returns:
        The area; NaN with a reason when only one class is labelled or a score is NaN. Classes that lack positives or
        negatives are left out of the average and named.

    Raises:
        UserError: empty, lengths differ, or a label out of range.
    """
    from sklearn.metrics import roc_auc_score

    return _one_versus_rest(labels, scores, measure=roc_auc_score, name="AUROC")


def average_precision(labels: Array, *, scores: Array) -> Score:
    """Average precision, the step-wise area under the precision-recall curve, 0..1; macro over classes.

    Args:
        labels: as in `auroc`.
        scores: as in `auroc`.

    Returns:
        As in `auroc`; undefined for the same classes, so that both are averages over the same ones.

    Raises:
        UserError: empty, lengths differ, or a label out of range.
    """
    from sklearn.metrics import average_precision_score

    return _one_versus_rest(labels, scores, measure=average_precision_score, name="average precision")


def auroc_interval(
    labels: Array, *, scores: Array, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a binary AUROC, resampled within each class; the same for the same seed.

    Args:
        labels: ``[N]``, 0 or 1.
        scores: ``[N]`` or ``[N, 2]``, as in `auroc`.
        level: coverage, above 0 and below 1.
        resamples: bootstrap samples; 1000 of 2,000 scores take about a second.
        seed: of the resampling.

    Returns:
        The interval; NaN when the AUROC is undefined.

    Raises:
        UserError: empty, lengths differ, more than two classes, or ``level`` out of range.
    """
    from scipy.stats import rankdata

    if not 0.0 < level < 1.0:
        raise UserError(f"level is {level}, expected a number above 0 and below 1, such as 0.95")
    truth, columns = _binary_columns(labels, scores)
    if columns.shape[1] != 1:
        raise UserError(f"the AUROC interval is for two classes, scores have {columns.shape[1]} columns")
    positive, negative = columns[truth == 1, 0], columns[truth == 0, 0]
    if not len(positive) or not len(negative) or np.isnan(columns).any():
        return Interval(float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    areas = np.empty(resamples)
    for index in range(resamples):
        drawn = rng.choice(positive, len(positive)), rng.choice(negative, len(negative))
        ranks = rankdata(np.concatenate(drawn))[: len(positive)]
        # Mann-Whitney U: pairs ranked rightly, ties half
        areas[index] = (ranks.sum() / len(positive) - (len(positive) + 1) / 2) / len(negative)
    low, high = np.quantile(areas, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def bootstrap_interval(
    figure: Callable[[IntArray], float], *, units: Array, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of any figure (Efron 1979); units are drawn whole; the same for the same seed.

    Args:
        figure: From how often each sample is drawn, ``[N]``, to its value; draws with NaN are left out.
        units: ``[N]``, what a sample belongs to: samples of one unit, such as a patient's scans, are alike.
        level: coverage, above 0 and below 1.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        The interval; NaN where no draw differs from another, of which nothing can be said.
    """
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    count, rng = int(unit.max()) + 1, np.random.default_rng(seed)
    values = [figure(np.bincount(rng.integers(count, size=count), minlength=count)[unit]) for _ in range(resamples)]
    found = np.array(values)[np.isfinite(values)]
    if not len(found) or found.min() == found.max():
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _one_versus_rest(labels: Array, scores: Array, *, measure: Callable[..., float], name: str) -> Score:
    truth, columns = _binary_columns(labels, scores)
    if np.isnan(columns).any():
        return Score(float("nan"), f"{name} is undefined: {int(np.isnan(columns).any(axis=1).sum())} scores are NaN")
    # A single column scores class 1; otherwise column c scores class c.
    asked = [1] if columns.shape[1] == 1 else list(range(columns.shape[1]))
    counted = [label for label in asked if 0 < np.count_nonzero(truth == label) < len(truth)]
    if not counted:
        return Score(float("nan"), f"{name} is undefined: every sample is of class {truth[0]}")
    values = [measure(truth == label, columns[:, asked.index(label)]) for label in counted]
    left_out = sorted(set(asked) - set(counted))
    reason = f"{name} leaves out classes without samples: {', '.join(map(str, left_out))}" if left_out else ""
    return Score(float(np.mean(values)), reason)


def _binary_columns(labels: Array, scores: Array) -> tuple[IntArray, FloatArray]:
    """Labels ``[N]`` and scores ``[N, 1]`` (two classes) or ``[N, C]``."""
    truth = as_labels(labels)
    columns = as_floats(scores, name="scores", rows=len(truth))
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2:
        raise UserError(f"scores have shape {columns.shape}, expected [samples] or [samples, classes]")
    as_labels(truth, classes=max(columns.shape[1], 2))
    return truth, columns[:, 1:] if columns.shape[1] == 2 else columns

"""Figures of classifiers from how often each sample counts, in microseconds, for the many draws of a bootstrap."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlcore.metrics.arrays import FloatArray, IntArray
from mlcore.metrics.ranking import Interval, bootstrap_interval

__all__ = ["Difference", "Figure", "figure_of", "paired_difference", "resampled", "resampled_macro_f1"]

Figure = Callable[[IntArray], float]
"""From how often each sample counts, ``[N]``, to the figure."""


class Difference(NamedTuple):
    """Of a figure of one model from that of another one, on the same samples.

    Attributes:
        value: The difference.
        interval: Its 95 % interval; what belongs together is drawn together.
    """

    value: float
    interval: Interval

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero; without one, as where all is the same, nothing is sure."""
        return self.interval.low > 0 or self.interval.high < 0


def paired_difference(one: Figure, other: Figure, *, units: Sequence[object] | NDArray[Any]) -> Difference | None:
    """A figure of one model less that of another one, by pairs, so that what both find hard cancels.

    Args:
        one: The figure of N samples.
        other: That of the same samples.
        units: What each belongs to, N (see `bootstrap_interval`).

    Returns:
        None where a figure is undefined.
    """

    def of(times: IntArray) -> float:
        return one(times) - other(times)

    value = of(np.ones(len(units), dtype=np.int64))
    return Difference(value, bootstrap_interval(of, units=units)) if math.isfinite(value) else None


def figure_of(metric: str, rows: Mapping[str, Any]) -> Figure | None:
    """`resampled` of rows of predictions as arrays: "label", "probabilities" or "logit", and perhaps "loss".

    None, too, for rows that are no classifier's, but of their "loss".
    """
    if metric == "loss" and "loss" in rows:
        return partial(_weighted, rows["loss"])
    scores = rows.get("probabilities", rows.get("logit"))
    if scores is None or "label" not in rows:
        return None
    return resampled(metric, labels=rows["label"].astype(np.int64), scores=scores, losses=rows.get("loss"))


def resampled(metric: str, *, labels: IntArray, scores: FloatArray, losses: FloatArray | None = None) -> Figure | None:
    """A figure of N samples; None for one that is not known here.

    Args:
        metric: "accuracy", "macro_f1", "loss" or, of two classes, "auroc".
        labels: ``[N]``.
        scores: Probabilities ``[N, C]``, or logits of class 1 of two, ``[N]``.
        losses: ``[N]``.
    """
    guesses = scores.argmax(axis=1) if scores.ndim == 2 else (scores >= 0).astype(np.int64)
    if metric == "accuracy":
        return partial(_weighted, labels == guesses)
    if metric == "loss" and losses is not None:
        return partial(_weighted, losses)
    if metric == "macro_f1":
        classes = int(max(labels.max(), guesses.max())) + 1
        return lambda times: resampled_macro_f1(labels, guesses, times=times, classes=classes)
    if metric == "auroc" and set(labels.tolist()) == {0, 1}:
        return _auroc(labels, scores[:, 1] if scores.ndim == 2 else scores)
    return None


def resampled_macro_f1(labels: IntArray, predicted: IntArray, *, times: IntArray, classes: int) -> float:
    """Macro F1 of samples each of which counts some times: labels, predicted classes and counts, ``[N]`` each."""
    hit = labels == predicted
    right = np.bincount(labels[hit], weights=times[hit], minlength=classes)
    total = np.bincount(labels, weights=times, minlength=classes) + np.bincount(predicted, times, minlength=classes)
    return float((2 * right[total > 0] / total[total > 0]).mean())


def _weighted(values: NDArray[Any], times: IntArray) -> float:
    return float(np.average(values, weights=times))


def _auroc(labels: IntArray, scores: FloatArray) -> Figure:
    """Share of pairs of both classes that the scores rank rightly, ties half (Mann-Whitney); sorted once for all."""
    order = np.argsort(scores)
    is_one, ascending = labels[order] == 1, scores[order]
    is_first = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))  # of equal scores
    are_numbers = not np.isnan(scores).any()

    def of(times: IntArray) -> float:
        drawn = times[order]
        positive, negative = (np.add.reduceat(drawn * kind, is_first) for kind in (is_one, ~is_one))
        pairs = float(positive.sum()) * float(negative.sum())
        below = negative.cumsum() - negative / 2
        return float(positive @ below) / pairs if pairs and are_numbers else math.nan

    return of

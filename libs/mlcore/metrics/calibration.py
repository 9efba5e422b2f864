"""Does a stated 80 % come true 8 times in 10? Expected calibration error, reliability bins, Brier score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_labels, as_probabilities

__all__ = ["ReliabilityBins", "brier_score", "expected_calibration_error", "reliability_bins"]


@dataclass(frozen=True)
class ReliabilityBins:
    """Samples grouped by the confidence of their predicted class.

    Attributes:
        edges: ``[B + 1]``, from 0 to 1, equal widths; bin i holds confidences in ``(edges[i], edges[i + 1]]``, the
            first one 0 too.
        count: ``[B]`` int64.
        confidence: ``[B]`` mean confidence, NaN for an empty bin.
        accuracy: ``[B]`` share of right predictions, NaN for an empty bin.
    """

    edges: FloatArray
    count: IntArray
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def error(self) -> float:
        """The calibration error of these bins; an empty one weighs nothing."""
        gap = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.count * gap).sum() / self.count.sum())


def reliability_bins(labels: Array, *, probabilities: Array, bins: int = 15) -> ReliabilityBins:
    """Group samples by confidence, the probability of the predicted (most probable) class.

    Args:
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``; or ``[N]``, the probability of class 1 of two.
        bins: number of equal-width bins over 0..1.

    Raises:
        UserError: empty, lengths differ, a label out of range, no probabilities, or ``bins`` below 1.
    """
    if bins < 1:
        raise UserError(f"bins is {bins}, expected at least 1")
    truth, chances = _inputs(labels, probabilities)
    confidence = chances.max(axis=1)
    right = (chances.argmax(axis=1) == truth).astype(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(place, minlength=bins).astype(np.int64)
    divisor = np.where(count > 0, count, np.nan)
    return ReliabilityBins(
        edges=edges,
        count=count,
        confidence=np.bincount(place, weights=confidence, minlength=bins) / divisor,
        accuracy=np.bincount(place, weights=right, minlength=bins) / divisor,
    )


def expected_calibration_error(labels: Array, *, probabilities: Array, bins: int = 15) -> float:
    """ECE, the mean over samples of ``|accuracy - confidence|`` of their bin, 0..1 (Naeini et al. 2015).

    Bins are 15 of equal width unless told; confidence is that of the predicted class (Guo et al. 2017).

    Args:
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``; or ``[N]``, the probability of class 1 of two.
        bins: number of equal-width bins over 0..1.

    Raises:
        UserError: as in `reliability_bins`.
    """
    return reliability_bins(labels, probabilities=probabilities, bins=bins).error


def brier_score(labels: Array, *, probabilities: Array) -> float:
    """Mean squared distance between probabilities and the one-hot label (Brier 1950).

    Args:
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``; or ``[N]``, the probability of class 1 of two.

    Returns:
        For two classes ``mean((p1 - y)^2)``, 0..1; for more the sum over classes, 0..2 (scikit-learn's convention).

    Raises:
        UserError: empty, lengths differ, a label out of range, or no probabilities.
    """
    from sklearn.metrics import brier_score_loss

    truth, chances = _inputs(labels, probabilities)
    return float(brier_score_loss(truth, chances, labels=range(chances.shape[1])))


def _inputs(labels: Array, probabilities: Array) -> tuple[IntArray, FloatArray]:
    truth = as_labels(labels)
    chances = as_probabilities(probabilities, rows=len(truth))
    return as_labels(truth, classes=chances.shape[1]), chances

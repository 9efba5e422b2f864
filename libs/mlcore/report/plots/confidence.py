"""Pictures of how far a classifier's confidence can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.metrics.calibration import ReliabilityBins
from mlcore.report.plots.style import BAD, DASHED, GOOD, INK, MUTED, TRAIN, VAL, picture

__all__ = ["plot_accuracy_by_confidence", "plot_confidence_histogram", "plot_reliability"]


def plot_reliability(bins: ReliabilityBins, *, path: Path, title: str = "Reliability") -> Path:
    """Draw accuracy over confidence with the gap to honesty shaded, above the number of samples per bin.

    Args:
        bins: As `reliability_bins` makes them.
        path: the PNG to write.
        title: above the picture; the calibration error of these bins is added.

    Returns:
        `path`.

    Raises:
        UserError: The file cannot be written.
    """
    number, sure, right = bins.count, bins.confidence, bins.accuracy
    width = np.diff(bins.edges)
    middle = bins.edges[:-1] + width / 2
    with picture(path, width=5.4, height=6.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.bar(middle, right, width * 0.92, color=TRAIN, alpha=0.85, label="accuracy")
        bottom, gap = np.fmin(right, sure), np.abs(right - sure)
        upper.bar(
            middle, gap, width * 0.92, bottom=bottom, facecolor="#cf3f5633", edgecolor=BAD, hatch="////", linewidth=0.6,
            label="gap to confidence",
        )  # fmt: skip
        upper.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=DASHED, label="honest")
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("accuracy")
        upper.set_title(f"{title}   calibration error {bins.error:.1%}")
        upper.legend(loc="upper left")
        lower.bar(middle, number, width * 0.92, color="#a9b4bf")
        lower.set_ylabel("samples")
        lower.set_xlabel("confidence (probability of the predicted class)")
        lower.grid(visible=False, axis="x")
    return path


def plot_confidence_histogram(
    confidence: Sequence[float] | NDArray[Any], *, right: Sequence[bool] | NDArray[Any], path: Path
) -> Path:
    """Draw how sure the model is where it is right, and where it is wrong (below the axis).

    Args:
        confidence: ``[N]`` probability of the predicted class, 0..1.
        right: ``[N]`` whether the prediction is the label.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: empty, lengths differ, or the file cannot be written.
    """
    sure, good = _samples(confidence, right)
    edges = np.linspace(min(float(sure.min()), 0.99), 1.0, 31)
    middle, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    with picture(path, width=7.2, height=4.0) as figure:
        axes = figure.add_subplot()
        for chosen, sign, color, word in ((good, 1, GOOD, "right"), (~good, -1, BAD, "wrong")):
            number = np.histogram(sure[chosen], edges)[0]
            mean = f", mean confidence {sure[chosen].mean():.2f}" if chosen.any() else ""
            label = f"{word}: {int(chosen.sum()):,}{mean}"
            axes.bar(middle, sign * number, width * 0.92, color=color, alpha=0.85, label=label)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
        axes.set_title("Confidence of right and wrong predictions")
        axes.set_xlabel("confidence (probability of the predicted class)")
        axes.set_ylabel("samples")
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper left")
    return path


def plot_accuracy_by_confidence(
    confidence: Sequence[float] | NDArray[Any], *, right: Sequence[bool] | NDArray[Any], path: Path
) -> Path:
    """Draw what is gained by leaving unsure samples to a person: accuracy and share kept over the threshold.

    Args:
        confidence: ``[N]`` probability of the predicted class, 0..1.
        right: ``[N]`` whether the prediction is the label.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: empty, lengths differ, or the file cannot be written.
    """
    sure, good = _samples(confidence, right)
    order = np.argsort(-sure, kind="stable")
    sure, good = sure[order], good[order]
    kept = np.arange(1, len(sure) + 1)
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))  # samples of one confidence are kept together
    with picture(path, width=7.2, height=4.0) as figure:
        axes = figure.add_subplot()
        axes.step(sure[last], (np.cumsum(good) / kept)[last], where="pre", color=TRAIN, label="accuracy of those kept")
        axes.step(sure[last], (kept / len(sure))[last], where="pre", color=VAL, label="share kept")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylim(0, 1.02)
        axes.set_title(f"Keeping only confident predictions   all {len(sure):,}: {good.mean():.1%} right")
        axes.set_xlabel("least confidence kept")
        axes.legend(loc="lower left")
    return path


def _samples(confidence: Any, right: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    sure, good = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if sure.ndim != 1 or sure.shape != good.shape or len(sure) == 0:
        raise UserError(f"confidence {sure.shape} and right {good.shape} must be one value per sample, at least one")
    return sure, good

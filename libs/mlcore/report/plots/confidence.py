"""Pictures of how far a classifier's confidence can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.metrics.calibration import ReliabilityBins
from mlcore.metrics.operating_points import wilson_interval
from mlcore.report.plots.style import BAD, DASHED, GOOD, INK, SUBTITLE, TRAIN, VAL, picture

__all__ = ["plot_accuracy_by_confidence", "plot_confidence_histogram", "plot_reliability"]


def plot_reliability(bins: ReliabilityBins, *, path: Path) -> Path:
    """Draw accuracy over confidence, with what sets it apart from perfect calibration, above the samples of each bin.

    An accuracy has its 95 % Wilson interval: one whose interval meets the diagonal is no sign of bad calibration.

    Args:
        bins: As `reliability_bins` makes them.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: The file cannot be written.
    """
    held = np.flatnonzero(bins.count)
    number, sure, right = bins.count[held], bins.confidence[held], bins.accuracy[held]
    width = 0.92 * np.diff(bins.edges)[held]
    middle = (bins.edges[held] + bins.edges[held + 1]) / 2
    hits = np.rint(right * number).astype(int)
    low, high = zip(*(wilson_interval(int(h), int(n)) for h, n in zip(hits, number, strict=True)), strict=True)
    with picture(path, width=5.4, height=6.2) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.1])
        upper.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=DASHED, label="perfectly calibrated")
        upper.bar(middle, right, width, color=TRAIN, alpha=0.55, label="accuracy")
        upper.hlines(sure, middle - width / 2, middle + width / 2, color=BAD, linewidth=2.2, label="mean confidence")
        upper.vlines(middle, low, high, color=INK, linewidth=1.3, label="95 % interval of the accuracy")
        upper.set(xlim=(0, 1), ylim=(0, 1.04), ylabel="accuracy")
        upper.set_title(f"expected calibration error {bins.error:.1%}", **SUBTITLE)
        figure.legend(loc="outside lower left", ncols=2)
        lower.bar(middle, number, width, color="#a9b4bf")
        for place, count in zip(middle, number, strict=True):
            lower.annotate(f"{count:,}", (place, count), (0, 2), textcoords="offset points", ha="center", fontsize=7)
        lower.margins(y=0.25)
        lower.set(ylabel="samples", xlabel="confidence (probability of the predicted class)")
        lower.grid(visible=False, axis="x")
    return path


def plot_confidence_histogram(
    confidence: Sequence[float] | NDArray[Any], *, right: Sequence[bool] | NDArray[Any], path: Path
) -> Path:
    """Draw how sure the model is where it is right, and below, on an axis of its own, where it is wrong.

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
    with picture(path, width=7.2, height=4.6) as figure:
        panels = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, 1])
        for axes, chosen, color, word in ((panels[0], good, GOOD, "right"), (panels[1], ~good, BAD, "wrong")):
            number = np.histogram(sure[chosen], edges)[0]
            mean = f", mean confidence {sure[chosen].mean():.2f}" if chosen.any() else ""
            axes.bar(middle, number, width * 0.92, color=color, alpha=0.85)
            axes.set_title(f"{word}: {int(chosen.sum()):,}{mean}", **SUBTITLE)
            axes.set(ylabel="samples", ylim=(0, 1.05 * max(1, number.max())))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(visible=False, axis="x")
        panels[1].set_xlabel("confidence (probability of the predicted class)")
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
        axes.set_title(f"all {len(sure):,}: {good.mean():.1%} right", **SUBTITLE)
        axes.set_xlabel("least confidence kept")
        axes.legend(loc="lower left")
    return path


def _samples(confidence: Any, right: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    sure, good = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if sure.ndim != 1 or sure.shape != good.shape or len(sure) == 0:
        raise UserError(f"confidence {sure.shape} and right {good.shape} must be one value per sample, at least one")
    return sure, good

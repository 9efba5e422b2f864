"""Pictures of a decision: what other thresholds would give, and the one that is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_labels, as_probabilities
from mlcore.metrics.operating_points import OperatingPoint, Rate, measure_kept, measure_point, wilson_interval
from mlcore.metrics.ranking import auroc, auroc_interval
from mlcore.report.plots.style import DASHED, GOOD, INK, MUTED, SUBTITLE, TRAIN, VAL, note, picture

__all__ = ["plot_kept", "plot_operating_point"]

_CLOSE = 0.4  # range of scores below which the axis shows no more than it


def plot_operating_point(
    labels: Array,
    *,
    scores: Array,
    threshold: float,
    path: Path,
    lower: float | None = None,
    positive: str = "positives",
) -> Path:
    """Draw the ROC curve with the point used on it, and precision, recall and F1 over the threshold.

    Args:
        labels: ``[N]``, 0 or 1, both of them.
        scores: ``[N]`` probabilities of class 1 (or ``[N, 2]``).
        threshold: From here on a sample is taken for class 1.
        path: The PNG to write.
        lower: Below it a sample is taken for class 0; what lies between is shaded. None: as `threshold`.
        positive: What samples of class 1 are called.

    Returns:
        `path`.

    Raises:
        UserError: one class only, values that are no probabilities, or the file cannot be written.
    """
    truth = as_labels(labels, classes=2)
    chances = as_probabilities(scores, rows=len(truth))[:, 1]
    area = auroc(truth, scores=chances)
    if np.isnan(area.value):
        raise UserError(area.reason)
    low, high = auroc_interval(truth, scores=chances)
    point = measure_point(truth, scores=chances, threshold=threshold, lower=lower)
    with picture(path, width=10.4, height=4.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
        _roc(left, truth, chances, point, word=positive)
        left.set_title(f"AUROC {area.value:.3f}, 95 % interval {low:.3f} to {high:.3f}", **SUBTITLE)
        _over_threshold(right, truth, chances, point)
        words = (
            f"{int(truth.sum()):,} {positive} among {len(truth):,} samples. Dot with 95 % intervals, and dashed: used."
        )
        note(left, words + (" Shaded: left to a person." if point.lower < threshold else ""))
    return path


def plot_kept(labels: Array, *, probabilities: Array, least: Sequence[float] | FloatArray, path: Path) -> Path:
    """Draw how often predictions are right over the share of them that is kept, the surest first, and what is kept.

    The curve is that of one threshold for all classes; with one for each class, the point may lie beside it.

    Args:
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``.
        least: ``[C]`` least probability of each predicted class that is kept.
        path: The PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: As `measure_kept`, or the file cannot be written.
    """
    point = measure_kept(labels, probabilities=probabilities, least=least)
    chances = as_probabilities(probabilities, rows=len(as_labels(labels)))
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == as_labels(labels)
    order = np.argsort(-sure, kind="stable")
    last = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))  # equal ones are kept together
    found, kept = np.cumsum(right[order])[last], last + 1
    share, accuracy = kept / len(sure), found / kept
    low, high = np.array([wilson_interval(*pair) for pair in zip(found.tolist(), kept.tolist(), strict=True)]).T
    with picture(path, width=7.2, height=4.4) as figure:
        axes = figure.add_subplot()
        axes.plot(share, accuracy, color=TRAIN, label="one threshold for all classes")
        axes.fill_between(share, low, high, color=TRAIN, alpha=0.12, linewidth=0, label="95 % interval")
        if point.kept.hits:
            _dot(axes, point.kept, point.right)
        words = (
            f"kept {point.kept.value:.1%}, of them right {point.right.value:.1%}" if point.kept.hits else "none kept"
        )
        axes.set_title(f"{words}; all {len(sure):,}: {right.mean():.1%} right", **SUBTITLE)
        bottom = min(float(accuracy.min()), point.right.value if point.kept.hits else 1.0)
        axes.set(xlim=(0, 1.02), ylim=(max(0.0, bottom - 0.08), 1.01))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g}%")
        axes.set_xlabel("share of predictions that is kept, the surest first")
        axes.set_ylabel("right ones of those kept")
        axes.legend(loc="best")
    return path


def _dot(axes: Axes, x: Rate, y: Rate) -> None:
    """A point with the 95 % intervals of both shares."""
    (left, right), (low, high) = x.interval, y.interval
    axes.errorbar(
        [x.value],
        [y.value],
        xerr=[[x.value - left], [right - x.value]],
        yerr=[[y.value - low], [high - y.value]],
        fmt="o",
        color=VAL,
        markersize=8,
        elinewidth=1.4,
        zorder=3,
        label="used",
    )


def _roc(axes: Axes, truth: IntArray, chances: FloatArray, point: OperatingPoint, *, word: str) -> None:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(truth, chances, drop_intermediate=False)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=DASHED)
    axes.plot(false, true, color=TRAIN)
    axes.fill_between(false, true, color=TRAIN, alpha=0.08, linewidth=0)
    rates = point.rates()
    alarms, found = rates["fpr"].value, rates["recall"].value
    _dot(axes, rates["fpr"], rates["recall"])
    low = found < 0.2  # words below it would be on the axis
    away = (12 if alarms < 0.6 else -12, 8 if low else -8)
    axes.annotate(
        f"{found:.1%} of the {word} found,\n{alarms:.1%} of the others taken for one",
        (alarms, found),
        away,
        textcoords="offset points",
        fontsize=8.5,
        color=INK,
        va="bottom" if low else "top",
        ha="left" if alarms < 0.6 else "right",
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel(f"share of the others taken for {word}")
    axes.set_ylabel(f"share of the {word} found")


def _over_threshold(axes: Axes, truth: IntArray, chances: FloatArray, point: OperatingPoint) -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, at = precision_recall_curve(truth, chances)
    precision, recall = precision[:-1], recall[:-1]  # the last point belongs to no threshold
    f1 = np.divide(2 * precision * recall, precision + recall, out=np.zeros_like(at), where=precision + recall > 0)
    for values, color, name in ((precision, TRAIN, "precision"), (recall, VAL, "recall"), (f1, GOOD, "F1")):
        # A threshold between two probabilities decides as the upper one does.
        axes.step(at, values, where="pre", color=color, label=name)
    edges = [edge for edge in {point.lower, point.threshold} if 0 < edge <= 1]
    for edge in edges:
        axes.axvline(edge, color=INK, linewidth=1.0, linestyle=DASHED)
    if point.lower < point.threshold:
        axes.axvspan(max(point.lower, 0.0), min(point.threshold, 1.0), color=MUTED, alpha=0.13, linewidth=0)
    # All of 0 to 1, unless the scores lie so close together that nothing could be seen.
    low, high = min([*edges, float(at[0])]), max([*edges, float(at[-1])])
    low, high = (0.0, 1.0) if high - low > _CLOSE else (low, high)
    room = 0.02 * (high - low) or 0.01
    axes.set(xlim=(low - room, high + room), ylim=(-0.02, 1.02))
    axes.set_title(_used(point), **SUBTITLE)
    axes.set_xlabel("threshold: least probability")
    axes.legend(loc="lower center", ncols=3, frameon=True, framealpha=1.0, edgecolor="none", borderaxespad=1.2)


def _used(point: OperatingPoint) -> str:
    rates = point.rates()
    if point.lower < point.threshold:
        return f"accepted {rates['accepted'].value:.1%}, review {rates['reviewed'].value:.1%}"
    if not rates["precision"].of:
        return f"Threshold {point.threshold:.3g}, nothing found"
    return f"Threshold {point.threshold:.3g}, precision {rates['precision'].value:.3f}, F1 {point.f1:.3f}"

"""Pictures of the decision between ads and others: how scores rank, what a threshold does, a value by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_floats, as_labels, as_probabilities
from mlcore.metrics.ranking import auroc, auroc_interval
from mlcore.report.plots.style import DASHED, GOOD, INK, MUTED, TRAIN, VAL, displayable, note, picture

__all__ = ["plot_operating_point", "plot_values_by_class"]


def plot_operating_point(
    labels: Array, *, probabilities: Array, threshold: float, path: Path, positive: str = "positives"
) -> Path:
    """Draw the ROC curve with its 95 % interval, and precision, recall and F1 over the threshold.

    Args:
        labels: ``[N]``, 0 or 1, both of them.
        probabilities: ``[N]``, 0..1, of class 1.
        threshold: where the decision is made; marked in both panels.
        path: the PNG to write.
        positive: plural word for samples of class 1.

    Returns:
        `path`.

    Raises:
        UserError: one class only, values that are no probabilities, or the file cannot be written.
    """
    truth = as_labels(labels, classes=2)
    chances = as_probabilities(probabilities, rows=len(truth))[:, 1]
    area = auroc(truth, scores=chances)
    if np.isnan(area.value):
        raise UserError(area.reason)
    low, high = auroc_interval(truth, scores=chances)
    with picture(path, width=10.4, height=4.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
        _roc(left, truth, chances, threshold, word=positive)
        left.set_title(f"AUROC {area.value:.3f}, 95 % interval {low:.3f} to {high:.3f}")
        _over_threshold(right, truth, chances, threshold)
        count = int(truth.sum())
        note(
            left, f"{count:,} {positive} among {len(truth):,} samples. The dot and the dashed line: the threshold used."
        )
    return path


def plot_values_by_class(
    values: Array,
    *,
    labels: Array,
    class_names: Sequence[str],
    path: Path,
    x_label: str,
    bins: int = 30,
) -> Path:
    """Draw how a value between 0 and 1 is distributed in each class, one panel per class, as shares of the class.

    Args:
        values: ``[N]``, 0..1.
        labels: ``[N]`` class indices.
        class_names: C names.
        path: the PNG to write.
        x_label: below it.
        bins: number of bins over 0..1.

    Returns:
        `path`.

    Raises:
        UserError: empty, lengths differ, a value outside 0..1, or the file cannot be written.
    """
    truth = as_labels(labels, classes=len(class_names))
    points = as_floats(values, name="values", rows=len(truth)).reshape(len(truth))
    if not ((points >= 0) & (points <= 1)).all():
        raise UserError("values by class must lie between 0 and 1; check the model's output")
    names = displayable(class_names)
    edges = np.linspace(0.0, 1.0, bins + 1)
    with picture(path, width=7.2, height=0.8 + 1.5 * len(class_names)) as figure:
        panels = figure.subplots(len(class_names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for label, axes in enumerate(panels):
            own = points[truth == label]
            mean = f", mean {own.mean():.2f}" if len(own) else ""
            color = (VAL, TRAIN)[label % 2]
            if len(own):
                axes.hist(own, edges, weights=np.full(len(own), 1 / len(own)), color=color, alpha=0.85, rwidth=0.92)
                axes.axvline(float(own.mean()), color=INK, linewidth=1.0, linestyle=DASHED)
            text = f"{names.labels[label]}: {len(own):,} samples{mean}"
            axes.set_title(text, fontsize=9.5, fontweight="normal", color=MUTED, pad=4, fontfamily=names.fonts)
            axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
            axes.grid(visible=False, axis="x")
        panels[-1].set_xlim(0, 1)
        panels[-1].set_xlabel(x_label)
        note(panels[-1], names.note)
    return path


def _roc(axes: Axes, truth: IntArray, chances: FloatArray, threshold: float, *, word: str) -> None:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(truth, chances, drop_intermediate=False)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=DASHED)
    axes.plot(false, true, color=TRAIN)
    axes.fill_between(false, true, color=TRAIN, alpha=0.08, linewidth=0)
    taken = chances >= threshold
    alarms, found = float(taken[truth == 0].mean()), float(taken[truth == 1].mean())
    axes.plot([alarms], [found], "o", color=VAL, markersize=8, clip_on=False, zorder=3)
    away = (12, -4) if alarms < 0.6 else (-12, -4)
    axes.annotate(
        f"{found:.1%} of the {word} found,\n{alarms:.1%} of the others taken for one",
        (alarms, found),
        away,
        textcoords="offset points",
        fontsize=8.5,
        color=INK,
        va="top",
        ha="left" if alarms < 0.6 else "right",
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel(f"share of the others taken for {word}")
    axes.set_ylabel(f"share of the {word} found")


def _over_threshold(axes: Axes, truth: IntArray, chances: FloatArray, threshold: float) -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, at = precision_recall_curve(truth, chances)
    precision, recall = precision[:-1], recall[:-1]  # the last point belongs to no threshold
    f1 = np.divide(2 * precision * recall, precision + recall, out=np.zeros_like(at), where=precision + recall > 0)
    for values, color, name in ((precision, TRAIN, "precision"), (recall, VAL, "recall"), (f1, GOOD, "F1")):
        # A threshold between two probabilities decides as the upper one does.
        axes.step(at, values, where="pre", color=color, label=name)
    used = np.searchsorted(at, threshold)
    reached = f", F1 {f1[used]:.3f}" if used < len(at) else ", nothing found"
    axes.axvline(threshold, color=INK, linewidth=1.0, linestyle=DASHED)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(f"Threshold {threshold:.3g}{reached}")
    axes.set_xlabel("threshold: least probability")
    axes.legend(loc="lower center", ncols=3, frameon=True, framealpha=1.0, edgecolor="none", borderaxespad=1.2)

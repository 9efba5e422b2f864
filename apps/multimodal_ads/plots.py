"""A picture of how a value is distributed in each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, as_floats, as_labels
from mlcore.report.plots.style import DASHED, INK, MUTED, TRAIN, VAL, displayable, note, picture

__all__ = ["plot_values_by_class"]


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

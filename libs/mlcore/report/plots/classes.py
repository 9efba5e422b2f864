"""Pictures with one row per class, readable from 2 to 100: confusion matrix and bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.report.plots.style import DASHED, INK, MUTED, PALETTE, SUBTITLE, Names, displayable, note, picture

__all__ = ["label_rows", "plot_class_bars", "plot_confusion_matrix", "row_height"]

_BLUES = LinearSegmentedColormap.from_list(
    "blues",
    ["#f5f8fc", "#c9dcf4", "#7fabe6", "#2f6fd0", "#163a78"],
).with_extremes(bad="#eeeeee")  # a label without samples
_COUNTS_UP_TO = 40  # classes; beyond, a cell is too small for a number


def plot_confusion_matrix(confusion: NDArray[Any], *, class_names: Sequence[str], path: Path) -> Path:
    """Draw counts, coloured by the share of each label's samples (rows sum to 100 %).

    Args:
        confusion: ``[C, C]`` counts, row = label, column = prediction.
        class_names: C names.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: not square, names that do not fit, or the file cannot be written.
    """
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
        raise UserError(f"confusion matrix has shape {counts.shape}, expected [classes, classes]")
    names = _names(class_names, len(counts))
    size = len(counts)
    side = float(np.clip(2.2 + 0.42 * size, 4.2, 15.0))
    support = counts.sum(axis=1, keepdims=True)
    share = np.ma.masked_invalid(np.divide(counts, support, where=support > 0, out=np.full(counts.shape, np.nan)))
    with picture(path, width=side + 0.9, height=side) as figure:
        axes = figure.add_subplot()
        # The square root lifts a confusion of 2 % off the ground.
        image = axes.imshow(share, cmap=_BLUES, norm=PowerNorm(0.5, vmin=0.0, vmax=1.0))
        cell = 0.78 * side * 72 / size  # points
        _frame_matrix(axes, names, size=size, font=float(np.clip(0.75 * cell, 5.0, 9.5)))
        if size <= _COUNTS_UP_TO:
            _write_counts(axes, counts, share, cell=cell)
        right = np.trace(counts) / max(counts.sum(), 1)
        axes.set_title(f"n = {int(counts.sum()):,}, accuracy {right:.1%}", **SUBTITLE)
        _colorbar(figure, axes, image)
        note(axes, names.note)
    return path


def plot_class_bars(metrics: Mapping[str, Sequence[float]], *, class_names: Sequence[str], path: Path) -> Path:
    """Draw one bar per class, one panel per metric, the worst class of the first one on top, the mean as a line.

    Args:
        metrics: name to C values; NaN is drawn as a dash (no samples). A name with ``loss`` counts as lower is better.
        class_names: C names.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: no metrics, values or names that do not fit, or the file cannot be written.
    """
    if not metrics:
        raise UserError("no metrics to plot per class")
    names = _names(class_names, len(class_names))
    columns = {name: _column(name, values, len(class_names)) for name, values in metrics.items()}
    first, values = next(iter(columns.items()))
    badness = values if "loss" not in first.lower() else -values
    order = np.argsort(np.nan_to_num(badness, nan=np.inf), kind="stable")
    row = row_height(len(values))
    with picture(path, width=1.8 + 3.0 * len(columns), height=1.1 + row * len(values)) as figure:
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for place, (axes, (name, column)) in enumerate(zip(panels, columns.items(), strict=True)):
            _draw_bars(axes, column[order], color=PALETTE[place % len(PALETTE)], row=row)
            mean = f"   mean {np.nanmean(column):.3f}" if np.isfinite(column).any() else "   no samples"
            axes.set_title(name + mean, **SUBTITLE)
            _value_axis(axes, name, column)
        label_rows(panels[0], names, order=order)
        note(panels[0], names.note)
    return path


def label_rows(axes: Axes, names: Names, *, order: NDArray[np.intp]) -> None:
    """Write a name at each row of a picture whose height is made of `row_height`, the first one on top.

    Args:
        axes: Where row r stands at y = r.
        names: R names.
        order: ``[R]`` indices of the names, from the top.
    """
    labels = [names.labels[index] for index in order]
    font = 9.0 if row_height(len(labels)) >= 0.2 else 6.5
    axes.set_yticks(range(len(labels)), labels, fontsize=font, color=INK, fontfamily=names.fonts)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def row_height(rows: int) -> float:
    """Inches of one of so many rows."""
    return 0.27 if rows <= 40 else 0.15


def _frame_matrix(axes: Axes, names: Names, *, size: int, font: float) -> None:
    every = max(1, math.ceil(size / 100))
    ticks = range(0, size, every)
    labels = [names.labels[index] for index in ticks]
    upright = size * max(map(len, labels)) <= 60
    axes.set_xticks(ticks, labels, fontsize=font, fontfamily=names.fonts, rotation=0 if upright else 90)
    axes.set_yticks(ticks, labels, fontsize=font, fontfamily=names.fonts)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if size <= _COUNTS_UP_TO:  # white gaps between cells
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(visible=True, which="minor", color="white", linewidth=1.2)


def _write_counts(axes: Axes, counts: NDArray[Any], share: NDArray[Any], *, cell: float) -> None:
    digits = len(f"{counts.max():.0f}")
    font = float(np.clip(1.3 * cell / max(digits, 3), 4.0, 10.5))
    for row, column in np.argwhere(counts > 0):
        part = share[row, column]
        text = f"{counts[row, column]:.0f}"
        if len(counts) <= 8:
            text += f"\n{part:.0%}" if part >= 0.01 else "\n<1%"
        color = "white" if part > 0.3 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=font, color=color)


def _colorbar(figure: Figure, axes: Axes, image: Any) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=22, pad=0.02, format=lambda value, _: f"{value:.0%}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("share of the label's samples", fontsize=8.5)


def _draw_bars(axes: Axes, values: NDArray[np.float64], *, color: str, row: float) -> None:
    axes.barh(range(len(values)), np.nan_to_num(values), height=0.72, color=color, alpha=0.85)
    font = 8.0 if row >= 0.2 else 6.0
    for place, value in enumerate(values):  # numbers stand in a column of their own, clear of bars and the mean
        text = f"{value:.3f}" if np.isfinite(value) else "–"
        axes.text(
            1.0, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=font, color=MUTED
        )
    if np.isfinite(values).any():
        axes.axvline(float(np.nanmean(values)), color=INK, linewidth=1.0, linestyle=DASHED)
    axes.grid(visible=False, axis="y")


def _value_axis(axes: Axes, name: str, values: NDArray[np.float64]) -> None:
    """From 0 to the largest value (1 for a share), with room left for the numbers."""
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    share = top <= 1.0 and "loss" not in name.lower()
    edge = 1.0 if share else max(top, 1e-9)
    axes.set_xlim(0.0, 1.28 * edge)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if share else MaxNLocator(4).tick_values(0.0, edge)
    axes.set_xticks([tick for tick in ticks if tick <= edge])


def _names(class_names: Sequence[str], wanted: int) -> Names:
    if len(class_names) != wanted or wanted == 0:
        raise UserError(f"{len(class_names)} class names for {wanted} classes; give one name per class")
    return displayable(class_names)


def _column(name: str, values: Sequence[float], wanted: int) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (wanted,):
        raise UserError(f"{name!r} has shape {column.shape}, expected one value for each of {wanted} names")
    return column

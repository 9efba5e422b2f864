"""Lines over steps: training curves in panels, and the learning-rate finder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mlcore.base.errors import UserError
from mlcore.report.plots.style import BAD, INK, PALETTE, TRAIN, VAL, picture

__all__ = ["Series", "plot_lr_finder", "plot_panels"]

Series = tuple[Sequence[float], Sequence[float]]
"""x and y values of one line; NaN leaves a gap."""


def plot_panels(panels: Mapping[str, Mapping[str, Series]], *, path: Path, x_label: str = "step") -> Path:
    """Draw one small picture per quantity side by side: loss, accuracy, learning rate, ...

    Args:
        panels: title to the lines over one axis, by name; those with ``train`` are blue and with ``val`` orange,
            everywhere.
        path: the PNG to write.
        x_label: below each panel.

    Returns:
        `path`.

    Raises:
        UserError: no panels, an empty one, x and y that differ in length, or the file cannot be written.
    """
    if not panels:
        raise UserError("no panels to plot")
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    rows = math.ceil(len(panels) / columns)
    with picture(path, width=(5.0 if columns < 3 else 4.0) * columns, height=3.1 * rows) as figure:
        for place, (title, series) in enumerate(panels.items(), start=1):
            _check(series)
            axes = figure.add_subplot(rows, columns, place)
            _draw_lines(axes, series)
            axes.set_title(title)
            axes.set_xlabel(x_label)
    return path


def plot_lr_finder(
    rates: Sequence[float], *, losses: Sequence[float], path: Path, suggestion: float | None = None
) -> Path:
    """Draw a learning-rate range test: loss over a rising rate (Smith 2017).

    Args:
        rates: learning rates, above 0.
        losses: the (smoothed) loss at each.
        path: the PNG to write.
        suggestion: the rate to mark.

    Returns:
        `path`.

    Raises:
        UserError: nothing to draw, lengths differ, or the file cannot be written.
    """
    _check({"losses": (rates, losses)})
    with picture(path, width=7.2, height=4.0) as figure:
        axes = figure.add_subplot()
        axes.plot(rates, losses, color=TRAIN)
        axes.set_xscale("log")
        finite = np.asarray(losses, dtype=float)
        finite = finite[np.isfinite(finite)]
        if len(finite):
            # The loss explodes at the end; the valley is what the reader came for.
            low, start = float(finite.min()), float(finite[0])
            span = max(start - low, 0.05 * abs(start), 1e-8)
            axes.set_ylim(low - 0.15 * span, start + 0.6 * span)
        if suggestion is not None:
            axes.axvline(suggestion, color=VAL, linewidth=1.4, label=f"suggested {suggestion:.2g}")
            axes.legend()
        axes.set_title("Learning-rate finder")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
    return path


def _draw_lines(axes: Axes, series: Mapping[str, Series]) -> None:
    whole = True
    for place, (name, (x, y)) in enumerate(series.items()):
        values = np.asarray(y, dtype=float)
        # Few points are measurements (one evaluation per epoch) and get marks; many are a trace.
        mark = "o" if len(values) <= 30 else ""
        axes.plot(x, values, color=_color(name, place), marker=mark, markersize=3.5, label=name, zorder=2 + place)
        whole = whole and all(float(value).is_integer() for value in x)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=whole))
    axes.margins(x=0.02)
    if len(series) > 1:
        axes.legend()


def _color(name: str, place: int) -> str:
    parts = name.lower().replace("/", " ").replace("_", " ").split()
    if any(part.startswith("train") for part in parts):
        return TRAIN
    if any(part.startswith("val") for part in parts):
        return VAL
    if any(part in {"nan", "skipped", "error", "wrong"} for part in parts):
        return BAD
    return PALETTE[place % len(PALETTE)] if place < len(PALETTE) else INK


def _check(series: Mapping[str, Series]) -> None:
    if not series:
        raise UserError("no series to plot")
    for name, (x, y) in series.items():
        if len(x) != len(y) or len(x) == 0:
            raise UserError(
                f"series {name!r} has {len(x)} x and {len(y)} y values, expected as many of both, at least one"
            )

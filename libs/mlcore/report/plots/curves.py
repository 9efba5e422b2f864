"""Lines over steps: training curves, several panels of them, the learning-rate finder; and plain histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mlcore.base.errors import UserError
from mlcore.report.plots.style import BAD, INK, MUTED, PALETTE, TRAIN, VAL, picture

__all__ = ["Series", "plot_curves", "plot_histogram", "plot_lr_finder", "plot_panels"]

Series = tuple[Sequence[float], Sequence[float]]
"""x and y values of one line; NaN leaves a gap."""


def plot_curves(
    series: Mapping[str, Series],
    *,
    path: Path,
    title: str,
    x_label: str = "step",
    y_label: str = "",
    log: bool = False,
    best: tuple[float, str] | None = None,
) -> Path:
    """Draw several lines over the same axis.

    Args:
        series: name to values; names with ``train`` are blue and with ``val`` orange, everywhere.
        path: the PNG to write.
        title: above the picture.
        x_label: below it.
        y_label: beside it.
        log: logarithmic values; those of 0 and below leave gaps.
        best: x and words of a vertical mark, such as the step of the best checkpoint.

    Returns:
        `path`.

    Raises:
        UserError: no series, x and y of different lengths, or the file cannot be written.
    """
    _check(series)
    with picture(path, width=7.2, height=4.0) as figure:
        axes = figure.add_subplot()
        _draw_lines(axes, series, log=log)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if best is not None:
            axes.axvline(best[0], color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1.5)
            side = "right" if best[0] > sum(axes.get_xlim()) / 2 else "left"
            high = axes.get_xaxis_transform()
            axes.text(best[0], 1.01, f" {best[1]} ", transform=high, fontsize=8, color=MUTED, ha=side)
    return path


def plot_panels(
    panels: Mapping[str, Mapping[str, Series]], *, path: Path, x_label: str = "step", log: Sequence[str] = ()
) -> Path:
    """Draw one small picture per quantity side by side: loss, accuracy, learning rate, ...

    Args:
        panels: title to series, as in `plot_curves`.
        path: the PNG to write.
        x_label: below each panel.
        log: titles of the panels with logarithmic values.

    Returns:
        `path`.

    Raises:
        UserError: no panels, an empty one, a title in `log` that is none, or the file cannot be written.
    """
    if not panels:
        raise UserError("no panels to plot")
    unknown = sorted(set(log) - set(panels))
    if unknown:
        raise UserError(f"log names {unknown[0]!r}, which is no panel; panels: {', '.join(panels)}")
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    with picture(path, width=5.0 * columns, height=3.1 * rows) as figure:
        for place, (title, series) in enumerate(panels.items(), start=1):
            _check(series)
            axes = figure.add_subplot(rows, columns, place)
            _draw_lines(axes, series, log=title in log)
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


def plot_histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    path: Path,
    title: str,
    x_label: str,
    bins: int = 40,
    log: bool = False,
) -> Path:
    """Draw how often values occur, one outline per group over common bins.

    Args:
        groups: name to values; values that are not finite are left out and counted in the legend.
        path: the PNG to write.
        title: above the picture.
        x_label: below it, with the unit.
        bins: number of bins over the range of all groups.
        log: logarithmic counts.

    Returns:
        `path`.

    Raises:
        UserError: no finite value at all, or the file cannot be written.
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in groups.items()}
    finite = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    if not any(len(values) for values in finite.values()):
        raise UserError(f"no values to plot in {title!r}")
    edges = np.histogram_bin_edges(np.concatenate(list(finite.values())), bins=bins)
    with picture(path, width=7.2, height=3.8) as figure:
        axes = figure.add_subplot()
        for place, (name, values) in enumerate(finite.items()):
            left_out = len(arrays[name]) - len(values)
            label = f"{name} (n = {len(values)}{f', {left_out} not finite' if left_out else ''})"
            color = _color(name, place)
            axes.hist(values, bins=edges.tolist(), color=color, alpha=0.3, log=log)
            axes.hist(values, bins=edges.tolist(), color=color, histtype="step", linewidth=1.4, label=label, log=log)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel("count")
        axes.grid(visible=False, axis="x")
        axes.legend()
    return path


def _draw_lines(axes: Axes, series: Mapping[str, Series], *, log: bool) -> None:
    whole = True
    for place, (name, (x, y)) in enumerate(series.items()):
        values = np.asarray(y, dtype=float)
        if log:
            values = np.where(values > 0, values, np.nan)
        # Few points are measurements (one evaluation per epoch) and get marks; many are a trace.
        mark = "o" if len(values) <= 30 else ""
        axes.plot(x, values, color=_color(name, place), marker=mark, markersize=3.5, label=name, zorder=2 + place)
        whole = whole and all(float(value).is_integer() for value in x)
    if log:
        axes.set_yscale("log")
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

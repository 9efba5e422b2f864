"""One metric of several runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.ranking import Interval
from mlcore.report.plots.style import INK, MUTED, TRAIN, displayable, note, picture

__all__ = ["Bar", "plot_runs"]

_MOST = 40
_PIECE = 28  # characters of a name or a value that are shown
_WIDTH = 52  # characters of a line of a label
_LINES = 3
_LINE, _GAP = 0.16, 0.8  # inches of a line; lines between two labels


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One run.

    Attributes:
        label: What tells it from the others, in pieces such as "lr=0.001"; of a long one the end is shown.
        value: The metric, finite.
        name: Short, in Latin letters, such as "#1"; all there is where no font has the label's glyphs.
        interval: Its confidence interval, where known.
    """

    label: Sequence[str]
    value: float
    name: str
    interval: Interval | None = None


def plot_runs(bars: Sequence[Bar], *, metric: str, path: Path) -> Path:
    """Draw a bar per run from zero; where values lie so close that bars would all look the same, dots on a cut axis.

    Args:
        bars: at least one, the best first; of more than 40 the first 40 are drawn.
        metric: name of the value.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: no runs, or the file cannot be written.
    """
    if not bars:
        raise UserError("no runs to plot; none has the metric")
    shown = bars[:_MOST]
    labels, fonts = _labels(shown)
    values = np.array([bar.value for bar in shown])
    low = np.array([bar.value if bar.interval is None else bar.interval.low for bar in shown])
    high = np.array([bar.value if bar.interval is None else bar.interval.high for bar in shown])
    lines = [label.count("\n") + 1 for label in labels]
    start, stop = _limits(low, high)
    room = np.array(lines) + _GAP  # a label of three lines takes more than one of a single line
    count = f"{len(shown)} best of {len(bars)} runs" if len(bars) > len(shown) else f"{len(bars)} runs"
    height = 1.2 + _LINE * float(room.sum())
    with picture(path, width=8.6, height=height, title=f"{metric}, {count}") as figure:
        axes = figure.add_subplot()
        places = np.cumsum(room) - room / 2
        if start == 0.0 or stop == 0.0:
            axes.barh(places, values, height=0.62 * room, color=TRAIN, alpha=0.8)
        else:
            axes.scatter(values, places, s=42, color=TRAIN, zorder=3)
        axes.hlines(places, low, high, color=INK, linewidth=1.4, zorder=4)
        for place, value, edge in zip(places, values, np.maximum(high, values), strict=True):
            axes.annotate(
                f"{value:.4f}".replace("-", "−"), (edge, place), (7, 0), textcoords="offset points", va="center",
                fontsize=8.5, color=MUTED,
            )  # fmt: skip
        axes.set_yticks(places, labels, fontsize=8.5, color=INK, fontfamily=fonts)
        axes.set_ylim(float(room.sum()), 0.0)  # first one on top
        axes.set_xlim(start, stop + 0.12 * (stop - start))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(metric)
        note(axes, _note(bars=start == 0.0 or stop == 0.0, intervals=any(bar.interval for bar in shown)))
    return path


def _labels(bars: Sequence[Bar]) -> tuple[list[str], Sequence[str]]:
    names = displayable([_end(part) for bar in bars for piece in bar.label for part in piece.partition("=")])
    if names.note:
        return [bar.name for bar in bars], names.fonts
    drawn = iter(names.labels)
    labels = []
    for bar in bars:
        text = ", ".join("".join(islice(drawn, 3)) for _ in bar.label)
        lines = textwrap.wrap(text, _WIDTH, max_lines=_LINES, placeholder=" …", break_on_hyphens=False)
        labels.append(f"{bar.name}  " + "\n".join(lines))
    return labels, names.fonts


def _end(text: str) -> str:
    """What tells names of models and files apart stands at their end."""
    return text if len(text) <= _PIECE else "…" + text[1 - _PIECE :]


def _limits(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """From zero, unless all values lie in a part of the way there that is too small to see."""
    smallest, largest = float(low.min()), float(high.max())
    if smallest <= 0.0 <= largest:
        return min(smallest, 0.0), largest if largest > smallest else 1.0
    reach = max(abs(smallest), abs(largest))
    if len(low) == 1 or largest - smallest > 0.25 * reach:
        return min(smallest, 0.0), max(largest, 0.0)
    margin = 0.15 * (largest - smallest) or 0.05 * reach
    return smallest - margin, largest


def _note(*, bars: bool, intervals: bool) -> str:
    parts = [] if bars else ["The axis does not begin at zero."]
    parts += ["Lines: confidence intervals."] if intervals else []
    return " ".join(parts)

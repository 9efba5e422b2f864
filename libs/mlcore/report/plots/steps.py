"""Where the time of a training step goes, as one bar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlcore.report.plots.style import INK, PALETTE, picture

__all__ = ["plot_step"]

_LEAST = 0.02  # share of a step below which a part is not worth a name in the legend


def plot_step(parts: Mapping[str, float], *, path: Path) -> Path:
    """Draw the parts of a step one after the other.

    Args:
        parts: seconds of each, in order; some of them positive.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: the file cannot be written.
    """
    total = sum(parts.values())
    with picture(path, width=8.6, height=1.5) as figure:
        axes = figure.add_subplot()
        begin = 0.0
        for number, (name, seconds) in enumerate(parts.items()):
            share = seconds / total
            label = f"{name} {share:.0%}" if share >= _LEAST else f"_{name}"  # matplotlib leaves such names out
            axes.barh(0, 1e3 * seconds, left=1e3 * begin, color=PALETTE[number % len(PALETTE)], label=label, height=0.6)
            begin += seconds
        axes.set_yticks([])
        axes.set_xlim(0, 1e3 * total)
        axes.set_xlabel("milliseconds of a step", color=INK)
        axes.spines["left"].set_visible(False)
        axes.legend(ncols=8, loc="lower left", bbox_to_anchor=(0, 1), handlelength=0.9, columnspacing=1.0)
    return path

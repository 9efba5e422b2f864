"""What the statistics of picture data sets share: the sizes of pictures as points, and ranges in words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mlcore.report.plots.style import PALETTE

__all__ = ["draw_sizes", "spread"]


def draw_sizes(axes: Axes, parts: Mapping[str, NDArray[np.int64]]) -> None:
    """Each size as a point whose area grows with the number of pictures.

    Args:
        axes: Where to draw.
        parts: int64 [N, 2] of each part of the data, height and width in pixels.
    """
    for number, (name, part) in enumerate(parts.items()):
        sizes, counts = np.unique(part, axis=0, return_counts=True)
        areas = np.clip(6 * np.sqrt(counts), 10, 150)
        colour = PALETTE[number % len(PALETTE)]
        axes.scatter(sizes[:, 1], sizes[:, 0], s=areas, alpha=0.5, label=name, color=colour, linewidths=0)
    axes.set(title="Sizes", xlabel="width, pixels", ylabel="height, pixels")
    axes.set_xlim(0, 1.1 * axes.get_xlim()[1])
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.legend(loc="best")


def spread(values: NDArray[Any], unit: str = "") -> str:
    """Median and range, such as "600 (20 to 3,000) px"; two decimals where there is no unit; "none" of no values."""
    if not len(values):
        return "none"
    low, middle, high = (float(value) for value in np.quantile(values, (0.0, 0.5, 1.0)))
    form = ".2f" if not unit else ",.0f"
    between = "" if low == high else f" ({low:{form}} to {high:{form}})"
    return f"{middle:{form}}{between} {unit}".rstrip()

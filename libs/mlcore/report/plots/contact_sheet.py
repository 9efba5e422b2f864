"""A page of small pictures with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.report.plots.style import BAD, INK, MUTED, displayable, picture
from mlcore.report.tile import Tile

__all__ = ["plot_contact_sheet"]

_COLUMNS = 4
_LINE = 33  # characters of a caption that have room


def plot_contact_sheet(tiles: Sequence[Tile], *, path: Path, title: str) -> Path:
    """Draw pictures in rows of four.

    Args:
        tiles: at least one, in reading order.
        path: the PNG to write.
        title: above the picture.

    Returns:
        `path`.

    Raises:
        UserError: no tiles, or the file cannot be written.
    """
    if not tiles:
        raise UserError("a contact sheet needs at least one picture")
    columns = min(_COLUMNS, max(len(tiles), 2))
    rows = math.ceil(len(tiles) / columns)
    with picture(path, width=2.75 * columns, height=0.5 + 2.75 * rows, title=title) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, tile in zip(grid, tiles, strict=False):
            _draw(axes, tile)
        for axes in grid[len(tiles) :]:
            axes.axis("off")
    return path


def _draw(axes: Axes, tile: Tile) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color="#d5dbe1", linewidth=0.8)
    if tile.image is None:
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.text(0.5, 0.5, "unreadable", ha="center", va="center", fontsize=9, color=MUTED)
    else:
        axes.imshow(_square(tile.image))
    lines = tile.caption.splitlines()
    names = displayable(lines, room=_LINE)
    shown = "\n".join(names.labels if not names.note else [line.encode("ascii", "replace").decode() for line in lines])
    axes.set_title(
        shown, fontsize=8.5, fontweight="normal", color=BAD if tile.alarm else INK, pad=4, loc="left",
        fontfamily=names.fonts,
    )  # fmt: skip
    names = displayable([tile.text], room=_LINE)
    text = "" if names.note else names.labels[0]
    axes.set_xlabel(text, fontsize=8, color=MUTED, loc="left", fontfamily=names.fonts)


def _square(image: NDArray[np.uint8]) -> NDArray[Any]:
    """The picture in the middle of a pale square, so that wide and tall ones line up."""
    height, width = image.shape[:2]
    side = max(height, width)
    canvas = np.full((side, side, 3), 243, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas

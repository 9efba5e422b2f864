"""What a set of pages is like, as a table and a picture: pages of each class, and sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.contact_sheet import plot_contact_sheet
from mlcore.report.plots.sizes import draw_sizes, spread
from mlcore.report.plots.style import PALETTE, displayable, note, picture
from mlcore.report.tile import Tile
from quartet.apps.doc_ensemble.data.pages import Page, page_size, read_page
from quartet.apps.doc_ensemble.data.upright import Upright

__all__ = ["PageStatistics", "draw_statistics", "page_statistics", "statistics_sections", "upright_sections"]

_MOST, _SHOWN = 1000, 8  # pages of a part that are looked at and shown
_SIDE = 320  # pixels, longer side of a page that is shown
_TURNS = {1: "90°", 2: "180°", 3: "270°"}


@dataclass(frozen=True, eq=False)
class PageStatistics:
    """What N pages are like.

    Attributes:
        counts: int64 [C], pages of each class.
        files: Files they are in.
        groups: Groups they make: pages that stay together in a split.
        sizes: int64 [M, 2], height and width of the pages that were looked at, in pixels.
    """

    counts: NDArray[np.int64]
    files: int
    groups: int
    sizes: NDArray[np.int64]

    def rows(self, classes: Sequence[str]) -> list[tuple[str, str]]:
        """Label and value of each line of a table."""
        heights, widths = self.sizes.T
        most, least = int(self.counts.argmax()), int(self.counts.argmin())
        return [
            ("pages", f"{int(self.counts.sum()):,}"),
            ("files", f"{self.files:,}"),
            ("groups", f"{self.groups:,}"),
            ("classes", f"{int((self.counts > 0).sum())} of {len(classes)}"),
            ("largest class", f"{classes[most]}: {int(self.counts[most]):,}"),
            ("smallest class", f"{classes[least]}: {int(self.counts[least]):,}"),
            ("width", spread(widths, "px")),
            ("height", spread(heights, "px")),
            ("width / height", spread(widths / heights)),
        ]


def page_statistics(pages: Sequence[Page], *, classes: int, most_sizes: int = _MOST) -> PageStatistics:
    """Gather them from pages, at least one; of files only the headers are read.

    Args:
        pages: What to describe; pages without a label are in no class.
        classes: Number of classes.
        most_sizes: Look at the sizes of about this many pages, spread evenly.

    Raises:
        UserError: A page is missing, empty or cannot be read.
    """
    looked_at = pages[:: max(1, -(-len(pages) // most_sizes))]
    labels = np.array([page.label for page in pages if page.label is not None], dtype=np.int64)
    return PageStatistics(
        counts=np.bincount(labels, minlength=classes).astype(np.int64),
        files=len({page.path for page in pages}),
        groups=len({page.bundle for page in pages}),
        sizes=np.array([page_size(page.path, page.number) for page in looked_at], dtype=np.int64),
    )


def statistics_sections(parts: Mapping[str, PageStatistics], *, classes: Sequence[str], path: Path) -> list[Section]:
    """A table with a column for each part ("train", "val"), and a picture of all parts, drawn to `path` (PNG)."""
    draw_statistics(parts, classes=classes, path=path)
    remark = "Ranges: median (smallest to largest); sizes as stored, of PDF pages at 150 dpi."
    table = Table.of_parts({name: part.rows(classes) for name, part in parts.items()}, note=remark)
    return [table, Picture("Data", path, wide=True)]


def upright_sections(
    parts: Mapping[str, Sequence[Page]], upright: Upright, *, max_pixels: int, path: Path
) -> list[Section]:
    """A table of how many pages of each part are turned, and pictures of some, righted, on a sheet at `path` (PNG).

    Raises:
        UserError: A page cannot be read.
    """
    rows, tiles = [], list[Tile]()
    for name, pages in parts.items():
        looked_at, counts = pages[:: max(1, -(-len(pages) // _MOST))], np.zeros(4, dtype=np.int64)
        for page in looked_at:
            image = read_page(page.path, page.number, max_pixels=max_pixels)
            counts[turns := upright.turns(image)] += 1
            if turns and counts[1:].sum() <= _SHOWN:
                small = Image.fromarray(np.rot90(image, turns))
                small.thumbnail((_SIDE, _SIDE))
                caption = f"{name}: by {_TURNS[turns]}"
                tiles.append(Tile(image=np.asarray(small, dtype=np.uint8), caption=caption, text=page.name))
        rows.append([name, len(looked_at), int(counts[1:].sum()), *(int(counts[turns]) for turns in _TURNS)])
    title, columns = "Turned pages", ("", "pages looked at", "turned", *_TURNS.values())
    remark = "By how much pages are turned counter-clockwise, because they surely do not stand upright as they are."
    found: list[Section] = [Table(title, columns, rows, note=remark)]
    if tiles:
        sheet = plot_contact_sheet(tiles, path=path, title=f"{title}, as the network sees them")
        note = "As the network sees them: where one does not stand upright, it was turned wrongly."
        found.append(Picture(title, sheet, note=note, wide=True, tiles=tiles))
    return found


def draw_statistics(parts: Mapping[str, PageStatistics], *, classes: Sequence[str], path: Path) -> None:
    """Draw pages of each class and sizes of each part to `path` (PNG)."""
    with picture(path, width=11.0, height=max(3.6, 1.6 + 0.26 * len(classes))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_classes(left, parts, classes)
        draw_sizes(right, {name: part.sizes for name, part in parts.items()})


def _draw_classes(axes: Axes, parts: Mapping[str, PageStatistics], classes: Sequence[str]) -> None:
    """Bars of all parts, one after the other."""
    names = displayable(classes)
    places, start = np.arange(len(classes)), np.zeros(len(classes))
    for number, (part, values) in enumerate(parts.items()):
        colour = PALETTE[number % len(PALETTE)]
        axes.barh(places, values.counts, left=start, height=0.7, color=colour, label=part)
        start = start + values.counts
    axes.set_xlim(0, 1.3 * float(start.max()))  # room for the legend
    axes.set_yticks(places, list(names.labels), fontfamily=list(names.fonts))
    axes.set(title="Pages of each class", xlabel="pages", ylim=(len(classes) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(loc="upper right")
    note(axes, names.note)

"""What a data set is like, as a table and a picture: class balance, sizes of pictures, lengths of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mlcore.data.images import image_size
from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.sizes import draw_sizes, spread
from mlcore.report.plots.style import BAD, MUTED, picture
from quartet.apps.multimodal_ads.data.table import AdRow

__all__ = ["DatasetStatistics", "dataset_statistics", "draw_statistics", "statistics_sections"]

_OTHERS = "#b6bfc8"


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """What N pictures and texts are like.

    Attributes:
        labels: int64 [N], 1 for ads.
        lengths: int64 [N], characters of the texts.
        sizes: int64 [M, 2], height and width of the pictures that were looked at, in pixels.
    """

    labels: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def without_text(self, label: int | None = None) -> float:
        """Share of the pictures (of one label) that have no text; NaN if there are no such pictures."""
        chosen = self.lengths if label is None else self.lengths[self.labels == label]
        return float((chosen == 0).mean()) if len(chosen) else float("nan")

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of a table."""
        count, ads = len(self.labels), int(self.labels.sum())
        heights, widths = self.sizes.T
        shapes = widths / heights
        return [
            ("pictures", f"{count:,}"),
            ("ads", f"{ads:,} ({ads / count:.1%}), others {count - ads:,}"),
            ("without text", f"{int((self.lengths == 0).sum()):,} ({self.without_text():.1%})"),
            ("width", spread(widths, "px")),
            ("height", spread(heights, "px")),
            ("width / height", spread(shapes)),
            ("text", spread(self.lengths[self.lengths > 0], "characters")),
        ]


def dataset_statistics(rows: Sequence[AdRow], *, most_sizes: int = 2000) -> DatasetStatistics:
    """Gather them from rows, at least one; of images only the headers are read.

    Args:
        rows: What to describe.
        most_sizes: Look at the sizes of this many pictures, spread evenly over the rows.

    Raises:
        UserError: An image is missing, empty or no image.
    """
    looked_at = rows[:: max(1, -(-len(rows) // most_sizes))]
    return DatasetStatistics(
        labels=np.array([row.label for row in rows], dtype=np.int64),
        lengths=np.array([len(row.text) for row in rows], dtype=np.int64),
        sizes=np.array([image_size(row.image) for row in looked_at], dtype=np.int64),
    )


def statistics_sections(parts: Mapping[str, DatasetStatistics], *, path: Path) -> list[Section]:
    """A table with a column for each part ("train", "val"), and a picture of all parts, drawn to `path` (PNG)."""
    draw_statistics(parts, path=path)
    note = "Ranges: median (smallest to largest); sizes as stored"
    if any(len(part.sizes) < len(part.labels) for part in parts.values()):
        note += ", of a part of the pictures: " + ", ".join(f"{len(p.sizes):,} of {name}" for name, p in parts.items())
    return [
        Table.of_parts({name: part.rows() for name, part in parts.items()}, note=f"{note}."),
        Picture("Data", path, wide=True),
    ]


def draw_statistics(parts: Mapping[str, DatasetStatistics], *, path: Path) -> None:
    """Draw class balance, sizes, text lengths and missing texts of each part to `path` (PNG)."""
    with picture(path, width=11.0, height=6.4) as figure:
        axes = figure.subplots(2, 2)
        _draw_balance(axes[0, 0], parts)
        draw_sizes(axes[0, 1], {name: part.sizes for name, part in parts.items()})
        _draw_lengths(axes[1, 0], parts)
        _draw_missing(axes[1, 1], parts)


def _draw_balance(axes: Axes, parts: Mapping[str, DatasetStatistics]) -> None:
    names = list(parts)
    ads = [int(part.labels.sum()) for part in parts.values()]
    others = [len(part.labels) - int(part.labels.sum()) for part in parts.values()]
    first = axes.barh(names, ads, color=BAD, height=0.5, label="ad")
    second = axes.barh(names, others, left=ads, color=_OTHERS, height=0.5, label="not an ad")
    for bars, counts in ((first, ads), (second, others)):
        axes.bar_label(bars, labels=[f"{count:,}" if count else "" for count in counts], label_type="center")
    axes.set(title="Class balance", xlabel="pictures", ylim=(len(names) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(loc="best")


def _draw_lengths(axes: Axes, parts: Mapping[str, DatasetStatistics]) -> None:
    """Lengths of the texts of both classes; each curve covers the same area on the logarithmic axis."""
    lengths = np.concatenate([part.lengths for part in parts.values()])
    labels = np.concatenate([part.labels for part in parts.values()])
    axes.set(title="Text lengths", xlabel="characters", ylabel="share of texts")
    if not (lengths > 0).any():
        axes.text(0.5, 0.5, "no texts", transform=axes.transAxes, ha="center", color=MUTED)
        return
    top = max(1.0, np.ceil(np.log10(lengths.max())))
    bins = np.logspace(0, top, 8 * int(top) + 1)
    for label, name, colour in ((0, "not an ad", MUTED), (1, "ad", BAD)):
        chosen = lengths[(labels == label) & (lengths > 0)]
        if len(chosen):
            counts, _ = np.histogram(chosen, bins=bins)
            axes.stairs(counts / counts.sum(), bins, label=name, color=colour, fill=True, alpha=0.45)
    axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.legend(loc="best")


def _draw_missing(axes: Axes, parts: Mapping[str, DatasetStatistics]) -> None:
    """If one class lacks texts more often, a missing text alone tells something about the label."""
    places = np.arange(len(parts))
    for label, name, shift, colour in ((1, "ad", -0.18, BAD), (0, "not an ad", 0.18, _OTHERS)):
        shares = [part.without_text(label) for part in parts.values()]
        bars = axes.barh(places + shift, np.nan_to_num(shares), height=0.34, color=colour, label=name)
        axes.bar_label(bars, labels=["none" if np.isnan(share) else f"{share:.1%}" for share in shares], padding=3)
    axes.set_yticks(places, list(parts))
    axes.set(title="Pictures without text", xlabel="share of the class", ylim=(len(parts) - 0.4, -0.6))
    axes.set_xlim(0, max(0.05, 1.2 * axes.get_xlim()[1]))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.grid(visible=False, axis="y")
    axes.legend(loc="best")

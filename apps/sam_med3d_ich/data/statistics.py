"""What a data set is like, as a table and a picture: spacing, sizes, HU, lesion volumes, class balance.

Everything comes from the metadata the cache keeps of each case, so no image is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mlcore.base.files import format_bytes
from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.style import BAD, MUTED, PALETTE, picture
from quartet.apps.sam_med3d_ich.data.cache import Cache
from quartet.apps.sam_med3d_ich.data.case import Case
from quartet.apps.sam_med3d_ich.data.metadata import HU_EDGES, CaseMetadata, hu_quantiles, not_hu
from quartet.apps.sam_med3d_ich.data.words import counted
from quartet.apps.sam_med3d_ich.legends import legend_below

__all__ = ["DatasetStatistics", "dataset_statistics", "draw_statistics", "statistics_sections"]

_SMALL_ML = 1.0  # below it a bleed is easily missed
_NOT_HU = "The window cuts at HU; in another unit (raw values, +1024, another modality) it hides what is looked for."


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """What a set of cases holds.

    Attributes:
        metadata: Of each case, as stored.
        ich: 0 or 1 of each case.
        patients: Number of different patients.
        prepared_bytes: Memory of all cases on the target grid (image and components).
        not_hu: Name of a case, and why its values may be no HU, where a window is set.
    """

    metadata: tuple[CaseMetadata, ...]
    ich: tuple[int, ...]
    patients: int
    prepared_bytes: int
    not_hu: tuple[tuple[str, str], ...] = ()

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel sizes in mm along stored axes, [N, 3]."""
        return np.array([metadata.spacing for metadata in self.metadata])

    @property
    def lesions_ml(self) -> NDArray[np.float64]:
        """Volume of every lesion of every case in mL, [L]."""
        return np.array([volume for metadata in self.metadata for volume in metadata.lesions_ml], dtype=np.float64)

    @property
    def bleeds_ml(self) -> NDArray[np.float64]:
        """Marked volume of each case that has any, in mL."""
        return np.array([metadata.volume_ml for metadata in self.metadata if metadata.lesions_ml], dtype=np.float64)

    @property
    def voxel_counts(self) -> NDArray[np.int64]:
        """Voxels in each bin of `HU_EDGES`."""
        counts: NDArray[np.int64] = np.array([metadata.histogram for metadata in self.metadata]).sum(axis=0)
        return counts

    @property
    def lesion_counts(self) -> NDArray[np.int64]:
        """The same for voxels inside masks."""
        counts: NDArray[np.int64] = np.array([metadata.lesion_histogram for metadata in self.metadata]).sum(axis=0)
        return counts

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of a table."""
        positive, cases = sum(self.ich), len(self.ich)
        shapes = np.array([metadata.shape for metadata in self.metadata])
        lesions = [len(metadata.lesions_ml) for metadata in self.metadata if metadata.lesions_ml]
        voxels, marked = self.voxel_counts, self.lesion_counts
        ranges = np.array([metadata.hu_range for metadata in self.metadata])
        small = int((self.lesions_ml < _SMALL_ML).sum())
        doubtful = len({name for name, _ in self.not_hu})
        return [
            ("cases", f"{cases} of {counted(self.patients, 'patient')}"),
            ("with a bleed", f"{positive} ({positive / cases:.0%}), without {cases - positive}"),
            ("voxels", " x ".join(_range(column, "d") for column in shapes.T)),
            ("spacing", " x ".join(_range(column, ".4g") for column in self.spacing.T) + " mm"),
            ("values", f"{ranges[:, 0].min():.0f} to {ranges[:, 1].max():.0f} HU"),
            ("HU inside the mask", _hu_spread(marked)),
            ("perhaps not HU", counted(doubtful, "case") if doubtful else "none"),
            ("marked voxels", f"{marked.sum() / voxels.sum():.4%} of all"),
            ("lesions per bleed", f"{np.mean(lesions):.1f} (1 to {max(lesions)})" if lesions else "none"),
            ("lesion volume", _volume_spread(self.lesions_ml)),
            (f"lesions below {_SMALL_ML:g} mL", f"{small} of {len(self.lesions_ml)}"),
            ("volume per bleed", _volume_spread(self.bleeds_ml)),
            ("prepared data", format_bytes(self.prepared_bytes)),
        ]


def dataset_statistics(cases: Sequence[Case], *, cache: Cache) -> DatasetStatistics:
    """Gather the metadata of cases, at least one; those not in the cache yet are prepared now.

    Raises:
        UserError: A case cannot be prepared.
    """
    metadata, total, remarks = [], 0, list[tuple[str, str]]()
    for case in cases:
        cached = cache.read(case)
        metadata.append(cached.metadata)
        total += cached.image.nbytes + cached.components.nbytes
        remarks += [(case.name, remark) for remark in not_hu(cached.metadata, cache.settings.window)]
    return DatasetStatistics(
        metadata=tuple(metadata),
        ich=tuple(case.ich for case in cases),
        patients=len({case.patient_id for case in cases}),
        prepared_bytes=total,
        not_hu=tuple(remarks),
    )


def statistics_sections(parts: Mapping[str, DatasetStatistics], folder: Path) -> list[Section]:
    """A table with a column for each part ("train", "val"), and `statistics.png` of all parts, drawn into `folder`."""
    path = folder / "statistics.png"
    draw_statistics(parts, path=path)
    note = "As stored, before resampling. A lesion is a connected part of a mask (26 neighbours)."
    sections: list[Section] = [Table.of_parts({name: part.rows() for name, part in parts.items()}, note=note)]
    remarks = [[part, *remark] for part in parts for remark in parts[part].not_hu]
    if remarks:
        sections.append(Table("Perhaps not HU", ["data", "case", "remark"], remarks, note=_NOT_HU))
    return [*sections, Picture("Data as stored", path, wide=True)]


def draw_statistics(parts: Mapping[str, DatasetStatistics], *, path: Path) -> None:
    """Draw HU, lesion volumes, spacing and class balance of each part to `path` (PNG)."""
    with picture(path, width=11.0, height=6.4) as figure:
        axes = figure.subplots(2, 2)
        _draw_hu(axes[0, 0], list(parts.values()))
        _draw_lesions(axes[0, 1], parts)
        _draw_spacing(axes[1, 0], parts)
        _draw_balance(axes[1, 1], parts)


def _draw_hu(axes: Axes, parts: Sequence[DatasetStatistics]) -> None:
    """Share of voxels per HU around brain and blood; both curves cover the same area."""
    inside = (HU_EDGES >= -100) & (HU_EDGES <= 200)
    edges = HU_EDGES[inside]
    everything = np.sum([part.voxel_counts for part in parts], axis=0)
    marked = np.sum([part.lesion_counts for part in parts], axis=0)
    for counts, label, colour in ((everything, "all voxels", MUTED), (marked, "inside the mask", BAD)):
        shown = counts[inside[:-1] & inside[1:]]
        if shown.sum():
            axes.stairs(shown / shown.sum() / np.diff(edges), edges, label=label, color=colour, fill=True, alpha=0.45)
    axes.set(title="Values around brain and blood", xlabel="HU", ylabel="density", xlim=(-100, 200))
    legend_below(axes)


def _draw_lesions(axes: Axes, parts: Mapping[str, DatasetStatistics]) -> None:
    volumes = {name: part.lesions_ml for name, part in parts.items() if len(part.lesions_ml)}
    axes.set(title="Lesion volumes", xlabel="mL", ylabel="lesions")
    if not volumes:
        axes.text(0.5, 0.5, "no lesions", transform=axes.transAxes, ha="center", color=MUTED)
        return
    everything = np.concatenate(list(volumes.values()))
    low, high = np.floor(np.log10(everything.min())), np.ceil(np.log10(everything.max()))
    bins = np.logspace(low, max(high, low + 1), 5 * int(max(high, low + 1) - low) + 1)
    axes.hist(list(volumes.values()), bins=bins.tolist(), label=list(volumes), color=_colours(parts, volumes))
    axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.axvline(_SMALL_ML, color=MUTED, linewidth=1, linestyle="--", label=f"{_SMALL_ML:g} mL")
    legend_below(axes)


def _draw_spacing(axes: Axes, parts: Mapping[str, DatasetStatistics]) -> None:
    """Each case as a point: its finest and its coarsest voxel side."""
    for name, part in parts.items():
        fine, coarse = part.spacing.min(axis=1), part.spacing.max(axis=1)
        axes.scatter(fine, coarse, s=22, alpha=0.6, label=name, color=_colours(parts, [name])[0], linewidths=0)
    axes.set(title="Voxel size", xlabel="finest side, mm", ylabel="coarsest side, mm")
    axes.set_xlim(0, 1.15 * axes.get_xlim()[1])
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    legend_below(axes)


def _draw_balance(axes: Axes, parts: Mapping[str, DatasetStatistics]) -> None:
    names = list(parts)
    bleeds = [sum(part.ich) for part in parts.values()]
    others = [len(part.ich) - sum(part.ich) for part in parts.values()]
    first = axes.barh(names, bleeds, color=BAD, height=0.5, label="bleed")
    second = axes.barh(names, others, left=bleeds, color="#b6bfc8", height=0.5, label="no bleed")
    for bars, counts in ((first, bleeds), (second, others)):
        axes.bar_label(bars, labels=[str(count) if count else "" for count in counts], label_type="center")
    axes.set(title="Class balance", xlabel="cases", ylim=(len(names) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(axes)


def _colours(parts: Mapping[str, Any], names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """One colour for each part, the same in every panel."""
    order = list(parts)
    return [PALETTE[order.index(name) % len(PALETTE)] for name in names]


def _range(values: NDArray[Any], form: str) -> str:
    low, high = values.min(), values.max()
    return format(low, form) if low == high else f"({low:{form}} to {high:{form}})"


def _volume_spread(volumes: NDArray[np.float64]) -> str:
    if not len(volumes):
        return "none"
    return f"median {np.median(volumes):.3g} mL ({volumes.min():.3g} to {volumes.max():.3g})"


def _hu_spread(counts: NDArray[np.int64]) -> str:
    """Quartiles of a histogram, to the precision of its bins."""
    if not counts.sum():
        return "none"
    low, middle, high = hu_quantiles(counts, (0.25, 0.5, 0.75))
    return f"median {middle:.0f} (quartiles {low:.0f} to {high:.0f})"

"""What one stored case is like, measured once and kept as plain values, so that statistics cost nothing later."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from quartet.apps.sam_med3d_ich.data.preprocess import EVERYWHERE
from quartet.apps.sam_med3d_ich.data.volume import Volume

__all__ = ["HU_EDGES", "CaseMetadata", "case_metadata", "hu_quantiles", "not_hu"]

# HU: 4 wide around brain and blood, wider below and above.
HU_EDGES: Final = np.concatenate([np.arange(-1024, -100, 44), np.arange(-100, 200, 4), np.arange(200, 2001, 60)])

_AIR = -200  # HU; every CT of a head shows something below it: air about the head, or in the sinuses


@dataclass(frozen=True, kw_only=True)
class CaseMetadata:
    """One case as stored, before any preprocessing.

    Attributes:
        shape: Voxels along its own axes.
        spacing: Voxel size along its own axes in mm.
        hu_range: Lowest and highest value.
        histogram: Voxels in each bin of `HU_EDGES`; values beyond count in the outermost bins.
        lesion_histogram: The same for voxels inside the mask.
        lesions_ml: Volume of each connected component (26 neighbours) of the mask in mL, largest first.
        remarks: What the volume's source says against its values being HU.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    hu_range: tuple[float, float]
    histogram: tuple[int, ...]
    lesion_histogram: tuple[int, ...]
    lesions_ml: tuple[float, ...]
    remarks: tuple[str, ...] = ()

    @property
    def volume_ml(self) -> float:
        """Volume of the whole mask in mL."""
        return sum(self.lesions_ml)

    @property
    def voxels(self) -> int:
        """Voxels of the volume."""
        return int(np.prod(self.shape))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CaseMetadata":
        """The metadata that `to_dict` described."""
        return cls(**{name: tuple(value) for name, value in values.items()})


def case_metadata(volume: Volume, mask: NDArray[np.uint8]) -> CaseMetadata:
    """Measure a case.

    Args:
        volume: As stored.
        mask: uint8 [X, Y, Z] of 0 and 1, of the same shape.
    """
    labels, _ = ndimage.label(mask, structure=EVERYWHERE)
    sizes = np.sort(np.bincount(labels.ravel())[1:])[::-1] * volume.voxel_ml
    first, second, third = volume.array.shape
    return CaseMetadata(
        shape=(first, second, third),
        spacing=volume.spacing,
        hu_range=(float(volume.array.min()), float(volume.array.max())),
        histogram=_histogram(volume.array),
        lesion_histogram=_histogram(volume.array[mask > 0]),
        lesions_ml=tuple(sizes.tolist()),
        remarks=volume.remarks,
    )


def hu_quantiles(counts: NDArray[np.int64], shares: Sequence[float]) -> list[float]:
    """Quantiles of a histogram over `HU_EDGES` that counts something, to the precision of its bins."""
    share = np.cumsum(counts) / counts.sum()
    centres = (HU_EDGES[:-1] + HU_EDGES[1:]) / 2
    return [float(centres[np.searchsorted(share, q)]) for q in shares]


def not_hu(metadata: CaseMetadata, window: tuple[float, float] | None) -> list[str]:
    """Why the values of a case may be no Hounsfield units.

    Args:
        metadata: Of the case; without a mask, what its source says and its lowest value count.
        window: Level and width in HU through which the values are seen; None: any unit will do.
    """
    if window is None:
        return []
    remarks = [*metadata.remarks]
    if metadata.hu_range[0] > _AIR:
        remarks.append(f"its lowest value is {metadata.hu_range[0]:g}, air is -1000 HU")
    marked = np.array(metadata.lesion_histogram)
    low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    if marked.any():
        (median,) = hu_quantiles(marked, [0.5])
        if not low <= median <= high:
            remarks.append(f"the median inside its mask is {median:.0f}, outside the window of {low:g} to {high:g} HU")
    return remarks


def _histogram(values: NDArray[np.float32]) -> tuple[int, ...]:
    low, high = int(HU_EDGES[0]), int(HU_EDGES[-1])
    # Edges are whole HU: counting per HU and adding up is many times faster than searching uneven bins.
    whole = np.floor(values.clip(low, high - 1)).astype(np.int32) - low
    counts = np.bincount(whole.ravel(), minlength=high - low)
    return tuple(np.add.reduceat(counts, HU_EDGES[:-1] - low).tolist())

"""Slices of a DICOM stack: where each lies, and whether together they make one volume."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError

__all__ = ["Slice", "Stack", "numbers", "stacked"]

_UNEVEN = 0.02  # share of the slice distance by which distances may differ; positions are rounded in many files
_FINER = 4  # even slices that are made of uneven ones, at most, for each of them
_EVENED = "prepare.py --orthogonal makes even slices of uneven ones"


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice:
    """One picture: a file, or a frame of a file. Lengths are in mm, directions and positions LPS.

    Attributes:
        path: The file.
        frame: Number of the picture in it, from 0; None for a file of one picture.
        position: Of the first voxel, [3].
        row: Direction in which columns are counted, [3].
        column: Direction in which rows are counted, [3].
        spacing: Between columns and between rows.
        size: Columns and rows.
        rescale: Slope and intercept from stored to real values; None where the file gives none.
        unit: What the file says of the unit of real values, such as "HU"; empty where it says nothing.
        modality: "CT", "MR", ...; empty where the file does not say.
    """

    path: Path
    frame: int | None
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    size: tuple[int, int]
    rescale: tuple[float, float] | None
    unit: str
    modality: str

    @property
    def normal(self) -> NDArray[np.float64]:
        """Direction at right angles to the picture, [3]."""
        return np.cross(self.row, self.column)

    def __str__(self) -> str:
        return str(self.path) if self.frame is None else f"{self.path}, frame {self.frame + 1}"

    @property
    def name(self) -> str:
        """For people who know the folder."""
        return self.path.name if self.frame is None else f"{self.path.name}, frame {self.frame + 1}"


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in the order of the volume.

    Attributes:
        slices: At least two.
        affine: float64 [4, 4], index of column, row and (even) slice to LPS mm.
        places: float64 [Z], where in the stack of `slices` each slice of the volume lies, from 0; whole numbers where
            the slices are even.
        resampled: That slices were uneven, where they were.
    """

    slices: tuple[Slice, ...]
    affine: NDArray[np.float64]
    places: NDArray[np.float64]
    resampled: tuple[str, ...] = ()


def numbers(where: object, attribute: str, values: object, *, count: int) -> NDArray[np.float64]:
    """Values of a DICOM attribute such as "0020,0032" as float64 [count]; a UserError unless they are so many."""
    try:
        found = np.array([float(part) for part in values])  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        shown = "\\".join(map(str, values)) if isinstance(values, Sequence) else ""
        raise UserError(
            f"{where}: DICOM attribute ({attribute}) is '{' '.join(shown.split())}'; expected {count} numbers"
        )
    return found


def stacked(slices: Sequence[Slice], *, series: str, even_out: bool = False) -> Stack:
    """Put slices into their order along the normal of their plane.

    Args:
        slices: In any order, at least one.
        series: What they are, for messages.
        even_out: Accept uneven distances; the volume then has even slices, about as close as the closest two.

    Raises:
        UserError: They are turned against each other, of different sizes, twice at one place, unevenly spaced or not
            on one line.
    """
    first = slices[0]
    for other in slices[1:]:
        if np.abs(np.concatenate([other.row - first.row, other.column - first.column])).max() > 1e-3:
            raise UserError(f"{other}: its plane is turned against that of {first}; not one volume")
        if other.size != first.size or not np.allclose(other.spacing, first.spacing, rtol=1e-4):
            raise UserError(f"{other}: its size or pixel spacing is not that of {first}; not one volume")
    if len(slices) < 2:
        raise UserError(f"{first}: a volume needs at least two slices, not one slice")
    order = sorted(slices, key=lambda one: float(one.position @ first.normal))
    positions = np.stack([one.position for one in order])  # [Z, 3]
    heights = positions @ first.normal
    _check_distances(order, heights, series=series, even_out=even_out)
    share = (heights - heights[0]) / (heights[-1] - heights[0])  # of the way to the last slice
    _check_line(order, positions, share, series=series)
    count = _even_count(heights) if even_out else len(order)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.row * first.spacing[0], first.column * first.spacing[1]
    affine[:3, 2], affine[:3, 3] = (positions[-1] - positions[0]) / (count - 1), positions[0]
    indices = np.arange(len(order), dtype=np.float64)
    if count == len(order):
        return Stack(tuple(order), affine, indices)
    steps = np.diff(heights)
    done = f"slices {steps.min():.3g} to {steps.max():.3g} mm apart were resampled to {count} even ones"
    return Stack(tuple(order), affine, np.interp(np.linspace(0, 1, count), share, indices), resampled=(done,))


def _check_distances(order: Sequence[Slice], heights: NDArray[np.float64], *, series: str, even_out: bool) -> None:
    steps = np.diff(heights)
    at = int(steps.argmin())
    if steps[at] < 1e-3:
        raise UserError(
            f"{order[at + 1]}: lies where {order[at].name} lies; {series} holds slices twice or several volumes"
        )
    usual = float(np.median(steps))
    at = int(np.abs(steps - usual).argmax())
    if not even_out and abs(steps[at] - usual) > _UNEVEN * usual:
        what = "files" if order[at].frame is None else "frames"
        raise UserError(
            f"{order[at].path.parent}: slices of {series} are {usual:g} mm apart, but {order[at].name} and "
            f"{order[at + 1].name} {steps[at]:g} mm; are {what} missing? {_EVENED}"
        )


def _check_line(
    order: Sequence[Slice], positions: NDArray[np.float64], share: NDArray[np.float64], *, series: str
) -> None:
    expected = positions[0] + share[:, None] * (positions[-1] - positions[0])
    aside = np.linalg.norm(positions - expected, axis=1)
    worst = int(aside.argmax())
    if aside[worst] > 0.5 * min(order[0].spacing):
        raise UserError(
            f"{order[worst]}: lies {aside[worst]:.3g} mm beside the line of the slices of {series}; not one volume"
        )


def _even_count(heights: NDArray[np.float64]) -> int:
    """How many even slices to make: those there are; of uneven ones so many that they are as close as the closest."""
    steps, reach = np.diff(heights), float(heights[-1] - heights[0])
    usual = float(np.median(steps))
    if np.abs(steps - usual).max() <= _UNEVEN * usual:
        return len(heights)
    return min(round(reach / float(steps.min())) + 1, _FINER * len(heights))

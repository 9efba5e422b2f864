"""Shapes, spacings and affines: the checks and the words that reading and preparing share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.reading import READ_GIB, allowed_bytes

__all__ = [
    "LARGEST",
    "Geometry",
    "Spacing",
    "affine_distance",
    "affine_spacing",
    "by",
    "check_resampled",
    "checked_affine",
    "checked_spacing",
    "file_suffix",
    "is_orthogonal",
    "mm",
    "orthogonal_axes",
    "place",
    "plain_shape",
    "spacings_agree",
    "three_axes",
    "turn_towards",
    "voxel_ml",
]

Spacing = tuple[float, float, float]  # mm

LARGEST = 2**30  # bytes as float32, 512 x 512 x 1024 voxels; an empty mask of any size is small on disk
_SPACING_TOLERANCE_MM = 1e-3
_VOXEL_MM = (0.05, 20.0)  # what a head can be scanned with; a header in micrometres or metres is far beyond


@dataclass(frozen=True, eq=False)
class Geometry:
    """An image's shape and affine, without its voxels."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def affine_distance(first: NDArray[np.float64], second: NDArray[np.float64], *, shape: Sequence[int]) -> float:
    """How far apart in mm two affines put the same corner voxel of a grid, at most."""
    ends = np.array(np.meshgrid(*[(0, length - 1) for length in shape], [1])).reshape(4, -1)  # [4, 8 corners]
    return float(np.linalg.norm(((first - second) @ ends)[:3], axis=0).max())


def turn_towards(geometry: Geometry, like: Geometry) -> tuple[Any, Geometry]:
    """How to flip and swap the axes of a grid so that they run as those of `like`, which moves no voxel in the world.

    Returns:
        For nibabel's `apply_orientation`, and the grid with its axes so ordered.
    """
    turn: Any = nibabel.orientations.io_orientation(  # type: ignore[no-untyped-call]
        np.linalg.inv(like.affine) @ geometry.affine
    )
    back: Any = nibabel.orientations.inv_ornt_aff(turn, geometry.shape)  # type: ignore[no-untyped-call]
    sides = [geometry.shape[axis] for axis in np.argsort(turn[:, 0])]
    return turn, Geometry(tuple(sides), geometry.affine @ back)


def file_suffix(path: Path) -> str:
    """The lower-case suffix, ".nii.gz" as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def plain_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape without trailing axes of length 1 beyond the third."""
    plain = tuple(int(length) for length in shape)
    while len(plain) > 3 and plain[-1] == 1:
        plain = plain[:-1]
    return plain


def three_axes(path: Path, shape: Sequence[int]) -> tuple[int, ...]:
    """The plain shape; a UserError unless it has three axes of at least two voxels."""
    plain = plain_shape(shape)
    if len(plain) != 3:
        raise UserError(f"{path}: {len(plain)}-dimensional ({by(plain)}); expected a volume of three axes")
    if min(plain) < 2:
        raise UserError(f"{path}: {by(plain)} voxels; a volume needs at least two along each axis, not one slice")
    return plain


def checked_affine(path: Path, values: object) -> NDArray[np.float64]:
    """Values as an affine [4, 4]; a UserError unless it is finite and invertible, with voxels of 0.05 to 20 mm."""
    try:
        affine = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        affine = np.empty(0)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise UserError(f"{path}: its affine is no 4 x 4 matrix of finite numbers with the last row 0 0 0 1")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * sizes.prod():
        raise UserError(
            f"{path}: its affine has no volume (voxel size {mm(affine_spacing(affine))}); correct the header"
        )
    _check_size(path, affine_spacing(affine))
    return affine


def checked_spacing(path: Path, values: object) -> Spacing:
    """Values as a spacing in mm; a UserError unless they are three numbers from 0.05 to 20."""
    try:
        spacing = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        spacing = np.empty(0)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or spacing.min() <= 0:
        raise UserError(f"{path}: spacing {values!r}; expected three voxel sizes in mm above 0")
    sizes = float(spacing[0]), float(spacing[1]), float(spacing[2])
    _check_size(path, sizes)
    return sizes


def check_resampled(source: str, stored: Geometry, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Refuse to make a grid of `shape` before it takes memory.

    Raises:
        UserError: As float32 it is larger than 1 GiB, than the stored one, and than what `QUARTET_READ_GIB` allows.
    """
    size = 4 * math.prod(shape)
    if size > max(LARGEST, 4 * math.prod(stored.shape), allowed_bytes()):
        gib = size / 2**30
        raise UserError(
            f"{source}: {by(stored.shape)} voxels of {mm(affine_spacing(stored.affine))} would become {by(shape)} of "
            f"{mm(spacing)}, {gib:.3g} GiB; correct its spacing, resample it to larger voxels, or set "
            f"{READ_GIB}={int(gib) + 1}"
        )


def _check_size(path: Path, sizes: Spacing) -> None:
    smallest, largest = _VOXEL_MM
    if min(sizes) < 0.999 * smallest or max(sizes) > 1.001 * largest:  # headers round
        raise UserError(
            f"{path}: voxels of {mm(sizes)}; expected {smallest:g} to {largest:g} mm along each axis. Is it in "
            "micrometres or metres? Correct the file"
        )


def affine_spacing(affine: NDArray[np.float64]) -> Spacing:
    """Millimetres between voxels along each array axis: the column norms."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def voxel_ml(affine: NDArray[np.float64]) -> float:
    """Millilitres of one voxel, whatever the angles between the axes: of all volumes in tables and pictures."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def spacings_agree(first: Spacing, second: Spacing) -> bool:
    """Whether two spacings are the same to a micrometre."""
    return all(abs(a - b) <= _SPACING_TOLERANCE_MM for a, b in zip(first, second, strict=True))


def is_orthogonal(affine: NDArray[np.float64]) -> bool:
    """Whether the array axes are at right angles (no shear, as of a tilted gantry)."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4)


def orthogonal_axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The steps [3, 3] of the grid at right angles that is next to a tilted one, with voxels of the same volume.

    The two axes that are closest to a right angle (rows and columns of a slice) stay; the third becomes their normal,
    with the distance between slices along it.
    """
    axes = affine[:3, :3]
    unit = axes / np.linalg.norm(axes, axis=0)
    first, second, third = min(((0, 1, 2), (0, 2, 1), (1, 2, 0)), key=lambda k: abs(unit[:, k[0]] @ unit[:, k[1]]))
    straight = np.empty((3, 3))
    straight[:, first] = unit[:, first]
    across = axes[:, second] - (axes[:, second] @ unit[:, first]) * unit[:, first]
    straight[:, second] = across / np.linalg.norm(across)
    normal = np.cross(straight[:, first], straight[:, second])
    straight[:, third] = normal * np.sign(normal @ axes[:, third])
    steps: NDArray[np.float64] = straight * np.einsum("ij,ij->j", straight, axes)
    return steps


def by(shape: Sequence[int]) -> str:
    """A shape for people: "512 x 512 x 30"."""
    return " x ".join(map(str, shape))


def mm(spacing: Sequence[float]) -> str:
    """A spacing for people: "0.5 x 0.5 x 5 mm"."""
    return " x ".join(f"{value:.4g}" for value in spacing) + " mm"


def place(affine: NDArray[np.float64]) -> str:
    """Where an affine puts an image, for people."""
    axes = nibabel.orientations.aff2axcodes(affine)  # type: ignore[no-untyped-call]
    codes = "".join(str(code) for code in axes)
    origin = ", ".join(f"{value:.5g}" for value in affine[:3, 3])
    return f"axes {codes}, {mm(affine_spacing(affine))}, origin ({origin})"

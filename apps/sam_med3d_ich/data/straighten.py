"""Tilted grids to grids at right angles, for programs that know no others."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from quartet.apps.sam_med3d_ich.data.geometry import Geometry, affine_spacing, check_resampled, orthogonal_axes
from quartet.apps.sam_med3d_ich.data.volume import Volume

__all__ = ["straight_grid", "straightened", "straightened_mask"]

_ROUNDING = 1e-6  # voxels


def straight_grid(tilted: Geometry) -> Geometry:
    """The grid at right angles next to a tilted one (`orthogonal_axes`), large enough to hold all of it.

    The rows of a tilted gantry's slices come out shifted against each other; none is mixed with another slice.
    """
    axes = orthogonal_axes(tilted.affine)
    ends = np.array(np.meshgrid(*[(0, length - 1) for length in tilted.shape])).reshape(3, -1)  # [3, 8 corners]
    places = np.linalg.inv(axes) @ tilted.affine[:3, :3] @ ends  # in steps of the new axes, from the old first voxel
    low, high = places.min(axis=1), places.max(axis=1)
    affine = tilted.affine.copy()
    affine[:3, :3] = axes
    affine[:3, 3] += axes @ low
    shape = (int(length) + 1 for length in np.ceil(high - low - _ROUNDING))
    return Geometry(tuple(shape), affine)


def straightened(volume: Volume) -> Volume:
    """A tilted volume on its straight grid, by linear interpolation; beyond it is its lowest value.

    Raises:
        UserError: See `check_resampled`.
    """
    grid = straight_grid(volume.geometry)
    check_resampled(volume.source, volume.geometry, grid.shape, affine_spacing(grid.affine))
    array = _sampled(volume.array, volume.affine, grid, order=1, outside=float(volume.array.min()))
    done = (*volume.resampled, "a tilted grid was resampled to right angles")
    return replace(volume, array=array, affine=grid.affine, resampled=done)


def straightened_mask(mask: NDArray[np.uint8], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A mask [X, Y, Z] on the straight grid of its tilted one, by nearest neighbour."""
    grid = straight_grid(Geometry(mask.shape, affine))
    sampled: NDArray[np.uint8] = _sampled(mask, affine, grid, order=0, outside=0)
    return sampled


def _sampled(array: NDArray[Any], affine: NDArray[np.float64], grid: Geometry, *, order: int, outside: float) -> Any:
    back = np.linalg.inv(affine) @ grid.affine
    # "grid-constant" fades out over the last voxel; "constant" cuts a whole slice off where rounding puts it outside.
    return ndimage.affine_transform(
        array, back[:3, :3], back[:3, 3], grid.shape, order=order, mode="grid-constant", cval=outside
    )

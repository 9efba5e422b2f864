"""From a volume as stored to the grid the model works on, and back, exactly.

Axes are put into the closest R, A, S order without interpolation, so flipped and rotated copies of a volume become the
same array. Then HU are windowed and normalised over the whole volume, and the grid is resized to the wanted spacing so
that both grids cover the same extent: `to_native` is the geometric inverse, whatever the sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Final, Literal

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from quartet.apps.sam_med3d_ich.data.geometry import check_resampled
from quartet.apps.sam_med3d_ich.data.volume import Volume

__all__ = ["EVERYWHERE", "WINDOWS", "Grid", "Normalization", "Prepared", "Preprocessing"]
__all__ += ["prepare", "prepare_mask", "to_native"]

Normalization = Literal["none", "zscore", "zscore_positive"]
Shape = tuple[int, int, int]

# (level, width) in HU, as on a CT console.
WINDOWS: Final[Mapping[str, tuple[float, float] | None]] = {
    "brain": (40.0, 80.0),
    "subdural": (75.0, 215.0),
    "bone": (600.0, 2800.0),
    "none": None,
}
EVERYWHERE: Final = np.ones((3, 3, 3), dtype=np.uint8)  # voxels that share a corner are connected (26 neighbours)
_FLAT = 1e-6  # a standard deviation below this is rounding, not contrast


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How volumes are made alike.

    Attributes:
        spacing: Voxel size of the target grid along R, A, S in mm; None keeps that of each file.
        window: Level and width in HU, values beyond are clipped; None leaves values as they are.
        normalize: "zscore": mean 0 and deviation 1 over all voxels; "zscore_positive": the same over the voxels above
            the window's lowest value (above 0 without a window, as the released model was trained); "none".
    """

    spacing: tuple[float, float, float] | None = (1.5, 1.5, 1.5)
    window: tuple[float, float] | None = WINDOWS["brain"]
    normalize: Normalization = "zscore_positive"


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the target grid lies in the stored volume.

    Attributes:
        native_shape: Voxels of the stored volume along its own axes.
        native_affine: float64 [4, 4], stored voxel index to RAS+ mm.
        axes: For each stored axis, the canonical axis (0 R, 1 A, 2 S) it runs along, and 1 or -1 for its direction.
        shape: Voxels of the target grid along R, A, S.
    """

    native_shape: Shape
    native_affine: NDArray[np.float64]
    axes: tuple[tuple[int, int], ...]
    shape: Shape

    @property
    def order(self) -> Shape:
        """The stored axis of each canonical axis."""
        first, second, third = np.argsort([axis for axis, _ in self.axes]).tolist()
        return first, second, third

    @property
    def canonical_shape(self) -> Shape:
        """Voxels of the stored volume along R, A, S."""
        first, second, third = (self.native_shape[axis] for axis in self.order)
        return first, second, third

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """float64 [4, 4], index on the target grid to RAS+ mm."""
        axes = np.array(self.axes)
        to_stored = nibabel.orientations.inv_ornt_aff(axes, self.native_shape)  # type: ignore[no-untyped-call]
        steps = np.divide(self.canonical_shape, self.shape)  # target voxels in canonical ones
        to_canonical = np.diag([*steps, 1.0])
        to_canonical[:3, 3] = (steps - 1) / 2  # the outer faces of both grids coincide, not the outer centres
        affine: NDArray[np.float64] = self.native_affine @ to_stored @ to_canonical
        return affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size of the target grid along R, A, S in mm; near the wanted one, as voxels come in whole numbers."""
        first, second, third = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return first, second, third

    def from_native(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Voxel indices of the stored volume [N, 3] as (fractional) indices on the target grid [N, 3]."""
        matrix = np.linalg.inv(self.affine) @ self.native_affine
        moved: NDArray[np.float64] = points @ matrix[:3, :3].T + matrix[:3, 3]
        return moved

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "native_shape": list(self.native_shape),
            "native_affine": self.native_affine.tolist(),
            "axes": [list(axis) for axis in self.axes],
            "shape": list(self.shape),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Grid":
        """The grid that `to_dict` described."""
        return cls(
            native_shape=_shape(values["native_shape"]),
            native_affine=np.array(values["native_affine"], dtype=np.float64),
            axes=tuple((int(axis), int(sign)) for axis, sign in values["axes"]),
            shape=_shape(values["shape"]),
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume on the target grid.

    Attributes:
        image: float32 [X, Y, Z], axes R, A, S, windowed and normalised.
        background: The value of `image` that stands for nothing (air); pad with it.
        grid: What `to_native` and `prepare_mask` need.
    """

    image: NDArray[np.float32]
    background: float
    grid: Grid


def prepare(volume: Volume, settings: Preprocessing) -> Prepared:
    """Put a volume onto the target grid.

    Args:
        volume: float32 [X, Y, Z] in HU (or any unit, without a window), with its affine.
        settings: What to do.

    Returns:
        The image, bit-equal for flipped and axis-permuted copies of the same volume with matching affines.

    Raises:
        UserError: See `check_resampled`.
    """
    grid = _grid(volume, settings.spacing)
    array = _to_canonical(volume.array, grid).astype(np.float32)  # contiguous: sums must not depend on the stored order
    lowest = float(array.min())
    floor = 0.0
    if settings.window is not None:
        level, width = settings.window
        lowest = floor = level - width / 2
        array = array.clip(lowest, level + width / 2)
    mean, std = _statistics(array, settings.normalize, floor=floor)
    # Statistics come from the stored voxels, so that they do not change with the target spacing.
    image = (_resize(array, grid.shape) - np.float32(mean)) / np.float32(std)
    background = (np.float32(lowest) - np.float32(mean)) / np.float32(std)
    return Prepared(image=image, background=float(background), grid=grid)


def prepare_mask(mask: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """Put a mask onto the target grid by nearest neighbour; no component (26 neighbours) of it may get lost.

    A target voxel whose centre lies between two stored voxels, as all do where every second one is left out, is as near
    to the one as to the other; always taking the same one would shift the mask by half a stored voxel. Of such a
    component those target voxels are marked that hold most of it, so many that it keeps its volume. A component that
    falls between the centres of target voxels is stamped onto those nearest to its own.

    Args:
        mask: uint8 [X, Y, Z] of 0 and 1, stored order.
        grid: Of the volume's `Prepared`.

    Returns:
        uint8 [X', Y', Z'] of 0 and 1, axes R, A, S.
    """
    labels, count = ndimage.label(_to_canonical(mask, grid), structure=EVERYWHERE)
    pairs = list(zip(labels.shape, grid.shape, strict=True))
    # Centre of target voxel i: (i + 1/2) n / m voxels into the stored grid; in integers, so no rounding can be off.
    centres = [((2 * np.arange(m) + 1) * n, 2 * m) for n, m in pairs]
    nearest = [(place // unit, (place - 1) // unit) for place, unit in centres]  # another one where it lies on a face
    # A single face, in the middle of an axis, moves nothing.
    sampled, share = _sampled(labels, [one if np.sum(one[0] != one[1]) > 1 else one[:1] for one in nearest])
    prepared = (sampled > 0).astype(np.uint8) if (share == 1).all() else _of_the_same_volume(sampled, share)
    kept = np.bincount(sampled[prepared > 0], minlength=count + 1)
    boxes = ndimage.find_objects(labels) if not kept.all() else []
    reaches = [_reach(n, m) for n, m in pairs]
    for lost in np.flatnonzero(kept[1:] == 0):
        box = boxes[lost]
        for voxel in np.argwhere(labels[box] == lost + 1) + [side.start for side in box]:
            prepared[tuple(slice(*reach[v]) for reach, v in zip(reaches, voxel, strict=True))] = 1
    return prepared


def to_native(values: NDArray[np.float32] | Tensor, grid: Grid) -> NDArray[np.float32]:
    """Bring values such as probabilities from the target grid back to the stored one (trilinear).

    Args:
        values: float32 [X', Y', Z'] on the target grid, on any device.
        grid: Of the volume's `Prepared`.

    Returns:
        float32 [X, Y, Z] in the stored order and shape, within the range of `values`.
    """
    plain = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
    array = np.array(plain, dtype=np.float32)  # an own, writable copy: torch warns of others
    resized = _interpolate(array, grid.canonical_shape)
    np.clip(resized, array.min(), array.max(), out=resized)  # weights may add up to 1 + 1e-7
    return np.ascontiguousarray(_from_canonical(resized, grid))


def _grid(volume: Volume, spacing: tuple[float, float, float] | None) -> Grid:
    orientation = nibabel.orientations.io_orientation(volume.affine)  # type: ignore[no-untyped-call]
    stored = _shape(volume.array.shape)
    plain = Grid(
        native_shape=stored,
        native_affine=volume.affine,
        axes=tuple((int(axis), int(sign)) for axis, sign in orientation),
        shape=stored,
    )
    shape = plain.canonical_shape
    if spacing is not None:
        sizes = [volume.spacing[axis] for axis in plain.order]
        sides = zip(shape, sizes, spacing, strict=True)
        shape = _shape([max(1, round(n * size / wanted)) for n, size, wanted in sides])
        check_resampled(volume.source, volume.geometry, shape, spacing)
    return Grid(native_shape=stored, native_affine=volume.affine, axes=plain.axes, shape=shape)


def _statistics(array: NDArray[np.float32], normalize: Normalization, *, floor: float) -> tuple[float, float]:
    if normalize == "none":
        return 0.0, 1.0
    chosen = array[array > floor] if normalize == "zscore_positive" else array
    if chosen.size == 0:
        return floor, 1.0
    mean, std = float(chosen.mean(dtype=np.float64)), float(chosen.std(dtype=np.float64))
    return mean, std if std > _FLAT else 1.0


def _sampled(
    labels: NDArray[np.int32], nearest: Sequence[Sequence[NDArray[np.int64]]]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The label of each target voxel, and what share of the stored voxels that are nearest to it has one.

    Args:
        labels: Components on the stored grid, 0 for none.
        nearest: For each axis the indices of the stored voxels that are nearest to the target ones, once, or twice
            where some lie between two.

    Returns:
        Labels (of two, the larger) and shares, both of the target shape; where there is no label, the share is 1.
    """
    choices = list(product(*nearest))
    sampled = np.zeros([len(axis[0]) for axis in nearest], dtype=np.int32)
    share = np.zeros(sampled.shape, dtype=np.float32)
    for choice in choices:
        found = labels[np.ix_(*choice)]
        np.maximum(sampled, found, out=sampled)
        share += found > 0
    share /= len(choices)
    share[sampled == 0] = 1
    return sampled, share


def _of_the_same_volume(sampled: NDArray[np.int32], share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of each component the voxels with the largest shares, as many as all its shares add up to, at least one."""
    inside = np.flatnonzero(sampled)
    label, held = sampled.ravel()[inside], share.ravel()[inside]
    places = np.stack(np.unravel_index(inside, sampled.shape), axis=1)
    # Of equal shares, such as those of a flat face, evenly spread ones: the additive recurrence of Roberts (2018).
    spread = places @ np.array([0.8191725, 0.6710436, 0.5497005]) % 1
    order = np.lexsort((spread, -held, label))
    rank = np.arange(len(order)) - np.searchsorted(label[order], label[order])  # within its component
    wanted = np.rint(np.bincount(label, weights=held)).clip(1)
    marked = np.zeros(sampled.size, dtype=np.uint8)
    marked[inside[order[rank < wanted[label[order]]]]] = 1
    return marked.reshape(sampled.shape)


def _reach(stored: int, target: int) -> NDArray[np.int64]:
    """The target voxels, (start, stop), with their centre in each stored voxel of an axis, or else the nearest one."""
    faces = np.arange(stored + 1)
    first = -((stored - 2 * faces * target) // (2 * stored))  # ceil(face - 1/2) in target voxels, in integers
    reach = np.stack([first[:-1], first[1:]], axis=1)
    missed = reach[:, 0] == reach[:, 1]
    nearest = (2 * faces[:-1] + 1) * target // (2 * stored)
    reach[missed] = np.stack([nearest, nearest + 1], axis=1)[missed]
    return reach


def _resize(array: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """Resize with the smoothing of scikit-image's and MONAI's anti-aliasing where the grid gets coarser.

    MONAI's own smoothing takes everything outside the volume as 0, which is brain, not air; here the edge goes on.
    """
    sigma = [max(0.0, (n / m - 1) / 2) for n, m in zip(array.shape, shape, strict=True)]
    return _interpolate(ndimage.gaussian_filter(array, sigma, mode="nearest") if any(sigma) else array, shape)


def _interpolate(array: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    if array.shape == shape:
        return array.copy()
    given = torch.from_numpy(array)[None, None]
    resized = torch.nn.functional.interpolate(given, size=shape, mode="trilinear", align_corners=False)
    return resized[0, 0].numpy()


def _to_canonical(array: NDArray[Any], grid: Grid) -> NDArray[Any]:
    flips = tuple(slice(None, None, sign) for _, sign in grid.axes)
    return np.ascontiguousarray(array[flips].transpose(grid.order))


def _from_canonical(array: NDArray[Any], grid: Grid) -> NDArray[Any]:
    flips = tuple(slice(None, None, sign) for _, sign in grid.axes)
    return array.transpose([axis for axis, _ in grid.axes])[flips]


def _shape(sides: Any) -> Shape:
    first, second, third = (int(side) for side in sides)
    return first, second, third

"""Random changes of training crops of head CT: what varies between heads, gantries and scanners.

Left-right flips (heads are near symmetric; up-down and front-back are not), small rotations in mm and scaling in one
resampling, and changes of intensity in units of the crop's own deviation. Every number comes from the given generator.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from quartet.apps.sam_med3d_ich.data.cache import CachedCase
from quartet.apps.sam_med3d_ich.data.crops import cut

__all__ = ["Augmentation", "affine_crop", "plain_crop"]

Crop = tuple[NDArray[np.float32], NDArray[np.unsignedinteger[Any]]]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Each change happens with the same probability, on its own.

    Attributes:
        probability: Of each change, 0 to 1.
        flip_axes: Axes to mirror, 0 R, 1 A, 2 S.
        rotation: Largest angles about R, A and S in degrees, either way.
        scaling: Largest change of size, as a share: 0.1 is 0.9 to 1.1 times.
        blur: Largest deviation of a Gaussian filter in voxels.
        noise: Largest deviation of Gaussian noise, in deviations of the crop.
        contrast: Largest change of contrast about the mean, as a share.
        shift: Largest shift of all values, in deviations of the crop.
        gamma: Largest power (or its inverse) applied between the crop's lowest and highest value, >= 1.
    """

    probability: float
    flip_axes: tuple[int, ...] = (0,)
    rotation: tuple[float, float, float] = (5.0, 5.0, 15.0)
    scaling: float = 0.1
    blur: float = 1.0
    noise: float = 0.15
    contrast: float = 0.25
    shift: float = 0.2
    gamma: float = 1.5

    def spatial(
        self, case: CachedCase, start: NDArray[np.int64], *, size: int, keep: tuple[int, ...], rng: np.random.Generator
    ) -> Crop:
        """Cut a crop, perhaps rotated, scaled and mirrored.

        Args:
            case: What to cut from.
            start: Corner of the crop.
            size: Its side.
            keep: Components that must not leave the crop; if the rotation or scaling loses one, or all that is marked,
                the crop is cut plainly.
            rng: Source of every draw.

        Returns:
            Image float32 and components [size, size, size].
        """
        crop = plain_crop(case, start, size=size)
        if rng.random() < self.probability:
            turned = affine_crop(case, start, size=size, matrix=self._matrix(case.grid.spacing, rng))
            present = np.unique(turned[1])
            if np.isin(keep, present).all() and (present.any() or not crop[1].any()):
                crop = turned
        mirrored = tuple(axis for axis in self.flip_axes if rng.random() < self.probability)
        return np.flip(crop[0], mirrored), np.flip(crop[1], mirrored)

    def intensity(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Blur, noise, contrast, shift and gamma, float32 in and out."""
        unit = image.std()
        blurred, noisy, contrasted, shifted, bent = rng.random(5) < self.probability
        amounts = rng.uniform(-1, 1, size=5).astype(np.float32)  # one for each change, drawn whether or not it happens
        if blurred:
            image = ndimage.gaussian_filter(image, abs(amounts[0]) * self.blur, mode="nearest", truncate=3)
        if noisy:
            scale = unit * np.float32(self.noise) * abs(amounts[1])
            image = image + scale * rng.standard_normal(image.shape, dtype=np.float32)
        if contrasted:
            mean = image.mean()
            image = mean + (1 + amounts[2] * np.float32(self.contrast)) * (image - mean)
        if shifted:
            image = image + amounts[3] * np.float32(self.shift) * unit
        if bent:
            low, span = image.min(), np.ptp(image)
            if span > 0:
                image = low + span * ((image - low) / span) ** np.float32(self.gamma ** float(amounts[4]))
        return np.asarray(image, dtype=np.float32)

    def _matrix(self, spacing: tuple[float, float, float], rng: np.random.Generator) -> NDArray[np.float64]:
        """From a crop's voxel offsets to those of the source: a rotation in mm, so that nothing is sheared."""
        rotation = np.eye(3)
        for axis, limit in enumerate(self.rotation):
            angle = math.radians(limit) * rng.uniform(-1, 1)
            turn = np.eye(3)
            first, second = [other for other in range(3) if other != axis]
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            rotation = rotation @ turn
        size = 1 + self.scaling * rng.uniform(-1, 1)
        matrix: NDArray[np.float64] = rotation * np.asarray(spacing) / np.asarray(spacing)[:, None] / size
        return matrix


def plain_crop(case: CachedCase, start: NDArray[np.int64], *, size: int) -> Crop:
    """Cut image float32 and components, [size, size, size]; beyond the volume is background."""
    sides = (size, size, size)
    return cut(case.image, start, sides, fill=case.background), cut(case.components, start, sides, fill=0)


def affine_crop(case: CachedCase, start: NDArray[np.int64], *, size: int, matrix: NDArray[np.float64]) -> Crop:
    """Cut a crop whose voxel at offset o from its centre shows the source at offset `matrix @ o`.

    The corners come from the volume around the crop, not from padding.

    Args:
        case: What to cut from.
        start: Corner of the crop before the change; its centre stays.
        size: Its side in voxels.
        matrix: float64 [3, 3].

    Returns:
        Image float32 (trilinear) and components (nearest), [size, size, size].
    """
    reach = np.abs(matrix).sum(axis=1) * size / 2  # half of the box around the changed crop
    margin = np.maximum(np.ceil(reach - size / 2).astype(np.int64) + 1, 0)
    sides = size + 2 * margin
    grid = _sampling_grid(matrix, size=size, sides=sides)
    image = cut(case.image, start - margin, sides, fill=case.background) - np.float32(case.background)
    components = cut(case.components, start - margin, sides, fill=0)
    sampled = _sample(image, grid, mode="bilinear") + np.float32(case.background)
    return sampled, _sample(components.astype(np.float32), grid, mode="nearest").astype(components.dtype)


def _sampling_grid(matrix: NDArray[np.float64], *, size: int, sides: NDArray[np.int64]) -> torch.Tensor:
    """float32 [1, size, size, size, 3] for `grid_sample`: -1 to 1 from face to face, last axis first.

    Added up axis by axis: a matrix product would round differently with another number of threads.
    """
    offset = np.arange(size) - (size - 1) / 2
    scaled = (2 * matrix / sides[:, None]).astype(np.float32)[::-1]  # rows: last axis first
    first, second, third = (offset.astype(np.float32)[:, None] * scaled[:, axis] for axis in range(3))  # [size, 3] each
    return torch.from_numpy((first[:, None, None] + second[:, None] + third)[None])


def _sample(array: NDArray[np.float32], grid: torch.Tensor, *, mode: str) -> NDArray[np.float32]:
    source = torch.from_numpy(array)[None, None]
    sampled: NDArray[np.float32] = functional.grid_sample(source, grid, mode=mode, align_corners=False)[0, 0].numpy()
    return sampled

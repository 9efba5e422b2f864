"""Images as sequences of patches that know their row and column."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.images import LabelledImages
from quartet.apps.perceiver.data.samples import Array, SequenceDataset


def fourier_positions(shape: tuple[int, ...], *, bands: int) -> Array:
    """Fourier features of every point of a grid (Perceiver, section 3.2).

    Args:
        shape: Size of each of the grid's ``A`` axes.
        bands: Frequencies per axis, in equal steps from 1 to half the axis's size (at least 1).

    Returns:
        Float32 ``[prod(shape), A * (2 * bands + 1)]``: each axis's coordinate in [-1, 1], its sines and its cosines.
    """
    columns = []
    grid = np.meshgrid(*(np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in shape), indexing="ij")
    for size, coordinate in zip(shape, grid, strict=True):
        flat = coordinate.reshape(-1, 1)
        phase = np.pi * flat * np.linspace(1.0, max(1.0, size / 2), bands)
        columns += [flat, np.sin(phase), np.cos(phase)]
    return np.concatenate(columns, axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class PatchLayout:
    """How an image of one size becomes a sequence, and back.

    Attributes:
        height: Image height in pixels; a multiple of ``patch_size``.
        width: Image width in pixels; a multiple of ``patch_size``.
        patch_size: Side of the square patches in pixels.
        position_bands: Fourier bands for row and for column; 0: no position channels.

    Raises:
        UserError: If patches do not tile the image.
    """

    height: int
    width: int
    patch_size: int = 8
    position_bands: int = 4

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.height % self.patch_size or self.width % self.patch_size:
            raise UserError(
                f"patches of {self.patch_size} pixels do not tile images of {self.height} x {self.width}; choose a "
                "patch_size that divides both, or an image_size"
            )

    @classmethod
    def of(cls, pictures: Mapping[str, Any]) -> "PatchLayout":
        """That of a model's pictures, of what its checkpoint notes."""
        return cls(**{key: pictures[key] for key in ("height", "width", "patch_size")})

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def patches(self) -> tuple[int, int, int]:
        """Rows and columns of patches, and the side of one in pixels."""
        return *self.grid, self.patch_size

    @property
    def pixel_channels(self) -> int:
        """Channels that hold pixels; position channels follow them."""
        return self.patch_size**2 * 3

    @cached_property
    def positions(self) -> Array:
        """Position features of every patch, float32 ``[M, P]``."""
        if not self.position_bands:
            return np.zeros((self.grid[0] * self.grid[1], 0), dtype=np.float32)
        return fourier_positions(self.grid, bands=self.position_bands)

    def sequence(self, image: NDArray[np.uint8]) -> Array:
        """Cuts an image ``[height, width, 3]`` into float32 ``[M, C]`` with pixels in [0, 1], patches row by row."""
        rows, columns = self.grid
        size = self.patch_size
        cut = image.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        return np.concatenate([cut.astype(np.float32) / 255, self.positions], axis=1)

    def image(self, sequence: Array) -> NDArray[np.uint8]:
        """Puts the image together again, exactly."""
        rows, columns = self.grid
        size = self.patch_size
        pixels = np.rint(sequence[:, : self.pixel_channels] * 255).astype(np.uint8)
        return pixels.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(self.height, self.width, 3)


class _Cut:
    """The images as a sequence of sequences, cut when asked for."""

    def __init__(self, images: NDArray[np.uint8], layout: PatchLayout) -> None:
        self._images, self._layout = images, layout

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Array:
        return self._layout.sequence(self._images[index])


class ImagePatches(SequenceDataset):
    """Images as patch sequences ``[M, patch_size² * 3 + positions]``.

    Args:
        data: The images.
        patch_size: Side of the square patches in pixels.
        position_bands: Fourier bands for row and for column.

    Attributes:
        layout: How images were cut; ``ImageAugmentation`` needs it.
    """

    def __init__(self, data: LabelledImages, *, patch_size: int = 8, position_bands: int = 4) -> None:
        _, height, width, _ = data.images.shape
        self.layout = PatchLayout(height=height, width=width, patch_size=patch_size, position_bands=position_bands)
        cut = _Cut(data.images, self.layout)
        super().__init__(cut, labels=data.labels, classes=data.classes, origins=data.origins)  # type: ignore[arg-type]

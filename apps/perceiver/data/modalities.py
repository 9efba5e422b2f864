"""Text, images and time series as sequences of one width, so that one model reads any of them, or all in one sequence.

A position has these channels, in this order (those of absent modalities are left out; the rest are 0 where another
modality's position stands):

====================  ==================================================================================
text                  256: the UTF-8 byte, one-hot; the model's first linear map is its embedding
image                 ``patch_size² * 3``: the pixels of a patch in [0, 1]
series                ``series_channels``: the values at one time
place                 ``2 * (2 * position_bands + 1)``: Fourier features of (row, column), or of (time, 0)
flag                  one per modality: 1 for the position's own
====================  ==================================================================================
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.patches import PatchLayout, fourier_positions
from quartet.apps.perceiver.data.samples import Array

Modality = Literal["image", "series", "text"]


@dataclass(frozen=True, kw_only=True)
class UnifiedPreprocessor:
    """Turns raw data into positions of one width.

    Attributes:
        text: Whether there is text.
        patch_size: Side of image patches in pixels; 0: there are no images.
        series_channels: Channels of time series; 0: there are none.
        position_bands: Fourier bands per axis.

    Raises:
        UserError: If there is no modality.
    """

    text: bool = True
    patch_size: int = 8
    series_channels: int = 0
    position_bands: int = 8

    def __post_init__(self) -> None:
        if not self._widths:
            raise UserError("no modality chosen: set text, patch_size or series_channels")

    @property
    def _widths(self) -> dict[Modality, int]:
        widths: dict[Modality, int] = {
            "text": 256 if self.text else 0,
            "image": self.patch_size**2 * 3,
            "series": self.series_channels,
        }
        return {modality: width for modality, width in widths.items() if width}

    @property
    def channels(self) -> int:
        """Width of a position: the model's ``input_dim``."""
        return sum(self._widths.values()) + 2 * (2 * self.position_bands + 1) + len(self._widths)

    def encode_text(self, text: str) -> Array:
        """One position per UTF-8 byte: float32 ``[M, channels]``.

        Raises:
            UserError: If the text is empty.
        """
        values = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        return self._place("text", np.eye(256, dtype=np.float32)[values], (len(values), 1))

    def encode_image(self, image: NDArray[np.uint8]) -> Array:
        """One position per patch of an RGB image uint8 ``[H, W, 3]``: float32 ``[M, channels]``.

        Raises:
            UserError: If the image is not of that kind or patches do not tile it.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"expected an image uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        if "image" not in self._widths:
            raise UserError("this preprocessor was made without images (patch_size=0)")
        layout = PatchLayout(height=image.shape[0], width=image.shape[1], patch_size=self.patch_size, position_bands=0)
        return self._place("image", layout.sequence(image), layout.grid)

    def encode_series(self, series: Array) -> Array:
        """One position per time of a series ``[M, series_channels]``: float32 ``[M, channels]``.

        Raises:
            UserError: If the series is empty or has other channels.
        """
        return self._place("series", np.asarray(series, dtype=np.float32), (len(series), 1))

    def _place(self, modality: Modality, content: Array, grid: tuple[int, int]) -> Array:
        widths = self._widths
        if modality not in widths:
            raise UserError(f"this preprocessor was made without {modality}")
        if content.ndim != 2 or content.shape[1] != widths[modality] or not len(content):
            raise UserError(f"expected {modality} [positions, {widths[modality]}], got {list(content.shape)}")
        parts = [
            content if name == modality else np.zeros((len(content), width), dtype=np.float32)
            for name, width in widths.items()
        ]
        flag = np.zeros((len(content), len(widths)), dtype=np.float32)
        flag[:, list(widths).index(modality)] = 1
        return np.concatenate([*parts, fourier_positions(grid, bands=self.position_bands), flag], axis=1)


def join(*parts: Array) -> Array:
    """Puts encoded parts one after another in one sequence ``[sum of M, channels]``."""
    return np.concatenate(parts, axis=0)

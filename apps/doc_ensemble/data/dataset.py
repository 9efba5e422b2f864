"""Pages as samples for the loader: decoded, brought to the network's size, and turned into its input.

Pages are brought to the network's size *before* they are augmented: a large scan costs no more than a small one, and
noise, blur and compression have the same strength whatever a page was scanned at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from quartet.apps.doc_ensemble.data.pages import Page, page_count, read_page
from quartet.apps.doc_ensemble.data.upright import Upright

__all__ = ["Fit", "PageDataset", "PageFiles", "Prepare"]

Image = NDArray[np.uint8]

_PAPER = 255


@dataclass(frozen=True)
class Fit:
    """`fit(image)` brings a page to one size: uint8 [H, W, C] to uint8 [height, width, C].

    "resize" uses every pixel of the input for the page and is the default: the pages of a set mostly have one aspect,
    near that of the input. "letterbox" keeps the aspect and fills the rest with paper white: better where the input is
    square, or where types differ by their aspect (receipts, cards).

    Attributes:
        size: Height and width, in pixels.
        how: See above.
        upright: Rights a page before; None: it stays as it is.
    """

    size: tuple[int, int]
    how: Literal["letterbox", "resize"] = "resize"
    upright: Upright | None = None

    def __call__(self, image: Image) -> Image:
        """The image itself if it has that size already."""
        if self.upright is not None:
            image = self.upright(image)
        if image.shape[:2] == self.size:
            return image
        if self.how == "resize":
            return _resized(image, self.size)
        height, width = self.size
        scale = min(height / image.shape[0], width / image.shape[1])
        inner = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        page = np.full((height, width, image.shape[2]), _PAPER, dtype=np.uint8)
        page[top : top + inner[0], left : left + inner[1]] = _resized(image, inner)
        return page


class PageDataset:
    """Samples are dicts of `index` (of the page), `label` (-1: unknown) and `image`, uint8 [H, W, 3 or 1].

    Args:
        pages: What to read.
        max_pixels: Larger images are refused before they are decoded.
        decode_side: See `mlcore.data.images.read_image`.
        grey: One channel instead of RGB.
        fit: Size of the samples; None leaves pages as they are.
    """

    def __init__(
        self,
        pages: Sequence[Page],
        *,
        max_pixels: int,
        decode_side: int | None = None,
        grey: bool = False,
        fit: Fit | None = None,
    ) -> None:
        self.pages = tuple(pages)
        self._read = partial(read_page, max_pixels=max_pixels, decode_side=decode_side, grey=grey)
        self.fit = fit

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> dict[str, Any]:
        page = self.pages[index]
        image = self._read(page.path, page.number)
        label = -1 if page.label is None else page.label
        return {"index": index, "label": label, "image": image if self.fit is None else self.fit(image)}


class PageFiles:
    """Places of pages, each of which is read to see whether it can be; items are the numbers of their pages.

    Args:
        places: Pages, or files with all of their pages.
        max_pixels: As of `PageDataset`.
    """

    def __init__(self, places: Sequence[Page | Path], *, max_pixels: int) -> None:
        self.places = places
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sequence[int]:
        place = self.places[index]
        path, numbers = (place.path, [place.number]) if isinstance(place, Page) else (place, range(page_count(place)))
        for number in numbers:
            read_page(path, number, max_pixels=self.max_pixels)
        return numbers


class Prepare:
    """`prepare(sample)` replaces `image` by `pixels`, float32 [C, height, width]: (value / 255 - mean) / std.

    Args:
        fit: Size of the input.
        mean: One for each channel, of values in 0..1; a grey page takes the mean of these.
        std: The same.
    """

    def __init__(
        self, fit: Fit, *, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
    ) -> None:
        self.fit = fit
        values = np.arange(256, dtype=np.float64) / 255
        # Of all 256 values once, [C, 256]; looking up is quicker than arithmetic and exact.
        self._colour = _table(values, mean, std)
        self._grey = _table(values, [float(np.mean(mean))], [float(np.mean(std))])

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A function of its argument only."""
        rest = {key: value for key, value in sample.items() if key != "image"}
        return {**rest, "pixels": self.pixels(sample["image"])}

    def pixels(self, image: Image) -> NDArray[np.float32]:
        """uint8 [H, W, C] to float32 [C, height, width]."""
        fitted = self.fit(image)
        tables = self._grey if fitted.shape[2] == 1 else self._colour
        return np.stack([table[fitted[..., channel]] for channel, table in enumerate(tables)])


def _table(values: NDArray[np.float64], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    means, stds = (np.asarray(numbers, dtype=np.float64)[:, None] for numbers in (mean, std))
    return ((values[None] - means) / stds).astype(np.float32)


def _resized(image: Image, size: tuple[int, int]) -> Image:
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR  # averaging areas keeps thin strokes of large scans
    resized = np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=how), dtype=np.uint8)
    return resized.reshape(*size, image.shape[2])  # OpenCV drops a single channel

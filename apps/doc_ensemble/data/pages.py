"""Pages of documents as arrays: image files, single pages of multi-page TIFF files, and of PDF files.

Nothing in a PDF is run: the renderer comes without a JavaScript engine, and forms are never initialised.
"""

import contextlib
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mlcore.base.errors import UserError
from mlcore.data.images import SUFFIXES, image_size, read_image

__all__ = ["PAGE_SUFFIXES", "Page", "page_count", "page_size", "read_page"]

PAGE_SUFFIXES = (*SUFFIXES, ".pdf")

_TIFF = (".tif", ".tiff")
_DPI = 150  # of rendered PDF pages: 1240 x 1754 pixels for A4, more than any of the networks look at
_POINTS = 72  # per inch, the unit of PDF
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_pdfium = threading.Lock()  # the renderer must not be entered by two threads


@dataclass(frozen=True)
class Page:
    """One page and what is known of it.

    Attributes:
        path: The file it is in.
        number: Which page of that file, from 0.
        label: Index of its class; None: unknown.
        origin: For messages: "train.csv, line 7".
        group: Pages of the same group stay in the same part of a split; "": those of the same file do.
        digest: Names its pixels, wherever it lies; "": not looked at yet.
        unit: Number of the pages that stay together because of groups, files or copies; None: not looked at yet.
    """

    path: Path
    number: int = 0
    label: int | None = None
    origin: str = ""
    group: str = ""
    digest: str = ""
    unit: int | None = None

    @property
    def name(self) -> str:
        """Short, for people: "scan.pdf#3" (counted from 1), "scan.png"."""
        many = self.number or self.path.suffix.lower() == ".pdf"
        return f"{self.path.name}#{self.number + 1}" if many else self.path.name

    @property
    def key(self) -> str:
        """Names the page in files of predictions: its path and, counted from 1, its number."""
        return f"{self.path}#{self.number + 1}"

    @property
    def bundle(self) -> str:
        """Key of the pages that stay together in a split."""
        if self.unit is not None:
            return f"unit {self.unit}"
        return f"group {self.group}" if self.group else f"file {self.path}"


def read_page(path: Path, number: int = 0, *, max_pixels: int, grey: bool = False) -> NDArray[np.uint8]:
    """Decode one page.

    Args:
        path: An image in any format of `read_image`, a TIFF file with any number of pages (CCITT, LZW, 1 to 16 bits
            ...), or a PDF file, which is rendered at 150 dpi on white.
        number: Which page, from 0.
        max_pixels: Larger images are refused before they are decoded; PDF pages are rendered at a lower resolution.
        grey: One channel instead of three.

    Returns:
        uint8 [H, W, 3], RGB, or [H, W, 1]: upright, transparency on white, 16 bits scaled to 8.

    Raises:
        UserError: It is missing, empty, damaged, of another kind, too large, or has no such page; the message starts
            with the path.
    """
    if path.suffix.lower() == ".pdf":
        return _read_pdf(path, number, max_pixels=max_pixels, grey=grey)
    if path.suffix.lower() in _TIFF:
        with _tiff(path) as picture:
            _seek(path, picture, number)
            _check_size(path, picture.size, max_pixels)
            return _pixels(ImageOps.exif_transpose(picture), grey=grey)
    if number:
        raise _no_page(path, number, 1)
    image = read_image(path, max_pixels=max_pixels)
    return _grey(image) if grey else image


def page_count(path: Path) -> int:
    """Pages of a TIFF or PDF file; 1 for other images, of which only the first frame is ever read.

    Raises:
        UserError: A TIFF or PDF file cannot be read.
    """
    if path.suffix.lower() == ".pdf":
        with _pdf(path) as document:
            return len(document)
    if path.suffix.lower() in _TIFF:
        with _tiff(path) as picture:
            return int(getattr(picture, "n_frames", 1))
    return 1


def page_size(path: Path, number: int = 0) -> tuple[int, int]:
    """Height and width in pixels, from headers only; of PDF pages at 150 dpi.

    Raises:
        UserError: As `read_page`, as far as headers tell.
    """
    if path.suffix.lower() == ".pdf":
        with _pdf_page(path, number) as page:
            return round(page.get_height() * _DPI / _POINTS), round(page.get_width() * _DPI / _POINTS)
    if path.suffix.lower() in _TIFF:
        with _tiff(path) as picture:
            _seek(path, picture, number)
            return picture.height, picture.width
    return image_size(path)


# --------------------------------------------------------------------------------------------------------------- TIFF


@contextlib.contextmanager
def _tiff(path: Path) -> Iterator[Image.Image]:
    """The file with its first header read; whatever goes wrong in the block becomes a `UserError`."""
    try:
        with path.open("rb") as file:
            _check_content(path, file.read(1))
            file.seek(0)
            # A suffix may lie; what else is let in here is decoded by Pillow itself.
            with Image.open(file, formats=("TIFF", "PNG", "JPEG", "BMP", "GIF", "WEBP")) as picture:
                yield picture
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a TIFF file, or damaged") from None
    except _DAMAGED as error:
        raise UserError(f"{path}: the page cannot be read ({_reason(error)})") from None
    except MemoryError:
        raise UserError(f"{path}: not enough memory to decode the page; lower data.max_megapixels") from None


def _seek(path: Path, picture: Image.Image, number: int) -> None:
    count = getattr(picture, "n_frames", 1)
    if not 0 <= number < count:
        raise _no_page(path, number, count)
    picture.seek(number)


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UserError(
            f"{path}: {width} x {height} pixels are {width * height / 1e6:.3g} megapixels, more than the limit of "
            f"{max_pixels / 1e6:.3g}; scale it down, or raise data.max_megapixels if you trust the file"
        )


def _pixels(picture: Image.Image, *, grey: bool) -> NDArray[np.uint8]:
    if picture.mode.startswith(("I", "F")):  # Pillow's own conversion would clip at 255
        values = _to_bytes(np.asarray(picture))[..., None]
        return values if grey else np.repeat(values, 3, axis=2)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    array = np.array(picture.convert("L" if grey else "RGB"), dtype=np.uint8)
    return array[..., None] if grey else array


def _to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey of 16 bits scaled from its full range; other whole numbers and fractions from lowest to highest."""
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = 0.0, 65535.0
    if values.dtype.kind == "f" or numbers.min() < low or numbers.max() > high:
        low, high = float(numbers.min()), float(numbers.max())
    return np.rint((numbers - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] to [H, W, 1]; exact where the channels are equal."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)[..., None]


# ---------------------------------------------------------------------------------------------------------------- PDF


@contextlib.contextmanager
def _pdf(path: Path) -> Iterator[Any]:
    """The document; whatever goes wrong in the block becomes a `UserError`."""
    import pypdfium2  # only for PDF

    pdfium: Any = pypdfium2  # it is not typed
    try:
        with path.open("rb") as file:
            _check_content(path, file.read(1))
        with _pdfium, contextlib.closing(pdfium.PdfDocument(path)) as document:
            yield document
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise UserError(f"{path}: protected by a password; save a copy without it") from None
        raise UserError(f"{path}: not a PDF file, or damaged ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from None
    except MemoryError:
        raise UserError(f"{path}: not enough memory to render the page; lower data.max_megapixels") from None


@contextlib.contextmanager
def _pdf_page(path: Path, number: int) -> Iterator[Any]:
    with _pdf(path) as document:
        if not 0 <= number < len(document):
            raise _no_page(path, number, len(document))
        with contextlib.closing(document[number]) as page:
            yield page


def _read_pdf(path: Path, number: int, *, max_pixels: int, grey: bool) -> NDArray[np.uint8]:
    with _pdf_page(path, number) as page:
        width, height = (side / _POINTS * _DPI for side in page.get_size())
        scale = min(1.0, math.sqrt(max_pixels / max(width * height, 1.0)))
        if max(width, height) * scale > 30_000 or min(width, height) * scale < 1:
            raise UserError(f"{path}: page {number + 1} is {width:.0f} x {height:.0f} pixels at {_DPI} dpi")
        # A little less than allowed, because the renderer rounds sides up.
        bitmap = page.render(
            scale=scale * _DPI / _POINTS * 0.999, grayscale=grey, rev_byteorder=True, may_draw_forms=False
        )
        array = np.array(bitmap.to_numpy(), dtype=np.uint8)  # a copy: the bitmap's memory goes with it
    return array.reshape(*array.shape[:2], 1 if grey else -1)[..., :3]


# -------------------------------------------------------------------------------------------------------------- errors


def _check_content(path: Path, first: bytes) -> None:
    if not first:
        raise UserError(f"{path}: empty file (0 bytes)")


def _no_page(path: Path, number: int, count: int) -> UserError:
    return UserError(f"{path}: no page {number + 1}; it has {count} page{'s' * (count != 1)}")


def _reason(error: BaseException) -> str:
    return str((error.strerror if isinstance(error, OSError) else None) or error)

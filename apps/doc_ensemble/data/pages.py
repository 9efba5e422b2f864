"""Pages of documents as arrays: image files, single pages of multi-page TIFF files, and of PDF files.

Nothing in a PDF is run: the renderer comes without a JavaScript engine, and forms are only drawn.
"""

import contextlib
import math
import os
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
from PIL import Image, UnidentifiedImageError

from mlcore.base.errors import UserError
from mlcore.data.images import SUFFIXES, decoded, image_size, page_frames, read_image

__all__ = ["PAGE_SUFFIXES", "Page", "page_count", "page_size", "read_page"]

PAGE_SUFFIXES = (*SUFFIXES, ".pdf")

_TIFF = (".tif", ".tiff")
_DPI = 150  # of rendered PDF pages: 1240 x 1754 pixels for A4, more than any of the networks look at
_POINTS = 72  # per inch, the unit of PDF
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_PDF_ERRORS = {2: "cannot be opened", 3: "its format is damaged", 5: "its security scheme is not known"}
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
            ...), or a PDF file, which is rendered at 150 dpi on white,
            with what is filled into its forms.
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
            image = decoded(picture)
            return _grey(image) if grey else _colour(image)
    if number:
        raise _no_page(path, number, 1)
    image = read_image(path, max_pixels=max_pixels)
    return _grey(image) if grey else image


def page_count(path: Path) -> int:
    """Pages of a TIFF or PDF file; 1 for other images, of which only the first frame is ever read.

    Thumbnails of pages, and masks of their transparency, are no pages.

    Raises:
        UserError: A TIFF or PDF file cannot be read.
    """
    if path.suffix.lower() == ".pdf":
        with _pdf(path) as document:
            return len(document)
    if path.suffix.lower() in _TIFF:
        with _tiff(path) as picture:
            return len(page_frames(picture))
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
    frames = page_frames(picture)
    if not 0 <= number < len(frames):
        raise _no_page(path, number, len(frames))
    picture.seek(frames[number])


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UserError(
            f"{path}: {width} x {height} pixels are {width * height / 1e6:.3g} megapixels, more than the limit of "
            f"{max_pixels / 1e6:.3g}; scale it down, or raise data.max_megapixels if you trust the file"
        )


def _colour(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 1 or 3] to [H, W, 3]."""
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 1 or 3] to [H, W, 1]; exact where the channels are equal."""
    if image.shape[2] == 1:
        return image
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
        with _pdfium, contextlib.closing(_document(path, pdfium)) as document:
            yield document
    except pdfium.PdfiumError as error:
        raise UserError(f"{path}: not a PDF file, or damaged ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from None
    except MemoryError:
        raise UserError(f"{path}: not enough memory to render the page; lower data.max_megapixels") from None


def _document(path: Path, pdfium: Any) -> Any:
    """The opened document. pypdfium2 would ask for the error of one without pages, which is an earlier one's."""
    raw = pdfium.raw
    handle = raw.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
    if not handle:
        code = raw.FPDF_GetLastError()
        if code == raw.FPDF_ERR_PASSWORD:
            raise UserError(f"{path}: protected by a password; save a copy without it")
        raise UserError(f"{path}: not a PDF file, or damaged ({_PDF_ERRORS.get(code, f'error {code}')})")
    document = pdfium.PdfDocument(handle)
    if not len(document):
        document.close()
        raise UserError(f"{path}: the PDF file has no pages")
    document.init_forms()  # before any page is loaded, or what is filled in is not drawn
    return document


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
        # In colour in any case: the renderer's own grey has letters of other shapes than its colours.
        bitmap = page.render(scale=scale * _DPI / _POINTS * 0.999, rev_byteorder=True)
        array = np.array(bitmap.to_numpy(), dtype=np.uint8)[..., :3]  # a copy: the bitmap's memory goes with it
    return _grey(array) if grey else array


# -------------------------------------------------------------------------------------------------------------- errors


def _check_content(path: Path, first: bytes) -> None:
    if not first:
        raise UserError(f"{path}: empty file (0 bytes)")


def _no_page(path: Path, number: int, count: int) -> UserError:
    return UserError(f"{path}: no page {number + 1}; it has {count} page{'s' * (count != 1)}")


def _reason(error: BaseException) -> str:
    return str((error.strerror if isinstance(error, OSError) else None) or error)

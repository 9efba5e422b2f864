"""Pages of PDF files as pictures.

Nothing in a PDF is run: the renderer comes without a JavaScript engine, and forms are only drawn. What a page takes
shows in no header, so that it is drawn in a process of its own, with limits (`mlcore.base.isolated`).
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.isolated import isolated
from mlcore.base.reading import reading

__all__ = ["page_count", "page_size", "read_page"]

_DPI = 150  # of rendered pages: 1240 x 1754 pixels for A4, more than any of the networks look at
_POINTS = 72  # per inch, the unit of PDF
_MOST_PAGES = 10_000
_ERRORS = {2: "cannot be opened", 3: "its format is damaged", 5: "its security scheme is not known"}
_MEMORY = 640 * 2**20  # bytes for the document and the pictures in it
_BYTES = 4  # and for each pixel of the page


def read_page(path: Path, number: int, *, max_pixels: int) -> NDArray[np.uint8]:
    """Page `number` (from 0) at 150 dpi, or less where that would be more than `max_pixels`: uint8 [H, W, 3], RGB.

    Raises:
        UserError: It cannot be read, has no such page, or takes more than 20 seconds or about a gigabyte.
    """
    memory = _MEMORY + _BYTES * max_pixels
    array: NDArray[np.uint8] = isolated(_render, path, number, max_pixels, name=path, memory=memory)
    return array


def page_count(path: Path) -> int:
    """How many pages it has.

    Raises:
        UserError: It cannot be read, or has more than 10,000.
    """
    count: int = isolated(_count, path, name=path, memory=_MEMORY)
    return count


def page_size(path: Path, number: int) -> tuple[int, int]:
    """Height and width of a page in pixels at 150 dpi.

    Raises:
        UserError: It cannot be read, or has no such page.
    """
    size: tuple[int, int] = isolated(_size, path, number, name=path, memory=_MEMORY)
    return size


# ------------------------------------------------------------------------------------------ called in the other process


def _render(path: Path, number: int, max_pixels: int) -> NDArray[np.uint8]:
    with _page(path, number) as page:
        width, height = (side / _POINTS * _DPI for side in page.get_size())
        scale = min(1.0, math.sqrt(max_pixels / max(width * height, 1.0)))
        if max(width, height) * scale > 30_000 or min(width, height) * scale < 1:
            raise UserError(f"{path}: page {number + 1} is {width:.0f} x {height:.0f} pixels at {_DPI} dpi")
        # A little less than allowed, because the renderer rounds sides up.
        # In colour in any case: the renderer's own grey has letters of other shapes than its colours.
        bitmap = page.render(scale=scale * _DPI / _POINTS * 0.999, rev_byteorder=True)
        return np.array(bitmap.to_numpy(), dtype=np.uint8)[..., :3]  # a copy: the bitmap's memory goes with it


def _count(path: Path) -> int:
    with _document(path) as document:
        return len(document)


def _size(path: Path, number: int) -> tuple[int, int]:
    with _page(path, number) as page:
        return round(page.get_height() * _DPI / _POINTS), round(page.get_width() * _DPI / _POINTS)


@contextlib.contextmanager
def _page(path: Path, number: int) -> Iterator[Any]:
    with _document(path) as document:
        if not 0 <= number < len(document):
            raise UserError(f"{path}: no page {number + 1}; it has {len(document)} page{'s' * (len(document) != 1)}")
        with contextlib.closing(document[number]) as page:
            yield page


@contextlib.contextmanager
def _document(path: Path) -> Iterator[Any]:
    """The opened document. pypdfium2 would ask for the error of one without pages, which is an earlier one's."""
    import pypdfium2  # only for PDF

    pdfium: Any = pypdfium2  # it is not typed
    raw = pdfium.raw
    with reading(path, "a whole PDF file"):
        size = path.stat().st_size
        if not path.is_file():  # to open a pipe would be to wait
            raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; expected a PDF file")
        if not size:
            raise UserError(f"{path}: empty file (0 bytes)")
        handle = raw.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
        if not handle:
            code = raw.FPDF_GetLastError()
            if code == raw.FPDF_ERR_PASSWORD:
                raise UserError(f"{path}: protected by a password; save a copy without it")
            raise UserError(f"{path}: not a PDF file, or damaged ({_ERRORS.get(code, f'error {code}')})")
        with contextlib.closing(pdfium.PdfDocument(handle)) as document:
            count = len(document)
            if not count:
                raise UserError(f"{path}: the PDF file has no pages")
            if count > _MOST_PAGES:
                raise UserError(f"{path}: {count:,} pages; at most {_MOST_PAGES:,} are read of a file")
            document.init_forms()  # before any page is loaded, or what is filled in is not drawn
            yield document

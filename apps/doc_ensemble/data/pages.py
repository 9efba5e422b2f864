"""Pages of documents as arrays: image files, single pages of multi-page TIFF files, and of PDF files."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.data.images import SUFFIXES, image_pages, image_size, read_pixels
from quartet.apps.doc_ensemble.data import pdf

__all__ = ["PAGE_SUFFIXES", "Page", "page_count", "page_size", "read_page"]

PAGE_SUFFIXES = (*SUFFIXES, ".pdf")

_TIFF = (".tif", ".tiff")


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
        text: What is written on it, where a table says so.
        more: Further columns of a table, and their values.
        unit: Number of the pages that stay together because of groups, files or copies; None: not looked at yet.
    """

    path: Path
    number: int = 0
    label: int | None = None
    origin: str = ""
    group: str = ""
    digest: str = ""
    text: str = ""
    more: tuple[tuple[str, str], ...] = ()
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


def read_page(
    path: Path, number: int = 0, *, max_pixels: int, decode_side: int | None = None, grey: bool = False
) -> NDArray[np.uint8]:
    """Decode one page.

    Args:
        path: An image in any format of `read_image`, a TIFF file with any number of pages (CCITT, LZW, 1 to 16 bits
            ...), or a PDF file, which is rendered at 150 dpi on white,
            with what is filled into its forms.
        number: Which page, from 0.
        max_pixels: Larger images are refused before they are decoded; PDF pages are rendered at a lower resolution.
        decode_side: See `mlcore.data.images.read_image`.
        grey: One channel instead of three.

    Returns:
        uint8 [H, W, 3], RGB, or [H, W, 1]: upright, transparency on white, 16 bits scaled to 8.

    Raises:
        UserError: It is missing, empty, damaged, of another kind, too large, or has no such page; the message starts
            with the path.
    """
    if path.suffix.lower() == ".pdf":
        image = pdf.read_page(path, number, max_pixels=max_pixels)
    elif number and path.suffix.lower() not in _TIFF:
        raise UserError(f"{path}: no page {number + 1}; it has 1 page")
    else:
        image = read_pixels(path, page=number, max_pixels=max_pixels, decode_side=decode_side)
    channels = image.shape[2]
    if grey and channels == 3:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)[..., None]
    return image if grey or channels == 3 else np.repeat(image, 3, axis=2)


def page_count(path: Path) -> int:
    """Pages of a TIFF or PDF file; 1 for other images, of which only the first frame is ever read.

    Thumbnails of pages, and masks of their transparency, are no pages.

    Raises:
        UserError: A TIFF or PDF file cannot be read.
    """
    if path.suffix.lower() == ".pdf":
        return pdf.page_count(path)
    return image_pages(path) if path.suffix.lower() in _TIFF else 1


def page_size(path: Path, number: int = 0) -> tuple[int, int]:
    """Height and width in pixels, from headers only; of PDF pages at 150 dpi.

    Raises:
        UserError: As `read_page`, as far as headers tell.
    """
    return pdf.page_size(path, number) if path.suffix.lower() == ".pdf" else image_size(path, page=number)

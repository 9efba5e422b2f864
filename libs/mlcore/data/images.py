"""Image files of any kind to RGB arrays, and fingerprints of their content."""

import contextlib
import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mlcore.base.errors import UserError

__all__ = ["FORMATS", "SUFFIXES", "content_digest", "decoded", "find_images", "image_size", "page_frames", "read_image"]

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Only these: Pillow hands EPS, for one, to Ghostscript, which runs what is in the file.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_STRIP = 64  # rows; with their copy they fit into a core's cache
# What Pillow raises on damaged files, depending on the format.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, zlib.error)

# Tags of TIFF files.
_SUBFILE_TYPE, _PHOTOMETRIC = 254, 262
_NO_PAGE = 1 | 4  # bits of the first: a smaller version of another page, a mask of its transparency
_WHITE_IS_ZERO = 0  # of the second

# `read_image` compares the size in the file's header with the user's own limit before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


def read_image(path: Path, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an image; the first frame of an animation, the first page of a TIFF file.

    Args:
        path: A file in any of the formats AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF and WebP.
        max_pixels: Larger images are refused before they are decoded; the user's `max_megapixels`.

    Returns:
        uint8 [H, W, 3], RGB: turned as its EXIF tag says, transparency on white, CMYK and palettes converted, 16 bits
        scaled to 8.

    Raises:
        UserError: It is missing, empty, damaged, no image, or too large; the message starts with the path.
    """
    with _opened(path) as picture:
        _check_size(path, picture.size, max_pixels)
        array = decoded(picture)
    return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels as stored, from the file's header.

    Raises:
        UserError: It is missing, empty or no image.
    """
    with _opened(path) as picture:
        return picture.height, picture.width


def page_frames(picture: Image.Image) -> list[int]:
    """Numbers of the frames of an opened TIFF file that are pages, not thumbnails or masks of others; it is read anew.

    A file of nothing but thumbnails has these as pages.
    """
    frames, pages = range(getattr(picture, "n_frames", 1)), []
    for number in frames:
        picture.seek(number)
        if _is_page(picture):
            pages.append(number)
    picture.seek(0)
    return pages or list(frames)


def decoded(picture: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an opened image, upright.

    Returns:
        uint8 [H, W, 1] of grey pictures, otherwise [H, W, 3], RGB: transparency on white, CMYK and palettes converted,
        16 bits scaled to 8.
    """
    picture.load()
    negative, fewer = _tag(picture, _PHOTOMETRIC, default=1) == _WHITE_IS_ZERO, picture.format == "TIFF"
    picture = _upright(picture)
    if picture.mode.startswith(("I", "F")):  # Pillow's own conversion would clip at 255
        grey = _to_bytes(np.asarray(picture), fewer_bits=fewer and not negative)
        return (255 - grey if negative else grey)[..., None]  # in other modes Pillow does that itself
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if picture.mode in ("1", "L"):
        return np.array(picture.convert("L"), dtype=np.uint8)[..., None]
    return _pixels(picture if picture.mode == "RGB" else picture.convert("RGB"))


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def find_images(folder: Path) -> list[Path]:
    """All image files in `folder` and below, by their suffix, sorted; hidden files and folders are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with its header read; whatever goes wrong in the block becomes a `UserError`."""
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{path}: empty file (0 bytes)")
            file.seek(0)
            with Image.open(file, formats=FORMATS) as picture:
                if not _is_page(picture):
                    picture.seek(page_frames(picture)[0])
                yield picture
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise UserError(f"{path}: not an image, or of a kind that is not read here (expected {known})") from None
    except _UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path}: the image cannot be read ({reason})") from None
    except MemoryError:
        raise UserError(f"{path}: not enough memory to decode the image; lower max_megapixels") from None


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UserError(
            f"{path}: {width} x {height} pixels are {width * height / 1e6:.3g} megapixels, more than the limit of "
            f"{max_pixels / 1e6:.3g}; scale it down, or raise max_megapixels if you trust the file"
        )


def _upright(picture: Image.Image) -> Image.Image:
    with contextlib.suppress(*_UNREADABLE):  # damaged EXIF data do not make the pixels worse
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(picture)
    return picture


def _is_page(picture: Image.Image) -> bool:
    return not _tag(picture, _SUBFILE_TYPE, default=0) & _NO_PAGE


def _tag(picture: Image.Image, number: int, *, default: int) -> int:
    """Value of a TIFF file's tag; that of a damaged one is as good as none."""
    value = getattr(picture, "tag_v2", {}).get(number, default)
    return value if isinstance(value, int) else default


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """An RGB picture as an array, in strips: as a whole it would pass through three more blocks of its size."""
    array = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, _STRIP):
        bottom = min(top + _STRIP, picture.height)
        array[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    return array


def _to_bytes(grey: NDArray[Any], *, fewer_bits: bool) -> NDArray[np.uint8]:
    """Grey of 16 bits scaled from its full range; whole numbers beyond it and fractions from lowest to highest.

    Args:
        grey: [H, W], whole numbers or fractions.
        fewer_bits: What uses the lowest sixteenth of 16 bits only, and so would be all but black, is taken for the 12
            bits that many scanners store so, and in the lowest sixteenth of these for 8.
    """
    values = grey.astype(np.float64)
    low, high = 0.0, 65535.0
    if grey.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if grey.dtype.kind == "f" or values.min() < low or values.max() > high:
        low, high = float(values.min()), float(values.max())
    elif fewer_bits:
        high = next(most for most in (255.0, 4095.0, 65535.0) if values.max() <= most)
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)

"""Image files of any kind to arrays of pixels, and fingerprints of their content.

Nothing takes more memory than `max_megapixels` allows: sizes are read from headers, and what has a header that does not
bind its decoder, or very many pixels, is decoded in a process of its own (`mlcore.base.isolated`).
"""

import contextlib
import hashlib
import io
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mlcore.base.errors import UserError
from mlcore.base.isolated import isolated
from mlcore.base.reading import Bounded, reading

__all__ = [
    "FORMATS", "SUFFIXES", "content_digest", "find_images", "image_pages", "image_size", "is_hidden", "read_image",
    "read_pixels"
]  # fmt: skip

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Only these: Pillow hands EPS, for one, to Ghostscript, which runs what is in the file.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_EXPECTED = "a whole image"
_MANY_PIXELS = {"WEBP": 25_000_000}  # its decoder takes up to 27 bytes for each, those of others up to 12
_MANY_OTHERS = 64_000_000
_BYTES, _MORE_BYTES = 10, 128 * 2**20  # for each pixel of the limit, and for the rest, in the other process
_READ_WHOLE = 256 * 2**20  # bytes of a file that its decoder reads as a whole
_STRIP = 64, 2**20  # rows and pixels that are converted together; with their copy they fit into a core's cache
# Marks of which each costs the decoder far more than its bytes, and how many a sound file has at most.
_COSTLY = {b"\xff\xd8": (b"\xff\xda", 100, "scans"), b"\x89P": (b"iCCP", 8, "colour profiles")}
_MOST_FRAMES = 10_000

# Tags of TIFF files.
_SUBFILE_TYPE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_HEIGHT = 254, 262, 322, 323
_NO_PAGE = 1 | 4  # bits of the first: a smaller version of another page, a mask of its transparency
_WHITE_IS_ZERO = 0  # of the second

# `read_image` compares the size in the file's header with the user's own limit before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# What Pillow warns of, such as tags that it leaves out, does not change a pixel.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read_image(
    source: Path | bytes, *, max_pixels: int, decode_side: int | None = None, name: Path | str = ""
) -> NDArray[np.uint8]:
    """Decode an image; the first frame of an animation, the first page of a TIFF file.

    Args:
        source: A file in any of the formats AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF and WebP, or its content.
        max_pixels: Larger images are refused before they are decoded; the user's `max_megapixels`.
        decode_side: JPEG images are decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of their size (their blocks'
            discrete cosine transform gives these for less work) at which no side is shorter than this; None: at 1/1.
        name: What messages call the content.

    Returns:
        uint8 [H, W, 3], RGB: turned as its EXIF tag says, transparency on white, CMYK and palettes converted, 16 bits
        scaled to 8.

    Raises:
        UserError: It is missing, empty, damaged, no image, or too large; the message starts with the name.
    """
    array = read_pixels(source, max_pixels=max_pixels, decode_side=decode_side, name=name)
    return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)


def read_pixels(
    source: Path | bytes, *, page: int = 0, max_pixels: int, decode_side: int | None = None, name: Path | str = ""
) -> NDArray[np.uint8]:
    """As `read_image`, with any page of a TIFF file (from 0), and uint8 [H, W, 1] of grey pictures.

    Raises:
        UserError: See `read_image`; or there is no such page.
    """
    name = name or _named(source)
    with _content(source, name) as file:
        if not _is_apart(file):
            picture = _opened(file, name, page=page)
            if _checked_size(name, picture, max_pixels) <= _MANY_PIXELS.get(picture.format or "", _MANY_OTHERS):
                return _decoded(picture, decode_side)
    hint = f", the most that max_megapixels={max_pixels / 1e6:g} allows; raise it if you trust the file"
    memory = _BYTES * max_pixels + _MORE_BYTES
    array: NDArray[np.uint8] = isolated(
        _read_here, source, str(name), page, max_pixels, decode_side, name=name, memory=memory, hint=hint
    )
    return array


def image_size(path: Path, *, page: int = 0) -> tuple[int, int]:
    """Height and width in pixels as stored, from the file's header.

    Raises:
        UserError: It is missing, empty or no image, or has no such page.
    """
    with _content(path, path) as file:
        if not _is_apart(file):
            picture = _opened(file, path, page=page)
            return picture.height, picture.width
    size: tuple[int, int] = isolated(_size_here, path, page, name=path, memory=2 * _READ_WHOLE)
    return size


def image_pages(path: Path) -> int:
    """Pages of a TIFF file; 1 for other images, of which only the first frame is ever read.

    Thumbnails of pages, and masks of their transparency, are no pages, unless there is nothing else.

    Raises:
        UserError: It is missing, empty, damaged or no image, or has more than 10,000 frames.
    """
    with _content(path, path) as file:
        return 1 if _is_apart(file) else len(_page_frames(_opened(file, path)))


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


def find_images(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """All files in `folder` and below with the suffixes of images, or others, sorted; what is hidden is left out."""
    named = (path for path in folder.rglob("*") if path.name.lower().endswith(tuple(suffixes)))
    return sorted(path for path in named if path.is_file() and not is_hidden(path, folder))


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file or folder in `folder`, or a folder between them, is hidden."""
    return any(part[0] == "." for part in path.relative_to(folder).parts)


def _named(source: Path | bytes) -> Path | str:
    return source if isinstance(source, Path) else "the picture"


def _read_here(
    source: Path | bytes, name: str, page: int, max_pixels: int, decode_side: int | None
) -> NDArray[np.uint8]:
    with _content(source, name) as file:
        picture = _opened(file, name, page=page)
        _checked_size(name, picture, max_pixels)
        return _decoded(picture, decode_side)


def _size_here(path: Path, page: int) -> tuple[int, int]:
    with _content(path, path) as file:
        picture = _opened(file, path, page=page)
        return picture.height, picture.width


def _is_apart(file: BinaryIO) -> bool:
    """Whether its header does not bind its decoder: AVIF and JPEG 2000 have their sizes at several places."""
    start = file.read(8)
    file.seek(0)
    return start[4:] in (b"ftyp", b"jP  ") or start[:4] == b"\xff\x4f\xff\x51"


@contextlib.contextmanager
def _content(source: Path | bytes, name: Path | str) -> Iterator[BinaryIO]:
    """The file, opened, or its content as one; whatever goes wrong in the block becomes a `UserError`."""
    with reading(name, _EXPECTED):
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):  # to open a pipe would be to wait
            raise UserError(f"{name} is {'a folder' if source.is_dir() else 'no regular file'}; expected an image")
        with Bounded(source) if isinstance(source, Path) else io.BytesIO(source) as file:
            if not file.read(1):
                raise UserError(f"{name}: empty file (0 bytes)")
            file.seek(0)
            yield file


def _opened(file: BinaryIO, name: Path | str, *, page: int = 0) -> Image.Image:
    """The image with the header of a page read; inside `_content`, whose file it reads from."""
    _check_marks(file, name)
    try:
        picture = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise UserError(f"{name}: not an image, or of a kind that is not read here (expected {known})") from None
    if page or not _is_page(picture):
        frames = _page_frames(picture)
        if not 0 <= page < len(frames):
            many = f"{len(frames)} page{'s' * (len(frames) != 1)}"
            raise UserError(f"{name}: no page {page + 1}; it has {many}")
        picture.seek(frames[page])
    return picture


def _check_marks(file: BinaryIO, name: Path | str) -> None:
    """Refuse what would take a decoder hours, or all its memory, before anything tells its size."""
    start = file.read(4)
    if start == b"RIFF" and file.seek(0, io.SEEK_END) > _READ_WHOLE:
        raise UserError(f"{name}: more than {_READ_WHOLE // 2**20} MiB, the most that is read of a WebP file")
    if start[:2] in _COSTLY:
        mark, most, what = _COSTLY[start[:2]]
        found, last = 0, b""
        while content := file.read(_STRIP[1]):
            found += (last + content).count(mark)
            last = content[1 - len(mark) :]
        if found > most:
            raise UserError(f"{name}: refused, because it has {found} {what}; sound images have at most {most}")
    file.seek(0)


def _page_frames(picture: Image.Image) -> list[int]:
    """Numbers of the frames of a TIFF file that are pages; those of the first frame where it is another image."""
    frames: list[int] = []
    pages: list[int] = []
    for number in range(_MOST_FRAMES + 1 if picture.format == "TIFF" else 1):
        try:
            picture.seek(number)
        except EOFError:
            break
        frames.append(number)
        if _is_page(picture):
            pages.append(number)
    if len(frames) > _MOST_FRAMES:
        raise ValueError(f"more than {_MOST_FRAMES:,} frames")
    return pages or frames


def _checked_size(name: Path | str, picture: Image.Image, max_pixels: int) -> int:
    """How many pixels are decoded together: the picture's, or those of a tile, which may be larger."""
    width, height = picture.size
    tile = _tag(picture, _TILE_WIDTH, default=1), _tag(picture, _TILE_HEIGHT, default=1)
    if tile[0] * tile[1] > width * height:
        width, height = tile
    if width * height > max_pixels:
        raise UserError(
            f"{name}: {width} x {height} pixels are {width * height / 1e6:.3g} megapixels, more than the limit of "
            f"{max_pixels / 1e6:.3g}; scale it down, or raise max_megapixels if you trust the file"
        )
    return width * height


def _decoded(picture: Image.Image, side: int | None) -> NDArray[np.uint8]:
    """The pixels of an opened image, upright: uint8 [H, W, 1] of grey ones, otherwise [H, W, 3]."""
    if side is not None:
        picture.draft(None, (side, side))  # which only JPEG images follow
    picture.load()
    negative, fewer = _tag(picture, _PHOTOMETRIC, default=1) == _WHITE_IS_ZERO, picture.format == "TIFF"
    picture = _upright(picture)
    if picture.mode.startswith(("I", "F")):  # Pillow's own conversion would clip at 255
        grey = _scaled(picture, fewer_bits=fewer and not negative)
        return 255 - grey if negative else grey  # in other modes Pillow does that itself
    is_grey = picture.mode in ("1", "L") and not picture.has_transparency_data
    array = np.empty((picture.height, picture.width, 1 if is_grey else 3), np.uint8)
    for rows, strip in _strips(picture):
        array[rows] = np.asarray(strip.convert("L"))[..., None] if is_grey else np.asarray(_on_white(strip))
    return array


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(picture) if turned else picture  # it would copy the others
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged EXIF data do not make the pixels worse
        return picture


def _strips(picture: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The picture from top to bottom; converted as a whole it would pass through several more blocks of its size."""
    rows = max(1, min(_STRIP[0], _STRIP[1] // picture.width))
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        yield slice(top, bottom), picture.crop((0, top, picture.width, bottom))


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _is_page(picture: Image.Image) -> bool:
    return not _tag(picture, _SUBFILE_TYPE, default=0) & _NO_PAGE


def _tag(picture: Image.Image, number: int, *, default: int) -> int:
    """Value of a TIFF file's tag; that of a damaged one is as good as none."""
    value = getattr(picture, "tag_v2", {}).get(number, default)
    return value if isinstance(value, int) else default


def _scaled(picture: Image.Image, *, fewer_bits: bool) -> NDArray[np.uint8]:
    """Grey [H, W, 1] of 16 bits scaled from its full range; whole numbers beyond it and fractions from end to end.

    Args:
        picture: Of one channel, whole numbers or fractions.
        fewer_bits: What uses the lowest sixteenth of 16 bits only, and so would be all but black, is taken for the 12
            bits that many scanners store so, and in the lowest sixteenth of these for 8.
    """
    ends = np.array([(values.min(), values.max()) for values in (_values(strip) for _, strip in _strips(picture))])
    least, most = float(ends[:, 0].min()), float(ends[:, 1].max())
    low, high = 0.0, 65535.0
    if picture.mode.startswith("F") or least < low or most > high:
        low, high = least, most
    elif fewer_bits:
        high = next(limit for limit in (255.0, 4095.0, 65535.0) if most <= limit)
    array = np.empty((picture.height, picture.width, 1), np.uint8)
    for rows, strip in _strips(picture):
        array[rows] = np.rint((_values(strip) - low) * (255 / max(high - low, 1e-12)))[..., None]
    return array


def _values(strip: Image.Image) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # of NaN there is a kind that numpy remarks on
        return np.nan_to_num(np.asarray(strip).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)

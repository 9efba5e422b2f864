"""Any image file becomes RGB as a viewer shows it, or an error that names it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from mlcore.base.errors import UserError
from mlcore.data.images import content_digest, find_images, image_size, read_image
from tests.tiff_files import SUBFILE_TYPE, WHITE_IS_ZERO, write_grey_tiff

LIMIT = 100_000_000


def picture(height: int = 20, width: int = 30) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], axis=-1).astype(np.uint8)


def read(path: Path, *, max_pixels: int = LIMIT) -> NDArray[np.uint8]:
    array = read_image(path, max_pixels=max_pixels)
    assert array.dtype == np.uint8
    assert array.ndim == 3
    assert array.shape[2] == 3
    assert array.flags.writeable
    assert array.flags.c_contiguous
    return array


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "gif", "webp"])
def test_lossless_formats(tmp_path: Path, suffix: str) -> None:
    if suffix == "webp" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    array = picture()
    image = Image.fromarray(array)
    if suffix == "gif":
        array = np.where(array > 127, 255, 0).astype(np.uint8)
        image = Image.fromarray(array).quantize(8)
    options = {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", **options)
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), array)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "LA", "RGBA", "YCbCr"])
def test_modes(tmp_path: Path, mode: str) -> None:
    flat = Image.new("RGB", (8, 6), (200, 200, 200) if mode in {"L", "LA"} else (255, 255, 255))
    suffix = "jpg" if mode in {"CMYK", "YCbCr"} else "png"
    flat.convert(mode).save(tmp_path / f"a.{suffix}")
    expected = 200 if mode in {"L", "LA"} else 255
    assert np.abs(read(tmp_path / f"a.{suffix}").astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("side", "expected"), [(None, (600, 800)), (16, (75, 100)), (76, (150, 200)), (300, (300, 400)), (301, (600, 800))]
)
def test_a_jpeg_is_decoded_at_a_part_of_its_size(tmp_path: Path, side: int | None, expected: tuple[int, int]) -> None:
    array = picture(600, 800)
    Image.fromarray(array).save(tmp_path / "a.jpg", quality=95)
    found = read_image(tmp_path / "a.jpg", max_pixels=LIMIT, decode_side=side)
    assert found.shape == (*expected, 3)
    whole = np.asarray(Image.fromarray(array).resize(expected[::-1], Image.Resampling.BOX), dtype=int)
    assert np.abs(found - whole).mean() < 1.5, "the same picture"


def test_a_part_of_a_jpeg_is_turned_and_limited_as_the_whole(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(64, 128)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", max_pixels=LIMIT, decode_side=32).shape == (64, 32, 3)
    with pytest.raises(UserError, match="128 x 64 pixels"):
        read_image(tmp_path / "a.jpg", max_pixels=64 * 64, decode_side=16)


def test_other_formats_are_decoded_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=LIMIT, decode_side=4).shape == (20, 30, 3)


def test_cmyk_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert np.abs(read(tmp_path / "red.jpg").astype(int) - [255, 0, 0]).max() <= 4


def test_transparency_is_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2, :, 3] = 255  # black above, nothing below
    Image.fromarray(rgba).save(tmp_path / "a.png")
    array = read(tmp_path / "a.png")
    assert (array[:2] == 0).all()
    assert (array[2:] == 255).all()
    palette = Image.fromarray(rgba[..., :3]).quantize(2)
    palette.save(tmp_path / "p.png", transparency=bytes([0]))
    assert (read(tmp_path / "p.png") == 255).all()


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
        grey = read(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(grey[..., 0].ravel(), np.arange(256))
        assert (grey == grey[..., :1]).all()
    dark = np.full((4, 4), 2000, dtype=np.uint16)  # not stretched: the range is that of the format
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert (read(tmp_path / "dark.png") == 8).all()


def test_fractions_are_stretched(tmp_path: Path) -> None:
    values = np.linspace(-1, 3, 256, dtype=np.float32).reshape(16, 16)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert read(tmp_path / "a.tiff")[15, 15, 0] == 255


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    for name in ("a.gif", "a.png"):
        assert (read(tmp_path / name) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = picture()
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    undo |= {6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_no_reason(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1" * 40)
    assert read(tmp_path / "a.jpg").shape == (20, 30, 3)


def bomb(path: Path, *, side: int = 30_000) -> None:
    """A PNG that says it is `side` x `side` and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_size_is_checked_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    bomb(path)
    with pytest.raises(
        UserError, match=r"30000 x 30000 pixels are 900 megapixels, more than the limit of 100"
    ) as caught:
        read_image(path, max_pixels=LIMIT)
    assert str(caught.value).startswith(str(path))
    assert "raise max_megapixels if you trust the file" in str(caught.value)
    assert image_size(path) == (30_000, 30_000)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(UserError, match="megapixels"):
        read_image(tmp_path / "a.png", max_pixels=599)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    Image.fromarray(picture(200, 300)).save(tmp_path / "whole.jpg")
    Image.fromarray(picture(200, 300)).save(tmp_path / "whole.png")
    contents = {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"hello, this is no picture", "not an image"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    }
    for name in ("whole.jpg", "whole.png"):
        whole = (tmp_path / name).read_bytes()
        contents[f"half_{name}"] = (whole[: len(whole) // 2], "damaged or not a whole image")
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            read_image(tmp_path / name, max_pixels=LIMIT)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(UserError, match="No such file"):
        read_image(tmp_path / "none.jpg", max_pixels=LIMIT)
    with pytest.raises(UserError, match="is a folder; expected an image"):
        read_image(tmp_path, max_pixels=LIMIT)


def test_cut_off_anywhere_is_an_error_or_the_whole(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    expected = read(tmp_path / "a.png")
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        try:
            found = read_image(tmp_path / "cut.png", max_pixels=LIMIT)
        except UserError:
            continue
        np.testing.assert_array_equal(found, expected)


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert content_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UserError, match="cannot be read"):
        content_digest(tmp_path / "none")


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", ".hidden.png", ".thumbs/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]


def test_a_tiff_file_is_its_first_page_not_its_thumbnail(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    frames = [(grey[::2, ::2], {SUBFILE_TYPE: 1}), ((255 - grey).astype(np.uint16) * 257, WHITE_IS_ZERO)]
    path = write_grey_tiff(tmp_path / "a.tif", frames)
    assert image_size(path) == grey.shape
    np.testing.assert_array_equal(read(path), np.repeat(grey[..., None], 3, axis=2))

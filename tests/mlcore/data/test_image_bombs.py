"""Pictures that are small on disk and large in memory, or endless in time, are refused by name."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from mlcore.base.errors import UserError
from mlcore.data.images import image_pages, image_size, read_image
from tests.tiff_files import write_grey_tiff

LIMIT = 1_000_000


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_image(path, max_pixels=LIMIT)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_colour_profiles_without_end(tmp_path: Path) -> None:
    whole = saved(Image.new("RGB", (4, 4)), "PNG")
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000)))
    path = tmp_path / "a.png"
    path.write_bytes(whole[:33] + profile + whole[33:])
    assert read_image(path, max_pixels=LIMIT).shape == (4, 4, 3)
    path.write_bytes(whole[:33] + profile * 100 + whole[33:])
    refused(path, "refused, because it has 100 colour profiles")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_texts_that_inflate(tmp_path: Path, kind: bytes) -> None:
    whole = saved(Image.new("RGB", (4, 4)), "PNG")
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk(kind, b"a\0\0" + zlib.compress(bytes(2**22))) + whole[33:])
    refused(tmp_path / "a.png", "too large|Too much")


def test_scans_without_end(tmp_path: Path) -> None:
    whole = saved(Image.effect_noise((64, 64), 50), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[:-2] + whole[start:-2] * 10 + b"\xff\xd9")
    assert read_image(path, max_pixels=LIMIT).shape == (64, 64, 3)
    path.write_bytes(whole[:-2] + whole[start:-2] * 200 + b"\xff\xd9")
    refused(path, "refused, because it has 2.. scans; sound images have at most 100")


def test_a_tile_larger_than_the_picture(tmp_path: Path) -> None:
    tile = {322: 40_000, 323: 40_000, 324: 8, 325: 64}
    refused(write_grey_tiff(tmp_path / "a.tif", [(np.zeros((8, 8), np.uint8), tile)]), "40000 x 40000 pixels")


def test_frames_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcore.data.images._MOST_FRAMES", 100)
    path = write_grey_tiff(tmp_path / "a.tif", [(np.zeros((1, 1), np.uint8), {})] * 101)
    with pytest.raises(UserError, match=r"a\.tif: .*more than 100 frames"):
        image_pages(path)


def test_a_chain_of_frames_that_is_a_circle_ends(tmp_path: Path) -> None:
    path = write_grey_tiff(tmp_path / "a.tif", [(np.zeros((2, 2), np.uint8), {})] * 3)
    content = bytearray(path.read_bytes())
    content[-4:] = content[4:8]  # the last one's successor is the first
    path.write_bytes(content)
    assert image_pages(path) == 3


def test_jpeg2000_of_more_tiles_than_pixels_would_need(tmp_path: Path) -> None:
    """The decoder makes 12 kB for each tile before a pixel is read."""
    whole = saved(Image.new("RGB", (64, 64)), "JPEG2000", num_resolutions=1)
    place = whole.index(b"\xff\x4f\xff\x51")
    content = bytearray(whole)
    struct.pack_into(">II", content, place + 8, 250, 250)  # the size
    struct.pack_into(">II", content, place + 24, 1, 1)  # a tile's
    struct.pack_into(">II", content, content.index(b"ihdr") + 4, 250, 250)
    (tmp_path / "a.jp2").write_bytes(content)
    refused(tmp_path / "a.jp2", "memory|damaged")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_of_another_size_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcore.data.images._MORE_BYTES", 2**24)
    content = bytearray(saved(Image.new("RGB", (3500, 3500)), "AVIF", speed=10, subsampling="4:4:4"))
    struct.pack_into(">II", content, content.index(b"ispe") + 8, 64, 64)
    (tmp_path / "a.avif").write_bytes(content)
    refused(tmp_path / "a.avif", "memory|damaged")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_formats_that_are_read_elsewhere(tmp_path: Path) -> None:
    flat = Image.new("RGB", (40, 30), (200, 30, 90))
    for kind, name in (("AVIF", "a.avif"), ("JPEG2000", "a.jp2")):
        flat.save(tmp_path / name, kind)
        whole = (tmp_path / name).read_bytes()
        for source in (tmp_path / name, whole):
            assert np.abs(read_image(source, max_pixels=LIMIT).astype(int) - [200, 30, 90]).max() <= 4
        assert image_size(tmp_path / name) == (30, 40)
        assert image_pages(tmp_path / name) == 1
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        refused(tmp_path / name, "damaged|not an image|cannot be read")
        with pytest.raises(UserError, match="40 x 30 pixels"):
            read_image(whole, max_pixels=1000, name=name)


def test_large_pictures_are_decoded_elsewhere_and_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("RGBA", "LA", "P", "L", "I;16", "CMYK"):
        kind = "TIFF" if mode == "CMYK" else "PNG"
        levels = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)
        image = (
            Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(levels).convert(mode)
        )
        image.save(tmp_path / "a", kind)
        here = read_image(tmp_path / "a", max_pixels=LIMIT)
        with monkeypatch.context() as patch:
            patch.setattr("mlcore.data.images._MANY_OTHERS", 0)
            np.testing.assert_array_equal(read_image(tmp_path / "a", max_pixels=LIMIT), here)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path / "a.png", "is no regular file")
    with pytest.raises(UserError, match="is a folder; expected an image"):
        read_image(tmp_path, max_pixels=LIMIT)


def test_contents_have_the_name_that_is_given() -> None:
    with pytest.raises(UserError, match=r"^pictures\.tar/a/0\.png: not an image"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n", max_pixels=LIMIT, name="pictures.tar/a/0.png")
    with pytest.raises(UserError, match=r"^pictures\.tar/a/1\.png: empty file"):
        read_image(b"", max_pixels=LIMIT, name="pictures.tar/a/1.png")

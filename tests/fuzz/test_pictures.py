"""Pictures of every format that is read, TIFF files of several pages, PDF."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, features

from mlcore.data.images import content_digest, read_image
from quartet.apps.doc_ensemble.data.pages import page_count, page_size, read_page
from quartet.apps.perceiver.data.images import decode_image
from tests.fuzz.cases import Parser, checks_of
from tests.tiff_files import write_grey_tiff

LARGEST = 10_000_000
PDF = b"""%PDF-1.4
1 0 obj << /Type /Catalog /Pages 2 0 R >> endobj
2 0 obj << /Type /Pages /Kids [3 0 R] /Count 1 >> endobj
3 0 obj << /Type /Page /Parent 2 0 R /MediaBox [0 0 72 36] /Contents 4 0 R >> endobj
4 0 obj << /Length 32 >> stream
1 0 0 rg 10 10 30 20 re f 0 0 m S
endstream endobj
trailer << /Root 1 0 R >>
%%EOF
"""
PDF_WORDS = (
    b"/Kids [2 0 R]",
    b"/MediaBox [0 0 1e9 1e9]",
    b"/Filter /FlateDecode",
    b"/JS (app.alert(1))",
    b"/Launch",
    b"obj",
    b"<<",
    b">>",
    b"Do",
)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n{} loop\n%%EOF\n"


def picture(name: str, kind: str, mode: str = "RGB", **options: object) -> Callable[[Path], None]:
    """Writes a small picture."""

    def write(folder: Path) -> None:
        values = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
        Image.fromarray(values).convert(mode).save(folder / name, kind, **options)

    return write


def tiff(folder: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    write_grey_tiff(folder / "own.tif", [(grey, {}), (grey.astype(np.uint16), {}), (grey.astype(np.float32), {262: 0})])


def packed_tiff(folder: Path) -> None:
    first, second = (Image.new("L", (16, 12), shade) for shade in (0, 200))
    first.save(folder / "own.tif", "TIFF", compression="tiff_lzw", save_all=True, append_images=[second])


def pages(folder: Path) -> object:
    """Every page of the only file."""
    path = next(folder.iterdir())
    count = page_count(path)
    return [(page_size(path, number), read_page(path, number, max_pixels=LARGEST)) for number in range(min(count, 3))]


def image(folder: Path) -> object:
    path = next(folder.iterdir())
    return read_image(path, max_pixels=LARGEST), content_digest(path)


def decoded(folder: Path) -> object:
    path = next(folder.iterdir())
    return decode_image(path.read_bytes(), origin=str(path), image_size=8)


KINDS = {
    "PNG": picture("own.png", "PNG", "RGBA"),
    "PNG with a palette": picture("own.png", "PNG", "P"),
    "JPEG": picture("own.jpg", "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    "GIF": picture("own.gif", "GIF"),
    "BMP": picture("own.bmp", "BMP"),
    "PPM": picture("own.ppm", "PPM"),
    "WEBP": picture("own.webp", "WEBP"),
}
if features.check("avif"):
    KINDS["AVIF"] = picture("own.avif", "AVIF", speed=10)
PARSERS = [
    *(
        Parser(name=kind, write=write, read=image, found={"PostScript": POSTSCRIPT, "nothing": b""})
        for kind, write in KINDS.items()
    ),
    Parser(name="perceiver's picture", write=KINDS["PNG"], read=decoded),
    Parser(name="TIFF", write=tiff, read=pages),
    Parser(name="TIFF, packed", write=packed_tiff, read=pages),
    Parser(name="PDF", write=lambda folder: (folder / "own.pdf").write_bytes(PDF), read=pages, words=PDF_WORDS),
]

test_a_damaged_file_is_a_value_or_one_error, test_inputs_that_went_wrong_once = checks_of(PARSERS, found=("refused",))

"""Every kind of page file becomes the same kind of array, or an error that names it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.data import pdf
from quartet.apps.doc_ensemble.data.dataset import Fit, PageDataset, Prepare
from quartet.apps.doc_ensemble.data.pages import Page, page_count, page_size, read_page
from tests.tiff_files import SUBFILE_TYPE, WHITE_IS_ZERO, write_grey_tiff

GREY = np.kron(np.random.default_rng(0).integers(0, 256, (6, 4)), np.ones((8, 8))).astype(np.uint8)  # [48, 32]
BITS = np.where(GREY > 127, 255, 0).astype(np.uint8)
LIMIT = 10**6


def write_tiff(path: Path, pages: list[Image.Image], **options: Any) -> Path:
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return path


def write_pdf(path: Path, sides: list[tuple[float, float]]) -> Path:
    """A PDF with a page for each size (points): white, with a black lower half."""
    kids = " ".join(f"{3 + 2 * k} 0 R" for k in range(len(sides)))
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(sides)}>>"]
    for k, (width, height) in enumerate(sides):
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width} {height}]/Contents {4 + 2 * k} 0 R>>")
        drawing = f"0 0 {width} {height / 2} re f"
        objects.append(f"<</Length {len(drawing)}>>stream\n{drawing}\nendstream")
    return write_objects(path, objects)


def write_objects(path: Path, objects: Sequence[str], *, trailer: str = "") -> Path:
    """A PDF of these objects, numbered from 1."""
    file, places = io.BytesIO(b""), []
    file.write(b"%PDF-1.4\n")
    for number, content in enumerate(objects, 1):
        places.append(file.tell())
        file.write(f"{number} 0 obj{content}endobj\n".encode())
    start = file.tell()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    file.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode())
    file.write(f"trailer<</Size {len(objects) + 1}/Root 1 0 R{trailer}>>\nstartxref\n{start}\n%%EOF".encode())
    path.write_bytes(file.getvalue())
    return path


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_each_page_of_a_tiff(tmp_path: Path, compression: str | None, grey: bool) -> None:
    levels = [np.roll(GREY, 8 * k, axis=0) for k in range(3)]
    path = write_tiff(tmp_path / "a.tiff", [Image.fromarray(level) for level in levels], compression=compression)
    assert page_count(path) == 3
    for number, level in enumerate(levels):
        expected = level[..., None] if grey else np.repeat(level[..., None], 3, axis=2)
        np.testing.assert_array_equal(read_page(path, number, max_pixels=LIMIT, grey=grey), expected)
    assert page_size(path, 2) == (48, 32)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", None])
def test_fax_pages_of_one_bit(tmp_path: Path, compression: str | None) -> None:
    images = [Image.fromarray(level).convert("1", dither=Image.Dither.NONE) for level in (BITS, 255 - BITS)]
    path = write_tiff(tmp_path / "fax.TIF", images, compression=compression)
    np.testing.assert_array_equal(read_page(path, 0, max_pixels=LIMIT)[..., 1], BITS)
    np.testing.assert_array_equal(read_page(path, 1, max_pixels=LIMIT, grey=True)[..., 0], 255 - BITS)


def test_sixteen_bits_and_alpha(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257
    shallow = np.zeros_like(deep)
    for suffix in ("tif", "png"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        np.testing.assert_array_equal(read_page(tmp_path / f"deep.{suffix}", max_pixels=LIMIT, grey=True)[..., 0], GREY)
        rgba = np.dstack([GREY, GREY, GREY, shallow.astype(np.uint8)])
        Image.fromarray(rgba).save(tmp_path / f"clear.{suffix}")
        assert (read_page(tmp_path / f"clear.{suffix}", max_pixels=LIMIT) == 255).all()
    write_tiff(tmp_path / "two.tif", [Image.fromarray(shallow), Image.fromarray(deep)])
    np.testing.assert_array_equal(read_page(tmp_path / "two.tif", 1, max_pixels=LIMIT)[..., 2], GREY)


def test_other_images_grey_and_colour(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    colour = read_page(tmp_path / "a.png", max_pixels=LIMIT)
    assert colour.shape == (48, 32, 3)
    np.testing.assert_array_equal(read_page(tmp_path / "a.png", max_pixels=LIMIT, grey=True), colour[..., :1])
    assert page_count(tmp_path / "a.png") == 1
    with pytest.raises(UserError, match=r"a\.png: no page 2; it has 1 page$"):
        read_page(tmp_path / "a.png", 1, max_pixels=LIMIT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow tells of a cut TIFF file in two ways
def test_bad_files_are_named(tmp_path: Path) -> None:
    for name in ("zero.tif", "zero.png", "zero.pdf"):
        if name.endswith("pdf"):
            pytest.importorskip("pypdfium2")
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=rf"{name}: empty file \(0 bytes\)"):
            read_page(tmp_path / name, max_pixels=LIMIT)
    path = write_tiff(tmp_path / "a.tif", [Image.fromarray(GREY)] * 2)
    with pytest.raises(UserError, match=r"a\.tif: no page 3; it has 2 pages"):
        read_page(path, 2, max_pixels=LIMIT)
    with pytest.raises(UserError, match=r"a\.tif: 32 x 48 pixels .*raise max_megapixels"):
        read_page(path, 1, max_pixels=1000)
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:200])
    (tmp_path / "junk.tif").write_bytes(b"junk" * 100)
    for name in ("cut.tif", "junk.tif", "none.tif"):
        with pytest.raises(UserError, match=name):
            read_page(tmp_path / name, max_pixels=LIMIT)


def test_pages_of_a_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    path = write_pdf(tmp_path / "a.pdf", [(72, 144), (144, 72)])
    assert page_count(path) == 2
    assert page_size(path, 1) == (150, 300)
    for number, size in enumerate([(300, 150), (150, 300)]):
        for grey in (False, True):
            image = read_page(path, number, max_pixels=LIMIT, grey=grey)
            assert image.dtype == np.uint8
            assert image.shape[2] == (1 if grey else 3)
            np.testing.assert_allclose(image.shape[:2], size, atol=1)
            assert (image[: size[0] // 2 - 2] == 255).all()
            assert (image[size[0] // 2 + 2 : -2, 2:-2] == 0).all()
    small = read_page(path, 0, max_pixels=5000)
    assert 4500 < small.shape[0] * small.shape[1] <= 5000
    with pytest.raises(UserError, match=r"a\.pdf: no page 3; it has 2 pages"):
        read_page(path, 2, max_pixels=LIMIT)
    (tmp_path / "junk.pdf").write_bytes(b"junk" * 100)
    with pytest.raises(UserError, match=r"junk\.pdf: not a PDF file, or damaged"):
        page_count(tmp_path / "junk.pdf")
    with pytest.raises(UserError, match=r"none\.pdf: cannot be read"):
        page_count(tmp_path / "none.pdf")


def forms(count: int) -> list[str]:
    """Forms that each draw the next one twice; the last one draws a square."""
    objects = []
    for number in range(count):
        last = number == count - 1
        drawing = "0 0 1 1 re f" if last else "/F Do /F Do"
        following = "" if last else f"/Resources<</XObject<</F {6 + number} 0 R>>>>"
        head = f"<</Type/XObject/Subtype/Form/BBox[0 0 72 72]{following}/Length {len(drawing)}>>"
        objects.append(f"{head}stream\n{drawing}\nendstream")
    return objects


def test_pages_that_would_never_be_drawn_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2")
    page = "<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]/Contents 4 0 R/Resources<</XObject<</F 5 0 R>>>>>>"
    start = ["<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[3 0 R]/Count 1>>", page]
    content = "<</Length 5>>stream\n/F Do\nendstream"
    few = write_objects(tmp_path / "few.pdf", [*start, content, *forms(4)])
    assert read_page(few, max_pixels=LIMIT).min() == 0
    itself = forms(2)[0].replace("/F 6 0 R", "/F 5 0 R").replace("/F Do /F Do", "/F Do      ")
    assert read_page(write_objects(tmp_path / "loop.pdf", [*start, content, itself]), max_pixels=LIMIT).min() == 255
    monkeypatch.setattr(pdf, "_MEMORY", 64 * 2**20)
    many = write_objects(tmp_path / "many.pdf", [*start, content, *forms(26)])
    with pytest.raises(UserError, match=r"many\.pdf: .* takes more than"):  # 33 million squares
        read_page(many, max_pixels=LIMIT)


def test_pages_of_any_size_keep_to_the_limit(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    image = read_page(write_pdf(tmp_path / "wide.pdf", [(1e6, 1e6)]), max_pixels=10_000)
    assert 9000 < image.shape[0] * image.shape[1] <= 10_000
    with pytest.raises(UserError, match=r"thin\.pdf: page 1 is 2083333 x 2 pixels"):
        read_page(write_pdf(tmp_path / "thin.pdf", [(1e6, 1)]), max_pixels=10_000)


def test_pages_without_number_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    path = write_pdf(tmp_path / "a.pdf", [(72, 72)] * 10_001)
    with pytest.raises(UserError, match=r"a\.pdf: 10,001 pages; at most 10,000 are read"):
        page_count(path)


def test_names_and_groups() -> None:
    assert Page(Path("x/a.png")).name == "a.png"
    assert Page(Path("x/a.tif"), 2).name == "a.tif#3"
    assert Page(Path("x/a.pdf")).name == "a.pdf#1"
    assert Page(Path("a.tif"), 1).bundle == Page(Path("a.tif"), 5).bundle
    assert Page(Path("a.tif"), group="k").bundle == Page(Path("b.tif"), group="k").bundle != Page(Path("k")).bundle


def test_letterbox_keeps_the_aspect_and_resize_fills() -> None:
    dark = np.zeros((100, 50, 1), np.uint8)
    boxed = Fit((40, 40), "letterbox")(dark)
    assert boxed.shape == (40, 40, 1)
    assert (boxed[:, 10:30] == 0).all()
    assert (boxed[:, :10] == 255).all()
    assert (boxed[:, 30:] == 255).all()
    assert (Fit((40, 40))(dark) == 0).all()
    same = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    assert Fit((40, 40), "letterbox")(same) is same
    for shape in ((1, 500, 3), (3000, 2, 1)):
        for how in ("resize", "letterbox"):
            assert Fit((32, 24), how)(np.zeros(shape, np.uint8)).shape == (32, 24, shape[2])  # type: ignore[arg-type]


def test_samples_and_their_normalisation(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    pages = [Page(tmp_path / "a.png", label=3), Page(tmp_path / "a.png")]
    dataset = PageDataset(pages, max_pixels=LIMIT)
    sample = dataset[0]
    assert (sample["index"], sample["label"], dataset[1]["label"], len(dataset)) == (0, 3, -1, 2)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    ready = Prepare(Fit((48, 32)), mean=mean, std=std)(sample)
    assert set(ready) == {"index", "label", "pixels"}
    assert ready["pixels"].dtype == np.float32
    expected = (sample["image"] / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(ready["pixels"], expected.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)
    small = PageDataset(pages, max_pixels=LIMIT, grey=True, fit=Fit((24, 16)))[0]["image"]
    assert small.shape == (24, 16, 1)
    pixels = Prepare(Fit((24, 16)), mean=mean, std=std).pixels(small)
    np.testing.assert_allclose(pixels[0], (small[..., 0] / 255 - 0.5) / 0.3, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- what is not what it seems

FIELD = "/Type/Annot/Subtype/Widget/FT/Tx/T(name)/V(MMMMMMMM)/DA(/Helv 40 Tf 0 g)/Rect[10 60 190 120]/F 4/P 3 0 R"


def write_form(path: Path, *, appearance: bool) -> Path:
    """An otherwise empty page with a field that is filled in, with its picture or without."""
    drawing = "q BT /Helv 40 Tf 0 g 5 10 Td (MMMMMMMM) Tj ET Q"
    font = "<</Font<</Helv<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>"
    form = f"/Type/XObject/Subtype/Form/BBox[0 0 180 60]/Resources{font}/Length {len(drawing)}"
    return write_objects(
        path,
        [
            f"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]/NeedAppearances true/DR{font}>>>>",
            "<</Type/Pages/Kids[3 0 R]/Count 1>>",
            "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Annots[4 0 R]>>",
            f"<<{FIELD}{'/AP<</N 5 0 R>>' if appearance else ''}>>",
            f"<<{form}>>stream\n{drawing}\nendstream",
        ],
    )


@pytest.mark.parametrize("appearance", [True, False])
def test_what_is_filled_into_a_form_is_on_the_page(tmp_path: Path, appearance: bool) -> None:
    path = write_form(tmp_path / "form.pdf", appearance=appearance)
    image = read_page(path, max_pixels=LIMIT, grey=True)
    dark = (image < 128).mean(axis=(1, 2))
    height = len(dark)
    assert dark[int(0.4 * height) : int(0.7 * height)].mean() > 0.1  # where the field is
    assert dark[: int(0.4 * height)].sum() == 0


def test_grey_and_colour_of_a_pdf_are_one_drawing(tmp_path: Path) -> None:
    path = write_form(tmp_path / "form.pdf", appearance=True)
    colour = read_page(path, max_pixels=LIMIT)
    np.testing.assert_array_equal(read_page(path, max_pixels=LIMIT, grey=True), colour[..., :1])


def test_a_pdf_without_pages_says_so_whatever_was_read_before(tmp_path: Path) -> None:
    empty = write_objects(tmp_path / "empty.pdf", ["<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[]/Count 0>>"])
    locked = "/Filter/Standard/V 1/R 2/P -4/Length 40"
    pages = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[]/Count 0>>",
        f"<<{locked}/O<{'00' * 32}>/U<{'00' * 32}>>>",
    ]
    before = {
        "damaged": (tmp_path / "junk.pdf", b"junk" * 100),
        "protected by a password": (
            write_objects(tmp_path / "locked.pdf", pages, trailer=f"/Encrypt 3 0 R/ID[<{'00' * 16}><{'00' * 16}>]"),
            None,
        ),
    }
    for reason, (path, content) in before.items():
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            page_count(path)
        for read in (page_count, page_size):
            with pytest.raises(UserError, match=r"empty\.pdf: the PDF file has no pages$"):
                read(empty)


def test_thumbnails_and_masks_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    small = GREY[::4, ::4]
    frames = [(small, {SUBFILE_TYPE: 1}), (GREY, {}), (255 - GREY, {SUBFILE_TYPE: 2}), (GREY, {SUBFILE_TYPE: 4})]
    path = write_grey_tiff(tmp_path / "a.tif", frames)
    assert page_count(path) == 2
    assert page_size(path, 0) == page_size(path, 1) == GREY.shape
    for number, expected in enumerate((GREY, 255 - GREY)):
        np.testing.assert_array_equal(read_page(path, number, max_pixels=LIMIT, grey=True)[..., 0], expected)
    with pytest.raises(UserError, match=r"a\.tif: no page 3; it has 2 pages"):
        read_page(path, 2, max_pixels=LIMIT)
    alone = write_grey_tiff(tmp_path / "b.tif", [(small, {SUBFILE_TYPE: 1})])
    assert page_count(alone) == 1


def test_white_is_zero_and_twelve_bits(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257
    fractions = (GREY / 255).astype(np.float32)
    for number, (values, tags) in enumerate([
        (GREY, {}), (deep, {}), (fractions, {}), (deep.astype(np.uint32), {}),
        (255 - GREY, WHITE_IS_ZERO), (65535 - deep, WHITE_IS_ZERO), (1 - fractions, WHITE_IS_ZERO),
        (deep >> 4, {}), (deep >> 8, {}),
    ]):  # fmt: skip
        path = write_grey_tiff(tmp_path / f"{number}.tif", [(values, tags)])
        for grey in (False, True):
            read = read_page(path, max_pixels=LIMIT, grey=grey)
            exact = GREY if values.dtype != np.float32 else np.rint((GREY - GREY.min()) * (255 / np.ptp(GREY)))
            assert np.abs(read[..., 0].astype(int) - exact).max() <= 1, number
    black = write_grey_tiff(tmp_path / "black.tif", [(0 * deep, {})])
    assert not read_page(black, max_pixels=LIMIT).any()

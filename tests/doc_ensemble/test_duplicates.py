"""Copies of a page are found in images, TIFF and PDF files; pages of one layout with other text are no copies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.data.duplicates import check_duplicates, compared
from quartet.apps.doc_ensemble.data.generated import TYPES, draw_page
from quartet.apps.doc_ensemble.data.pages import Page

LIMIT = 10**8
WORDS = (
    "account", "address", "balance", "contract", "customer", "date", "delivery", "due", "invoice", "month", "number",
    "office", "order", "payment",
)  # fmt: skip


def groups_of(pages: list[Page], **settings: Any) -> list[int]:
    known, copies = compared(pages, max_pixels=LIMIT, **settings)
    return [copies[page.key] for page in known]


def checked(splits: dict[str, list[Page]], *, allow: bool) -> list[str]:
    copies = compared([page for part in splits.values() for page in part], max_pixels=LIMIT)[1]
    return check_duplicates(splits, copies=copies, allow=allow)


def saved(path: Path, image: Image.Image, *, label: int = 0, **options: Any) -> Page:
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)
    return Page(path, label=label, origin=f"{path.parent.name}.csv, line {path.stem}")


# ------------------------------------------------------------------------------------------ pages that share a template


def sheet(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw, Any]:
    """A4 at 75 dpi with a heading."""
    image = Image.new("L", (620, 877), 255)
    draw = ImageDraw.Draw(image)
    draw.text((40, 40), title, font=sans(22), fill=0)
    draw.line((40, 75, 580, 75), fill=0, width=2)
    return image, draw, sans(12)


def letter(rng: np.random.Generator) -> Image.Image:
    """A letterhead and a full page of words, the lines at the same places."""
    image, draw, font = sheet("Smith & Sons Ltd")
    for line in range(32):
        draw.text((60, 150 + 19 * line), " ".join(rng.choice(WORDS, 12))[:72], font=font, fill=0)
    return image


def statement(rng: np.random.Generator) -> Image.Image:
    """A table in which nothing but digits differs."""
    image, draw, font = sheet("Statement of account")
    for line in range(32):
        digits = "".join(map(str, rng.integers(0, 10, 12)))
        text = f"{digits[:4]}-{digits[4:6]}    Transfer    {digits[6:10]},{digits[10:]} EUR"
        draw.text((60, 150 + 19 * line), text, font=font, fill=0)
    return image


def form(rng: np.random.Generator) -> Image.Image:
    """A form that is filled in alike but for two of its eighteen boxes."""
    image, draw, font = sheet("Application for a parking permit")
    for line in range(18):
        draw.text((40, 110 + 37 * line), f"{line + 1}. {WORDS[line % len(WORDS)]}", font=font, fill=0)
        draw.rectangle((250, 104 + 37 * line, 580, 132 + 37 * line), outline=0)
        words = rng.choice(WORDS, 2) if line in (3, 9) else WORDS[line % 9 : line % 9 + 2]
        draw.text((258, 110 + 37 * line), " ".join(words), font=font, fill=40)
    return image


def sans(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


TEMPLATES: list[Callable[[np.random.Generator], Image.Image]] = [letter, statement, form]


@pytest.mark.parametrize("template", TEMPLATES)
def test_pages_of_one_template_are_no_copies(tmp_path: Path, template: Callable[..., Image.Image]) -> None:
    pages = [saved(tmp_path / f"{n}.png", template(np.random.default_rng(n))) for n in range(12)]
    assert len(set(groups_of(pages))) == 12


def noisy(image: Image.Image) -> Image.Image:
    """As a scanner sees it."""
    pixels = 20 + 0.85 * np.asarray(image) + np.random.default_rng(0).normal(0, 4, (image.height, image.width))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(factor * image.width), round(factor * image.height)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: scaled(image, 0.6),
    "larger": lambda image: scaled(image, 2.0),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "in colour": lambda image: image.convert("RGB"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_pages_are_found(tmp_path: Path, kind: str) -> None:
    drawn = [template(np.random.default_rng(7)) for template in TEMPLATES]
    originals = [*drawn, *map(noisy, drawn), *(draw_page(name, np.random.default_rng(3)) for name in TYPES)]
    pages = [saved(tmp_path / f"{n}.png", image) for n, image in enumerate(originals)]
    pages += [saved(tmp_path / f"{n}.jpg", COPIES[kind](image), quality=60) for n, image in enumerate(originals)]
    groups = groups_of(pages)
    assert groups[: len(originals)] == groups[len(originals) :]


def test_drawn_pages_are_different(tmp_path: Path) -> None:
    pages = [
        saved(tmp_path / f"{name}{n}.jpg", draw_page(name, np.random.default_rng([place, n])))
        for place, name in enumerate(TYPES)
        for n in range(8)
    ]
    assert len(set(groups_of(pages))) == len(pages)


def test_nearly_blank_pages_are_copies_only_where_pixels_are_the_same(tmp_path: Path) -> None:
    blank = []
    for n in range(6):
        image = Image.new("L", (620, 877), 255)
        ImageDraw.Draw(image).text((300, 800), f"- {n + 1} -", font=sans(12), fill=0)
        blank.append(image)
    pages = [saved(tmp_path / f"{n}.png", image) for n, image in enumerate(blank)]
    pages += [saved(tmp_path / f"white{n}.png", Image.new("L", (620, 877 + n), 255)) for n in range(3)]
    pages.append(saved(tmp_path / "same.tif", Image.new("L", (620, 877), 255)))  # other bytes
    groups = groups_of(pages)
    assert len(set(groups)) == 9
    assert groups[9] == groups[6]


# ------------------------------------------------------------------------------------------------------- files of pages


def test_pages_of_tiff_and_pdf_files_are_compared_one_by_one(tmp_path: Path) -> None:
    images = [template(np.random.default_rng(n)) for n, template in enumerate(TEMPLATES)]
    images[0].save(tmp_path / "all.tif", save_all=True, append_images=images[1:])
    images[0].save(tmp_path / "all.pdf", save_all=True, append_images=images[1:], resolution=100)
    images[1].save(tmp_path / "one.jpg", quality=70)
    pages = [Page(tmp_path / name, number) for name in ("all.tif", "all.pdf") for number in range(3)]
    cache = tmp_path / "kept.zip"
    groups = groups_of([*pages, Page(tmp_path / "one.jpg")], cache=cache)
    assert groups == [0, 1, 2, 0, 1, 2, 1]
    assert groups_of(pages[::-1], cache=cache) == [0, 1, 2, 0, 1, 2]  # 2, 1, 0 of the files


def test_across_splits_is_an_error_and_may_be_allowed(tmp_path: Path) -> None:
    images = [letter(np.random.default_rng(n)) for n in range(4)]
    train = [saved(tmp_path / f"train/{n}.png", image, label=n % 2) for n, image in enumerate(images)]
    val = [saved(tmp_path / "val/1.png", form(np.random.default_rng(0)))]
    assert checked({"train": train, "val": val}, allow=False) == []
    images[1].save(tmp_path / "val/scan.pdf", save_all=True, append_images=images[3:], resolution=60)
    val += [Page(tmp_path / "val/scan.pdf", number, label=0, origin="val.csv, line 3") for number in range(2)]
    with pytest.raises(UserError) as caught:
        checked({"train": train, "val": val}, allow=False)
    title, *pairs, way_out = str(caught.value).splitlines()
    assert title.startswith("pictures in more than one of train, val, perhaps scaled or compressed anew: 2")
    assert pairs[0].strip() == "train.csv, line 1 (1.png) = val.csv, line 3 (scan.pdf#1)"
    assert "data.allow_duplicates=true" in way_out
    notes = checked({"train": train, "val": val}, allow=True)
    assert len(notes) == 2
    assert "different labels" in notes[1]


def test_pages_that_cannot_be_read_are_named_by_their_row(tmp_path: Path) -> None:
    page = saved(tmp_path / "1.png", letter(np.random.default_rng(0)))
    page.path.write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 1 images cannot be used:\n.*line 1: .*empty file"):
        groups_of([page])


def test_none_at_all() -> None:
    assert checked({"train": [], "val": []}, allow=False) == []

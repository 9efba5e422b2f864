"""Drawn pages of 17 types in the layout of own data, a folder per class below train/, val/ and test/; for the demo.

Types differ by their layout, but each varies, and like types share parts: a letter may have a subject line as a memo
has, a form may have boxes to tick as a questionnaire has, a budget's table may look like an invoice's. One page in a
hundred lies in the folder of another type, as in real data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mlcore.base.console import with_progress
from mlcore.base.errors import UserError
from mlcore.base.seeding import numpy_rng
from mlcore.data.generated import write_once
from quartet.apps.doc_ensemble.data import generated_letters as letters
from quartet.apps.doc_ensemble.data import generated_records as records
from quartet.apps.doc_ensemble.data.generated_drawing import Sheet, korean_font

__all__ = ["TYPES", "draw_page", "write_generated"]

_FORMAT = 2  # goes up whenever the same arguments give other files
_HEIGHT = 256
_DRAWN = 384  # height; drawn larger and reduced, for smooth edges
_KOREAN = 0.25  # share of pages with Korean words, where there is a font
_WRONG = 0.01
_LABELS, _PAGES = 31, 32  # streams of random numbers


@dataclass(frozen=True)
class _Type:
    """How one type is drawn.

    Attributes:
        draw: Draws on a sheet.
        aspect: Range of width / height.
    """

    draw: Callable[[Sheet], None]
    aspect: tuple[float, float] = (0.68, 0.78)


_TYPES: Mapping[str, _Type] = {
    "advertisement": _Type(records.advertisement, (0.68, 0.85)),
    "budget": _Type(records.budget),
    "certificate": _Type(letters.certificate, (0.7, 1.4)),
    "chart": _Type(records.chart, (0.7, 1.3)),
    "email": _Type(letters.email),
    "form": _Type(records.form),
    "id_card": _Type(records.id_card, (1.35, 1.6)),
    "invoice": _Type(records.invoice),
    "letter": _Type(letters.letter),
    "memo": _Type(letters.memo),
    "news": _Type(letters.news, (0.66, 0.8)),
    "paper": _Type(letters.paper),
    "questionnaire": _Type(records.questionnaire),
    "receipt": _Type(records.receipt, (0.4, 0.6)),
    "report": _Type(letters.report),
    "resume": _Type(letters.resume),
    "slide": _Type(letters.slide, (1.3, 1.7)),
}

TYPES = tuple(sorted(_TYPES))


def draw_page(name: str, rng: np.random.Generator, *, korean: str | None = None) -> Image.Image:
    """One page of a type, grey, 256 pixels high.

    Args:
        name: One of `TYPES`.
        rng: All chance comes from it.
        korean: A font with Hangul; its words are then Korean now and then.
    """
    kind = _TYPES[name]
    hangul = korean if rng.random() < _KOREAN else None
    sheet = Sheet(float(rng.uniform(*kind.aspect)), height=_DRAWN, rng=rng, korean=hangul)
    kind.draw(sheet)
    return _scanned(sheet.image, rng)


def write_generated(folder: Path, *, train: int, val: int, test: int, seed: int) -> None:
    """Write train/<type>/*.jpg, val/... and test/..., unless `folder` holds those of the same arguments already.

    Every split has as many pages of each type as of the others, as far as numbers allow. Takes about 15 ms a page. The
    folder appears complete or not at all.

    Args:
        folder: Created, or replaced if it holds a generated set of other arguments.
        train: Training pages.
        val: Validation pages.
        test: Test pages; 0: no folder for them.
        seed: Names the set.

    Raises:
        UserError: `folder` holds something else, or cannot be written to, or a split has fewer pages than types.
    """
    counts = {"train": train, "val": val, "test": test}
    few = [name for name, count in counts.items() if 0 < count < len(TYPES) or (count < 1 and name != "test")]
    if few:
        raise UserError(f"generated pages: {few[0]} needs at least {len(TYPES)} pages, one of each type")
    request = {"format": _FORMAT, **counts, "seed": seed}
    write_once(folder, request, partial(_write, counts=counts, seed=seed))


def _write(folder: Path, *, counts: Mapping[str, int], seed: int) -> None:
    korean = korean_font()
    numbers = [(split, place) for split, count in counts.items() for place in range(count)]
    for index, (split, place) in enumerate(with_progress(numbers, total=len(numbers), what="pages drawn")):
        name = TYPES[place % len(TYPES)]
        labels = numpy_rng(_LABELS, seed, index)
        # The first page of each type is always right, so that every folder has one.
        drawn = TYPES[int(labels.integers(len(TYPES)))] if place >= len(TYPES) and labels.random() < _WRONG else name
        page = draw_page(drawn, numpy_rng(_PAGES, seed, index), korean=korean)
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        page.save(folder / split / name / f"{index:05d}.jpg", quality=int(labels.integers(60, 90)))


def _scanned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Reduced, slightly turned and moved, on paper that is not quite white, with noise."""
    size = (round(image.width * _HEIGHT / image.height), _HEIGHT)
    turned = image.resize(size, Image.Resampling.BILINEAR).rotate(
        float(rng.normal(0, 0.8)),
        resample=Image.Resampling.BILINEAR,
        translate=(int(rng.integers(-5, 6)), int(rng.integers(-5, 6))),
        fillcolor=int(image.getpixel((2, 2))),  # type: ignore[arg-type]  # of a grey image: one number
    )
    pixels = np.asarray(turned, dtype=np.float32)
    white, black = rng.uniform(215, 256), rng.uniform(0, 50)
    slope = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32) * rng.uniform(-10, 10)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 7)
    scanned = black + pixels * ((white - black) / 255) + slope + noise
    return Image.fromarray(np.clip(scanned, 0, 255).astype(np.uint8))

"""Document pages as `inference.predict_pages` takes them: exactly the pixels that each member was trained on."""

import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from quartet.apps.doc_ensemble.config import TEXT
from quartet.apps.doc_ensemble.data.dataset import Fit
from quartet.apps.doc_ensemble.data.pages import Page, read_page
from quartet.apps.doc_ensemble.data.words import count_words
from quartet.apps.doc_ensemble.ensemble.inference import Pages
from quartet.apps.doc_ensemble.ensemble.members import InputFormat, Member

__all__ = ["document_pages", "prepare_page"]


class _Content(NamedTuple):
    image: NDArray[np.uint8]  # [H, W, 3 or 1]; where nobody looks at pictures, of no pixels
    text: str


def document_pages(
    pages: Sequence[Page],
    members: Sequence[Member],
    *,
    max_pixels: int,
    decode_side: int | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
) -> Pages[Page]:
    """How `members` read `pages`: in grey where all of them do; otherwise in colour, made grey for those that do.

    Args:
        pages: What to predict.
        members: Who predicts.
        max_pixels: Larger images are refused before they are decoded.
        decode_side: See `mlcore.data.images.read_image`.
        skip_bad: Leave out what cannot be read.
        workers: Threads that read ahead; None: one for each core, up to 8, since a GPU waits for fewer.
    """
    looking = [member for member in members if member.fit != TEXT]
    grey = all(member.in_channels == 1 for member in looking)
    return Pages(
        items=pages,
        read=partial(_read, max_pixels=max_pixels if looking else None, decode_side=decode_side, grey=grey),
        prepare=_prepare,
        skip_bad=skip_bad,
        workers=workers or max(2, min(8, _cores())),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _read(page: Page, *, max_pixels: int | None, decode_side: int | None, grey: bool) -> _Content:
    if max_pixels is None:
        return _Content(np.zeros((0, 0, 1), dtype=np.uint8), page.text)
    image = read_page(page.path, page.number, max_pixels=max_pixels, decode_side=decode_side, grey=grey)
    return _Content(image, page.text)


def _prepare(content: _Content, shape: InputFormat) -> NDArray[np.uint8]:
    return count_words(content.text) if shape.fit == TEXT else prepare_page(content.image, shape)


def prepare_page(image: NDArray[np.uint8], shape: InputFormat) -> NDArray[np.uint8]:
    """A page uint8 [H, W, 3 or 1] as a network takes it, uint8 [height, width, channels]."""
    if image.shape[2] > shape.channels:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)[..., None]
    assert shape.fit != "text"  # noqa: S101 - that is no picture
    return Fit((shape.height, shape.width), shape.fit, shape.upright)(image)

"""The text of a page as an array: how often each word, pair of words, and part of a word is in it.

An array of counts goes through loaders, ensembles and exports like a picture: uint8 [1, WIDTH, 1].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.data.ngrams import count_ngrams
from quartet.apps.doc_ensemble.data.pages import Page

__all__ = ["WIDTH", "TextDataset", "count_words"]

WIDTH = 2**17
_LONGEST = 20_000  # characters; a page has a few thousand


def count_words(text: str) -> NDArray[np.uint8]:
    """Counts of a text's n-grams, uint8 [1, WIDTH, 1]; more than 255 are 255, letters are small.

    Args:
        text: Of a page; what is behind the first 20,000 characters is not looked at. An empty one has no counts.
    """
    places, times = count_ngrams(text[:_LONGEST], WIDTH)
    counts = np.zeros((1, WIDTH, 1), dtype=np.uint8)
    counts[0, places, 0] = np.minimum(times, 255)
    return counts


class TextDataset:
    """As `PageDataset`, of the pages' texts: `image` is what `count_words` gives; no file is opened.

    Args:
        pages: What to read.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        self.pages = tuple(pages)

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> dict[str, Any]:
        page = self.pages[index]
        return {"index": index, "label": -1 if page.label is None else page.label, "image": count_words(page.text)}

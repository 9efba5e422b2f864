"""The text of a page as an array: how often each word, pair of words, and part of a word is in it.

An array of counts goes through loaders, ensembles and exports like a picture: uint8 [1, WIDTH, 1]. Which count is whose
is a hash (Weinberger et al. 2009, https://arxiv.org/abs/0902.2206): there is no vocabulary to keep, or to read.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quartet.apps.doc_ensemble.data.pages import Page

__all__ = ["WIDTH", "TextDataset", "count_words"]

_KINDS = (("word", (1, 2)), ("char_wb", (2, 5)))  # what is counted: n-grams of words, and of letters within words
_EACH = 2**16  # counts of each kind
WIDTH = len(_KINDS) * _EACH
_LONGEST = 20_000  # characters; a page has a few thousand


def count_words(text: str) -> NDArray[np.uint8]:
    """Counts of a text's n-grams, uint8 [1, WIDTH, 1]; more than 255 are 255, letters are small.

    Args:
        text: Of a page; what is behind the first 20,000 characters is not looked at. An empty one has no counts.
    """
    counts = [hasher.transform([text[:_LONGEST]]) for hasher in _hashers()]
    return np.concatenate([np.minimum(row.toarray(), 255).astype(np.uint8) for row in counts], axis=1)[..., None]


@cache
def _hashers() -> list[Any]:
    from sklearn.feature_extraction.text import HashingVectorizer

    return [
        HashingVectorizer(analyzer=kind, ngram_range=lengths, n_features=_EACH, alternate_sign=False, norm=None)
        for kind, lengths in _KINDS
    ]


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

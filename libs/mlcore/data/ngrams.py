"""How often each n-gram is in a text: of words, and of letters within words. Which count is whose is a hash.

Hashing (Weinberger et al. 2009, https://arxiv.org/abs/0902.2206) is scikit-learn's MurmurHash3: there is no vocabulary
to keep or to read, and nothing of the texts is kept.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHARACTERS", "WORDS", "count_ngrams"]

WORDS, CHARACTERS = (1, 2), (2, 5)
"""Lengths; characters within words and at their ends."""


def count_ngrams(text: str, buckets: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The buckets that a text has something in, and how often, int32 [L] each.

    Args:
        text: Any; an empty one has nothing.
        buckets: Even; words are in the first half, characters in the second.
    """
    words, characters = (way.transform([text]) for way in _hashers(buckets // 2))
    places = np.concatenate([words.indices, characters.indices + buckets // 2])
    return places.astype(np.int32), np.concatenate([words.data, characters.data]).astype(np.int32)


@cache
def _hashers(each: int) -> list[Any]:
    from sklearn.feature_extraction.text import HashingVectorizer  # takes a second to import

    return [
        HashingVectorizer(analyzer=kind, ngram_range=lengths, n_features=each, alternate_sign=False, norm=None)
        for kind, lengths in (("word", WORDS), ("char_wb", CHARACTERS))
    ]

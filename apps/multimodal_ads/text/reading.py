"""What is made of a text before the network: its prefix, its tokens, and where it is cut.

Made of plain values and the JSON of a tokenizer, so that an exported model reads texts without the encoder's folder.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

__all__ = ["TextReader", "count_tokens", "start"]

_MOST_TOKENS = 8192  # no sentence encoder in use reads more


class TextReader:
    """From texts to what a text network takes.

    Args:
        about: "prefix", put before every text; "limit", tokens that are read, None: all; "most", the largest limit that
            can be asked for, None: any; "padding" and "truncation", arguments of the library.
        tokenizer: JSON of the `tokenizers` library.
    """

    def __init__(self, about: Mapping[str, Any], tokenizer: str) -> None:
        self.limit: int | None = about["limit"]
        self.most: int | None = about["most"]
        self._prefix: str = about["prefix"]
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._padding, self._truncation = dict(about["padding"]), dict(about["truncation"])

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens int64 [T, L], filled up to the longest, and where there are some, int64 [T, L]."""
        if self.limit is not None:
            self._tokenizer.enable_truncation(self.limit, **self._truncation)
        self._tokenizer.enable_padding(**self._padding)
        found = self._encoded([self._prefix + start(text, self.limit) for text in texts])
        return torch.tensor([one.ids for one in found]), torch.tensor([one.attention_mask for one in found])

    def count_tokens(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.count_tokens`."""
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        return count_tokens(texts, self._prefix, self.limit, lambda some: [len(one) for one in self._encoded(some)])

    def _encoded(self, texts: Sequence[str]) -> list[Any]:
        found: list[Any] = self._tokenizer.encode_batch(list(texts))
        return found


def start(text: str, limit: int | None) -> str:
    """What can be read of a text; a tokenizer would take seconds for the rest of a megabyte."""
    most = 64 * (limit or _MOST_TOKENS)  # characters, far more than there are in so many tokens
    return text if len(text) <= most else " ".join(text.split())[:most]


def count_tokens(
    texts: Sequence[str], prefix: str, limit: int | None, count: Callable[[list[str]], Sequence[int]]
) -> Tensor:
    """Tokens of each text with its prefix, int64 [N], as if it were not cut; 0 for an empty text.

    Args:
        texts: Of texts beyond what can be read many times over it is estimated, from their starts.
        prefix: Put before each.
        limit: Tokens that are read.
        count: Counts those of texts as they stand.
    """
    if not texts:
        return torch.zeros(0, dtype=torch.int64)
    starts = [prefix + start(text, limit) for text in texts]
    shares = [len(prefix + text) / len(some) if some else 1 for text, some in zip(texts, starts, strict=True)]
    counts = [round(found * share) for found, share in zip(count(starts), shares, strict=True)]
    return torch.tensor(counts) * torch.tensor([bool(text) for text in texts])

"""What is made of a text before the network: its prefix, its tokens, and where it is cut.

Made of plain values and the JSON of a tokenizer, so that an exported model reads texts without the encoder's folder.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

__all__ = ["TextReader", "count_tokens", "overlap", "start", "text_inputs"]

_MOST_TOKENS = 8192  # no sentence encoder in use reads more


class TextReader:
    """From texts to what a text network takes.

    Args:
        about: "prefix", put before every text; "limit", tokens that are read, None: all; "most", the largest limit that
            can be asked for, None: any; "chunks", of so many tokens, that are read of a text, none: 1; "padding" and
            "truncation", arguments of the library.
        tokenizer: JSON of the `tokenizers` library.
    """

    def __init__(self, about: Mapping[str, Any], tokenizer: str) -> None:
        self.limit: int | None = about["limit"]
        self.most: int | None = about["most"]
        self.chunks: int = about.get("chunks", 1)  # exports of earlier versions know none
        self._prefix: str = about["prefix"]
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._padding, self._truncation = dict(about["padding"]), dict(about["truncation"])

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Tokens int64 [T, L], filled up to the longest, and where there are some, int64 [T, L].

        Of texts that are read in chunks the tokens of all their first chunks, and then of the others, and as a third
        tensor the chunks of each text, int64 [T, K], -1 where there are no more.
        """
        if self.limit is not None:
            self._tokenizer.enable_truncation(self.limit, **self._truncation)
        self._tokenizer.enable_padding(**self._padding)
        found = self._encoded([self._prefix + start(text, self.whole) for text in texts])
        others = [one.overflowing[: self.chunks - 1] for one in found]
        rows = [*found, *(chunk for some in others for chunk in some)]
        tokens = torch.tensor([one.ids for one in rows]), torch.tensor([one.attention_mask for one in rows])
        if self.chunks == 1:
            return tokens
        further, most = iter(range(len(found), len(rows))), max(map(len, others))
        chunks = [[place, *islice(further, len(some)), *[-1] * (most - len(some))] for place, some in enumerate(others)]
        return *tokens, torch.tensor(chunks)

    @property
    def whole(self) -> int | None:
        """Tokens of a text that are read in all its chunks; None: all."""
        if self.limit is None:
            return None
        own = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        return self.limit + (self.chunks - 1) * (self.limit - own - overlap(self.limit))

    def count_tokens(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.count_tokens`."""
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        return count_tokens(texts, self._prefix, self.whole, lambda some: [len(one) for one in self._encoded(some)])

    def _encoded(self, texts: Sequence[str]) -> list[Any]:
        found: list[Any] = self._tokenizer.encode_batch(list(texts))
        return found


def text_inputs(reader: Callable[[Sequence[str]], tuple[Tensor, ...]], texts: Sequence[str]) -> tuple[Tensor, ...]:
    """What `embed` takes after the network: equal texts are read once, and none where there is none.

    Args:
        reader: A `TextReader`, or what reads n-grams.
        texts: Of a batch's inputs.
    """
    different = {text: place for place, text in enumerate(dict.fromkeys(text for text in texts if text))}
    tokens, mask, *chunks = reader([*different] or ["."])  # the network wants one
    place = torch.tensor([different.get(text, -1) for text in texts])
    if chunks:
        place = torch.where(place.unsqueeze(1) < 0, -1, chunks[0][place.clamp(min=0)])
    return tokens, mask, place


def overlap(limit: int) -> int:
    """Tokens that a chunk shares with the one before, so that what is cut in one is whole in another."""
    return limit // 8


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

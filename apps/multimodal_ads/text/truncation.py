"""How much of the texts a text encoder does not read."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from quartet.apps.multimodal_ads.text.encoder import AnyTextEncoder
from quartet.apps.multimodal_ads.text.reading import TextReader

__all__ = ["Truncation", "forewarn", "truncation"]


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """What is cut off of texts.

    Attributes:
        texts: How many there are; empty ones do not count.
        cut: How many are longer than what is read.
        tokens: Of all texts, as if nothing was cut.
        lost: How many of these are not read.
        limit: Tokens that are read of a text, in all its chunks; None: all.
        most: The largest length, of a text or a chunk, that can be asked for; None: any.
    """

    texts: int
    cut: int
    tokens: int
    lost: int
    limit: int | None
    most: int | None

    @property
    def row(self) -> list[str]:
        """Texts, share of them that is cut, tokens, share of them that is not read."""
        return [f"{self.texts:,}", _share(self.cut, self.texts), f"{self.tokens:,}", _share(self.lost, self.tokens)]

    def __str__(self) -> str:
        if not self.cut:
            return f"none of {self.texts:,} texts is longer than what the text encoder reads"
        more = ""
        if self.most is None or (self.limit or 0) < self.most:
            more = "; --max_length reads more" + ("" if self.most is None else f", up to {self.most}")
        more += "; --chunks reads on"
        return (
            f"{_share(self.cut, self.texts)} of {self.texts:,} texts are longer than the {self.limit} tokens that the "
            f"text encoder reads, and {_share(self.lost, self.tokens)} of all tokens are cut off{more}"
        )


def truncation(counts: Tensor, encoder: AnyTextEncoder | TextReader) -> Truncation:
    """What `encoder` cuts off of texts.

    Args:
        counts: int64 [N], tokens of each, see `TextEncoder.count_tokens`.
        encoder: Reads them.
    """
    limit = encoder.whole
    over = counts[counts > limit] if limit is not None else counts[:0]
    return Truncation(
        texts=int((counts > 0).sum()),
        cut=len(over),
        tokens=int(counts.sum()),
        lost=int(over.sum()) - len(over) * (limit or 0),
        limit=limit,
        most=encoder.most,
    )


def forewarn(texts: Sequence[str], encoder: AnyTextEncoder | TextReader | None) -> list[str]:
    """What to know before texts are read: that all are missing, which is rather a thing forgotten, or what is cut."""
    if encoder is None or not texts:
        return []
    if not any(texts):
        return [
            "no texts are given, though the model was trained with them: every picture is classified without its text. "
            "Give --text, or a table with the column text_info, which prepare.py --ocr fills"
        ]
    found = truncation(encoder.count_tokens(texts), encoder)
    return [str(found)] if found.cut else []


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"

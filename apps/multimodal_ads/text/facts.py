"""Plain numbers of a text by which a gate can tell how far to trust it: next to nothing, prose, or noise of OCR."""

import math

__all__ = ["FACTS", "text_facts"]

FACTS = 6


def text_facts(text: str) -> list[float]:
    """That there is a text, log10 of 1 + its characters and its words, and its shares of letters, digits and signs.

    All 0 where there is none.
    """
    if not text:
        return [0.0] * FACTS
    letters, digits, blanks = (sum(map(kind, text)) for kind in (str.isalpha, str.isdigit, str.isspace))
    size, words = len(text), len(text.split())
    signs = size - letters - digits - blanks
    return [1.0, math.log10(1 + size), math.log10(1 + words), letters / size, digits / size, signs / size]

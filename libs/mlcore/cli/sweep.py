"""Which jobs a sweep has: the cartesian product of comma lists."""

import itertools
from collections.abc import Iterable, Sequence

Override = tuple[str, str]

_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "'\""


def expand(overrides: Iterable[Override]) -> tuple[tuple[Override, ...], ...]:
    """All combinations of the comma lists among the overrides; the last list varies fastest.

    Args:
        overrides: (name, text) pairs; `lr=1e-3,1e-4` has two alternatives, `seq_len_range=[5,9]` has one.

    Returns:
        The overrides of each job.
    """
    last = dict(overrides)  # a repeated name counts once, with its last value
    alternatives = [[(name, part) for part in split(text)] for name, text in last.items()]
    return tuple(itertools.product(*alternatives))


def split(text: str) -> list[str]:
    """Split at commas that stand outside brackets and quotes; quotes around a whole part are taken off."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES and not parts[-1].strip():
            quote = char
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
        elif char == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return [_unquoted(part.strip()) for part in parts]


def varied(jobs: Sequence[Sequence[Override]]) -> list[list[Override]]:
    """The overrides of each job that are not the same in all of them."""
    return [[pair for pair in job if any(pair not in other for other in jobs)] for job in jobs]


def _unquoted(part: str) -> str:
    quoted = len(part) >= 2 and part[0] in _QUOTES and part[-1] == part[0]
    return part[1:-1] if quoted and "," in part else part

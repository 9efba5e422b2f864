"""Errors that are the user's to mend; scripts print them without a traceback and exit with status 2."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_shown = 10
_LONGEST = 1000  # characters of a line


class UserError(Exception):
    """A mistake in a file, a key or an argument.

    The message names the file, key or row, says what was expected, and what to do. Since it may repeat what
    somebody else wrote, the middle of very long lines is left out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(map(_shortened, str(message).split("\n"))))


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 3 :]}"


def listed(title: str, lines: Sequence[str]) -> str:
    """A message of several lines: the title, the first ten lines, and how many more there are."""
    more = [f"and {len(lines) - _shown} more"] if len(lines) > _shown else []
    return "\n  ".join([title, *lines[:_shown], *more])


@contextmanager
def all_listed() -> Iterator[None]:
    """In the block `listed` leaves nothing out: somebody asked for all that is wrong."""
    global _shown
    before, _shown = _shown, 10**9
    try:
        yield
    finally:
        _shown = before


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`", did you mean 'lr'?"` for the candidate most like `name`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""

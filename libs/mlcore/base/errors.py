"""Errors that are the user's to mend; scripts print them without a traceback and exit with status 2."""

from collections.abc import Sequence

_SHOWN = 10


class UserError(Exception):
    """A mistake in a file, a key or an argument.

    The message names the file, key or row, says what was expected, and what to do.
    """


def listed(title: str, lines: Sequence[str]) -> str:
    """A message of several lines: the title, the first ten lines, and how many more there are."""
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n  ".join([title, *lines[:_SHOWN], *more])

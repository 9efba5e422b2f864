"""The error of the configuration system, and the helpers its messages share."""

import difflib
from collections.abc import Iterable

from mlcore.base.errors import UserError


class ConfigError(UserError):
    """A file, key, value or flag that does not fit the application's typed configuration.

    The message names where the value came from (file and line where known), the key, the value, what was expected and,
    for a name that does not exist, the nearest one that does.
    """


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`", did you mean 'lr'?"` for the candidate most like `name`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""

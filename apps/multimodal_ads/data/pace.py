"""A line of progress every few seconds."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from mlcore.console import Pace, format_duration

__all__ = ["with_pace"]

_log = logging.getLogger(__name__)

_EVERY_S = 5.0

Item = TypeVar("Item")


def with_pace(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """The items as they come, and now and then "120 of 2000 `what`, 0:01:10 left" in the log."""
    pace, reported = Pace(total), time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        pace.update(done)
        if time.monotonic() - reported > _EVERY_S:
            reported = time.monotonic()
            _log.info("%d of %d %s, %s left", done, total, what, format_duration(pace.eta_s))

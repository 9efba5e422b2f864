"""Time stamps: numbers, or dates and times of day (ISO 8601), which rise from position to position."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError

__all__ = ["as_times", "fault", "rising", "told"]


def as_times(values: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers as they are, dates and texts of them in seconds since 1970, without a zone UTC; NaN for what is none."""
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    if values.dtype.kind == "M":
        seconds = values.astype("datetime64[ns]").astype(np.int64) / 1e9
        return np.where(np.isnat(values), np.nan, seconds)
    return np.array([_as_time(value) for value in values.tolist()], dtype=np.float64)


def _as_time(value: Any) -> float:
    text = str(value).strip()
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return float("nan")


def rising(times: NDArray[Any]) -> NDArray[np.float64]:
    """The times of a sequence, ``[M]``.

    Raises:
        UserError: One is no finite number, or does not come after the one before it.
    """
    found = np.asarray(times, dtype=np.float64)
    if (place := fault(found)) is not None:
        raise UserError(f"position {place}: {told(found, place)}")
    return found


def fault(times: NDArray[np.float64]) -> int | None:
    """The first place of times ``[M]`` that is wrong; None: they rise."""
    good = np.isfinite(times)
    good[1:] &= times[1:] > times[:-1]
    return None if good.all() else int(good.argmin())


def told(times: NDArray[np.float64], place: int) -> str:
    """What is wrong with a time."""
    if not np.isfinite(times[place]):
        return "the time stamp is missing, or neither a number nor a date as in 2026-01-31 12:00:00"
    return f"the time stamp {times[place]:.10g} does not come after {times[place - 1]:.10g}, the one before it"

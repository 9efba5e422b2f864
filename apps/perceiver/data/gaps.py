"""Missing values and masks: where a sequence ends, and what becomes of the gaps before its end."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError

OnMissing = Literal["error", "mask", "interpolate"]


def shown_positions(mask: Any) -> NDArray[np.bool_]:
    """A mask as booleans, true where a position is real.

    Raises:
        UserError: It holds anything but 0 and 1. Masks that are added to scores (0 and minus infinity) mean the
            opposite, and would be taken for their inverse.
    """
    values = np.asarray(mask)
    shown: NDArray[np.bool_] = values == 1
    strange = values[~shown & (values != 0)]
    if strange.size:
        raise UserError(f"a mask must be 1 where a position is real and 0 where it is not; found {strange.flat[0]}")
    return shown


def settle(
    series: NDArray[Any],
    *,
    shown: NDArray[np.bool_] | None = None,
    on_missing: OnMissing = "error",
    times: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cuts a sequence behind its last value and treats the gaps before it.

    Args:
        series: ``[M, C]``; NaN is a missing value.
        shown: ``[M]``, false at positions that are not real; ``None``: all are.
        on_missing: ``interpolate`` draws lines between the values of the channel around a gap (at its ends: repeats
            the nearest), ``mask`` does so and hides the positions; ``error`` leaves gaps for the inspection to refuse.
        times: ``[M]``, rising, over which lines are drawn; ``None``: over positions.

    Returns:
        Sequence and mask of the remaining positions. Positions at the end that are hidden or have no value at all are
        the filling up to a common length, not gaps. What has no real position is returned as it came.
    """
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the inspection refuses
        whole = np.asarray(series, dtype=np.float32)
    mask = np.ones(len(whole), dtype=bool) if shown is None else shown
    missing = np.isnan(whole)
    real = mask & ~missing.any(axis=1) if on_missing == "mask" else mask
    kept = np.flatnonzero(real & ~missing.all(axis=1))
    if not len(kept):
        return whole, mask
    end = kept[-1] + 1
    whole, real, mask, missing = whole[:end], real[:end], mask[:end, None], missing[:end]
    if on_missing != "error":
        times = None if times is None else times[:end]
        whole = filled(whole, known=mask & ~missing, gaps=mask & missing, times=times)
    return whole, real


def filled(
    series: NDArray[np.float32],
    *,
    known: NDArray[np.bool_],
    gaps: NDArray[np.bool_],
    times: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """Puts values on the lines between ``known`` ones where there are ``gaps``, channel by channel.

    All are ``[M, C]``, but for ``times`` of positions ``[M]``; None: equal steps. A channel without a known value stays
    as it is.
    """
    if not gaps.any():
        return series
    axis = np.arange(len(series)) if times is None else times
    changed = series.copy()
    for channel in np.flatnonzero(gaps.any(axis=0) & known.any(axis=0)):
        at, there = np.flatnonzero(gaps[:, channel]), np.flatnonzero(known[:, channel])
        changed[at, channel] = np.interp(axis[at], axis[there], series[there, channel])
    return changed

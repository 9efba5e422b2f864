"""Setting part of a dataset aside, class by class, as a function of the seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError


def stratified_split(
    labels: Sequence[int] | NDArray[np.int64], *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits sample numbers into a large and a small part with the same share of each class.

    Args:
        labels: Class of each sample.
        fraction: Share of the small part, in (0, 1). Each class gives at least one sample and keeps at least one;
            a class with a single sample keeps it.
        seed: Names the split.

    Returns:
        Rising indices of the large and of the small part, int64.

    Raises:
        UserError: If ``fraction`` is out of range or the small part would be empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the fraction to set aside must be between 0 and 1, not {fraction}")
    wanted = np.asarray(labels, dtype=np.int64)
    aside: list[NDArray[np.int64]] = []
    for label in np.unique(wanted):
        members = np.flatnonzero(wanted == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        aside.append(np.random.default_rng((seed, int(label))).permutation(members)[:count])
    small = np.sort(np.concatenate(aside)) if aside else np.zeros(0, dtype=np.int64)
    if not len(small):
        raise UserError(f"{len(wanted)} samples are too few to set some aside; give validation data")
    return np.setdiff1d(np.arange(len(wanted)), small), small

"""Folds of a cross-validation: the same share of each class, and what belongs together in one."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError

__all__ = ["check_units", "fold_numbers"]


def fold_numbers(
    labels: Sequence[int],
    units: Sequence[Hashable],
    *,
    folds: int,
    seed: int,
    classes: Sequence[str],
    setting: str,
    what: str = "samples",
) -> NDArray[np.int64]:
    """Deal samples to folds (scikit-learn's stratified ones, grouped where there are groups).

    Args:
        labels: Class of each of N samples.
        units: What each belongs to: a patient, a group, copies of one picture; N, equal for those that stay together.
        folds: How many, at least 2.
        seed: Names the draw.
        classes: Names, for messages.
        setting: Where the number of folds is set, for messages.
        what: What samples are called there.

    Returns:
        int64 [N], the fold in which each sample is held out, 0..folds - 1; every sample is in exactly one.

    Raises:
        UserError: A class has fewer units than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # heavy

    check_units(labels, units, folds=folds, classes=classes, setting=setting, what=what)
    numbers: dict[Hashable, int] = {}
    known = np.array([numbers.setdefault(unit, len(numbers)) for unit in units], dtype=np.int64)
    given, grouped = np.asarray(labels, dtype=np.int64), len(numbers) < len(units)
    make = StratifiedGroupKFold if grouped else StratifiedKFold
    splitter = make(n_splits=folds, shuffle=True, random_state=seed)
    found = np.full(len(given), -1, dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(given)), given, known if grouped else None)):
        found[held_out] = fold
    return found


def check_units(
    labels: Sequence[int], units: Sequence[Hashable], *, folds: int, classes: Sequence[str], setting: str, what: str
) -> None:
    """That each class has a unit for each fold; arguments and error are those of `fold_numbers`."""
    pairs = set(zip(labels, units, strict=True))
    counts = Counter(label for label, _ in pairs)
    few = {label: count for label, count in sorted(counts.items()) if count < folds}
    if few or not counts:
        named = ", ".join(f"{classes[label]} ({count})" for label, count in few.items()) or "all"
        most = min(few.values(), default=0)
        way_out = f"use {setting}={most}, " if most >= 2 else ""
        things = what if len(set(units)) == len(units) else "groups"
        raise UserError(
            f"{setting}={folds}: {folds} folds need at least {folds} {things} of each class, but there are fewer "
            f"of {named}: {way_out}give more {'samples' if things == 'groups' else what}, or put classes together"
        )

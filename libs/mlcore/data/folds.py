"""Folds of a cross-validation: the same share of each class, and what belongs together in one."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError

__all__ = ["fold_numbers"]


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

    numbers: dict[Hashable, int] = {}
    known = np.array([numbers.setdefault(unit, len(numbers)) for unit in units], dtype=np.int64)
    given, grouped = np.asarray(labels, dtype=np.int64), len(numbers) < len(units)
    _check_classes(given, known, folds=folds, classes=classes, setting=setting, what="groups" if grouped else what)
    make = StratifiedGroupKFold if grouped else StratifiedKFold
    splitter = make(n_splits=folds, shuffle=True, random_state=seed)
    found = np.full(len(given), -1, dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(given)), given, known if grouped else None)):
        found[held_out] = fold
    return found


def _check_classes(
    labels: NDArray[np.int64], units: NDArray[np.int64], *, folds: int, classes: Sequence[str], setting: str, what: str
) -> None:
    counts = {label: len(set(units[labels == label].tolist())) for label in sorted(set(labels.tolist()))}
    few = {label: count for label, count in counts.items() if count < folds}
    if few or not counts:
        named = ", ".join(f"{classes[label]} ({count})" for label, count in few.items()) or "all"
        most = min(few.values(), default=0)
        way_out = f"use {setting}={most}, " if most >= 2 else ""
        raise UserError(
            f"{folds} folds need at least {folds} {what} of each class, but there are fewer of {named}: {way_out}give "
            f"more {'samples' if what == 'groups' else what}, or put classes together"
        )

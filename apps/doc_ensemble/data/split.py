"""Parts of a data set with the same mixture of classes; pages of a group or of one file stay together."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.data.pages import Page

__all__ = ["fold_numbers", "hold_out"]


def fold_numbers(pages: Sequence[Page], *, folds: int, seed: int, classes: Sequence[str]) -> NDArray[np.int64]:
    """Deal pages to the folds of a cross-validation (scikit-learn's stratified folds, grouped where there are groups).

    Args:
        pages: With labels.
        folds: How many, at least 2.
        seed: Names the draw.
        classes: Names, for messages.

    Returns:
        int64 [N], the fold in which each page is held out, 0..folds - 1; every page is in exactly one.

    Raises:
        UserError: A class has fewer pages (or groups) than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # heavy

    labels = _labels(pages)
    groups = _groups(pages)
    grouped = len(set(groups.tolist())) < len(pages)
    _check_classes(labels, groups, folds=folds, classes=classes, what="groups" if grouped else "pages")
    make = StratifiedGroupKFold if grouped else StratifiedKFold
    splitter = make(n_splits=folds, shuffle=True, random_state=seed)
    numbers = np.full(len(pages), -1, dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(pages)), labels, groups if grouped else None)):
        numbers[held_out] = fold
    return numbers


def hold_out(pages: Sequence[Page], *, fraction: float, seed: int) -> tuple[list[Page], list[Page]]:
    """Set pages aside for validation, from each class its share.

    Args:
        pages: With labels.
        fraction: Share that is set aside, in (0, 1); at least one page of each class where another stays.
        seed: Names the draw.

    Returns:
        The pages that stay and those set aside, each in the given order.

    Raises:
        UserError: Nothing can be set aside.
    """
    labels, groups = _labels(pages), _groups(pages)
    members: list[list[int]] = [[] for _ in range(int(groups.max()) + 1)]
    for index, group in enumerate(groups.tolist()):
        members[group].append(index)
    # Where a group has pages of several classes, it is dealt with the class it has most of.
    kinds = np.array([Counter(labels[group].tolist()).most_common(1)[0][0] for group in members])
    aside = np.zeros(len(pages), dtype=bool)
    rng = np.random.default_rng(seed)
    for label in range(int(labels.max()) + 1):
        bundles = [members[k] for k in rng.permutation(np.flatnonzero(kinds == label))]
        room = max(1, round(fraction * sum(map(len, bundles))))
        for bundle in bundles[1:]:  # the first stays in any case
            if len(bundle) <= room:
                aside[bundle] = True
                room -= len(bundle)
    if not aside.any():
        raise UserError(
            f"{len(pages)} pages ({len(members)} groups) are too few to set some aside for validation: give more "
            "pages, or validation pages of their own"
        )
    kept = [page for page, held in zip(pages, aside, strict=True) if not held]
    return kept, [page for page, held in zip(pages, aside, strict=True) if held]


def _labels(pages: Sequence[Page]) -> NDArray[np.int64]:
    missing = next((page for page in pages if page.label is None), None)
    if missing is not None or not pages:
        raise UserError("no pages to split" if missing is None else f"{missing.origin}: no label")
    return np.array([page.label for page in pages], dtype=np.int64)


def _groups(pages: Sequence[Page]) -> NDArray[np.int64]:
    """Number of each page's group, in order of appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(page.bundle, len(numbers)) for page in pages], dtype=np.int64)


def _check_classes(
    labels: NDArray[np.int64], groups: NDArray[np.int64], *, folds: int, classes: Sequence[str], what: str
) -> None:
    counts = {label: len(set(groups[labels == label].tolist())) for label in sorted(set(labels.tolist()))}
    few = {label: count for label, count in counts.items() if count < folds}
    if few:
        named = ", ".join(f"{classes[label]} ({count})" for label, count in few.items())
        most = math.inf if not few else min(few.values())
        way_out = f"use kfold.folds={most}, " if most >= 2 else ""
        raise UserError(
            f"{folds} folds need at least {folds} {what} of each class, but there are fewer of {named}: {way_out}give "
            "more pages, or put classes together"
        )

"""Parts of a data set with the same mixture of classes; pages of a group or of one file stay together."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.data.folds import fold_numbers as numbers_of
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
    units = [page.bundle for page in pages]
    return numbers_of(
        _labels(pages).tolist(), units, folds=folds, seed=seed, classes=classes, setting="kfold.folds", what="pages"
    )


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

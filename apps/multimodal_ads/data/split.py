"""One table to training, validation and test."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from mlcore.base.errors import UserError
from mlcore.data.images import content_digest
from quartet.apps.multimodal_ads.data.table import AdRow

__all__ = ["stratified_split"]

Split = tuple[list[AdRow], list[AdRow], list[AdRow]]


def stratified_split(
    rows: Sequence[AdRow],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Iterable[Hashable] | None = None,
) -> Split:
    """Draw a split in which every part has ads in the same proportion, as far as whole rows allow.

    Args:
        rows: All rows.
        val_fraction: Share for validation, in [0, 1).
        test_fraction: Share for the test, in [0, 1).
        seed: Names the draw.
        groups: One key per row; rows with the same key come to the same part. None: images with the same bytes do.

    Returns:
        Training, validation and test rows, each in the order of `rows`.

    Raises:
        UserError: A part that was asked for would be empty.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(f"fractions {val_fraction:g} (validation) and {test_fraction:g} (test) leave no training part")
    bundles = _bundles([content_digest(row.image) for row in rows] if groups is None else groups)
    rng = np.random.default_rng(seed)
    part = np.zeros(len(rows), dtype=np.int64)  # 0 training, 1 validation, 2 test
    for label in (0, 1):
        chosen = [bundle for bundle in bundles if max(rows[index].label for index in bundle) == label]
        shuffled = [chosen[k] for k in rng.permutation(len(chosen))]
        _deal(shuffled, part, shares=(val_fraction, test_fraction))
    train, val, test = ([row for row, number in zip(rows, part, strict=True) if number == k] for k in range(3))
    wanted = {"training": train, "validation": val if val_fraction else rows, "test": test if test_fraction else rows}
    empty = [name for name, found in wanted.items() if not found]
    if empty:
        raise UserError(
            f"{len(rows)} rows ({len(bundles)} different images) are too few for a {empty[0]} part: give more rows, "
            "other fractions, or a table for each part"
        )
    return train, val, test


def _bundles(groups: Iterable[Hashable]) -> list[list[int]]:
    """Indices of the rows that stay together."""
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(groups):
        members.setdefault(key, []).append(index)
    return list(members.values())


def _deal(
    bundles: Sequence[Sequence[int]], part: np.ndarray[tuple[int], np.dtype[np.int64]], *, shares: tuple[float, float]
) -> None:
    """Mark the first bundles as validation and the next as test, each up to its share of the rows (one at least)."""
    total = sum(map(len, bundles))
    left = list(bundles)
    for number, share in enumerate(shares, 1):
        room = max(1, round(share * total)) if share > 0 and total > 2 else 0
        kept = []
        for bundle in left:
            if len(bundle) <= room:
                part[list(bundle)] = number
                room -= len(bundle)
            else:
                kept.append(bundle)
        left = kept

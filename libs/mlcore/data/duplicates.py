"""Pictures that are in a data set more than once, also when scaled or compressed anew.

Two pictures count as the same if their files have the same bytes (pages of files: the same pixels), or if their
perceptual hashes agree (at most 6 of 64 bits differ) and small grey copies do (correlation at least 0.98). The hash
alone would call most nearly blank pages the same; a picture without any contrast is compared by its bytes only.

Text needs more: two letters of one sender, or two statements of one bank, correlate as copies of one page do. With
`text` the small copies, 48 x 48, must also agree everywhere: no cell may differ by more than half the deviation of all
cells. Measured on drawn pages of 877 x 620 pixels: letters with one letterhead differ by 1.7 or more somewhere, tables
with other digits by 0.7, forms with other entries in two of 18 boxes by 0.54; copies of pages from 256 pixels upwards,
scaled to 0.6 and compressed with quality 60, by 0.47 at most. Among 2125 scanned letters, emails and advertisements of
384 pixels no two that are not one scan come nearer than 1.9. Pages that differ in one word may still count as the
same, and smaller copies of small pages may be missed.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlcore.base.errors import UserError, listed
from mlcore.data.fingerprints import Fingerprints

__all__ = ["duplicate_groups", "joined", "report_duplicates"]

_BITS = 6
_CORRELATION = 0.98
_BANDS = (0, 10, 19, 28, 37, 46, 55, 64)  # seven parts of the hash: with six bits changed, one part is unchanged
_ANYWHERE = 0.5  # largest difference of a cell of two copies of a text, in deviations
_AT_ONCE = 4096  # pairs that are compared
_NAMED = 4  # of the pictures that are the same


def duplicate_groups(prints: Fingerprints, *, text: bool = False) -> list[int]:
    """Group number of each picture; pictures that are the same (perhaps through others) share one.

    Args:
        prints: Of the pictures.
        text: They are pages of text, many of which have one layout; see the module's docstring.
    """
    count = len(prints.digests)
    first: dict[str, int] = {}
    same = [(first.setdefault(digest, index), index) for index, digest in enumerate(prints.digests)]
    pairs = np.concatenate([np.array(same, dtype=np.int64).reshape(-1, 2), *_near_pairs(prints, text=text)])
    return _components(pairs, count=count)


def joined(*groupings: Sequence[Hashable]) -> list[int]:
    """The units that a split must not tear: samples that share a key in any of the groupings, perhaps through others.

    Args:
        groupings: At least one; each has a key for each sample: its copies' group, its patient, its file.

    Returns:
        Number of each sample's unit.
    """
    pairs: list[tuple[int, int]] = []
    for keys in groupings:
        first: dict[Hashable, int] = {}
        pairs += [(first.setdefault(key, index), index) for index, key in enumerate(keys)]
    return _components(np.array(pairs, dtype=np.int64).reshape(-1, 2), count=len(groupings[0]))


def _components(pairs: NDArray[np.int64], *, count: int) -> list[int]:
    """Number of each sample's component in the graph of the pairs [P, 2]."""
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups: list[int] = connected_components(graph, directed=False)[1].tolist()
    return groups


def report_duplicates(
    groups: Sequence[int], splits: Mapping[str, Sequence[tuple[str, Hashable]]], *, allow: bool
) -> list[str]:
    """Tell of pictures that are in more than one split, whose figures would be too good.

    Args:
        groups: See `duplicate_groups`, of the pictures of all splits in order.
        splits: What each picture of each part ("train", "val", "test") is called in messages, and its label.
        allow: Warn instead of raising; the user's `data.allow_duplicates`.

    Returns:
        Messages to warn with, among them one on equal pictures with different labels; empty where all is well.

    Raises:
        UserError: A picture is in two splits and `allow` is false.
    """
    pictures = [(split, name, label) for split, part in splits.items() for name, label in part]
    members: dict[int, list[tuple[str, str, Hashable]]] = {}
    for group, picture in zip(groups, pictures, strict=True):
        members.setdefault(group, []).append(picture)
    shared = [_equation(found) for found in members.values() if len({split for split, _, _ in found}) > 1]
    torn = [_equation(found) for found in members.values() if len({label for _, _, label in found}) > 1]
    notes = []
    if shared:
        title = f"pictures in more than one of {', '.join(splits)}, perhaps scaled or compressed anew: {len(shared)}"
        notes.append(listed(title, shared))
        if not allow:
            way_out = "remove them, or allow it with data.allow_duplicates=true"
            raise UserError(f"{notes[0]}\nThe figures would be too good: {way_out}")
    if torn:
        notes.append(listed(f"pictures that are there several times, with different labels: {len(torn)}", torn))
    return notes


def _equation(pictures: Sequence[tuple[str, str, Hashable]]) -> str:
    more = f" and {len(pictures) - _NAMED} more" if len(pictures) > _NAMED else ""
    return " = ".join(name for _, name, _ in pictures[:_NAMED]) + more


def _near_pairs(prints: Fingerprints, *, text: bool = False) -> Iterator[NDArray[np.int64]]:
    """Pairs [P, 2] of like pictures; only those that agree in a part of the hash are looked at, never all pairs."""
    _, distinct = np.unique(np.array(prints.digests), return_index=True)
    chosen = distinct[prints.small[distinct].any(axis=1)]
    for part in range(len(_BANDS) - 1):
        key = _part(prints.hashes[chosen], part)
        order = np.argsort(key, kind="stable")
        key, ordered = key[order], chosen[order]
        # Neighbours 1, 2, 3... places apart in this order, until no two share a key; equal keys lie side by side.
        left, step = np.arange(len(key)), 1
        while len(left):
            left = left[left + step < len(key)]
            left = left[key[left] == key[left + step]]
            a, b = ordered[left], ordered[left + step]
            different = prints.hashes[a] ^ prints.hashes[b]
            near = np.bitwise_count(different) <= _BITS
            for earlier in range(part):  # was looked at there
                near &= _part(different, earlier) != 0
            for start in range(0, np.count_nonzero(near), _AT_ONCE):
                block = slice(start, start + _AT_ONCE)
                yield _alike(prints.small, a[near][block], b[near][block], text=text)
            step += 1


def _part(hashes: NDArray[np.uint64], part: int) -> NDArray[np.uint64]:
    low, high = _BANDS[part : part + 2]
    return (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)


def _alike(small: NDArray[np.float16], a: NDArray[np.int64], b: NDArray[np.int64], *, text: bool) -> NDArray[np.int64]:
    """Those of the pairs a, b whose small copies agree."""
    one, other = small[a].astype(np.float32), small[b].astype(np.float32)
    near = np.einsum("ij,ij->i", one, other) >= _CORRELATION
    if text:
        deviation = small.shape[1] ** -0.5  # of copies of length 1
        near &= np.abs(one - other).max(axis=1, initial=0) <= _ANYWHERE * deviation
    return np.stack([a[near], b[near]], axis=1)

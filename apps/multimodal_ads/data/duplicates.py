"""Pictures that are in a data set more than once, also when scaled or compressed anew.

Two pictures count as the same if their files have the same bytes, or if their perceptual hashes agree (at most 6 of 64
bits differ) and small grey copies do (correlation at least 0.98). The hash alone would call most nearly blank pages the
same; a picture without any contrast is compared by its bytes only.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from apps.multimodal_ads.data.images import content_digest, read_image
from apps.multimodal_ads.data.table import AdRow
from mlcore.console import with_progress
from mlcore.errors import UserError

__all__ = ["Fingerprints", "check_duplicates", "duplicate_groups", "fingerprints"]

_BITS = 6
_CORRELATION = 0.98
_SIDE = 24  # of the small grey copies
_CONTRAST = 1.5  # deviation of grey levels below which a picture is blank
_BANDS = (0, 10, 19, 28, 37, 46, 55, 64)  # seven parts of the hash: with six bits changed, one part is unchanged
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What is known of N pictures.

    Attributes:
        digests: SHA-256 of each file.
        hashes: uint64 [N], perceptual hashes.
        small: float32 [N, 576], grey copies of mean 0 and length 1; all 0 where there is no contrast.
    """

    digests: tuple[str, ...]
    hashes: NDArray[np.uint64]
    small: NDArray[np.float32]


def fingerprints(rows: Sequence[AdRow], *, max_pixels: int) -> Fingerprints:
    """Read every picture once.

    Raises:
        UserError: Pictures cannot be read; the first ones are named.
    """
    found: list[tuple[str, int, NDArray[np.float32]]] = []
    problems: list[str] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(partial(_fingerprint, max_pixels=max_pixels), rows)
        for result in with_progress(results, total=len(rows), what="pictures compared"):
            if isinstance(result, str):
                problems.append(result)
            else:
                found.append(result)
    if problems:
        raise UserError(_listed(f"{len(problems)} of {len(rows)} images cannot be used:", problems))
    return Fingerprints(
        digests=tuple(one[0] for one in found),
        hashes=np.array([one[1] for one in found], dtype=np.uint64),
        small=np.array([one[2] for one in found], dtype=np.float32).reshape(len(found), _SIDE * _SIDE),
    )


def duplicate_groups(prints: Fingerprints) -> NDArray[np.int64]:
    """Group number of each picture, int64 [N]; pictures that are the same (perhaps through others) share one."""
    count = len(prints.digests)
    first: dict[str, int] = {}
    same = [(first.setdefault(digest, index), index) for index, digest in enumerate(prints.digests)]
    pairs = np.concatenate([np.array(same, dtype=np.int64).reshape(-1, 2), *_near_pairs(prints)])
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def check_duplicates(splits: Mapping[str, Sequence[AdRow]], *, allow: bool, max_pixels: int) -> list[str]:
    """Find pictures that are in more than one split, whose figures would be too good.

    Args:
        splits: Rows of each part: "train", "val", "test".
        allow: Warn instead of raising.
        max_pixels: See `read_image`.

    Returns:
        Messages to warn with, among them one on equal pictures with different labels; empty where all is well.

    Raises:
        UserError: A picture is in two splits and `allow` is false, or pictures cannot be read.
    """
    rows = [row for part in splits.values() for row in part]
    names = [name for name, part in splits.items() for _ in part]
    members: dict[int, list[int]] = {}
    for index, group in enumerate(duplicate_groups(fingerprints(rows, max_pixels=max_pixels)).tolist()):
        members.setdefault(group, []).append(index)
    several = [indices for indices in members.values() if len(indices) > 1]
    notes = []
    shared = [indices for indices in several if len({names[index] for index in indices}) > 1]
    if shared:
        message = _listed(
            f"pictures in more than one of {', '.join(splits)}, perhaps scaled or compressed anew: {len(shared)}",
            [_named(rows, indices) for indices in shared],
        )
        if not allow:
            raise UserError(
                f"{message}\nThe figures would be too good: remove them, or allow it with data.allow_duplicates=true"
            )
        notes.append(message)
    torn = [indices for indices in several if len({rows[index].label for index in indices}) > 1]
    if torn:
        lines = [_named(rows, indices) for indices in torn]
        notes.append(_listed(f"pictures that are there several times, with different labels: {len(torn)}", lines))
    return notes


def _fingerprint(row: AdRow, *, max_pixels: int) -> tuple[str, int, NDArray[np.float32]] | str:
    """The parts of a fingerprint, or why there is none."""
    try:
        digest = content_digest(row.image)
        grey = Image.fromarray(read_image(row.image, max_pixels=max_pixels)).convert("L")
    except UserError as error:
        return f"{row.origin}: {error}"
    grey.thumbnail((256, 256), Image.Resampling.BOX, reducing_gap=None)  # hashes shrink much further
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32).ravel()
    small = small - small.mean()
    small = small / np.linalg.norm(small) if small.std() >= _CONTRAST else np.zeros_like(small)
    return digest, int.from_bytes(np.packbits(imagehash.phash(grey).hash).tobytes(), "big"), small


def _near_pairs(prints: Fingerprints) -> Iterator[NDArray[np.int64]]:
    """Pairs [P, 2] of like pictures; only those that agree in a part of the hash are looked at, never all pairs."""
    _, distinct = np.unique(np.array(prints.digests), return_index=True)
    chosen = distinct[prints.small[distinct].any(axis=1)]
    for low, high in pairwise(_BANDS):
        key = (prints.hashes[chosen] >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(key, kind="stable")
        key, ordered = key[order], chosen[order]
        # Neighbours 1, 2, 3... places apart in this order, until no two share a key; equal keys lie side by side.
        left, step = np.arange(len(key)), 1
        while len(left):
            left = left[left + step < len(key)]
            left = left[key[left] == key[left + step]]
            yield _alike(prints, ordered[left], ordered[left + step])
            step += 1


def _alike(prints: Fingerprints, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    near = np.bitwise_count(prints.hashes[a] ^ prints.hashes[b]) <= _BITS
    a, b = a[near], b[near]
    near = np.einsum("ij,ij->i", prints.small[a], prints.small[b]) >= _CORRELATION
    return np.stack([a[near], b[near]], axis=1)


def _named(rows: Sequence[AdRow], indices: Sequence[int]) -> str:
    more = f" and {len(indices) - 4} more" if len(indices) > 4 else ""
    return " = ".join(f"{rows[index].origin} ({rows[index].image.name})" for index in indices[:4]) + more


def _listed(title: str, lines: Sequence[str]) -> str:
    shown = [f"  {line}" for line in lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        shown.append(f"  and {len(lines) - _SHOWN} more")
    return "\n".join([title, *shown])

"""Where to cut crops so that no lesion is left out; pure functions on boxes, int64 [..., 3, 2] of (start, stop).

"Components" are arrays on the target grid with 0 for background and k for the k-th connected component of the mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from quartet.apps.sam_med3d_ich.data.preprocess import EVERYWHERE

__all__ = ["Target", "cover", "cut", "label_components", "place", "starts"]

Boxes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Target:
    """What one crop must hold.

    Attributes:
        components: Numbers of the components, from 1.
        box: int64 [3, 2], the smallest box around them. Only a single component may be larger than the crop.
    """

    components: tuple[int, ...]
    box: Boxes


def label_components(mask: NDArray[np.uint8]) -> tuple[NDArray[np.unsignedinteger[Any]], Boxes]:
    """Number the connected components (26 neighbours) of a mask.

    Args:
        mask: [X, Y, Z], 0 for background.

    Returns:
        Components [X, Y, Z] in the smallest unsigned type that fits, and their boxes int64 [N, 3, 2].
    """
    labels, count = ndimage.label(mask, structure=EVERYWHERE)
    found = ndimage.find_objects(labels)
    boxes = np.array([[(side.start, side.stop) for side in box] for box in found], dtype=np.int64).reshape(-1, 3, 2)
    return labels.astype(np.min_scalar_type(count)), boxes


def cover(boxes: Boxes, *, size: int) -> list[Target]:
    """Group components so that each group fits into one crop; few groups, greedily.

    The first component not yet covered takes in those nearest to it while the box around all of them fits.

    Args:
        boxes: int64 [N, 3, 2] of the components.
        size: Side of the cubic crop in voxels.

    Returns:
        Targets in which every component appears once; none for an empty mask.
    """
    left = np.arange(len(boxes))
    targets = []
    while len(left):
        box, members = boxes[left[0]], [int(left[0])]
        fitting = left[1:][_union_sides(boxes[left[1:]], box).max(axis=-1, initial=0) <= size]
        distance = np.square(boxes[fitting].sum(axis=-1) - box.sum(axis=-1)).sum(axis=-1)
        for other in fitting[np.argsort(distance, kind="stable")].tolist():
            if _union_sides(boxes[other], box).max() <= size:
                box = np.stack([np.minimum(box, boxes[other])[:, 0], np.maximum(box, boxes[other])[:, 1]], axis=1)
                members.append(other)
        left = left[~np.isin(left, members)]
        targets.append(Target(components=tuple(sorted(index + 1 for index in members)), box=box))
    return targets


def starts(shape: Sequence[int], *, size: int) -> Boxes:
    """The corners at which a crop may start, int64 [3, 2], both ends included.

    A volume narrower than the crop lies in its middle, as MONAI's sliding windows have it.
    """
    spare = np.asarray(shape, dtype=np.int64) - size
    return np.stack([np.where(spare < 0, -(-spare // 2), 0), np.where(spare < 0, -(-spare // 2), spare)], axis=1)


def place(box: Boxes, shape: Sequence[int], *, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw where a crop starts, among all places where it holds the whole of `box`.

    Args:
        box: int64 [3, 2], not larger than the crop; inside the volume.
        shape: Voxels of the volume.
        size: Side of the crop.
        rng: Source of the draw.

    Returns:
        The corner, int64 [3]; below 0 where the volume is narrower than the crop.
    """
    allowed = starts(shape, size=size)
    first = np.maximum(allowed[:, 0], box[:, 1] - size)
    last = np.minimum(allowed[:, 1], box[:, 0])
    return rng.integers(first, last + 1)


def cut(
    array: NDArray[Any], start: Sequence[int] | NDArray[np.int64], size: Sequence[int], *, fill: float
) -> NDArray[Any]:
    """Copy the box that begins at `start`, with `fill` where it reaches beyond the array.

    Args:
        array: [X, Y, Z]; of a memory map, only the box is read.
        start: The corner; may be negative.
        size: Voxels of the box along each axis.
        fill: Value of the outside.
    """
    piece = np.full(tuple(size), fill, dtype=array.dtype)
    inner, outer = [], []
    for begin, length, side in zip(start, size, array.shape, strict=True):
        low, high = max(0, int(begin)), min(side, int(begin) + length)
        if low >= high:
            return piece
        inner.append(slice(low, high))
        outer.append(slice(low - int(begin), high - int(begin)))
    piece[tuple(outer)] = array[tuple(inner)]
    return piece


def _union_sides(boxes: Boxes, box: Boxes) -> NDArray[np.int64]:
    """Sides [..., 3] of the boxes around each of `boxes` and `box` together."""
    sides: NDArray[np.int64] = np.maximum(boxes[..., 1], box[..., 1]) - np.minimum(boxes[..., 0], box[..., 0])
    return sides

"""Overlap of binary masks, one value per case.

Policy for empty masks: both empty is a perfect 1.0 (nothing was there and nothing was found); one empty is 0.0.
A mean over cases therefore rewards silence on healthy cases; report cases with and without a target apart as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray

__all__ = ["dice_per_case", "iou_per_case"]


def dice_per_case(predicted: Array, *, target: Array) -> FloatArray:
    """Dice coefficient ``2 |P and T| / (|P| + |T|)`` of each case.

    Args:
        predicted: ``[N, ...]`` booleans, or numbers where non-zero is inside; threshold probabilities first.
        target: shaped as ``predicted``, likewise.

    Returns:
        ``[N]`` float64, 0..1.

    Raises:
        UserError: no cases, shapes differ, or values strictly between 0 and 1 (probabilities).
    """
    both, total = _overlap(predicted, target)
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)


def iou_per_case(predicted: Array, *, target: Array) -> FloatArray:
    """Intersection over union (Jaccard index) of each case; arguments, policy and errors as in `dice_per_case`."""
    both, total = _overlap(predicted, target)
    union = total - both
    return np.where(union > 0, both / np.maximum(union, 1), 1.0)


def _overlap(predicted: Array, target: Array) -> tuple[FloatArray, FloatArray]:
    """Voxels in both masks and the sum of their sizes, each ``[N]``."""
    found, there = _as_masks(predicted, "predicted"), _as_masks(target, "target")
    if found.shape != there.shape:
        raise UserError(f"masks differ in shape: predicted {found.shape}, target {there.shape}")
    found, there = found.reshape(len(found), -1), there.reshape(len(there), -1)
    both = np.count_nonzero(found & there, axis=1)
    total = np.count_nonzero(found, axis=1) + np.count_nonzero(there, axis=1)
    return both.astype(np.float64), total.astype(np.float64)


def _as_masks(values: Array, name: str) -> NDArray[np.bool_]:
    array: NDArray[Any] = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim == 0 or len(array) == 0:
        raise UserError(f"{name} holds no masks: there is nothing to measure")
    if array.dtype.kind == "f" and ((array > 0) & (array < 1)).any():
        raise UserError(f"{name} holds values between 0 and 1; compare probabilities with a threshold first")
    return array.astype(bool)

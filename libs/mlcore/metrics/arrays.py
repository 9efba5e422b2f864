"""What every metric accepts: complete arrays, from torch or NumPy, checked once and told in the user's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlcore.base.errors import UserError

__all__ = ["Array", "FloatArray", "IntArray", "as_floats", "as_labels", "as_probabilities"]

Array = Tensor | NDArray[Any] | Sequence[Any]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def as_floats(values: Array, *, name: str, rows: int | None = None) -> FloatArray:
    """`values` as float64 on the CPU.

    Args:
        values: any shape with at least one axis; the first axis is samples.
        name: what to call it in an error.
        rows: the number of samples it must have; None for any.

    Raises:
        UserError: no samples, or not ``rows`` of them.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[0] == 0:
        raise UserError(f"{name} is empty: there is nothing to measure; check the data set and its filters")
    if rows is not None and array.shape[0] != rows:
        raise UserError(f"{name} has {array.shape[0]} rows, expected {rows}, one per sample")
    return array


def as_labels(labels: Array, *, name: str = "labels", classes: int | None = None) -> IntArray:
    """`labels` as int64 ``[N]``.

    Args:
        labels: ``[N]`` or ``[N, 1]`` whole numbers or booleans, of any dtype.
        name: what to call it in an error.
        classes: the number of classes; None for any number.

    Raises:
        UserError: empty, not one label per sample, a fraction, or a label outside 0..classes-1 (row named).
    """
    array = as_floats(labels, name=name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{name} has shape {array.shape}, expected one class index per sample")
    top = np.inf if classes is None else classes - 1
    wrong = np.flatnonzero((array != np.floor(array)) | (array < 0) | (array > top) | ~np.isfinite(array))
    if len(wrong):
        wanted = "0, 1, 2, ..." if classes is None else f"0..{classes - 1}"
        raise UserError(f"{name}[{wrong[0]}] is {array[wrong[0]]:g}, expected a class index in {wanted}")
    return array.astype(np.int64)


def as_probabilities(values: Array, *, rows: int) -> FloatArray:
    """`values` as float64 probabilities ``[N, C]``, C at least 2.

    Args:
        values: ``[N, C]``, rows summing to 1; or ``[N]`` or ``[N, 1]``, the probability of class 1 of two.
        rows: N.

    Raises:
        UserError: not finite (a diverged model), below 0, or rows that do not sum to 1 (logits, say).
    """
    array = as_floats(values, name="probabilities", rows=rows)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise UserError(f"probabilities have shape {array.shape}, expected [samples, classes]")
    if array.shape[1] == 1:
        array = np.concatenate([1.0 - array, array], axis=1)
    broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(broken):
        raise UserError(
            f"the model's probabilities are not finite for {len(broken)} of {rows} samples (first: row {broken[0]}); "
            "the model has diverged or overflowed: lower the learning rate, or use bf16 or fp32"
        )
    # 1e-2 and -1e-6 let through what rounding does to a softmax in bf16 and a sigmoid in fp32, and stop logits.
    wrong = np.flatnonzero((abs(array.sum(axis=1) - 1.0) > 1e-2) | (array.min(axis=1) < -1e-6))
    if len(wrong):
        raise UserError(f"row {wrong[0]} holds no probabilities: {array[wrong[0]][:5]}; apply softmax or sigmoid first")
    array = array.clip(min=0.0)
    normalised: FloatArray = array / array.sum(axis=1, keepdims=True)
    return normalised

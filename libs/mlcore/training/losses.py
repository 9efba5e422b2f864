"""Losses: values in, one value per sample out.

Every function returns a tensor ``[B]``; nothing is averaged over the batch, because the right divisor of a window of
micro-batches (or ranks) is known only to the engine. A task hands on ``loss.sum()`` and a count:

    loss_sum, count = cross_entropy(logits, target).sum(), len(target)
    loss_sum, count = cross_entropy(logits, target, weight=w).sum(), class_weight_count(target, w)

Whatever lies beyond the class axis (voxels, query outputs, labels of a multi-label task) is averaged within its sample.
All losses here decompose over samples: a batch's loss is the sum of what each sample would give alone, so accumulation
and data parallelism are exact.

Arithmetic is float32 under autocast and for half-precision logits, float64 for float64 logits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mlcore.base.errors import UserError

__all__ = [
    "binary_cross_entropy",
    "binary_focal",
    "class_weight_count",
    "cross_entropy",
    "focal",
]


def cross_entropy(
    logits: Tensor, target: Tensor, *, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Softmax cross entropy.

    Args:
        logits: ``[B, C]`` or ``[B, C, ...]``, any float dtype.
        target: class indices ``[B]`` or ``[B, ...]`` (int64, 0..C-1), or class probabilities shaped as ``logits``
            (mixup, cutmix, distillation).
        weight: ``[C]``, one non-negative weight per class, multiplied into each class's term.
        label_smoothing: share of the target spread evenly over all classes, 0..1 (Szegedy et al. 2016).

    Returns:
        ``[B]`` float32 (float64 for float64 logits), mean over the positions of a sample.

    Count: one per sample; with ``weight`` and class indices `class_weight_count`, which makes sum / count torch's
    weighted mean. With class probabilities torch counts samples, weighted or not.

    Raises:
        UserError: ``label_smoothing`` outside 0..1.
    """
    _check_share(label_smoothing, name="label_smoothing")
    logits = _full_precision(logits)
    if target.is_floating_point():
        target = target.to(logits.dtype)
    if weight is not None:
        weight = weight.to(device=logits.device, dtype=logits.dtype)
    return _per_sample(
        F.cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing, reduction="none")
    )


def class_weight_count(target: Tensor, weight: Tensor) -> Tensor:
    """What a class-weighted cross entropy sum is divided by to give torch's weighted mean.

    Args:
        target: class indices ``[B]`` or ``[B, ...]``.
        weight: ``[C]``, the weights given to `cross_entropy`.

    Returns:
        Scalar: the sum over samples of the mean weight of a sample's labels; on the target's device, no host sync.
    """
    return _per_sample(weight.to(target.device)[target]).sum()


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Multi-class focal loss, ``-alpha_c t_c (1 - p_c)^gamma log p_c`` summed over classes (Lin et al. 2017, eq. 5).

    Args:
        logits: ``[B, C]`` or ``[B, C, ...]``.
        target: class indices ``[B]`` or ``[B, ...]``, or class probabilities shaped as ``logits``.
        gamma: focusing exponent, at least 0; 0 gives cross entropy.
        alpha: one factor for all classes, or ``[C]``, one per class; None is 1.
        label_smoothing: share of the target spread evenly over all classes, 0..1.

    Returns:
        ``[B]``. Count: one per sample (as in the paper, ``alpha`` does not change the divisor).

    Raises:
        UserError: ``gamma`` below 0 or ``label_smoothing`` outside 0..1.
    """
    _check_gamma(gamma)
    _check_share(label_smoothing, name="label_smoothing")
    log_p = _full_precision(logits).log_softmax(dim=1)  # [B, C, ...]
    classes = log_p.shape[1]
    if target.is_floating_point():
        soft = target.to(log_p.dtype)
    else:
        soft = F.one_hot(target, classes).movedim(-1, 1).to(log_p.dtype)
    soft = soft * (1.0 - label_smoothing) + label_smoothing / classes
    if isinstance(alpha, Tensor):
        soft = soft * alpha.to(log_p).reshape(-1, *[1] * (log_p.ndim - 2))
    elif alpha is not None:
        soft = soft * alpha
    # expm1 keeps 1 - p exact near p = 1; the floor keeps the derivative of x^gamma finite at x = 0 for gamma < 1.
    off = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return _per_sample(-(soft * off**gamma * log_p).sum(dim=1))


def binary_cross_entropy(
    logits: Tensor, target: Tensor, *, pos_weight: float | Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Sigmoid cross entropy of one or several yes/no labels.

    Args:
        logits: ``[B]`` or ``[B, ...]``.
        target: shaped as ``logits``, 0..1, any dtype.
        pos_weight: factor on the positive term (usually negatives / positives), scalar or broadcastable to ``logits``.
        label_smoothing: moves targets towards 0.5: ``t (1 - s) + s / 2``; the two-class case of `cross_entropy`'s.

    Returns:
        ``[B]``, mean over the labels of a sample. Count: one per sample (``pos_weight`` does not change the divisor,
        as in torch).

    Raises:
        UserError: shapes differ, or ``label_smoothing`` outside 0..1.
    """
    logits, target = _binary_inputs(logits, target, label_smoothing)
    factor = None if pos_weight is None else torch.as_tensor(pos_weight, dtype=logits.dtype, device=logits.device)
    return _per_sample(F.binary_cross_entropy_with_logits(logits, target, pos_weight=factor, reduction="none"))


def binary_focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017); equals `focal` on the logits ``[0, z]``.

    Args:
        logits: ``[B]`` or ``[B, ...]``.
        target: shaped as ``logits``, 0..1, any dtype.
        gamma: focusing exponent, at least 0; 0 gives `binary_cross_entropy`.
        alpha: factor on the positive term, 0..1, and ``1 - alpha`` on the negative one; None is 1 on both.
        label_smoothing: as in `binary_cross_entropy`.

    Returns:
        ``[B]``, mean over the labels of a sample. Count: one per sample.

    Raises:
        UserError: shapes differ, ``gamma`` below 0, ``alpha`` or ``label_smoothing`` outside 0..1.
    """
    _check_gamma(gamma)
    logits, target = _binary_inputs(logits, target, label_smoothing)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    # exp(gamma log q) rather than q**gamma: the derivative stays finite when q underflows to 0.
    positive = -target * torch.exp(gamma * log_q) * log_p
    negative = -(1.0 - target) * torch.exp(gamma * log_p) * log_q
    if alpha is not None:
        _check_share(alpha, name="alpha")
        positive, negative = alpha * positive, (1.0 - alpha) * negative
    return _per_sample(positive + negative)


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _per_sample(values: Tensor) -> Tensor:
    """``[B, ...]`` to ``[B]``: the mean over everything but the first axis."""
    return values if values.ndim == 1 else values.flatten(1).mean(dim=1)


def _binary_inputs(logits: Tensor, target: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    if logits.shape != target.shape:
        raise UserError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} differ in shape; "
            "give one logit per label (squeeze a trailing axis of 1)"
        )
    _check_share(label_smoothing, name="label_smoothing")
    logits = _full_precision(logits)
    target = target.to(logits.dtype)
    return logits, target * (1.0 - label_smoothing) + label_smoothing / 2.0


def _check_gamma(gamma: float) -> None:
    if not gamma >= 0.0:
        raise UserError(f"gamma is {gamma}, expected a number of at least 0")


def _check_share(value: float, *, name: Literal["alpha", "label_smoothing"]) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} is {value}, expected a number in 0..1")

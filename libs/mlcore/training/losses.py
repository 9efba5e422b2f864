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

import math
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
    """Softmax cross entropy, weighted by the target and smoothed alike for all classes.

    With target shares t, weights w, smoothing s and C classes:

        sum_c w_c t_c [-(1 - s) log p_c - s/C sum_j log p_j]

    A sample of class y counts ``w_y`` times, and its optimum is its smoothed target, whatever the weights. (torch
    weighs the spread share by the class it goes to: with rare classes the optimum of every sample is a rare class.)

    Args:
        logits: ``[B, C]`` or ``[B, C, ...]``, any float dtype.
        target: class indices ``[B]`` or ``[B, ...]`` (int64, 0..C-1), or class probabilities shaped as ``logits``
            (mixup, cutmix, distillation).
        weight: ``[C]``, one non-negative weight per class, multiplied into what of the target is that class's.
        label_smoothing: share of the target spread evenly over all classes, 0..1 (Szegedy et al. 2016).

    Returns:
        ``[B]`` float32 (float64 for float64 logits), mean over the positions of a sample.

    Count: one per sample; with ``weight`` `class_weight_count`, which makes sum / count torch's weighted mean where
    nothing is smoothed.

    Raises:
        UserError: ``label_smoothing`` outside 0..1.
    """
    _check_share(label_smoothing, name="label_smoothing")
    logits = _full_precision(logits)
    if weight is None or not label_smoothing:
        target = target.to(logits.dtype) if target.is_floating_point() else target
        weight = None if weight is None else weight.to(logits)
        values = F.cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing, reduction="none")
    else:
        shares = _spread(_shares(target, logits, weight), label_smoothing)
        values = -(shares * logits.log_softmax(dim=1)).sum(dim=1)
    return _per_sample(values)


def class_weight_count(target: Tensor, weight: Tensor) -> Tensor:
    """What a class-weighted loss's sum is divided by: the weight of all targets.

    Args:
        target: class indices ``[B]`` or ``[B, ...]``, or class probabilities ``[B, C]`` or ``[B, C, ...]``.
        weight: ``[C]``, the weights given to the loss.

    Returns:
        Scalar: the sum over samples of the mean weight of a sample's targets; on the target's device, no host sync.
    """
    weight = weight.to(target.device)
    if target.is_floating_point():
        return _per_sample((target * _by_class(weight.to(target), target)).sum(dim=1)).sum()
    return _per_sample(weight[target]).sum()


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Multi-class focal loss (Lin et al. 2017, eq. 5), with smoothing that keeps its optimum.

        sum_c alpha_c t_c [H + d_c^gamma (CE_c - H)],   d_c = 1/2 sum_j |q_cj - p_j|

    q_c is class c smoothed (``1 - s + s/C`` for c, ``s/C`` for the others), CE_c the cross entropy with it, and H its
    entropy. Without smoothing H is 0 and d_c is ``1 - p_c``, so this is ``-alpha_c t_c (1 - p_c)^gamma log p_c``. With
    smoothing, d_c is the distance from the smoothed target (of quality focal loss, arXiv 2006.04388) and discounts what
    can still be gained, so that for every gamma the optimum is the smoothed target. (To smooth t in the formula of the
    paper would discount the class itself, but hardly the others: of two classes with s 0.1 and gamma 2, the optimum
    would be at p 0.75 instead of 0.95.)

    Args:
        logits: ``[B, C]`` or ``[B, C, ...]``.
        target: class indices ``[B]`` or ``[B, ...]``, or class probabilities shaped as ``logits``.
        gamma: focusing exponent, at least 0; 0 gives cross entropy.
        alpha: one factor for all classes, or ``[C]``, one per class; None is 1.
        label_smoothing: share of the target spread evenly over all classes, 0..1.

    Returns:
        ``[B]``. Count: one per sample (as in the paper, ``alpha`` does not change the divisor), or with ``alpha`` per
        class `class_weight_count`.

    Raises:
        UserError: ``gamma`` below 0 or ``label_smoothing`` outside 0..1.
    """
    _check_gamma(gamma)
    _check_share(label_smoothing, name="label_smoothing")
    log_p = _full_precision(logits).log_softmax(dim=1)  # [B, C, ...]
    shares = _shares(target, log_p, alpha)
    if not label_smoothing:
        # expm1 keeps 1 - p exact near p = 1.
        return _per_sample((shares * _discounted(-torch.expm1(log_p), -log_p, gamma=gamma)).sum(dim=1))
    classes = log_p.shape[1]
    rest = label_smoothing / classes
    own = 1.0 - label_smoothing + rest
    p = log_p.exp()
    apart = (p - rest).abs()  # [B, C, ...]
    off = 0.5 * (apart.sum(dim=1, keepdim=True) - apart + (own - p).abs())
    cost = -(1.0 - label_smoothing) * log_p - rest * log_p.sum(dim=1, keepdim=True)
    least = _entropy(own) + (classes - 1) * _entropy(rest)
    return _per_sample((shares * (_discounted(off, cost - least, gamma=gamma) + least)).sum(dim=1))


def binary_cross_entropy(
    logits: Tensor, target: Tensor, *, pos_weight: float | Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Sigmoid cross entropy of one or several yes/no labels; the two-class case of `cross_entropy`.

    With smoothing s, a positive label costs ``pos_weight`` times the cross entropy with ``1 - s/2``, a negative one
    that with ``s/2``: the optimum is the smoothed label, whatever the weight.

    Args:
        logits: ``[B]`` or ``[B, ...]``.
        target: shaped as ``logits``, 0..1, any dtype; values in between are mixtures of the two labels.
        pos_weight: factor on the positive label (usually negatives / positives), scalar or broadcastable to ``logits``.
        label_smoothing: moves targets towards 0.5: ``t (1 - s) + s / 2``.

    Returns:
        ``[B]``, mean over the labels of a sample. Count: one per sample (``pos_weight`` does not change the divisor,
        as in torch).

    Raises:
        UserError: shapes differ, or ``label_smoothing`` outside 0..1.
    """
    logits, target = _binary_inputs(logits, target, label_smoothing)
    if pos_weight is None:
        smoothed = target * (1.0 - label_smoothing) + label_smoothing / 2.0 if label_smoothing else target
        return _per_sample(F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none"))
    weighted = target * torch.as_tensor(pos_weight, dtype=logits.dtype, device=logits.device)
    total = weighted + 1.0 - target
    yes = (1.0 - label_smoothing) * weighted + label_smoothing / 2.0 * total
    return _per_sample(-yes * F.logsigmoid(logits) - (total - yes) * F.logsigmoid(-logits))


def binary_focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017); equals `focal` on the logits ``[0, z]``, smoothing included.

    Args:
        logits: ``[B]`` or ``[B, ...]``.
        target: shaped as ``logits``, 0..1, any dtype; values in between are mixtures of the two labels.
        gamma: focusing exponent, at least 0; 0 gives `binary_cross_entropy`.
        alpha: factor on the positive label, 0..1, and ``1 - alpha`` on the negative one; None is 1 on both.
        label_smoothing: as in `binary_cross_entropy`; the optimum is the smoothed label.

    Returns:
        ``[B]``, mean over the labels of a sample. Count: one per sample.

    Raises:
        UserError: shapes differ, ``gamma`` below 0, ``alpha`` or ``label_smoothing`` outside 0..1.
    """
    _check_gamma(gamma)
    logits, target = _binary_inputs(logits, target, label_smoothing)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = target * _label_focal(log_p, log_q, gamma=gamma, label_smoothing=label_smoothing)
    negative = (1.0 - target) * _label_focal(log_q, log_p, gamma=gamma, label_smoothing=label_smoothing)
    if alpha is not None:
        _check_share(alpha, name="alpha")
        positive, negative = alpha * positive, (1.0 - alpha) * negative
    return _per_sample(positive + negative)


def _label_focal(log_p: Tensor, log_q: Tensor, *, gamma: float, label_smoothing: float) -> Tensor:
    """Focal loss of a label whose log-probability is `log_p`, that of the other one `log_q`."""
    if not label_smoothing:
        # exp(gamma log q) rather than q**gamma: the derivative stays finite when q underflows to 0.
        return -torch.exp(gamma * log_q) * log_p
    rest = label_smoothing / 2.0
    own = 1.0 - rest
    cost = -own * log_p - rest * log_q
    least = _entropy(own) + _entropy(rest)
    return _discounted((own - log_p.exp()).abs(), cost - least, gamma=gamma) + least


def _discounted(off: Tensor, cost: Tensor, *, gamma: float) -> Tensor:
    """`cost` times the focal factor of being `off` by 0..1."""
    # The floor keeps the derivative of x^gamma finite at x = 0 for gamma < 1.
    return off.clamp_min(torch.finfo(off.dtype).tiny) ** gamma * cost


def _entropy(share: float) -> float:
    return -share * math.log(share) if share > 0.0 else 0.0


def _shares(target: Tensor, like: Tensor, weight: float | Tensor | None) -> Tensor:
    """Class indices or probabilities as shares of the classes ``[B, C, ...]``, each times its class's weight."""
    if target.is_floating_point():
        shares = target.to(like.dtype)
    else:
        shares = F.one_hot(target, like.shape[1]).movedim(-1, 1).to(like.dtype)
    if isinstance(weight, Tensor):
        return shares * _by_class(weight.to(like), like)
    return shares if weight is None else shares * weight


def _spread(shares: Tensor, label_smoothing: float) -> Tensor:
    """Take `label_smoothing` of the shares ``[B, C, ...]`` of a sample and give every class as much of it."""
    return shares * (1.0 - label_smoothing) + shares.mean(dim=1, keepdim=True) * label_smoothing


def _by_class(weight: Tensor, like: Tensor) -> Tensor:
    """``[C]`` in a shape that meets the class axis of ``[B, C, ...]``."""
    return weight.reshape(-1, *[1] * (like.ndim - 2))


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
    return logits, target.to(logits.dtype)


def _check_gamma(gamma: float) -> None:
    if not gamma >= 0.0:
        raise UserError(f"gamma is {gamma}, expected a number of at least 0")


def _check_share(value: float, *, name: Literal["alpha", "label_smoothing"]) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} is {value}, expected a number in 0..1")

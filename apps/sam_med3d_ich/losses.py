"""Losses of masks: Dice, and Dice with a voxel-wise term; one value per sample, as in `mlcore.training.losses`.

Logits float ``[B, 1, *spatial]``, of which the sigmoid is the probability of a bleed; masks ``[B, 1, *spatial]`` of 0
and 1, any dtype. The Dice ratio is taken within each sample (MONAI's ``batch=False``), so a batch's loss is the sum of
what each sample would give alone, and accumulation and data parallelism are exact; it does *not* decompose over patches
of one volume. Arithmetic is float32 under autocast and for half-precision logits, float64 for float64 logits.
"""

import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.training import losses

__all__ = ["dice", "dice_cross_entropy", "dice_focal"]

_SMOOTH = 1e-5  # in numerator and denominator: an empty mask predicted empty has loss 0


def dice(logits: Tensor, target: Tensor, *, squared: bool = False) -> Tensor:
    """Soft Dice loss of each sample ``[B]``, ``1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s)`` (MONAI).

    Args:
        logits: See the module.
        target: See the module.
        squared: squares in the denominator (Milletari et al. 2016).

    Raises:
        UserError: ``logits`` have several channels, or ``target`` another shape.
    """
    wanted = (logits.shape[0], 1, *logits.shape[2:])
    if not tuple(logits.shape) == tuple(target.shape) == wanted:
        raise UserError(f"logits {tuple(logits.shape)} and mask {tuple(target.shape)}: expected {wanted} of both")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found, true = torch.sigmoid(logits).flatten(1), target.to(logits.dtype).flatten(1)
    both = (found * true).sum(dim=1)
    sizes = (found.square() if squared else found).sum(dim=1) + true.sum(dim=1)
    return 1 - (2 * both + _SMOOTH) / (sizes + _SMOOTH)


def dice_cross_entropy(logits: Tensor, target: Tensor, *, squared: bool = False) -> Tensor:
    """Dice plus voxel-wise binary cross entropy ``[B]``; its batch mean is MONAI's ``DiceCELoss``; as `dice`."""
    return dice(logits, target, squared=squared) + losses.binary_cross_entropy(logits, target)


def dice_focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Dice plus voxel-wise focal loss ``[B]``; its batch mean is MONAI's ``DiceFocalLoss``; as `dice`.

    Args:
        logits: See the module.
        target: See the module.
        gamma: focusing exponent, at least 0.

    Raises:
        UserError: As `dice`.
    """
    return dice(logits, target) + losses.binary_focal(logits, target, gamma=gamma)

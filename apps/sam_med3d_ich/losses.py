"""Losses of masks: Dice, and Dice with a voxel-wise term; one value per sample, as in `mlcore.training.losses`.

The Dice ratio is taken within each sample (MONAI's ``batch=False``), so a batch's loss is the sum of what each sample
would give alone, and accumulation and data parallelism are exact. Arithmetic is float32 under autocast and for
half-precision logits, float64 for float64 logits.
"""

import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.training import losses

__all__ = ["dice", "dice_cross_entropy", "dice_focal"]

_SMOOTH = 1e-5  # in numerator and denominator: an empty mask predicted empty has loss 0


def dice(
    logits: Tensor,
    target: Tensor,
    *,
    include_background: bool = True,
    squared: bool = False,
) -> Tensor:
    """Soft Dice loss of each sample, ``1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s)``, mean over classes (MONAI).

    Args:
        logits: ``[B, C, *spatial]``; sigmoid when ``C`` is 1, softmax otherwise.
        target: class indices ``[B, 1, *spatial]`` (any dtype), 0..C-1, or 0 and 1 when ``C`` is 1.
        include_background: whether class 0 takes part; no effect when ``C`` is 1.
        squared: squares in the denominator (Milletari et al. 2016).

    Returns:
        ``[B]``. Count: one per sample. The ratio is taken within a sample, so samples add up; it does *not* decompose
        over patches of one volume.

    Raises:
        UserError: ``target`` is not ``[B, 1, *spatial]``.
    """
    from monai.losses.dice import DiceLoss  # seconds to import; only segmentation pays

    _check_mask(logits, target)
    several = logits.shape[1] > 1
    loss = DiceLoss(
        include_background=include_background or not several,
        to_onehot_y=several,
        sigmoid=not several,
        softmax=several,
        squared_pred=squared,
        smooth_nr=_SMOOTH,
        smooth_dr=_SMOOTH,
        reduction="none",
    )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    value: Tensor = loss(logits, target.to(logits.dtype))  # [B, C, 1, ...]
    return value.flatten(1).mean(dim=1)


def dice_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    include_background: bool = True,
    squared: bool = False,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> Tensor:
    """Dice plus voxel-wise cross entropy (binary when ``C`` is 1); its batch mean is MONAI's ``DiceCELoss``.

    Args:
        logits: ``[B, C, *spatial]``.
        target: class indices ``[B, 1, *spatial]``.
        include_background: whether class 0 takes part in the Dice term.
        squared: squares in the Dice denominator.
        dice_weight: factor of the Dice term.
        ce_weight: factor of the cross-entropy term.

    Returns:
        ``[B]``. Count: one per sample; decomposes over samples, not over patches.

    Raises:
        UserError: ``target`` is not ``[B, 1, *spatial]``.
    """
    overlap = dice(logits, target, include_background=include_background, squared=squared)
    if logits.shape[1] == 1:
        voxels = losses.binary_cross_entropy(logits, target)
    else:
        voxels = losses.cross_entropy(logits, target[:, 0].long())
    return dice_weight * overlap + ce_weight * voxels


def dice_focal(
    logits: Tensor,
    target: Tensor,
    *,
    include_background: bool = True,
    gamma: float = 2.0,
    alpha: float | Tensor | None = None,
    dice_weight: float = 1.0,
    focal_weight: float = 1.0,
) -> Tensor:
    """Dice plus voxel-wise focal loss; with one channel its batch mean is MONAI's ``DiceFocalLoss``.

    With several channels the focal term is `mlcore.training.losses.focal` (softmax, summed over classes), where MONAI's
    combined loss takes independent sigmoids and averages over classes.

    Args:
        logits: ``[B, C, *spatial]``.
        target: class indices ``[B, 1, *spatial]``.
        include_background: whether class 0 takes part in the Dice term.
        gamma: focusing exponent, at least 0.
        alpha: `binary_focal`'s when ``C`` is 1 (a float), `focal`'s otherwise.
        dice_weight: factor of the Dice term.
        focal_weight: factor of the focal term.

    Returns:
        ``[B]``. Count: one per sample; decomposes over samples, not over patches.

    Raises:
        UserError: ``target`` is not ``[B, 1, *spatial]``, or ``alpha`` is per class with a single channel.
    """
    overlap = dice(logits, target, include_background=include_background)
    if logits.shape[1] > 1:
        voxels = losses.focal(logits, target[:, 0].long(), gamma=gamma, alpha=alpha)
    elif isinstance(alpha, Tensor):
        raise UserError("alpha per class needs one channel per class; with a single channel give one number in 0..1")
    else:
        voxels = losses.binary_focal(logits, target, gamma=gamma, alpha=alpha)
    return dice_weight * overlap + focal_weight * voxels


def _check_mask(logits: Tensor, target: Tensor) -> None:
    wanted = (logits.shape[0], 1, *logits.shape[2:])
    if tuple(target.shape) != wanted:
        raise UserError(f"mask has shape {tuple(target.shape)}, expected class indices of shape {wanted}")

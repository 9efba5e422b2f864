"""Simulated clicks: where a user would correct a mask (after the training of SAM-Med3D; docs say what differs)."""

import torch
from torch import Tensor

from quartet.apps.sam_med3d_ich.model.prompts import NOT_A_POINT


def next_click(logits: Tensor, target: Tensor, *, draw: Tensor) -> tuple[Tensor, Tensor]:
    """A voxel drawn evenly from those that are wrong: a positive click where the mask misses, a negative one elsewhere.

    Args:
        logits: Present mask [B, 1, X, Y, Z].
        target: Wanted mask of 0 and 1, the same shape.
        draw: Uniform random numbers in [0, 1), [B].

    Returns:
        Voxel indices float [B, 1, 3] and labels int64 [B, 1]; where nothing is wrong the label is "no point".
    """
    inside = target > 0
    wrong = ((logits > 0) != inside).flatten(1)  # [B, V]
    running = wrong.cumsum(1, dtype=torch.int32)
    total = running[:, -1]
    rank = (draw.to(torch.float64) * total).to(torch.int32).clamp_max((total - 1).clamp_min(0))  # no host sync
    index = torch.searchsorted(running, rank[:, None] + 1).clamp_max(wrong.shape[1] - 1)  # [B, 1]
    label = torch.where(total[:, None] > 0, inside.flatten(1).gather(1, index).long(), NOT_A_POINT)
    _, _, height, width = target.shape[1:]
    position = torch.stack([index // (height * width), index // width % height, index % width], dim=-1)
    return position.float(), label

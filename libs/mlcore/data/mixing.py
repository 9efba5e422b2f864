"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of a batch, as functions of its samples' keys.

A key belongs to one sample in one epoch (what an app's augmentation puts into samples). How much of a
sample is kept, and which box, follows from its own key; its partner is the sample of the batch with the next larger
key. So nothing depends on a generator's history, on workers, or on the order within the batch; of what else is drawn,
only the partners depend on which samples share a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mlcore.base.errors import UserError
from mlcore.base.seeding import numpy_rng

__all__ = ["MixedCollate", "Mixing"]

_DRAWS = 22  # a stream of random numbers


class Mixing:
    """`mixing(batch)` adds `target`, float32 [B, C], and mixes `pixels` [B, channels, H, W] of a collated batch.

    What a teacher says of the pages (`teacher` [B, C]), if it is there, is mixed by the same shares.

    Args:
        classes: C.
        mixup: Parameter of the Beta distribution of what is kept; 0: no mixup.
        cutmix: The same for cutmix. If both are given, each sample draws one of the two.
        name: What of the batch is mixed, in place of `pixels`; for mixup alone any [B, ..., W].

    Raises:
        UserError: A parameter is negative.
    """

    def __init__(self, classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, name: str = "pixels") -> None:
        if min(mixup, cutmix) < 0:
            raise UserError(f"mixup ({mixup:g}) and cutmix ({cutmix:g}) must not be negative")
        self.classes = classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.name = name

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch's `key` int64 [B] and `label` int64 [B] say what is mixed with what; they stay as they are."""
        target = F.one_hot(batch["label"], self.classes).to(torch.float32)
        rows = [target, batch["teacher"]] if "teacher" in batch else [target]
        keys = batch["key"].tolist()
        pixels, mixed = _mixed(batch[self.name], rows, keys, mixup=self.mixup, cutmix=self.cutmix)
        return {**batch, self.name: pixels, **dict(zip(("target", "teacher"), mixed, strict=False))}


@dataclass(frozen=True)
class MixedCollate:
    """A collate function, after which the batch is mixed.

    Attributes:
        collate: Makes a batch of samples.
        mixing: Mixes it by the samples' `key`.
    """

    collate: Callable[[list[Any]], dict[str, Any]]
    mixing: Mixing

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        """The mixed batch of samples with a `key`."""
        return self.mixing({**self.collate(samples), "key": torch.tensor([sample["key"] for sample in samples])})


def _mixed(
    pixels: Tensor, rows: Sequence[Tensor], keys: Sequence[int], *, mixup: float, cutmix: float
) -> tuple[Tensor, list[Tensor]]:
    """Pixels, and rows float32 [B, C] that belong to them, mixed by the same shares."""
    if not mixup and not cutmix:
        return pixels, list(rows)
    size = tuple(pixels.shape[2:])
    kept = np.stack([_kept(key, size, mixup=mixup, cutmix=cutmix) for key in keys])  # [B, H, W]
    partner = torch.from_numpy(_partners(keys)).to(pixels.device)
    shares = kept.mean(axis=tuple(range(1, kept.ndim)), dtype=np.float64).astype(np.float32)
    share = torch.from_numpy(shares).to(rows[0])[:, None]
    own = torch.from_numpy(kept).to(pixels)[:, None]  # [B, 1, H, W]
    mixed = own * pixels + (1 - own) * pixels[partner]
    return mixed, [share * row + (1 - share) * row[partner] for row in rows]


def _partners(keys: Sequence[int]) -> NDArray[np.int64]:
    """For each sample the one with the next larger key; for the largest that with the smallest."""
    order = np.argsort(np.array(keys, dtype=np.uint64), kind="stable")
    partners = np.empty(len(order), dtype=np.int64)
    partners[order] = np.roll(order, -1)
    return partners


def _kept(key: int, size: tuple[int, ...], *, mixup: float, cutmix: float) -> NDArray[np.float32]:
    """How much of each pixel stays the sample's own, float32 [H, W] in 0..1."""
    rng = numpy_rng(_DRAWS, key)
    cut = cutmix > 0 and (not mixup or rng.random() < 0.5)
    share = float(rng.beta(cutmix, cutmix)) if cut else float(rng.beta(mixup, mixup))
    if not cut:
        return np.full(size, share, dtype=np.float32)
    kept = np.ones(size, dtype=np.float32)
    bounds = []
    for side in size:
        centre, reach = rng.uniform(0, side), side * np.sqrt(1 - share) / 2
        bounds.append(slice(max(0, round(centre - reach)), min(side, round(centre + reach))))
    kept[bounds[0], bounds[1]] = 0
    return kept

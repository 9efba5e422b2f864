"""Where the latents look: attention over bytes, patches and steps of a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from quartet.apps.perceiver.data.raw import Modality, Raw

__all__ = ["LOOKED", "Seen", "Shares", "heat", "of_modalities", "shares_of", "shown"]

LOOKED = "where the latents look first, mean over heads and latents of the first cross-attention"

Shares = NDArray[np.float32]

_LONGEST = 2000  # characters of a text on a page
_LEAST = 1e-12  # what is divided by


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One modality of a sample.

    Attributes:
        name: How people know it.
        kind: "text", "image" or "series".
        value: Bytes uint8 [N], pixels uint8 [H, W, 3], or steps float [N, C], NaN where nothing was seen.
        patch: Bytes or steps of a token.
        grid: Rows and columns of a picture's tokens.
        shares: What each of its tokens gets of the sample's attention; None: not known.
    """

    name: str
    kind: str
    value: Raw
    patch: int = 1
    grid: tuple[int, int] = (1, 1)
    shares: Shares | None = None

    @property
    def by_position(self) -> Shares:
        """Shares of single bytes or steps, as parts of the largest."""
        assert self.shares is not None  # noqa: S101 - callers look first
        found: Shares = np.repeat(self.shares, self.patch)[: len(self.value)]
        return found / max(float(found.max()), _LEAST)

    @property
    def characters(self) -> list[tuple[str, float]]:
        """The characters of a text, each with the mean share of its bytes as a part of the largest; 0: not known."""
        starts = np.flatnonzero((self.value & 0xC0) != 0x80)  # other bytes go on with a character of UTF-8
        text = [bytes(self.value[low:high]).decode(errors="replace") for low, high in pairwise([*starts, None])]
        if self.shares is None:
            return [(one, 0.0) for one in text]
        means = np.add.reduceat(self.by_position, starts) / np.diff([*starts, len(self.value)])
        return list(zip(text, (means / max(float(means.max()), _LEAST)).tolist(), strict=True))

    @property
    def overlay(self) -> NDArray[np.uint8]:
        """What is laid over a picture, uint8 [H, W, 4]."""
        assert self.shares is not None  # noqa: S101 - callers look first
        return heat(self.shares.reshape(self.grid), self.value.shape[:2])


@torch.inference_mode()
def shares_of(model: nn.Module, batch: Mapping[str, Any]) -> Shares:
    """What the first cross-attention of a Perceiver takes of each token of a batch of one sample, [M]."""
    encoder: Any = model.encoder
    device, given = encoder.latents.device, batch["input"]
    x = {name: value.to(device) for name, value in given.items()} if isinstance(given, Mapping) else given.to(device)
    found: Shares = encoder.attention(x, batch["mask"].to(device))[0].float().cpu().numpy()
    return found


def of_modalities(values: Mapping[str, Raw], modalities: Sequence[Modality], shares: Shares | None) -> list[Seen]:
    """The modalities that a raw sample has; its tokens stand in the order of the model's."""
    found, start = [], 0
    for one in (modality for modality in modalities if modality.name in values):
        value = values[one.name]
        end = start + one.tokens(value)
        grid = (value.shape[0] // one.patch, value.shape[1] // one.patch) if one.kind == "image" else (1, 1)
        own = None if shares is None else shares[start:end]
        found.append(Seen(name=one.name, kind=one.kind, value=value, patch=one.patch, grid=grid, shares=own))
        start = end
    return found


def heat(shares: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Shares of patches [rows, columns] as a red that is the denser the larger they are, uint8 [H, W, 4]."""
    scaled = Image.fromarray(np.rint(200 * shares / max(float(shares.max()), _LEAST)).astype(np.uint8))
    alpha = np.asarray(scaled.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    found = np.zeros((*alpha.shape, 4), dtype=np.uint8)
    found[..., 0], found[..., 3] = 230, alpha
    return found


def shown(seen: Sequence[Seen]) -> dict[str, Any]:
    """What a page shows of a sample: arguments of `Shown`."""
    pictures = [one for one in seen if one.kind == "image"]
    known = {one.name: float(one.shares.sum()) for one in seen if one.shares is not None}
    found: dict[str, Any] = {
        "pictures": [one.value for one in pictures],
        "overlays": [one.overlay for one in pictures if one.shares is not None],
        "overlaid": "attention",
        "texts": {one.name: one.characters[:_LONGEST] for one in seen if one.kind == "text"},
        "curves": {},
        "notes": [f"Attention: {LOOKED}."] if known else [],
    }
    for one in (one for one in seen if one.kind == "series"):
        called = "" if one.name == "series" else f"{one.name}, "
        low, high = float(np.nanmin(one.value)), float(np.nanmax(one.value))
        if one.shares is not None:  # before channels, of which a page shows the first few
            found["curves"][f"{called}attention (scaled)"] = low + (high - low) * one.by_position
        found["curves"] |= {f"{called}channel {number}": line for number, line in enumerate(one.value.T, start=1)}
    if len(known) > 1:
        found["notes"] += [f"{name} gets {share:.0%} of it." for name, share in known.items()]
    return found

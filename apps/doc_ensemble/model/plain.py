"""Trunks of features that are computed, not learned: members that differ from networks of pixels.

    TextTrunk    TF-IDF of words and parts of words; with `DocClassifier`'s linear layer a logistic regression
    LayoutTrunk  where ink is on a page and in which shapes, and one hidden layer

Everything is arithmetic of tensors, so that it runs wherever networks do, and is kept and exported like them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LayoutTrunk", "TextTrunk", "layout_features"]

_PAPER = 0.1  # as dark as this is no ink yet
_LENGTHS = (3, 5, 9, 17, 33)  # pixels of strokes and gaps, at heights of about 320: each twice the one before, less 1
_WAVES = 48  # frequencies of a profile: how often lines, or columns, follow one another
_DIRECTIONS = 8  # of edges
_GREYS = 16
_RAREST = 5e-4  # share of pages: what was never seen counts like what was seen once in 2,000
_NARROWEST, _FARTHEST = 1e-6, 5.0  # least variance of a feature, and most deviations from its mean


class _TrainingMean(nn.Module):
    """The mean of rows [B, ...] over all that were seen in training; a pass over the pages counts each alike."""

    mean: Tensor
    rows: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("rows", torch.zeros(()))

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self.rows += len(values)
            self.mean += (values.to(self.mean.dtype).mean(dim=0) - self.mean) * (len(values) / self.rows)
        return self.mean


class TextTrunk(nn.Module):
    """TF-IDF of counts of n-grams: (1 + log count) * (1 - log of the share of pages that have it), of length 1.

    What share of the pages has something, is learned while it is trained.

    Args:
        width: N-grams that are counted, D; words are the first half, parts of words the second.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.share = _TrainingMean(width)

    def forward_features(self, counts: Tensor) -> Tensor:
        """Counts float [B, 1, 1, D], of which 1.0 is 255, to features [B, D]."""
        counts = torch.round(counts.flatten(1) * 255)
        rarity = 1 - self.share((counts > 0).to(counts.dtype)).clamp(min=_RAREST).log()
        weighed = torch.where(counts > 0, 1 + counts.clamp(min=1).log(), 0.0) * rarity
        return torch.cat([functional.normalize(half) for half in weighed.chunk(2, dim=1)], dim=1)

    def forward_head(self, features: Tensor, *, pre_logits: bool) -> Tensor:  # noqa: ARG002 - as networks of timm have it
        """The features themselves."""
        return features


class LayoutTrunk(nn.Module):
    """`layout_features`, standardised by means and deviations of the training pages, and one hidden layer.

    Args:
        size: Height and width of the pages, pixels.
        width: Of the hidden layer.
    """

    def __init__(self, size: Sequence[int], *, width: int = 256) -> None:
        super().__init__()
        with torch.device("meta"):
            count = layout_features(torch.zeros(1, 1, *size)).shape[1]
        self.num_features = width
        self.moments = _TrainingMean(2, count)
        self.hidden = nn.Linear(count, width)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Pixels float [B, C, H, W] in 0..1 to features [B, width]."""
        with torch.no_grad():
            found = layout_features(pixels)
        mean, square = self.moments(torch.stack([found, found.square()], dim=1))
        spread = (square - mean.square()).clamp(min=_NARROWEST).sqrt()
        standard = ((found - mean) / spread).clamp(-_FARTHEST, _FARTHEST)
        return functional.gelu(self.hidden(standard))

    def forward_head(self, features: Tensor, *, pre_logits: bool) -> Tensor:  # noqa: ARG002 - as networks of timm have it
        """The features themselves."""
        return features


def layout_features(pixels: Tensor) -> Tensor:
    """What the ink of pages looks like.

    A thumbnail; projection profiles of rows and columns, as they are, sorted, and their frequencies (the pitch of
    lines); how much ink is in strokes, and how much paper in gaps, of given lengths in both directions, by openings and
    closings (granulometry; Serra 1982) in the cells of a grid; changes between ink and paper; directions of edges in
    cells (Dalal & Triggs 2005); a histogram of grey values.

    Args:
        pixels: float [B, C, H, W] in 0..1, 0 black.

    Returns:
        float [B, D]; D depends on nothing but the constants above.
    """
    grey = pixels.mean(dim=1, keepdim=True)
    ink = ((1 - grey - _PAPER) / (1 - _PAPER)).clamp(min=0)
    across, down = (ink[..., 1:] - ink[..., :-1]).abs(), (ink[..., 1:, :] - ink[..., :-1, :]).abs()
    parts = [_pool(ink, 24, 18), *_strokes(ink), *_edges(ink)]
    parts += [_pool(across, 12, 9), _pool(down, 12, 9)]
    for profile, changes, bins in ((ink.mean(3), across.mean(3), 64), (ink.mean(2), down.mean(2), 48)):
        values, steps = profile.flatten(1), changes.flatten(1)
        parts += [_means(values, bins), _means(values.sort(dim=1).values, 16), _means(steps.sort(dim=1).values, 16)]
        parts.append(_waves(values))
    shade = (grey * _GREYS).floor().clamp(max=_GREYS - 1)
    shades = [(shade == k).float().mean(dim=(1, 2, 3)) for k in range(_GREYS)]
    parts.append(torch.stack(shades, dim=1).sqrt())
    return torch.cat(parts, dim=1)


def _strokes(ink: Tensor) -> list[Tensor]:
    """Ink that is left where strokes must have a length, and that is there once shorter gaps are filled."""
    found = []
    for axis in (2, 3):
        grown, paper = ink, -ink
        for steps in range(1, len(_LENGTHS) + 1):
            grown, paper = _grown(grown, steps - 1, axis), _grown(paper, steps - 1, axis)
            closed = -grown
            for step in range(steps):
                closed = _grown(closed, step, axis)
            found += [_pool(-paper, 4, 3), _pool(-closed, 4, 3)]
    return [part.clamp(min=0).sqrt() for part in found]


def _grown(values: Tensor, step: int, axis: int) -> Tensor:
    """Maxima over `_LENGTHS[step]` pixels, from those over the next shorter length: two of these, or three pixels."""
    apart = _LENGTHS[step] // 4 or 1
    sides = [0, 0, apart, apart] if axis == 2 else [apart, apart, 0, 0]
    wide, size = functional.pad(values, sides, mode="replicate"), values.shape[axis]
    both = torch.maximum(wide.narrow(axis, 0, size), wide.narrow(axis, 2 * apart, size))
    return torch.maximum(both, values)


def _edges(ink: Tensor) -> list[Tensor]:
    """Of each direction, its share of the edges in each of 8 x 6 cells."""
    half = functional.avg_pool2d(ink, 2)
    right = functional.pad(half[..., 1:] - half[..., :-1], (0, 1))
    below = functional.pad(half[..., 1:, :] - half[..., :-1, :], (0, 0, 0, 1))
    strength = (right.square() + below.square() + 1e-12).sqrt()
    way = torch.atan2(below, right).remainder(math.pi) * (_DIRECTIONS / math.pi)
    each = torch.stack([_pool(strength * ((way >= k) & (way < k + 1)), 8, 6) for k in range(_DIRECTIONS)], dim=1)
    return [(each / (each.sum(dim=1, keepdim=True) + 0.02)).flatten(1)]


def _pool(values: Tensor, rows: int, columns: int) -> Tensor:
    """Means of [B, 1, H, W] in the cells of a grid, [B, rows * columns]."""
    height, width = values.shape[2:]
    return (_areas(rows, height, values) @ values @ _areas(columns, width, values).T).flatten(1)


def _means(values: Tensor, bins: int) -> Tensor:
    """Means of [B, N] in bins of one size, [B, bins]."""
    return values @ _areas(bins, values.shape[1], values).T


def _areas(parts: int, length: int, like: Tensor) -> Tensor:
    """What each of `length` pixels is of the mean of each part, [parts, length]."""
    step = length / parts
    begin = torch.arange(parts, device=like.device, dtype=like.dtype)[:, None] * step
    pixel = torch.arange(length, device=like.device, dtype=like.dtype)
    return (torch.minimum(pixel + 1, begin + step) - torch.maximum(pixel, begin)).clamp(min=0) / step


def _waves(profile: Tensor) -> Tensor:
    """How strong each frequency is in a profile [B, N], [B, _WAVES]: two neighbouring ones together, on a log scale."""
    length = profile.shape[1]
    place = torch.arange(length, device=profile.device, dtype=profile.dtype)
    angle = 2 * math.pi / length * place[:, None] * (1 + torch.arange(2 * _WAVES, device=profile.device))
    strength = ((profile @ angle.cos()).square() + (profile @ angle.sin()).square()).sqrt()
    return torch.log1p(4 * _means(strength, _WAVES))

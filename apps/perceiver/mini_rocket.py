"""MiniRocket (Dempster, Schmidt and Webb 2021, arXiv 2012.08791) of series of several channels and any length.

84 fixed convolutions of length 9, at dilations that fit the series; a feature is how often one of them is above a bias,
which is a quantile of what it gives on a training series. sktime and aeon have it, compiled by numba: a minute of
compiling in each fresh environment and 350 MB beside torch, which computes the same convolutions at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mlcore.metrics.arrays import FloatArray

__all__ = ["MiniRocket"]

_LENGTH, _KERNELS = 9, 84  # 9 over 3: where a kernel's three weights of 2 are; the others are -1
_DILATIONS = 32  # of a kernel at most
_ELEMENTS = 20_000_000  # compared at a time


@dataclass(frozen=True)
class _Level:
    """All kernels at one dilation: weights [84, C, 9], biases [84, K], and which see whole windows only, bool [84]."""

    dilation: int
    weights: Tensor
    biases: Tensor
    whole: Tensor


@dataclass(frozen=True)
class MiniRocket:
    """The transform; `MiniRocket.fit` chooses biases and channels.

    Attributes:
        mean: Of each channel of the training series, float32 [C].
        deviation: Likewise, above 0.
        levels: The convolutions.
    """

    mean: Tensor
    deviation: Tensor
    levels: Sequence[_Level]

    @classmethod
    def fit(cls, series: Sequence[FloatArray], *, features: int = 9996, seed: int = 0) -> Self:
        """The transform for such series.

        Args:
            series: Training series, each [T, C], T at least 1.
            features: How many, a multiple of 84.
            seed: Names the draws of channels and of the series whose quantiles are biases.
        """
        rng = np.random.default_rng(seed)
        positions = np.concatenate([np.asarray(one, dtype=np.float64) for one in series])
        mean, deviation = positions.mean(axis=0), positions.std(axis=0)
        fitted = cls(_tensor(mean), _tensor(np.where(deviation > 0, deviation, 1.0)), [])
        longest = max(map(len, series))
        dilations, counts = _dilations(longest, max(1, features // _KERNELS))
        quantiles = np.arange(1, _KERNELS * counts.sum() + 1) * (np.sqrt(5) + 1) / 2 % 1  # of low discrepancy
        levels = []
        for number, (dilation, count) in enumerate(zip(dilations, counts, strict=True)):
            weights = _weights(rng, channels=len(mean))
            shares = quantiles[_KERNELS * counts[:number].sum() :][: _KERNELS * count].reshape(_KERNELS, count)
            examples = [series[place] for place in rng.integers(len(series), size=_KERNELS)]
            reach = _LENGTH // 2 * int(dilation)
            biases = []
            for kernel, example in enumerate(examples):
                weight = weights[kernel : kernel + 1]
                found = functional.conv1d(fitted._padded([example]), weight, padding=reach, dilation=int(dilation))
                biases.append(np.quantile(found[0, 0].numpy(), shares[kernel]))
            whole = (torch.arange(_KERNELS) + number) % 2 == 1
            levels.append(_Level(int(dilation), weights, _tensor(np.stack(biases)), whole))
        return cls(fitted.mean, fitted.deviation, levels)

    def __call__(self, series: Sequence[FloatArray]) -> FloatArray:
        """Features of series [T, C] of any length: shares of positions, float32 [N, features]."""
        most = max(level.biases.numel() for level in self.levels)
        at_once = max(1, _ELEMENTS // (most * max(map(len, series))))
        rows = [self._features(series[start : start + at_once]) for start in range(0, len(series), at_once)]
        return torch.cat(rows).numpy()

    def _features(self, series: Sequence[FloatArray]) -> Tensor:
        x = self._padded(series)
        length = torch.tensor([len(one) for one in series])[:, None, None]
        place = torch.arange(x.shape[2])
        found = []
        for level in self.levels:
            reach = _LENGTH // 2 * level.dilation
            given = functional.conv1d(x, level.weights, padding=reach, dilation=level.dilation)  # [B, 84, T]
            inner = (place >= reach) & (place < length - reach)  # [B, 1, T]
            seen = (place < length) & (inner | ~(level.whole[:, None] & inner.any(dim=2, keepdim=True)))
            above = (given[:, :, None] > level.biases[..., None]) & seen[:, :, None]  # [B, 84, K, T]
            found.append((above.sum(dim=3) / seen.sum(dim=2)[..., None]).flatten(1))
        return torch.cat(found, dim=1)

    def _padded(self, series: Sequence[FloatArray]) -> Tensor:
        """Standardised, [B, C, T], zero after the end of each."""
        given = [(torch.from_numpy(np.asarray(one, dtype=np.float32)) - self.mean) / self.deviation for one in series]
        return torch.nn.utils.rnn.pad_sequence(given, batch_first=True).transpose(1, 2)


def _dilations(longest: int, per_kernel: int) -> tuple[np.ndarray, np.ndarray]:
    """Dilations in geometric steps up to the longest series, and the biases of a kernel at each."""
    most = min(per_kernel, _DILATIONS)
    exponent = max(0.0, np.log2(max(longest - 1, 1) / (_LENGTH - 1)))
    dilations, counts = np.unique(np.floor(2 ** np.linspace(0, exponent, most)).astype(int), return_counts=True)
    counts = counts * (per_kernel // most)
    each, more = divmod(per_kernel - counts.sum(), len(counts))
    counts += each
    counts[:more] += 1
    return dilations, counts


def _weights(rng: np.random.Generator, *, channels: int) -> Tensor:
    """All 84 kernels, each summing over channels of its own: [84, C, 9]."""
    weights = np.zeros((_KERNELS, channels, _LENGTH), dtype=np.float32)
    for kernel, twos in zip(weights, combinations(range(_LENGTH), 3), strict=True):
        count = int(2 ** rng.uniform(0, np.log2(min(channels, _LENGTH) + 1)))
        row = np.full(_LENGTH, -1.0)
        row[list(twos)] = 2.0
        kernel[rng.choice(channels, size=count, replace=False)] = row
    return torch.from_numpy(weights)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))

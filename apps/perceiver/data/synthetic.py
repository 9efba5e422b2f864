"""Synthetic time series whose class is the kind of pattern they carry; every sample is a function of (seed, index)."""

import numpy as np
import torch

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.samples import Array, Sample

PATTERNS = ("sine", "square", "sawtooth", "chirp", "pulses", "steps", "damped", "beat", "walk", "ramps")


class SyntheticPatterns(torch.utils.data.Dataset[Sample]):
    """Noisy periodic and aperiodic patterns of variable length.

    Class ``k`` is pattern ``k % 10``, with its frequency doubled for every further ten. Phase, frequency and offset are
    drawn per sample, and each channel sees the pattern with its own gain, sign, delay and noise: no single position and
    no channel's mean gives the class away.

    Args:
        num_samples: Number of sequences; classes take turns, so they are balanced.
        seq_len_range: Shortest and longest sequence in positions, both included.
        feature_dim: Channels.
        num_classes: Number of classes.
        seed: Names the dataset.
        noise: Standard deviation of the noise, relative to the pattern's.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seq_len_range: tuple[int, int] = (50, 200),
        feature_dim: int = 64,
        num_classes: int = 5,
        seed: int = 0,
        noise: float = 0.5,
    ) -> None:
        shortest, longest = seq_len_range
        if num_samples < 1 or feature_dim < 1 or num_classes < 1:
            raise UserError("num_samples, feature_dim and num_classes must be at least 1")
        if not 1 <= shortest <= longest:
            raise UserError(f"seq_len_range must rise from at least 1, got {shortest} to {longest}")
        self.num_samples, self.feature_dim, self.num_classes = num_samples, feature_dim, num_classes
        self.seq_len_range, self.seed, self.noise = (shortest, longest), seed, noise
        self.labels = np.arange(num_samples, dtype=np.int64) % num_classes
        names = (PATTERNS[k % len(PATTERNS)] for k in range(num_classes))
        self.classes = tuple(f"{name} x{2 ** (k // len(PATTERNS))}".removesuffix(" x1") for k, name in enumerate(names))

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        label = int(self.labels[index])
        length = self._length(rng)
        frequency = rng.uniform(2.0, 4.0) * 2 ** (label // len(PATTERNS))  # periods per 64 positions
        delays = 8 * np.arange(self.feature_dim) / self.feature_dim  # in positions
        time = (np.arange(length)[:, None] + delays) / 64 * frequency + rng.uniform()  # [M, C], in periods
        series = _pattern(PATTERNS[label % len(PATTERNS)], time, rng)
        series = (series - series.mean()) / (series.std() + 1e-6)
        gain = rng.uniform(0.5, 1.5) * rng.choice([-1.0, 1.0])
        noise = self.noise * rng.standard_normal(series.shape, dtype=np.float32)
        sequence: Array = (gain * series + noise + rng.normal(scale=0.5)).astype(np.float32)
        return {"input": sequence, "label": label, "mask": np.ones(length, dtype=np.float32)}

    def length(self, index: int) -> int:
        """Positions of sample ``index``, without making it."""
        return self._length(np.random.default_rng((self.seed, index)))

    def _length(self, rng: np.random.Generator) -> int:
        """Must stay the first draw of a sample."""
        return int(rng.integers(self.seq_len_range[0], self.seq_len_range[1] + 1))


def _pattern(kind: str, time: np.ndarray[tuple[int, int], np.dtype[np.float64]], rng: np.random.Generator) -> Array:
    """Evaluates a pattern at ``time`` (in periods)."""
    phase = time % 1.0
    sine = np.sin(2 * np.pi * time)
    if kind == "sine":
        out = sine
    elif kind == "square":
        out = np.sign(sine)
    elif kind == "sawtooth":
        out = 2 * phase - 1
    elif kind == "chirp":
        out = np.sin(2 * np.pi * time * (0.5 + 0.15 * time))
    elif kind == "pulses":
        out = np.exp(-(((phase - 0.5) / 0.06) ** 2))
    elif kind == "steps":
        out = rng.standard_normal(int(time.max()) + 2)[time.astype(int)]
    elif kind == "damped":
        out = np.exp(-4 * phase) * np.sin(2 * np.pi * 4 * time)
    elif kind == "beat":
        out = sine * np.sin(2 * np.pi * 7 * time)
    elif kind == "walk":
        knots = np.cumsum(rng.standard_normal(8 * (int(time.max()) + 2)))
        out = np.interp(8 * time, np.arange(len(knots)), knots)
    else:  # ramps
        out = np.abs(2 * phase - 1)
    return np.asarray(out, dtype=np.float32)

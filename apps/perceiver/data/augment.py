"""Augmentation of time series: each is ``transform(sample, rng) -> sample`` and draws from that generator alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.gaps import filled, shown_positions
from quartet.apps.perceiver.data.samples import Array

Rng = np.random.Generator
Transform = Callable[[Any, Rng], Any]


@dataclass(frozen=True)
class Pipeline:
    """Applies transforms one after another."""

    steps: tuple[Transform, ...]

    def __call__(self, sample: Any, rng: Rng) -> Any:
        """Transforms a sample."""
        for step in self.steps:
            sample = step(sample, rng)
        return sample


@dataclass(frozen=True)
class Jitter:
    """Adds noise; ``sigma`` in standard deviations of each channel within the sequence."""

    sigma: float

    def __call__(self, sample: Any, rng: Rng) -> Any:
        """Transforms a sample."""
        series, mask = _parts(sample)
        noise = rng.standard_normal(series.shape, dtype=np.float32)
        return _with(sample, series + np.float32(self.sigma) * series.std(axis=0) * noise, mask)


@dataclass(frozen=True)
class Scaling:
    """Multiplies each channel by its own factor, normal around 1 with deviation ``sigma``."""

    sigma: float

    def __call__(self, sample: Any, rng: Rng) -> Any:
        """Transforms a sample."""
        series, mask = _parts(sample)
        return _with(sample, series * rng.normal(1.0, self.sigma, size=(1, series.shape[1])), mask)


@dataclass(frozen=True)
class TimeMask:
    """Hides one block of up to ``share`` of the positions from attention; at least one position stays."""

    share: float

    def __post_init__(self) -> None:
        _check_share("time mask", self.share)

    def __call__(self, sample: Any, rng: Rng) -> Any:
        """Transforms a sample."""
        series, mask = _parts(sample)
        hidden = int(rng.integers(0, int(self.share * len(series)) + 1))
        start = int(rng.integers(0, len(series) - hidden + 1))
        changed = mask.copy()
        changed[start : start + hidden] = 0
        return _with(sample, series, changed if changed.any() else mask)


@dataclass(frozen=True)
class WindowSlice:
    """Keeps one window of at least ``1 - share`` of the positions."""

    share: float

    def __post_init__(self) -> None:
        _check_share("window slice", self.share)

    def __call__(self, sample: Any, rng: Rng) -> Any:
        """Transforms a sample."""
        series, mask = _parts(sample)
        dropped = int(rng.integers(0, int(self.share * len(series)) + 1))
        start = int(rng.integers(0, dropped + 1))
        window = slice(start, start + len(series) - dropped)
        return _with(sample, series[window], mask[window]) if mask[window].any() else sample


@dataclass(frozen=True)
class TimeWarp:
    """Stretches or squeezes time by up to ``strength``, linearly interpolated; never past ``max_seq_len`` positions."""

    strength: float
    max_seq_len: int | None = None

    def __post_init__(self) -> None:
        _check_share("time warp", self.strength)

    def __call__(self, sample: Any, rng: Rng) -> Any:
        """Transforms a sample."""
        series, mask = _parts(sample)
        length = max(1, round(len(series) * (1 + rng.uniform(-self.strength, self.strength))))
        if self.max_seq_len is not None:
            length = min(length, max(self.max_seq_len, 1))
        at = np.linspace(0, len(series) - 1, length)
        low = at.astype(np.int64)
        high = np.minimum(low + 1, len(series) - 1)
        weight = (at - low).astype(np.float32)[:, None]
        warped_mask = mask[np.rint(at).astype(np.int64)]
        if not warped_mask.any():
            return sample
        return _with(sample, (1 - weight) * series[low] + weight * series[high], warped_mask)


@dataclass(frozen=True)
class OfValues:
    """Changes all channels but the last one, which is time, by a transform that keeps every position."""

    step: Transform

    def __call__(self, sample: Any, rng: Rng) -> Any:
        """Transforms a sample."""
        series = np.asarray(sample["input"], dtype=np.float32)
        changed = self.step({**sample, "input": series[:, :-1]}, rng)
        return {**changed, "input": np.concatenate([changed["input"], series[:, -1:]], axis=1)}


def series_augmentation(
    *,
    jitter: float = 0.0,
    scaling: float = 0.0,
    time_warp: float = 0.0,
    time_mask: float = 0.0,
    window_slice: float = 0.0,
    max_seq_len: int | None = None,
    timed: bool = False,
) -> Pipeline | None:
    """Chains the transforms whose strength is not 0; ``None`` if there is none.

    Raises:
        UserError: Time is to be warped where the last channel is time (``timed``), which the others leave as it is.
    """
    if timed and time_warp:
        raise UserError("data.time_warp is of equal steps, and these series have time stamps: leave it out")
    steps: list[tuple[float, Transform]] = [
        (window_slice, WindowSlice(window_slice)),
        (time_warp, TimeWarp(time_warp, max_seq_len)),
        (scaling, Scaling(scaling)),
        (jitter, Jitter(jitter)),
        (time_mask, TimeMask(time_mask)),
    ]
    chosen = tuple(
        step if not timed or isinstance(step, WindowSlice) else OfValues(step) for strength, step in steps if strength
    )
    return Pipeline(chosen) if chosen else None


def _parts(sample: Any) -> tuple[Array, NDArray[np.float32]]:
    series = np.asarray(sample["input"], dtype=np.float32)
    if "mask" not in sample:
        return series, np.ones(len(series), dtype=np.float32)
    shown = shown_positions(sample["mask"])
    if not shown.all():
        # What stands at hidden positions may be NaN, and would come into noise, means and lines between positions.
        series = filled(
            series, known=shown[:, None] & np.isfinite(series), gaps=np.broadcast_to(~shown[:, None], series.shape)
        )
    return series, shown.astype(np.float32)


def _with(sample: Any, series: NDArray[Any], mask: NDArray[np.float32]) -> Any:
    return {**sample, "input": np.ascontiguousarray(series, dtype=np.float32), "mask": mask}


def _check_share(what: str, share: float) -> None:
    if not 0 <= share < 1:
        raise UserError(f"the strength of {what} must be at least 0 and below 1, not {share}")

"""How long a run that resumes in the middle of an epoch waits for its first batch.

python -m benchmarks.resume            about two minutes
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.common import NOT_INSTALLED, Goal, Options, Report, alternate, median_text, peer, run_alone, seconds
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder

_LIMIT_S = 1.0
_BATCH = 50


class _Samples(torch.utils.data.Dataset[Tensor]):
    """Samples that cost next to nothing to read; with real ones, skipping by reading is far slower."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sample = torch.zeros(32)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Tensor:
        if index >= self._size:
            raise IndexError(index)
        return self._sample


def measure(options: Options) -> Report:
    """First batch at sample 500,000 of 1,000,000, in turns."""
    torch.set_num_threads(1)
    size, rounds = (10_000, 1) if options.quick else (1_000_000, 5)
    start = size // 2 // _BATCH
    lengths = np.random.default_rng(0).integers(10, 200, size)
    sides = _sides(_Samples(size), start, lengths=lengths)
    figures = alternate(sides, rounds=rounds)
    rows = [[name, median_text(values, digits=2)] for name, values in figures.items()]
    if peer("accelerate") is None:
        rows.append(["accelerate.skip_first_batches", NOT_INSTALLED])
    slowest = max(statistics.median(values) for name, values in figures.items() if name.startswith("mlcore"))
    return Report(
        title="Resuming in the middle of an epoch",
        method=(
            f"Seconds from the start of the epoch's iterator to its first batch (of {_BATCH}) at sample {size // 2:,} "
            f"of {size:,}, workers' start included, loading of model and optimiser not; the samples cost nothing to "
            f"read. Median (smallest..largest) of {rounds} rounds in turns."
        ),
        header=["loader", "seconds"],
        rows=rows,
        goals=[Goal(f"first batch in less than {_LIMIT_S:.0f} s", f"{slowest:.2f} s at most", slowest < _LIMIT_S)],
        notes=["Accelerate skips indices, not samples, in a map-style data set; it must still draw the whole order."],
        raw=figures,
    )


def _sides(dataset: _Samples, start: int, *, lengths: Any) -> dict[str, Callable[[], float]]:
    sides: dict[str, Callable[[], float]] = {}
    for workers in (0, 2):
        sides[f"mlcore, random order, {workers} workers"] = partial(_ours, dataset, start, workers=workers)
        sides[f"mlcore, grouped by length, {workers} workers"] = partial(
            _ours, dataset, start, workers=workers, lengths=lengths
        )
        sides[f"plain DataLoader that reads and drops, {workers} workers"] = partial(
            _drop, dataset, start, workers=workers
        )
        if peer("accelerate") is not None:
            sides[f"accelerate.skip_first_batches, {workers} workers"] = partial(
                _accelerate, dataset, start, workers=workers
            )
    return sides


def _ours(dataset: _Samples, start: int, *, workers: int, lengths: Any = None) -> float:
    order = EpochOrder(size=len(dataset), batch_size=_BATCH, lengths=lengths)
    loader = BatchLoader(dataset, order, num_workers=workers)
    return seconds(lambda: next(iter(loader.epoch(3, start=start * _BATCH))))


def _plain_loader(dataset: _Samples, workers: int) -> Any:
    return DataLoader(dataset, _BATCH, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(0))


def _drop(dataset: _Samples, start: int, *, workers: int) -> float:
    loader = _plain_loader(dataset, workers)

    def first() -> Any:
        for number, batch in enumerate(loader):
            if number >= start:
                return batch
        return None

    return seconds(first)


def _accelerate(dataset: _Samples, start: int, *, workers: int) -> float:
    library = peer("accelerate")
    loader = library.Accelerator(cpu=True).prepare(_plain_loader(dataset, workers))
    return seconds(lambda: next(iter(library.skip_first_batches(loader, start))))


if __name__ == "__main__":
    run_alone(measure)

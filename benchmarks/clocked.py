"""What all loops of `benchmarks/loops.py` train: a small model that holds the clock, and its data."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH, LOG_EVERY, RATE = 16, 50, 1e-3
STEPS_PER_EPOCH = 500
WARM_UP = 50  # steps before the clock starts


class ClockedModel(nn.Module):
    """The perceptron; notes when forward pass number `first` and number `last` begin."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.calls, self.first, self.last = 0, min(WARM_UP, steps // 2), steps - 1
        self.times: dict[int, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of x [B, 64]."""
        if self.calls in (self.first, self.last):
            self.times[self.calls] = time.process_time()
        self.calls += 1
        logits: Tensor = self.net(x)
        return logits

    def seconds_per_step(self) -> float:
        """Mean over the steps between the two, in processor time (other programs on the machine do not count)."""
        return (self.times[self.last] - self.times[self.first]) / (self.last - self.first)


class Data:
    """The training set in memory, and its batches for loops that are given them ready-made."""

    def __init__(self, *, ready_made: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(STEPS_PER_EPOCH * BATCH, 64, generator=generator)
        y = torch.randint(0, 10, (len(x),), generator=generator)
        self.dataset = TensorDataset(x, y)
        self.ready_made = ready_made
        self.batches = list(zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True))

    def torch_loader(self) -> Any:
        """What a plain PyTorch script iterates over."""
        return ReadyMade(self.batches) if self.ready_made else DataLoader(self.dataset, BATCH, shuffle=True)


class ReadyMade(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
    """Batches that lie in memory, as a dataset that yields them."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

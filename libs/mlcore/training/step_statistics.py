"""Figures of training steps, kept on the device until somebody reads them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Totals:
    """Sums over all samples and ranks since the last read, and the state of the skip counters.

    Attributes:
        loss: Mean loss per counted sample of the steps that were applied.
        logs: Means of the task's logs, likewise.
        count: Counted samples.
        grad_norm: Norm of the last window's mean gradient before clipping.
        updates: Updates applied since the start of training.
        skipped: Non-finite windows since the start of training.
        worst_row: Longest row of non-finite windows, without an update in between, up to a window since the last read.
    """

    loss: float
    logs: dict[str, float]
    count: float
    grad_norm: float
    updates: int
    skipped: int
    worst_row: int


class StepStatistics:
    """Figures of each window, kept on the device and added up a whole interval at a time.

    A step appends references; the arithmetic is done for many windows at once, when somebody reads.

    Args:
        device: Where the figures are.
    """

    _FOLD_AFTER = 256  # windows; bounds memory when nobody reads

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self._counts: dict[tuple[int, torch.dtype], Tensor] = {}
        self._rows: list[list[Tensor]] = []
        self._norms: list[Tensor] = []
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # [2 + logs] of applied windows
        self._streak = torch.zeros(2, dtype=torch.int64, device=device)  # skipped in a row: now, worst since last read
        self._last_norm = torch.zeros((), device=device)

    def row(self, loss_sum: Tensor, count: int | Tensor, logs: Mapping[str, Tensor]) -> list[Tensor]:
        """Of one micro-batch, scalars: loss sum, count, sums of logs."""
        if logs and logs.keys() != set(self._names):  # at the first step, or where a run goes on with another loss
            self._names, self._sums = tuple(logs), self._sums.new_zeros(2 + len(logs))
        loss = _exact(loss_sum)
        counted = count if isinstance(count, Tensor) else self._constant(count, loss.dtype)
        return [loss, counted, *(_exact(logs[name]) for name in self._names)]

    def _constant(self, value: int, dtype: torch.dtype) -> Tensor:
        if (value, dtype) not in self._counts:  # a copy to the device a batch size, not a step
            self._counts[value, dtype] = torch.tensor(float(value), dtype=dtype, device=self._device)
        return self._counts[value, dtype]

    def add(self, sums: list[Tensor], grad_norm: Tensor) -> None:
        """Take in a window: its summed rows and the norm of its gradient."""
        self._rows.append(sums)
        self._norms.append(grad_norm)
        if len(self._rows) >= self._FOLD_AFTER:
            self._fold()

    def _fold(self) -> None:
        if not self._rows:
            return
        columns = [torch.stack(column).double() for column in zip(*self._rows, strict=True)]
        rows, norms = torch.stack(columns, dim=1), torch.stack(self._norms)  # [W, 2 + logs], [W]
        self._rows, self._norms = [], []
        finite = torch.isfinite(norms)
        self._sums += torch.where(finite[:, None], rows, 0.0).sum(0)
        # Windows since the last applied one, for every window; before the first of them the old streak goes on.
        index = torch.arange(1, len(norms) + 1, device=self._device)
        last_good = torch.where(finite, index, -self._streak[0]).cummax(0).values
        streaks = index - last_good
        self._streak = torch.stack([streaks[-1], torch.maximum(self._streak[1], streaks.max())])
        self._last_norm = norms[-1]

    def read(self, *, windows: int, updates: Tensor) -> Totals:
        """Everything since the last read, in one transfer; `windows` run and `updates` applied since the start."""
        self._fold()
        everything = [self._sums, self._streak.double(), updates.double(), self._last_norm.double().reshape(1)]
        *sums, _, worst, applied, norm = torch.cat(everything).tolist()
        self._sums = torch.zeros_like(self._sums)
        self._streak = self._streak[:1].repeat(2)
        loss, _, *logs = [value / sums[1] if sums[1] else math.nan for value in sums]
        return Totals(
            loss=loss,
            logs=dict(zip(self._names, logs, strict=False)),
            count=sums[1],
            grad_norm=norm,
            updates=int(applied),
            skipped=windows - int(applied),
            worst_row=int(worst),
        )

    def state_dict(self) -> dict[str, Any]:
        """What has not been read yet."""
        self._fold()
        return {"names": list(self._names), "sums": self._sums, "streak": self._streak, "norm": self._last_norm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._names = tuple(state["names"])
        self._sums = state["sums"].to(self._device)
        self._streak = state["streak"].to(self._device)
        self._last_norm = state["norm"].to(self._device)


def _exact(value: Tensor) -> Tensor:
    """Without its graph, float32 at least: what is added up is not rounded to half precision."""
    value = value.detach()
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value

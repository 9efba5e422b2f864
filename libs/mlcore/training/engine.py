"""One optimiser step: autocast, exact accumulation windows, loss scaling, clipping, update, EMA.

Gradients of a window are exact. The loss of every micro-batch enters backward as a *sum* over samples; the counts of
samples are added up over micro-batches and ranks, and the gradients are divided once by that total, in the same
multiplication that clips them. One batch of 12 therefore gives the gradients of three batches of 4, of 5 + 5 + 2, and
of two ranks.

Nothing here waits for a GPU: a non-finite step is cancelled on the device (the fused optimisers read `found_inf`),
the learning rate is looked up on the device by the number of updates that really happened, and figures for the log stay
on the device until `read_totals` adds them up and fetches them in one transfer.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mlcore.base.distributed import World, all_reduce_sum, broadcast
from mlcore.data.batch import MicroBatch
from mlcore.training.optim import Buffers, take_over_moments
from mlcore.training.step_statistics import StepStatistics, Totals

_log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16", "auto"]

_NOTHING = nullcontext()


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type that `precision` means on `device`; None is float32.

    "auto" is what is both quick and safe there: bfloat16 where the device multiplies it itself, float16 on other GPUs,
    float32 on other processors.
    """
    if precision != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    can = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if can.get("avx512_bf16") or can.get("amx_bf16") else None


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context of forward passes in `precision` on `device`."""
    dtype = autocast_dtype(precision, device)
    return _NOTHING if dtype is None else torch.autocast(device.type, dtype=dtype)


@dataclass(frozen=True)
class StepOutput:
    """What a training step of a task returns; tensors that nobody changes afterwards, for they are read later.

    Attributes:
        loss_sum: Scalar tensor; the loss summed (not averaged) over the counted samples.
        count: Number of samples in that sum (their total weight, for weighted losses).
        logs: Further scalar sums over the same samples; the log shows them divided by the total count.
    """

    loss_sum: Tensor
    count: int | Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


def unwrap(model: nn.Module) -> nn.Module:
    """The module itself, without a DDP wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model


class Engine:
    """Runs windows of micro-batches through forward, backward and the optimiser.

    Args:
        model: The module to train; wrapped in DDP by the caller where there are ranks.
        optimizer: A fused one (see `mlcore.training.optim`), or any other at the cost of one host sync a step.
        learning_rates: float [updates + 1, groups], the rate of each group at each update; the last row stays.
        precision: Autocast type; fp16 adds dynamic loss scaling; "auto" is explained at `autocast_dtype`.
        max_grad_norm: L2 norm to which the window's mean gradient is clipped, or None.
        nominal_count: Samples of a full window over all ranks. It only keeps the summed loss within the range of fp16;
            results do not depend on it.
        ema_decay: Decay per update of the averaged weights, or None for none. It warms up: after t updates it is at
            most ``(1 + t) / (10 + t)``, so that the average of a short run is not mostly its initial weights.
        world: Ranks and device.

    Attributes:
        arithmetic: The type in which matrices are multiplied.
        recomputes: Whether backward computes activations once more (gradient checkpointing); buffers, which that moves
            again, are then put back.
        settle: Called with the averaged weights in place, before they are used (`batch_norm.estimate_statistics`).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        learning_rates: NDArray[np.float64],
        precision: Precision = "fp32",
        max_grad_norm: float | None = None,
        nominal_count: float = 1.0,
        ema_decay: float | None = None,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.device = self.world.device
        self.model = model
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.arithmetic = autocast_dtype(precision, self.device) or torch.float32
        scales = self.arithmetic is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scales)
        self._nominal_count = nominal_count if scales else 1.0
        self._has_host_memory = self.device.type == "cpu"  # a look costs nothing
        self._can_cancel = not self._has_host_memory and getattr(optimizer, "_step_supports_amp_scaling", False)
        self._truth = {value: torch.tensor(value, device=self.device) for value in (False, True)}
        # DDP averages over ranks; wanted is the sum over ranks divided by the total count.
        self._scale = torch.tensor(self._nominal_count * self.world.size, device=self.device)
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._ema = [p.detach().clone() for p in self._parameters] if ema_decay is not None else []
        self.recomputes = False
        self.settle: Callable[[], None] | None = None
        self._buffers = Buffers(getattr(model, "module", model))
        self._counts = Buffers(getattr(model, "module", model), counts=True)
        self._ema_buffers = self._buffers.read()
        self._lr_table = torch.as_tensor(
            learning_rates, dtype=torch.float32, device=self.device
        )  # [updates + 1, groups]
        self._lr_now = torch.empty(1, self._lr_table.shape[1], device=self.device)
        self._lr_scale = 1.0
        self._adopt_learning_rates()
        self._updates = torch.zeros(1, dtype=torch.int64, device=self.device)  # applied; the index into the table
        self._windows = 0
        self._statistics = StepStatistics(self.device)

    # ---------------------------------------------------------------------------------------------------- the step

    def run_window(self, forward: Callable[[nn.Module, Any], StepOutput], window: Sequence[MicroBatch]) -> None:
        """One optimiser update from all micro-batches of `window`.

        Args:
            forward: The task's training step.
            window: At least one micro-batch; every rank passes the same number of them.
        """
        self._set_learning_rates()
        buffers, counts = self._buffers.read(), self._counts.read()
        sums = self._backward(forward, window)
        if self.world.size > 1:
            sums = list(all_reduce_sum(torch.stack(sums)))
        grad_norm = self._mean_and_clip(sums[1])
        finite = self._is_finite(grad_norm)
        self._keep_buffers(finite, buffers, counts)
        self._update(finite)
        for parameter in self._parameters:
            parameter.grad = None
        self._windows += 1
        self._statistics.add(sums, grad_norm)

    def _backward(self, forward: Callable[[nn.Module, Any], StepOutput], window: Sequence[MicroBatch]) -> list[Tensor]:
        """Backward of every micro-batch; returns this rank's sums, scalars: loss, count, logs."""
        sums: list[Tensor] = []
        for i, batch in enumerate(window):
            with self._gradient_sync(last=i == len(window) - 1):
                with self.autocast():
                    output = forward(self.model, batch.data)
                loss = output.loss_sum if batch.real else output.loss_sum * 0.0
                if self._nominal_count != 1.0:
                    loss = loss / self._nominal_count
                with self._one_forward_pass() if self.recomputes else _NOTHING:
                    self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            row = self._statistics.row(output.loss_sum, output.count, output.logs)
            if not batch.real:
                row = [torch.zeros_like(value) for value in row]
            sums = [one + other for one, other in zip(sums, row, strict=True)] if sums else row
        if not sums:
            raise ValueError("an accumulation window needs at least one micro-batch")
        return sums

    @contextmanager
    def _one_forward_pass(self) -> Iterator[None]:
        """Around backward: what gradient checkpointing computes once more is not counted again by batch norms."""
        buffers, counts = self._buffers.read(), self._counts.read()
        yield
        self._buffers.write(buffers)
        self._counts.write(counts)

    def _mean_and_clip(self, count: Tensor) -> Tensor:
        """Turn summed gradients into clipped means in one multiplication; returns the norm of the mean, unclipped."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # A window that counts nothing divides by zero and is skipped like any other that is not finite.
        factor = self._scale / count
        norm = torch.nn.utils.get_total_norm(gradients) * factor
        if self.max_grad_norm is not None:
            factor = factor / (norm / self.max_grad_norm).clamp_(min=1.0)
        torch._foreach_mul_(gradients, factor)
        return norm

    def _is_finite(self, norm: Tensor) -> Tensor:
        if self._has_host_memory:
            return self._truth[math.isfinite(norm)]
        return (norm - norm).eq(0)  # inf - inf and nan - nan are nan

    def _keep_buffers(self, finite: Tensor, buffers: Tensor, counts: Tensor) -> None:
        """Buffers keep what the window's forward passes made of them only where `finite` (bool, scalar) is true."""
        for kind, before in ((self._buffers, buffers), (self._counts, counts)):
            if kind.names:
                kind.write(torch.where(finite, kind.read(), before))

    def _update(self, finite: Tensor) -> None:
        """Optimiser, loss scale, EMA and the count of updates move only where `finite` (bool, scalar) is true."""
        if self._can_cancel:
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(finite):  # of a GPU the one look at it in a step, for optimisers that cannot cancel there
            self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        if self.ema_decay is not None:
            self._average(finite, self.ema_decay)
        self._updates += finite

    @torch.no_grad()
    def _average(self, finite: Tensor, decay: float) -> None:
        # 1 - min(decay, (1 + t) / (10 + t)), in a form that rounds well; nothing where the step was skipped.
        share = finite * (9.0 / (10.0 + self._updates[0])).clamp_(min=1.0 - decay)
        change = torch._foreach_sub(self._parameters, self._ema)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(self._ema, change)
        if self._buffers.names:
            self._ema_buffers += (self._buffers.read() - self._ema_buffers) * share

    def _gradient_sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a window, during the last micro-batch's backward."""
        if self.world.size == 1 or last or not hasattr(self.model, "no_sync"):
            return _NOTHING
        no_sync: Callable[[], AbstractContextManager[None]] = self.model.no_sync  # type: ignore[assignment]
        return no_sync()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision context of forward passes, for training and evaluation alike."""
        if self.arithmetic is torch.float32:
            return _NOTHING
        return torch.autocast(self.device.type, dtype=self.arithmetic)

    # ----------------------------------------------------------------------------------------------- learning rates

    def scale_learning_rates(self, scale: float) -> None:
        """Multiply every scheduled rate by `scale` (relative to the schedule, not to the last call)."""
        self._lr_scale = scale

    @property
    def table(self) -> NDArray[np.float64]:
        """The rate of each group at each update, [updates + 1, groups]."""
        return self._lr_table.double().cpu().numpy()

    def replace_learning_rates(self, learning_rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Use another table [updates + 1, groups] from now on; returns the one used until now."""
        kept = self.table
        self._lr_table = torch.as_tensor(learning_rates, dtype=torch.float32, device=self.device)
        return kept

    def learning_rates(self) -> list[float]:
        """Rate of each parameter group at the last window."""
        return [float(rate) for rate in self._lr_now[0]]

    def _adopt_learning_rates(self) -> None:
        # Each group's lr is a view of one tensor, so that a single look-up on the device sets them all.
        for k, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self._lr_now[0, k]

    def _set_learning_rates(self) -> None:
        last = len(self._lr_table) - 1
        row = self._updates if self._windows <= last else self._updates.clamp(max=last)
        torch.index_select(self._lr_table, 0, row, out=self._lr_now)
        if self._lr_scale != 1.0:
            self._lr_now.mul_(self._lr_scale)

    # -------------------------------------------------------------------------------------------------- figures, EMA

    def read_totals(self) -> Totals:
        """Means since the last call and the skip counters: the one host sync of a log interval."""
        return self._statistics.read(windows=self._windows, updates=self._updates)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside the block the model holds the EMA weights (where there are any), after it the trained ones again."""
        self._buffers.write(broadcast(self._buffers.read()))  # ranks evaluate what rank 0 saves; their own differ
        broadcast(self._ema_buffers)
        self._swap_ema()
        try:
            yield
        finally:
            self._swap_ema()

    def settle_averages(self) -> None:
        """Make the EMA weights ready for use: what `settle` makes of their buffers stays with them in checkpoints."""
        if self.settle is not None:
            with self.averaged_weights():
                self.settle()

    @torch.no_grad()
    def _swap_ema(self) -> None:
        for parameter, average in zip(self._parameters, self._ema, strict=False):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
        if self.ema_decay is not None:
            kept = self._buffers.read()
            self._buffers.write(self._ema_buffers)
            self._ema_buffers = kept

    # --------------------------------------------------------------------------------------------------------- state

    def _names(self) -> list[str]:
        """Names of the trained parameters in the bare model's state dict, in the optimiser's order."""
        bare = getattr(self.model, "module", self.model)
        by_id = {id(parameter): name for name, parameter in bare.named_parameters()}
        return [by_id[id(parameter)] for parameter in self._parameters]

    def _averages(self) -> Iterator[tuple[str, Tensor]]:
        """Averaged parameters and buffers by name, none without an average."""
        if self.ema_decay is not None:
            yield from zip(self._names(), self._ema, strict=True)
            yield from zip(self._buffers.names, self._buffers.split(self._ema_buffers), strict=True)

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, scaler, EMA, counters and unread sums: tensors and primitives only."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "names": self._names(),
            "scaler": self.scaler.state_dict(),
            "ema": dict(self._averages()),
            "updates": self._updates,
            "windows": self._windows,
            "lr_scale": self._lr_scale,
            "statistics": self._statistics.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, after the model; exactly, unless settings have changed.

        Settings are those of this engine. Moments go with their parameters, or begin anew where the optimiser is of
        another kind; an average that the state does not have begins with the weights of now, a loss scale afresh.
        """
        names = self._names()
        if not take_over_moments(self.optimizer, state["optimizer"], names=names, saved_names=state.get("names")):
            _log.warning(
                "the optimiser's moments begin anew: the checkpoint has none of this kind, or not whose they are"
            )
        # Those of the last window, until the next one begins: an evaluation may come first, and tell them.
        rates = [float(group["lr"]) for group in state["optimizer"]["param_groups"]]
        if len(rates) == self._lr_now.shape[1]:
            self._lr_now[0] = torch.as_tensor(rates)
        self._adopt_learning_rates()
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema_decay is not None and not state["ema"]:
            _log.warning("the average of the weights begins with those of now: the checkpoint has none")
        now = (*self._parameters, *self._buffers.split(self._buffers.read()))
        for (name, average), value in zip(self._averages(), now, strict=False):
            average.copy_(state["ema"].get(name, value))
        self._updates.copy_(state["updates"])
        self._windows, self._lr_scale = state["windows"], state["lr_scale"]
        if "statistics" in state:  # not in checkpoints of 0.1.0, whose figures of the interval that was cut are lost
            self._statistics.load_state_dict(state["statistics"])

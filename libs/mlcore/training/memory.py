"""How much memory a training will need, foretold from windows of two small micro-batches.

What is live at each allocation of a step grows in a straight line with the micro-batch: two sizes give the line of
every one of them, and the highest at the asked size is the peak. Torch's profiler sees all that torch allocates, inside
its operations, too. That is added to what the process, or the GPU, holds between two steps.
"""

import ctypes
import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mlcore.data.batch import MicroBatch
from mlcore.data.order import BatchKey
from mlcore.training.batch_norm import batch_norms
from mlcore.training.engine import unwrap
from mlcore.training.trainer import Trainer

__all__ = ["MemoryPlan", "available_bytes", "checkpoint_bytes", "largest_windows", "plan_memory"]

_CGROUP = Path("/sys/fs/cgroup")
_SLACK = 0.2  # of the highest point: what a CPU's allocator and kernels took besides; 0.22 to 0.34 was seen
_TRIES = 4  # sizes of micro-batches beside the first, each larger by one


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a training needs of memory, as a function of its micro-batch.

    Attributes:
        held: Bytes that do not depend on the micro-batch, by what they are for.
        sample: Bytes of a sample in a batch.
        sizes: Samples of the two micro-batches that were tried.
        curves: int64 [allocations] for each of them: live bytes above `held`, in the course of a step.
        checkpoint: Bytes of the copy from which checkpoints are written; in host memory.
        slack: Share of a step's bytes that the allocator and the kernels take besides.
    """

    held: Mapping[str, int]
    sample: int
    sizes: tuple[int, int]
    curves: tuple[NDArray[np.int64], NDArray[np.int64]]
    checkpoint: int
    slack: float = 0.0

    def parts(self, batch_size: int, *, accumulation: int) -> dict[str, int]:
        """Bytes at the peak by what they are for, with so many samples in a micro-batch.

        Args:
            batch_size: Samples of a micro-batch.
            accumulation: Micro-batches of a step; those of two steps are held at a time.
        """
        step = self._step(batch_size)
        return {
            **self.held,
            "activations and gradients": step,
            "allocator and kernels": int(self.slack * step),
            "batches": 2 * accumulation * batch_size * self.sample,
            "copy for checkpoints": self.checkpoint,
        }

    def peak(self, batch_size: int, *, accumulation: int) -> int:
        """Bytes of all parts together."""
        return sum(self.parts(batch_size, accumulation=accumulation).values())

    def _step(self, batch_size: int) -> int:
        (low, high), (one, other) = self.sizes, self.curves
        if len(one) != len(other):  # operations that depend on the data
            one, other = one.max(keepdims=True), other.max(keepdims=True)
        return int(np.max(one + (other - one) * (batch_size - low) / (high - low)))


def plan_memory(trainer: Trainer, *, micro_batches: int | None = None) -> MemoryPlan:
    """Run small windows of `trainer`, whose weights and moments move.

    Args:
        trainer: With the weights on the device, not trained yet; its checkpoints are only counted.
        micro_batches: Of a window; None: as it has, but not more than two, after which nothing new comes.
    """
    engine, low = trainer.engine, 2 if batch_norms(unwrap(trainer.engine.model)) else 1
    count = min(2, trainer.accumulation) if micro_batches is None else micro_batches
    engine.model.train()
    (window,) = largest_windows(trainer, (low,), count)
    _run(trainer, window)  # makes the moments, and brings in all the code that a step needs
    held, curves = _held(trainer), [_curve(trainer, window)]
    most = max(low + 1, min(low + _TRIES, trainer.loader.order.batch_size))
    for following in largest_windows(trainer, range(low + 1, most + 1), count):
        curves.append(_curve(trainer, following))
        if len(curves[-2]) == len(curves[-1]):  # the same operations; some are others where samples are few
            break
    tried = low + len(curves) - 1
    return MemoryPlan(
        held=held,
        sample=_bytes(tree_leaves(window[0].data)) // low,
        sizes=(tried - 1, tried),
        curves=(curves[-2], curves[-1]),
        checkpoint=checkpoint_bytes(trainer) if engine.device.type == "cpu" else 0,
        slack=_SLACK if engine.device.type == "cpu" else 0.0,
    )


def largest_windows(trainer: Trainer, sizes: Iterable[int], count: int) -> Iterator[list[MicroBatch]]:
    """For each size a window of `count` micro-batches of so many copies of the longest sample, on the device."""
    order = trainer.loader.order
    longest = 0 if order.lengths is None else int(np.argmax(order.lengths))
    for size in sizes:
        batch = trainer.loader.read(BatchKey(epoch=0, indices=(longest,) * size))
        yield [batch.to(trainer.engine.device)] * count


def _run(trainer: Trainer, window: Sequence[MicroBatch]) -> None:
    trainer.engine.run_window(trainer.task.training_step, window)


def _held(trainer: Trainer) -> dict[str, int]:
    """Bytes that are there between two steps."""
    engine = trainer.engine
    state = engine.state_dict()
    parts = {
        "parameters": _bytes(unwrap(engine.model).state_dict().values()),
        "averages": _bytes(state["ema"].values()),
        "optimiser": _bytes(tree_leaves(state["optimizer"])),
    }
    gc.collect()
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
        return {"besides": torch.cuda.memory_allocated(engine.device) - sum(parts.values()), **parts}
    with suppress(OSError, AttributeError):  # glibc's: give back what the first step left free
        ctypes.CDLL(None).malloc_trim(0)
    return {"process and data": psutil.Process().memory_info().rss - sum(parts.values()), **parts}


def _bytes(values: Iterable[object]) -> int:
    """Bytes of the tensors among `values`, of those that share their memory once."""
    held = {value.data_ptr(): value.nbytes for value in values if isinstance(value, Tensor)}
    return sum(held.values())


def _curve(trainer: Trainer, window: Sequence[MicroBatch]) -> NDArray[np.int64]:
    """Live bytes in the course of a step above those before it, after each allocation and release."""
    device = trainer.engine.device
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell on stderr that it begins and ends
    vars(trainer.engine.optimizer).pop("found_inf", None)  # torch would warn that it never saw made what it sees freed
    with torch.autograd.profiler.profile(profile_memory=True) as profile:  # torch.profiler's imports Triton: 150 MiB
        _run(trainer, window)
    found = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    own = [event for event in found if event.device_type().name == device.type.upper()]
    sizes = [event.nbytes() for event in sorted(own, key=lambda event: event.start_ns())]
    return np.cumsum([0, *sizes], dtype=np.int64)


def checkpoint_bytes(trainer: Trainer) -> int:
    """Size of a checkpoint once the optimiser has its moments: weights, averages, moments."""
    engine = trainer.engine
    tensors = [*unwrap(engine.model).state_dict().values(), *engine.state_dict()["ema"].values()]
    defaults = engine.optimizer.defaults
    moments = 2 if "betas" in defaults else int(bool(defaults.get("momentum")))
    trained = sum(p.nbytes for group in engine.optimizer.param_groups for p in group["params"])
    return int(_bytes(tensors) + moments * trained)  # tied weights are there once


def available_bytes(device: torch.device) -> int:
    """Memory that this process may still take: of the GPU, or of the machine and the container it is in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free: int = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        used = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())["anon"]
        free = min(free, int((_CGROUP / "memory.max").read_text()) - int(used))
    return free

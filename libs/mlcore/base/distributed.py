"""One process group, started from torchrun's environment; every helper is a no-op in a single process."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mlcore.base.errors import UserError

NO_MPS = "MPS has no float64, in which losses and metrics are summed"
"""Why training does not run on Apple's graphics processors."""

_PATIENCE = timedelta(days=1)
"""How long ranks wait for one that works alone, as rank 0 does when it looks for duplicates or fills a cache."""

_GONE = re.compile(r"[Cc]onnection (closed|reset)|[Bb]roken pipe")
"""What gloo and NCCL say when another process is no longer there."""

_host: Any = None
"""The group for what travels through host memory; a collective on devices that takes minutes is a fault, not work."""


@dataclass(frozen=True)
class World:
    """Where this process stands among all training processes.

    Attributes:
        rank: 0 .. size - 1; rank 0 writes files and logs.
        size: Number of processes.
        device: The device this process trains on.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0


@contextmanager
def start_world(device: str = "auto") -> Iterator[World]:
    """Join the process group that torchrun describes, or stand alone.

    Args:
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: A CUDA device is asked for and not there.
    """
    size, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank=local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(device=chosen)
        return
    global _host
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    _host = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen)
        # A rank that left at once could end while gloo's threads still hold tensors of the last collective: they would
        # ask for the interpreter's lock while it shuts down, and abort the process. A rank that failed says so itself.
        with suppress(RuntimeError):
            barrier()
    finally:
        _host = None
        dist.destroy_process_group()


def pick_device(name: str, *, local_rank: int = 0) -> torch.device:
    """Resolve "auto", "cpu", "cuda" or "cuda:N" for the process with this rank on its machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name.partition(":")[0] == "mps":
        raise UserError(f"device '{name}' was asked for: Apple GPUs are not used ({NO_MPS}); use --device cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"device '{name}' was asked for, but torch sees no CUDA device; use --device cpu or check the driver"
        )
    device = torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
    if device.index is None or device.index >= torch.cuda.device_count():
        raise UserError(f"device '{device}' was asked for, but torch sees {torch.cuda.device_count()} CUDA device(s)")
    return device


def is_distributed() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _with_peers() -> Iterator[None]:
    """What fails in the block because another process is gone is no fault of this one's."""
    try:
        yield
    except RuntimeError as error:
        if _GONE.search(str(error)) is None:
            raise
        raise UserError(
            "another process of this run has ended; what that one printed says why. The same command goes on from what "
            "was saved"
        ) from error


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum `values` over ranks in place and return it."""
    if is_distributed():
        with _with_peers():
            dist.all_reduce(values)
    return values


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on any rank; every rank must call it. Uses host memory, so no device sync."""
    if not is_distributed():
        return flag
    votes = torch.tensor(int(flag))
    with _with_peers():
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_host)
    return bool(votes)


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    with _with_peers():
        dist.all_gather_object(gathered, value, group=_host)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if not is_distributed():
        return value
    box = [value]
    with _with_peers():
        dist.broadcast_object_list(box, group=_host)
    return box[0]


def broadcast(values: Tensor) -> Tensor:
    """Rank 0's `values`, on every rank; the same tensor."""
    if is_distributed() and values.numel():
        with _with_peers():
            dist.broadcast(values, src=0)
    return values


def barrier() -> None:
    """Wait for every rank, on the host: what devices still compute is not waited for."""
    if is_distributed():
        with _with_peers():
            dist.barrier(group=_host)

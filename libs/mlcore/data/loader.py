"""Batches for the trainer and the evaluator: any map-style dataset, read in a resumable order.

Augmentation is a function of (seed, epoch, sample), so the pixels do not depend on workers, batch size or ranks.
"""

import atexit
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from mlcore.base.errors import UserError
from mlcore.base.seeding import numpy_rng, torch_rng
from mlcore.data.batch import MicroBatch
from mlcore.data.order import BatchKey, EpochOrder

_AUGMENTATION_STREAM = 2
_WORKER_STREAM = 3

SHARED_MEMORY = 256 << 20
"""Bytes that workers need at least to pass their batches."""

Collate = Callable[[list[Any]], Any]
Transform = Callable[[Any, np.random.Generator], Any]
Prepare = Callable[[Any], Any]

# Torch's iterators that have workers. The reference is a strong one: if the cycle collector takes an iterator, it first
# closes the queues through which the workers would be told to end.
_at_work: set[Any] = set()


class SizedDataset(Protocol):
    """A map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class EpochDataset(SizedDataset, Protocol):
    """A data set that is not the same in every epoch, such as one that repeats samples of rare classes."""

    def in_epoch(self, epoch: int, index: int, /) -> Any:
        """The sample at place `index` of `epoch`, a function of the two."""


class BatchLoader:
    """Iterates over one epoch of micro-batches, from any position.

    Args:
        dataset: Map-style; its samples must be functions of the index, or, of an `EpochDataset`, of epoch and index.
        order: Which samples at which step.
        transform: Random augmentation `(sample, rng) -> sample`; `rng` is keyed by seed, epoch and sample.
        prepare: Last change of each sample, before the next one is read: what makes it smaller belongs here, so that a
            batch of large images is never in memory as a whole.
        collate: Makes a batch of a list of samples; torch's default collate if not given.
        num_workers: Worker processes; 0 reads in this process.
        pin_memory: Put batches in page-locked memory, so that copies to a GPU overlap with computation.
        timeout_s: Seconds to wait for a worker before giving up; 0 waits forever.

    Raises:
        UserError: The dataset is empty, or has not one batch.
    """

    def __init__(
        self,
        dataset: SizedDataset,
        order: EpochOrder,
        *,
        transform: Transform | None = None,
        prepare: Prepare | None = None,
        collate: Collate | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        timeout_s: float = 0.0,
    ) -> None:
        if order.size == 0:
            raise UserError("the dataset is empty: check the paths and the filters that were applied to it")
        if len(order) == 0:
            ranks = f" x {order.world_size} processes" if order.world_size > 1 else ""
            raise UserError(
                f"an epoch would have no batch: {order.size} samples are fewer than one batch of {order.batch_size}"
                f"{ranks}, and --drop_last leaves out what is short of one; lower --batch_size, or use --no_drop_last"
            )
        self.order = order
        self.dataset = dataset
        self.num_workers = num_workers
        self._sampler = _BatchSampler(order)
        self._samples = _KeyedDataset(dataset, transform, prepare, order.seed)
        self._collate = partial(_collate, collate or default_collate)
        self._pins = pin_memory and torch.accelerator.is_available()
        if not num_workers:  # torch's loader would do what `epoch` does, with more around it
            return
        self._loader: DataLoader[Any] = DataLoader(
            self._samples,  # type: ignore[arg-type]
            batch_sampler=self._sampler,  # type: ignore[arg-type]
            collate_fn=self._collate,
            num_workers=num_workers,
            persistent_workers=True,
            pin_memory=pin_memory,
            timeout=timeout_s,
            worker_init_fn=partial(_start_worker, order.seed, order.rank),
            # An own generator: torch would otherwise draw from the global one at every start of an epoch, and a resumed
            # run starts epochs at other moments than an uninterrupted one.
            generator=torch_rng(_WORKER_STREAM, order.seed, order.rank),
        )

    def __len__(self) -> int:
        """Micro-batches of one epoch."""
        return len(self.order)

    def group_by(self, samples: int) -> None:
        """Let so many samples of similar length stand together from now on; see `EpochOrder.group`."""
        self.order = self._sampler.order = replace(self.order, group=samples)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[MicroBatch]:
        """Micro-batches of `epoch` after its first `start` samples, which are not read."""
        if not self.num_workers:
            for key in self.order.batches(epoch, start=start):
                batch = self.read(key)
                yield batch.pin_memory() if self._pins else batch
            return
        self._sampler.epoch, self._sampler.start = epoch, start
        iterator = iter(self._loader)
        if iterator not in _at_work:
            _at_work.add(iterator)
            weakref.finalize(self, _dismiss, iterator).atexit = False
        for fetched in iterator:
            if isinstance(fetched, UserError):
                raise fetched
            yield fetched

    def read(self, key: BatchKey) -> MicroBatch:
        """One batch, read in this process."""
        fetched = self._collate(self._samples.__getitems__(key))
        if isinstance(fetched, UserError):
            raise fetched
        return fetched


def _dismiss(iterator: Any) -> None:
    """End an iterator's workers. Python would send SIGTERM, which they ignore, and wait for ever."""
    _at_work.discard(iterator)
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()


@atexit.register  # after torch's own callback, so it runs before that, when workers can still be told to end
def _dismiss_all() -> None:
    for iterator in list(_at_work):
        _dismiss(iterator)


class _BatchSampler(Sampler[BatchKey]):
    def __init__(self, order: EpochOrder) -> None:
        self.order = order
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[BatchKey]:
        return self.order.batches(self.epoch, start=self.start)


class _KeyedDataset:
    """Reads the samples of a `BatchKey`; the loader's fetcher calls `__getitems__` with whatever the sampler yields."""

    def __init__(self, dataset: SizedDataset, transform: Transform | None, prepare: Prepare | None, seed: int) -> None:
        self._dataset = dataset
        self._per_epoch = dataset if isinstance(dataset, EpochDataset) else None
        self._as_they_are = self._per_epoch is None and transform is None and prepare is None
        self._transform = transform
        self._prepare = prepare
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, key: BatchKey) -> tuple[list[Any], bool] | UserError:
        try:
            if self._as_they_are:
                return [self._dataset[index] for index in key.indices], key.real
            return [self._read(index, key.epoch) for index in key.indices], key.real
        except UserError as error:  # raised in a worker it would reach the user wrapped into the worker's traceback
            return error

    def _read(self, index: int, epoch: int) -> Any:
        per_epoch = self._per_epoch
        sample = self._dataset[index] if per_epoch is None else per_epoch.in_epoch(epoch, index)
        if self._transform is not None:
            sample = self._transform(sample, numpy_rng(_AUGMENTATION_STREAM, self._seed, epoch, index))
        return sample if self._prepare is None else self._prepare(sample)


def _collate(collate: Collate, fetched: tuple[list[Any], bool] | UserError) -> MicroBatch | UserError:
    if isinstance(fetched, UserError):
        return fetched
    samples, real = fetched
    return MicroBatch(collate(samples), real)


def _start_worker(seed: int, rank: int, worker: int) -> None:
    """Leaves signals to the trainer and seeds the global generators, for data sets that draw from them."""
    # Signals to the whole process group are for the trainer, which still needs its workers to finish the step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.manual_seed(torch_rng(_WORKER_STREAM, seed, rank, worker).initial_seed())
    np.random.seed(int(numpy_rng(_WORKER_STREAM, seed, rank, worker).integers(2**32)))


def worker_count(
    wanted: int | Literal["auto"], *, samples: int, batch_size: int, processes: int = 1, cap: int = 8
) -> int:
    """How many loader workers to start for each training process.

    Args:
        wanted: An explicit number, or "auto".
        samples: Size of the dataset; a worker that would get fewer than four batches is not worth its start.
        batch_size: Samples of a batch.
        processes: Training processes that share this machine's cores.
        cap: Most workers "auto" starts.

    Returns:
        With "auto": the cores left over for each process, not more than `cap`, and 0 on small datasets or when shared
        memory is too small to pass batches between processes.
    """
    if wanted != "auto":
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if shared_memory_bytes() < SHARED_MEMORY:
        return 0
    worthwhile = samples // (4 * batch_size)
    return max(0, min(cap, cores // processes - 1, worthwhile))


def shared_memory_bytes() -> int:
    """Free bytes of what workers pass batches through; any number where that is no file system."""
    try:
        stat = os.statvfs("/dev/shm")  # noqa: S108 - the system's own shared memory
    except (OSError, AttributeError):
        return 2**63  # platforms without it pass batches by other means
    return stat.f_bavail * stat.f_frsize

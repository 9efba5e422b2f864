"""Which samples a rank sees at which step: a function of (seed, epoch), never a state.

An epoch is a permutation cut into *global batches*, each of which is cut into contiguous parts, one per rank. Because
the permutation can be computed for any epoch at any time, resuming in the middle of an epoch is a slice. The
permutation knows nothing of the cut, so that a run may go on with another batch size or number of ranks: what is left
of the epoch is cut in another way, and every sample still comes exactly once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlcore.base.seeding import numpy_rng

_ORDER_STREAM = 1  # keeps the order's random numbers apart from augmentation's


class BatchKey(NamedTuple):
    """Names one rank's part of one global batch.

    Attributes:
        epoch: The epoch, which with a sample's index keys its augmentation.
        indices: Dataset indices of the samples.
        real: False when this rank has no sample left; the indices then repeat a sample that must not count.
    """

    epoch: int
    indices: tuple[int, ...]
    real: bool = True


@dataclass(frozen=True)
class EpochOrder:
    """The order of samples in every epoch.

    Attributes:
        size: Number of samples in the dataset.
        batch_size: Samples of one micro-batch on one rank.
        seed: The run's seed.
        shuffle: False keeps dataset order (evaluation).
        lengths: Length of each sample; batches are then drawn from samples of similar length. None for no grouping.
        group: How many samples of similar length stand together; None: a global batch. A run that goes on with another
            cut keeps what it began with, and so its permutations.
        drop_last: Leave out the last global batch of an epoch when it is not full.
        rank: This process.
        world_size: Number of processes.
    """

    size: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    lengths: Sequence[int] | None = None
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1
    group: int | None = None

    @cached_property
    def global_batch(self) -> int:
        """Samples of one micro-batch over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Micro-batches of one epoch, the same on every rank."""
        full, rest = divmod(self.size, self.global_batch)
        return full if self.drop_last or not rest else full + 1

    def is_over(self, position: int) -> bool:
        """Whether an epoch ends after `position` samples."""
        return self.size - position < (self.global_batch if self.drop_last else 1)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """Indices of all samples in the order of `epoch`, int64 [size]."""
        if not self.shuffle:
            return np.arange(self.size) if self.lengths is None else np.argsort(np.asarray(self.lengths), kind="stable")
        rng = numpy_rng(_ORDER_STREAM, self.seed, epoch)
        order = rng.permutation(self.size)
        return order if self.lengths is None else self._group_by_length(order, rng)

    def _group_by_length(self, order: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Sort within large random pools, cut into groups, shuffle the groups; a short last group stays last."""
        lengths, group = np.asarray(self.lengths), self.group or self.global_batch
        groups: list[NDArray[np.int64]] = []
        pool = group * _GROUPS_PER_POOL
        for start in range(0, self.size, pool):
            part = order[start : start + pool]
            part = part[np.argsort(lengths[part], kind="stable")]
            # The short group of the last pool is cut out at a random length, not always from the longest.
            odd = len(part) % group
            if odd:
                cut = int(rng.integers(0, len(part) - odd + 1))
                short, part = part[cut : cut + odd], np.delete(part, np.s_[cut : cut + odd])
            groups.extend(part.reshape(-1, group))
        shuffled = [groups[i] for i in rng.permutation(len(groups))]
        if self.size % group:
            shuffled.append(short)
        return np.concatenate(shuffled)

    def batches(self, epoch: int, *, start: int = 0) -> Iterator[BatchKey]:
        """This rank's micro-batches of `epoch` after its first `start` samples; nothing before them is touched."""
        order = self.permutation(epoch)
        last = self.size - (self.global_batch if self.drop_last else 1)
        for first in range(start, last + 1, self.global_batch):
            part = tuple(order[first : first + self.global_batch].tolist())
            if self.world_size == 1:
                yield BatchKey(epoch, part)
                continue
            begin, end = self._share(len(part))
            yield BatchKey(epoch, part[begin:end] if end > begin else part[:1], end > begin)

    def _share(self, samples: int) -> tuple[int, int]:
        """Where this rank's contiguous part of a global batch begins and ends; in the last one it may be empty.

        In training as even as can be. In evaluation one rank after the other has a full batch: so the batches are those
        of a single rank, and what is computed of a sample does not depend, to the last bit, on the number of ranks.
        """
        if self.shuffle:
            return samples * self.rank // self.world_size, samples * (self.rank + 1) // self.world_size
        begin = min(samples, self.rank * self.batch_size)
        return begin, min(samples, begin + self.batch_size)


_GROUPS_PER_POOL = 64  # large enough for little padding, small enough that an epoch stays random

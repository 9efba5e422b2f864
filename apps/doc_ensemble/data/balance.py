"""Every class equally often."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.seeding import numpy_rng
from mlcore.data.loader import SizedDataset

__all__ = ["Balanced"]

_REPEATS_STREAM = 41  # keeps these random numbers apart from those of order and augmentation


class Balanced:
    """A data set in which every class is as frequent as the largest: samples of the others are there several times.

    An epoch holds each sample of a class equally often, up to one time; which ones are there once more is drawn anew in
    each epoch, as a function of seed and epoch. Repeated samples are augmented differently.

    Args:
        dataset: What to draw from.
        labels: Class index of each of its samples.
        seed: The run's seed.
    """

    def __init__(self, dataset: SizedDataset, *, labels: Sequence[int], seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._members = [np.flatnonzero(np.asarray(labels) == label) for label in sorted(set(labels))]
        self._size = max(map(len, self._members))
        self._known = (0, self._places(0))  # of the epoch that was asked for last

    def __len__(self) -> int:
        return self._size * len(self._members)

    def __getitem__(self, index: int) -> Any:
        return self.in_epoch(0, index)

    def in_epoch(self, epoch: int, index: int) -> Any:
        """The sample at a place of an epoch (`mlcore.data.loader.EpochDataset`)."""
        if self._known[0] != epoch:
            self._known = (epoch, self._places(epoch))
        return self._dataset[int(self._known[1][index])]

    def _places(self, epoch: int) -> NDArray[np.int64]:
        """int64 [N], samples of the data set; class by class, and each as often as can be."""
        drawn = []
        for number, members in enumerate(self._members):
            often, rest = divmod(self._size, len(members))
            once_more = numpy_rng(_REPEATS_STREAM, self._seed, epoch, number).permutation(members)[:rest]
            drawn += [np.tile(members, often), once_more]
        return np.concatenate(drawn)

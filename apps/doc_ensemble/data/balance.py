"""Every class equally often."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlcore.data.loader import SizedDataset

__all__ = ["Balanced"]


class Balanced:
    """A data set in which every class is as frequent as the largest: samples of the others are there several times.

    An epoch holds each sample of a class equally often, up to one time; repeated samples are augmented differently.

    Args:
        dataset: What to draw from.
        labels: Class index of each of its samples.
    """

    def __init__(self, dataset: SizedDataset, *, labels: Sequence[int]) -> None:
        self._dataset = dataset
        members = [np.flatnonzero(np.asarray(labels) == label) for label in sorted(set(labels))]
        size = max(map(len, members))
        self._places = np.concatenate([np.resize(places, size) for places in members])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[int(self._places[index])]

"""The sample format of every dataset here, and the dataset that holds its samples in memory.

A sample is a dict: ``input`` float32 ``[M, C]``, ``label`` int, ``mask`` ``[M]`` (1 where a position is real; may be
left out), and for tasks that have one ``target``. User datasets in this format work as they are, with arrays or
tensors.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.data.packed import StoredArray
from quartet.apps.perceiver.data.gaps import OnMissing, settle, shown_positions
from quartet.apps.perceiver.data.targets import Targets
from quartet.apps.perceiver.data.times import rising

Array = NDArray[np.float32]
_Size = TypeVar("_Size", bound=Hashable)
_AHEAD = 8  # samples


class Sample(TypedDict):
    """One sequence and its class."""

    input: Any
    label: int
    mask: NotRequired[Any]
    target: NotRequired[Any]


class SampleDataset(Protocol):
    """A map-style dataset of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SequenceDataset(torch.utils.data.Dataset[Sample]):
    """Sequences in memory.

    Args:
        sequences: Float arrays ``[M_i, C]``; ``M_i`` may differ. As masks and times, they may be read when asked for.
        labels: Class of each sequence, an index into ``classes``.
        classes: Class names; ``None``: numbers up to the largest label.
        origins: Where each sequence came from ("train.ts, line 17"), for messages; ``None``: its number.
        masks: Bool ``[M_i]`` of each sequence, true where a position is real; ``None``: everywhere.
        times: Float64 ``[M_i]``, rising; samples get the time since their first position as a last channel. ``None``:
            positions have no times.
        on_missing: Ends and gaps of sequences are settled so when they are asked for, see ``settle``; ``None``: they
            are.
        problems: Why samples, by number, cannot be used; such a sample raises it when it is asked for.
        targets: What other tasks than classification ask; ``None``: nothing.

    Attributes:
        named_by_labels: Whether there was no list of class names, so that labels are names themselves.
        channels: Names of the channels, where a table has them.

    Raises:
        UserError: If there are not as many labels, origins and masks as sequences.
    """

    named_by_labels: bool = False
    channels: Sequence[str] = ()

    def __init__(
        self,
        sequences: Sequence[Array],
        *,
        labels: Sequence[int] | NDArray[np.int64],
        classes: Sequence[str] | None = None,
        origins: Sequence[str] | None = None,
        masks: Sequence[NDArray[Any]] | None = None,
        times: Sequence[NDArray[np.float64]] | None = None,
        on_missing: OnMissing | None = None,
        problems: Mapping[int, str] | None = None,
        targets: Targets | None = None,
    ) -> None:
        self.sequences, self.targets = sequences, targets
        self.labels = np.asarray(labels, dtype=np.int64)
        if any(len(given) != len(sequences) for given in (self.labels, origins, masks, times) if given is not None):
            raise UserError(
                f"{len(sequences)} sequences need as many labels, origins and masks, not {len(self.labels)} labels"
            )
        self.classes = tuple(classes) if classes is not None else _numbered(self.labels)
        self.masks, self.times, self._origins, self._on_missing = masks, times, origins, on_missing
        self.problems: Mapping[int, str] = {**(targets.problems if targets else {}), **(problems or {})}

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Sample:
        if index in self.problems:
            raise UserError(self.problems[index])
        sequence = self.sequences[index]
        shown = np.ones(len(sequence), dtype=bool) if self.masks is None else shown_positions(self.masks[index])
        times = None if self.times is None else rising(self.times[index])
        if self._on_missing is not None:
            sequence, shown = settle(sequence, shown=shown, on_missing=self._on_missing, times=times)
        sequence = np.asarray(sequence, dtype=np.float32)
        if times is not None:
            since = times[: len(sequence)] - times[:1]  # before it is float32, which dates are too large for
            sequence = np.column_stack([sequence, since.astype(np.float32)])
        sample: Sample = {
            "input": sequence,
            "label": int(self.labels[index]),
            "mask": shown.astype(np.float32),
        }
        return sample if self.targets is None else {**sample, "target": self.targets.values[index]}

    def origin(self, index: int) -> str:
        """Says where sample ``index`` came from."""
        return self._origins[index] if self._origins is not None else f"sample {index}"


def prevailing(found: Iterable[_Size]) -> _Size | None:
    """The size that most samples have, and the others are to have; None: there is none.

    Sizes are asked for until one is well ahead: a few where all are alike, all where many differ.
    """
    counts = Counter[_Size]()
    for size in found:
        counts[size] += 1
        ranked = [count for _, count in counts.most_common(2)]
        if ranked[0] - sum(ranked[1:]) >= _AHEAD:
            break
    return counts.most_common(1)[0][0] if counts else None


@dataclass(frozen=True)
class Cut(Sequence[NDArray[Any]]):
    """Sequences that stand one after another, read when they are asked for.

    Args:
        values: An array ``[N, M, ...]``; or, with ``ends``, ``[total, ...]``. It may be in a file.
        ends: Where each sequence ends, int64 ``[N]``.
    """

    values: NDArray[Any] | StoredArray
    ends: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.values if self.ends is None else self.ends)

    def __getitem__(self, index: Any) -> Any:
        if self.ends is None:
            return self.values[index]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.values[(self.ends[index - 1] if index % len(self) else 0) : self.ends[index]]


def called(channel: int, names: Sequence[str]) -> str:
    """A channel by its name, where there are some."""
    return names[channel] if channel < len(names) else f"channel {channel}"


class Subset(torch.utils.data.Dataset[Sample]):
    """Some samples of a dataset, in the order given.

    Args:
        dataset: Any dataset of samples.
        indices: Which ones.
    """

    def __init__(self, dataset: SampleDataset, *, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Those of the samples, int64 [N]; no sample is read for them."""
        return np.asarray(self.dataset.labels)[self.indices]  # type: ignore[attr-defined]  # all sources have them

    def group(self, index: int) -> str:
        """What sample ``index`` belongs to; "": to nothing."""
        return group_of(self.dataset, int(self.indices[index]))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        sample: Sample = self.dataset[int(self.indices[index])]
        return sample

    def origin(self, index: int) -> str:
        """Says where sample ``index`` came from."""
        return origin_of(self.dataset, int(self.indices[index]))


class Joined(torch.utils.data.Dataset[Sample]):
    """The samples of one dataset, then those of another.

    Args:
        first: A dataset with labels.
        second: Another one, of the same classes.
    """

    def __init__(self, first: SampleDataset, second: SampleDataset) -> None:
        self._first, self._second = first, second
        self.labels = np.concatenate([np.asarray(part.labels) for part in (first, second)])  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> Sample:
        dataset, place = self._place(index)
        sample: Sample = dataset[place]
        return sample

    def origin(self, index: int) -> str:
        """Says where sample ``index`` came from."""
        return origin_of(*self._place(index))

    def group(self, index: int) -> str:
        """What sample ``index`` belongs to; "": to nothing."""
        return group_of(*self._place(index))

    def _place(self, index: int) -> tuple[SampleDataset, int]:
        after = index - len(self._first)
        return (self._first, index) if after < 0 else (self._second, after)


def origin_of(dataset: SampleDataset, index: int) -> str:
    """Names sample ``index`` for messages: by the dataset's own ``origin(index)`` if it has one, else by its number."""
    origin = getattr(dataset, "origin", None)
    return str(origin(index)) if callable(origin) else f"sample {index}"


def group_of(dataset: SampleDataset, index: int) -> str:
    """What sample ``index`` belongs to, by the dataset's own ``group(index)``; "" where it has none."""
    group = getattr(dataset, "group", None)
    return str(group(index)) if callable(group) else ""


def _numbered(labels: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(str(label) for label in range(int(labels.max()) + 1)) if len(labels) else ()

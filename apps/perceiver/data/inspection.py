"""Looks at every sample before training starts: what is wrong is said then, and what is there is counted."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.gaps import shown_positions
from quartet.apps.perceiver.data.samples import Array, SampleDataset, called, origin_of, prevailing

_SHOWN = 5  # messages quoted in an error
_ROUNDING = 1e-6  # of float32
_CONSTANT = 1e-6  # deviation of a constant channel, relative to its values: ten times the rounding of float32


@dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """What a dataset holds.

    Attributes:
        name: What it is called in tables.
        classes: Class names.
        class_counts: Samples of each class.
        shortest: Shortest sequence in positions.
        longest: Longest sequence in positions.
        mean_length: Mean length in positions.
        mean: Mean of each channel over all real positions.
        std: Standard deviation of each channel over all real positions; 1 where a channel is constant.
        constant: Channels whose deviation is no more than rounding leaves of equal values.
        skipped: Samples left out.
        truncated: Samples that will be cut to the longest length allowed.
        time_step: Of positions with times, the median of the sequences' median steps; None: they have none.
        duration: The longest time from a first position to a last one.
    """

    name: str
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    shortest: int
    longest: int
    mean_length: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    constant: tuple[int, ...]
    skipped: int
    truncated: int
    time_step: float | None = None
    duration: float = 0.0

    @property
    def samples(self) -> int:
        """Number of samples kept."""
        return sum(self.class_counts)

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of a table."""
        largest, smallest = max(self.class_counts), min(self.class_counts)
        counts = ", ".join(f"{name} {count}" for name, count in zip(self.classes, self.class_counts, strict=True))
        classes = [
            ("classes", f"{len(self.classes)}: {counts}"),
            ("class balance", f"smallest {smallest}, largest {largest}"),
        ]
        times = [("time stamps", f"typical step {self.time_step or 0:.4g}, longest series {self.duration:.4g}")]
        return [
            ("samples", f"{self.samples} ({self.skipped} skipped, {self.truncated} truncated)"),
            *(classes if len(self.classes) > 1 else ()),
            ("length", f"{self.shortest} to {self.longest} positions, mean {self.mean_length:.1f}"),
            ("channels", f"{len(self.mean)}, mean {_range(self.mean)}, deviation {_range(self.std)}"),
            *(times if self.time_step is not None else ()),
        ]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Result of ``inspect_dataset``.

    Attributes:
        kept: Indices of the samples that can be used, int64 ``[N]``.
        lengths: Their lengths in positions, after truncation, int64 ``[N]``.
        labels: Their labels, int64 ``[N]``.
        problems: One message per sample left out.
        statistics: What the kept samples hold.
    """

    kept: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    problems: tuple[str, ...]
    statistics: DatasetStatistics


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model asks of sequences.

    Attributes:
        channels: Channels, with that of time; None: any number, and the same in all.
        least: Positions at least.
        timed: Whether the last channel is the time of positions.
        longest: Positions at most, as many as the model's know; None: any number.
        duration: The longest time from the first position to the last; None: any.
        names: What messages call the channels; none where they have no names.
    """

    channels: int | None = None
    least: int = 1
    timed: bool = False
    longest: int | None = None
    duration: float | None = None
    names: Sequence[str] = ()

    def check(self, series: Array) -> None:
        """Refuse a sequence ``[M, C]``, M at least 1, that a model cannot take."""
        if len(series) < self.least:
            raise UserError(
                f"{len(series)} positions, the task needs {self.least} at least (a forecast one more than task.horizon)"
            )
        if self.longest is not None and len(series) > self.longest:
            raise UserError(
                f"{len(series)} positions, and the model's know {self.longest}; shorten it, or train with longer ones "
                "or --position sinusoidal"
            )
        if not self.timed:
            return
        if (series[1:, -1] < series[:-1, -1]).any():
            raise UserError("times, the last channel, go backwards")
        lasts = float(series[-1, -1] - series[0, -1])
        if lasts > self.lasting:
            raise UserError(
                f"lasts {lasts:.6g} in time, and the model's positions know {self.duration:.6g}; shorten it, or train "
                "with longer ones or --position sinusoidal"
            )

    @property
    def lasting(self) -> float:
        """The longest duration, and what rounding may add."""
        return math.inf if self.duration is None else self.duration * (1 + _ROUNDING)


def inspect_dataset(
    dataset: SampleDataset,
    *,
    classes: Sequence[str],
    name: str = "training data",
    max_seq_len: int | None = None,
    on_too_long: Literal["error", "truncate"] = "error",
    on_bad_sample: Literal["error", "skip"] = "error",
    every_class: bool = True,
    needs: Needs | None = None,
) -> Inspection:
    """Reads every sample once, and a few before that where it is not known how many channels they have.

    Args:
        dataset: Samples; one with a method ``origin(index)`` is named by it in messages.
        classes: Class names; labels must be indices into them.
        name: What the dataset is called in messages.
        max_seq_len: Longest sequence in positions; ``None``: no limit.
        on_too_long: Whether a longer one is a bad sample or will be truncated, as by ``PadCollate``.
        on_bad_sample: Stop at bad samples, or leave them out and count them.
        every_class: Whether each class must have a sample.
        needs: What else a model asks of sequences.

    Raises:
        UserError: If there is no usable sample, a class has none, or a sample is bad and none may be skipped: empty,
            too long, of other channels, with NaN or infinite values, hidden by its mask, or with a label out of range.
    """
    needs = needs or Needs()
    needs = replace(needs, channels=needs.channels or prevailing(_channels(dataset)))
    tally = Tally(classes=classes, limit=max_seq_len, on_too_long=on_too_long, needs=needs)
    problems = look_at(dataset, tally.add, name=name, on_bad_sample=on_bad_sample)
    check_classes(tally.labels, classes, name=name, every_class=every_class)
    return tally.result(name, problems)


def _channels(dataset: SampleDataset) -> Iterator[int]:
    """Of the samples that can be read."""
    for index in range(len(dataset)):
        with suppress(UserError):
            sample = dataset[index]
            shape = np.shape(sample["input"]) if isinstance(sample, dict) and "input" in sample else ()
            if len(shape) == 2 and shape[0]:
                yield shape[1]


def look_at(
    dataset: SampleDataset,
    add: Callable[[int, Any], None],
    *,
    name: str,
    on_bad_sample: Literal["error", "skip"] = "error",
) -> list[str]:
    """Gives every sample and its index to `add`; one message for each that it, or reading, refuses with a `UserError`.

    Raises:
        UserError: A sample is bad and none may be skipped, or all are.
    """
    problems = []
    for index in range(len(dataset)):
        try:
            add(index, dataset[index])
        except UserError as error:
            origin, problem = origin_of(dataset, index), str(error)
            problems.append(problem if problem.startswith(origin) else f"{origin}: {problem}")
    if problems and (on_bad_sample == "error" or len(problems) == len(dataset)):
        raise UserError("\n".join([f"{name} cannot be used:", *problems[:_SHOWN], _summary(problems, len(dataset))]))
    if not len(dataset):
        raise UserError(f"{name}: the dataset is empty; check the path and the split")
    return problems


def _summary(problems: Sequence[str], samples: int) -> str:
    """How many samples cannot be used, and what can be done about it."""
    more = f"and {len(problems) - _SHOWN} more, " if len(problems) > _SHOWN else ""
    if len(problems) == samples:
        return f"... {more}{samples} of {samples} samples: none can be used"
    them = "them" if len(problems) > 1 else "it"
    return f"... {more}{len(problems)} of {samples} samples; set --on_bad_sample skip to leave {them} out"


def check_classes(labels: Sequence[int], classes: Sequence[str], *, name: str, every_class: bool) -> None:
    """Refuses training data that has no sample of a class."""
    seen = set(labels)
    missing = [label for number, label in enumerate(classes) if number not in seen]
    if missing and every_class:
        raise UserError(f"{name}: no sample of class {', '.join(missing)}; a model cannot learn a class it never sees")


def check_sample(
    sample: Any,
    *,
    num_classes: int,
    max_seq_len: int | None = None,
    on_too_long: Literal["error", "truncate"] = "error",
    needs: Needs | None = None,
) -> tuple[Array, NDArray[np.bool_], int]:
    """Checks one sample.

    Args:
        sample: A dict with ``input``, ``label`` and perhaps ``mask``.
        num_classes: Labels must be below it.
        max_seq_len: Longest sequence in positions; ``None``: no limit.
        on_too_long: Whether a longer one is an error or will be truncated.
        needs: What else a model asks of it.

    Returns:
        Sequence float32 ``[M, C]`` (whole), mask bool ``[M]``, label.

    Raises:
        UserError: It cannot be used.
    """
    if not isinstance(sample, dict) or not {"input", "label"} <= sample.keys():
        raise UserError("a sample must be a dict with the keys input, label and optionally mask")
    series = np.asarray(sample["input"], dtype=np.float32)
    needs = needs or Needs()
    check_extent(series, needs=needs, max_seq_len=max_seq_len, on_too_long=on_too_long)
    mask = shown_positions(sample["mask"]) if "mask" in sample else np.ones(len(series), dtype=bool)
    if mask.shape != series.shape[:1] or not mask[:max_seq_len].any():
        raise UserError(f"mask must have shape [{len(series)}] and show a position, got {list(mask.shape)}")
    if not np.isfinite(series[mask]).all():
        row, column = np.argwhere(~np.isfinite(series) & mask[:, None])[0]
        gap = "; on_missing says what to do with gaps" if np.isnan(series[row, column]) else ""
        where = f"position {row}, {called(int(column), needs.names)}"
        raise UserError(f"{where} is {series[row, column]}, not a finite number{gap}")
    label = int(sample["label"])
    if label != sample["label"] or not 0 <= label < num_classes:
        raise UserError(f"label {sample['label']} is out of range; expected 0 to {num_classes - 1}")
    return series, mask, label


def check_extent(
    series: Array, *, needs: Needs, max_seq_len: int | None, on_too_long: Literal["error", "truncate"]
) -> None:
    """Refuse a sequence whose channels, length or duration a model cannot take; arguments as of `check_sample`."""
    if series.ndim != 2 or series.shape[1] != (needs.channels or series.shape[1]):
        raise UserError(f"input is {list(series.shape)}, expected [positions, {needs.channels or 'channels'}]")
    if len(series) == 0:
        raise UserError("the sequence has length 0")
    if max_seq_len is not None and len(series) > max_seq_len and on_too_long == "error":
        raise too_long(len(series), max_seq_len)
    needs.check(series[:max_seq_len])


def too_long(length: int, limit: int) -> UserError:
    """What is said of a sequence, in training as of a trained model."""
    return UserError(
        f"{length} positions are more than max_seq_len={limit}; shorten it, or train with a larger --max_seq_len or "
        "with --on_too_long truncate"
    )


class Tally:
    """Running sums over the samples."""

    def __init__(
        self,
        *,
        classes: Sequence[str],
        limit: int | None,
        on_too_long: Literal["error", "truncate"],
        needs: Needs | None = None,
    ) -> None:
        self.needs = needs or Needs()
        self._steps: list[float] = []
        self._duration = 0.0
        self.classes, self.limit, self.on_too_long = tuple(classes), limit, on_too_long
        self.kept: list[int] = []
        self.lengths: list[int] = []
        self.labels: list[int] = []
        self.truncated = 0
        # Sums of differences to the first sample's mean: squares of large values would cancel.
        self._centre = self._sum = self._squares = np.zeros(0)
        self._positions = 0

    def add(self, index: int, sample: Any) -> None:
        """Checks a sample and counts it."""
        series, mask, label = check_sample(
            sample,
            num_classes=len(self.classes),
            max_seq_len=self.limit,
            on_too_long=self.on_too_long,
            needs=self.needs,
        )
        if self.limit is not None and len(series) > self.limit:
            self.truncated += 1
            series, mask = series[: self.limit], mask[: self.limit]
        if self.needs.timed:
            self._note_times(series[:, -1])
        real = (series[:, :-1] if self.needs.timed else series)[mask].astype(np.float64)
        if not self.kept:
            self.needs, self._centre = replace(self.needs, channels=series.shape[1]), real.mean(axis=0)
            self._sum, self._squares = np.zeros(real.shape[1]), np.zeros(real.shape[1])
        self._sum += (real - self._centre).sum(axis=0)
        self._squares += ((real - self._centre) ** 2).sum(axis=0)
        self._positions += len(real)
        self.kept.append(index)
        self.lengths.append(len(series))
        self.labels.append(label)

    def _note_times(self, times: Array) -> None:
        if len(times) > 1:
            self._steps.append(float(np.median(np.diff(times))))
        self._duration = max(self._duration, float(times[-1] - times[0]))

    def result(self, name: str, problems: Sequence[str]) -> Inspection:
        """What was counted."""
        shift = self._sum / self._positions
        variance = np.maximum(self._squares / self._positions - shift**2, 0)
        mean, std = self._centre + shift, np.sqrt(variance)
        constant = std <= np.maximum(_CONSTANT * np.hypot(mean, std), np.finfo(np.float32).tiny)
        lengths, labels = np.array(self.lengths), np.array(self.labels)
        return Inspection(
            kept=np.array(self.kept),
            lengths=lengths,
            labels=labels,
            problems=tuple(problems),
            statistics=DatasetStatistics(
                name=name,
                classes=self.classes,
                class_counts=tuple(np.bincount(labels, minlength=len(self.classes)).tolist()),
                shortest=int(lengths.min()),
                longest=int(lengths.max()),
                mean_length=float(lengths.mean()),
                mean=tuple(mean.tolist()),
                std=tuple(np.where(constant, 1.0, std).tolist()),
                constant=tuple(np.flatnonzero(constant).tolist()),
                skipped=len(problems),
                truncated=self.truncated,
                time_step=self._typical_step(),
                duration=self._duration,
            ),
        )

    def _typical_step(self) -> float | None:
        positive = [step for step in self._steps if step > 0]  # in float32 steps may vanish
        return (float(np.median(positive)) if positive else 1.0) if self.needs.timed else None


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"

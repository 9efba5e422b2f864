"""Where a run stands on its schedule: steps as they were first cut, found again from the samples consumed.

A schedule, `max_steps` and the cadence of evaluations count optimiser steps. What a step is depends on batch size,
accumulation and number of ranks, and a run may go on with others. So a run keeps the cut that it began with: its steps
stay the unit of everything that counts steps, and any number of consumed samples is a place on them.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlcore.data.order import EpochOrder
from mlcore.training.checkpoint import CheckpointError
from mlcore.training.progress import Progress
from mlcore.training.schedules import FloatArray


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How the samples of an epoch become optimiser steps.

    Attributes:
        samples: Samples of an epoch.
        batch: Samples of a micro-batch over all ranks.
        accumulation: Micro-batches of a full step.
        drop_last: Whether the last micro-batch is left out where it is short.
    """

    samples: int
    batch: int
    accumulation: int = 1
    drop_last: bool = False

    @classmethod
    def of(cls, order: EpochOrder, accumulation: int) -> Self:
        """The cut of an order of samples whose micro-batches are accumulated."""
        return cls(samples=order.size, batch=order.global_batch, accumulation=accumulation, drop_last=order.drop_last)

    @cached_property
    def window(self) -> int:
        """Samples of a full step."""
        return self.batch * self.accumulation

    @cached_property
    def used(self) -> int:
        """Samples of an epoch that are trained on."""
        return self.samples - self.samples % self.batch if self.drop_last else self.samples

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the last may be short."""
        return -(-self.used // self.window)

    def steps(self, epochs: ArrayLike, samples: ArrayLike) -> FloatArray:
        """Steps until `epochs` whole epochs and `samples` of the next are consumed; inside a step a fraction."""
        whole, last = self.steps_per_epoch, (self.steps_per_epoch - 1) * self.window
        into = np.asarray(samples, dtype=np.float64)
        short = whole - 1 + (into - last) / (self.used - last)  # the last step may be of fewer samples
        within = np.where(into <= last, into / self.window, np.minimum(short, whole))
        return np.asarray(epochs, dtype=np.float64) * whole + within

    def steps_at(self, epoch: int, samples: int) -> float:
        """The same figure as `steps` at one place, bit by bit, and quickly: it is asked for several times a step."""
        whole, window = self.steps_per_epoch, self.window
        last = (whole - 1) * window
        if samples <= last:
            return epoch * whole + samples / window
        return epoch * whole + min(whole - 1 + (samples - last) / (self.used - last), float(whole))

    def starts(self, position: int = 0) -> NDArray[np.int64]:
        """Samples of an epoch that are consumed before each of its steps, from `position` on, int64 [steps]."""
        return np.arange(position, self.samples - (self.batch if self.drop_last else 1) + 1, self.window)


@dataclass(frozen=True, kw_only=True)
class Course:
    """A run's way through its samples.

    Attributes:
        first: The cut that the run began with.
        now: The cut that it goes on with.
        epoch: Whole epochs consumed when it began to be cut like this.
        position: Samples of the next epoch, likewise.
        updates: Updates applied, likewise.
        late: Steps of the first cut, likewise, by which its schedule was behind its samples: a window that is not
            finite consumes samples, but moves no schedule.
    """

    first: Cut
    now: Cut
    epoch: int = 0
    position: int = 0
    updates: int = 0
    late: float = 0.0

    @classmethod
    def read(cls, state: Mapping[str, Any], *, now: Cut, source: Path | str) -> Self:
        """The course in a checkpoint.

        Args:
            state: The checkpoint. Older ones have no course: their configuration and the generators of their ranks tell
                how they were cut, and what nothing tells is taken to be as it is now.
            now: The present cut.
            source: The checkpoint's file, for the message.

        Raises:
            CheckpointError: The run began with another number of samples.
        """
        saved = state.get("course")
        if saved is not None:
            course = cls(**{**saved, "first": Cut(**saved["first"]), "now": Cut(**saved["now"])})
            if course.first.samples != now.samples:
                raise CheckpointError(
                    f"{source}: the run began with {course.first.samples} training samples, and now there are "
                    f"{now.samples}; put back the data that it was trained with, or start another run in a folder of "
                    "its own"
                )
            return course
        train = state.get("config", {}).get("train", {})
        ranks = len(state["rng"])
        cut = Cut(
            samples=now.samples,
            batch=train["batch_size"] * ranks if "batch_size" in train else now.batch,
            accumulation=train.get("gradient_accumulation_steps", now.accumulation),
            drop_last=train.get("drop_last", now.drop_last),
        )
        return cls(first=cut, now=cut)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for `read`."""
        return asdict(self)

    def steps(self, progress: Progress) -> float:
        """Steps of the first cut that the consumed samples make."""
        return self.first.steps_at(progress.epoch, progress.position)

    def places(self, total_steps: int) -> FloatArray:
        """Where each update of the run stands on its schedule, in steps of the first cut.

        Args:
            total_steps: Steps of the whole run, as it was first cut.

        Returns:
            float64 [updates + 1]; what is before `self.updates` is over and says nothing.
        """
        begun, whole = self.now.starts(self.position), self.now.starts()
        later = np.arange(self.epoch + 1, max(self.epoch + 1, -(-total_steps // self.first.steps_per_epoch)))
        end = self.epoch + 1 + len(later)
        epochs = np.concatenate([np.full(len(begun), self.epoch), np.repeat(later, len(whole)), [end]])
        samples = np.concatenate([begun, np.tile(whole, len(later)), [0]])
        places = np.clip(np.round(self.first.steps(epochs, samples) - self.late, 9), 0, total_steps)
        return np.concatenate([np.full(self.updates, places[0]), places])

    def rates(self, schedule: Callable[..., FloatArray] | None, *, table: FloatArray, total_steps: int) -> FloatArray:
        """Learning rate of each parameter group at each update, float64 [updates + 1, groups].

        Args:
            schedule: See `Trainer`.
            table: Learning rates [steps + 1, groups] at the steps of the first cut, used where there is no schedule.
            total_steps: Steps of the whole run, as it was first cut.
        """
        places = self.places(total_steps)
        if schedule is None:
            return np.asarray(table[np.minimum(places.astype(int), len(table) - 1)])
        return schedule(total_steps=total_steps, steps_per_epoch=self.first.steps_per_epoch, at=places)

    def recent_samples(self, order: EpochOrder, *, progress: Progress, windows: int) -> list[list[int]]:
        """Dataset indices of this rank's last `windows` windows of the current epoch, oldest first."""
        epoch, done = progress.epoch, progress.position
        if not done:
            epoch, done = epoch - 1, order.size
        begun = self.position if epoch == self.epoch else 0  # before it they were cut in another way
        starts = [int(start) for start in self.now.starts(begun) if start < done][-windows:]
        cut = (itertools.islice(order.batches(epoch, start=start), self.now.accumulation) for start in starts)
        return [[i for key in keys for i in key.indices] for keys in cut]

    def go_on(self, now: Cut, *, progress: Progress, updates: int) -> "Course":
        """The course from `progress` on, after so many applied updates, where steps are from there on cut as `now`."""
        if now == self.now:
            return self
        places = self.places((progress.epoch + 1) * self.first.steps_per_epoch)
        late = self.steps(progress) - float(places[min(updates, len(places) - 1)])
        return replace(
            self,
            now=now,
            epoch=progress.epoch,
            position=progress.position,
            updates=updates,
            late=round(late, 9),
        )

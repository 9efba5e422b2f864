"""What a model of a task other than classification gives: plain values, which its checkpoints and exports carry."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quartet.apps.perceiver.config import TaskKind

__all__ = ["Outputs"]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of a model.

    Attributes:
        kind: Its task.
        names: Of labels, of the classes of a position, or of numbers.
        classes: Whether positions have classes.
        mean: Of each number in the training data; the network gives it less this, over `std`. Empty: no numbers.
        std: Its deviation there, above 0.
        horizon: Positions of a forecast.
        context: Positions before them that are seen; None: all.
        covariates: Channels of a forecast that are known ahead.
        channels: Those that are forecast, or hidden and asked for.
        time_step: From one position of a forecast to the next, where the last channel is time; None: it is none.
    """

    kind: TaskKind
    names: Sequence[str]
    classes: bool = False
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    horizon: int = 0
    context: int | None = None
    covariates: Sequence[int] = ()
    channels: Sequence[int] = ()
    time_step: float | None = None

    @property
    def by_position(self) -> bool:
        """Whether there is an output for each position that is asked for, not one for a sequence."""
        return self.kind in ("per_step", "forecast", "masked")

    @property
    def least(self) -> int:
        """The shortest sequence that has something to be asked for and something to be seen."""
        return {"forecast": self.horizon + 1, "masked": 2}.get(self.kind, 1)

    @property
    def looked_at(self) -> int | None:
        """How many of a given series' last positions matter to a forecast; None: all."""
        return None if self.context is None else self.context + (self.horizon if self.covariates else 0)

    def visible(self, channels: int) -> list[int]:
        """Of the input's channels but time, those that are seen at a position that is asked for."""
        return list(range(channels)) if self.kind == "per_step" else list(self.covariates)

    def standardised(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Numbers as the network gives them."""
        found: NDArray[np.float32] = ((values - np.array(self.mean)) / np.array(self.std)).astype(np.float32)
        return found

    def in_units(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """What the network gives as numbers, float64."""
        found: NDArray[np.float64] = values.astype(np.float64) * np.array(self.std) + np.array(self.mean)
        return found

    def plain(self) -> dict[str, Any]:
        """Values for a checkpoint; `Outputs(**plain)` is the same."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.time_step is None:
            del values["time_step"]  # checkpoints of before there were time stamps go on
        return values

    @staticmethod
    def of(metadata: Mapping[str, Any]) -> "Outputs | None":
        """Those that a checkpoint or an export notes; None: it classifies."""
        return Outputs(**metadata["task"]) if metadata.get("task") else None

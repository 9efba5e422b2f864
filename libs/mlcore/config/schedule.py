"""The section `scheduler`: which learning-rate schedule, with its parameters."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from mlcore.config.section import Section, field, reject

__all__ = ["SchedulerConfig"]

_ScheduleName = Literal[
    "constant",
    "cosine",
    "step",
    "exponential",
    "plateau",
    "reduce_on_plateau",
    "warmup_cosine",
    "cosine_warmup",
    "warmup_linear",
    "cosine_warm_restart",
]
_CLASS = re.compile(r"(?:\w+\.)*(\w+)Scheduler")  # how older files named a schedule: src.schedulers.step.StepScheduler


def _plain_name(value: object) -> object:
    """The schedule's name where the value is its class's; it is read as text, and nothing is imported."""
    match = _CLASS.fullmatch(value) if isinstance(value, str) else None
    return value if match is None else re.sub(r"(?<!^)(?=[A-Z])", "_", match.group(1)).lower()


_WARMUP = ("warmup_steps", "max_steps", "min_lr", "warmup_start_lr")
_PLATEAU = ("mode", "factor", "patience", "verbose")
_TAKES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("T_max", "eta_min"),
    "step": ("step_size", "gamma"),
    "exponential": ("gamma",),
    "plateau": _PLATEAU,
    "reduce_on_plateau": _PLATEAU,
    "warmup_cosine": _WARMUP,
    "cosine_warmup": _WARMUP,
    "warmup_linear": _WARMUP,
    "cosine_warm_restart": ("T_0", "T_mult", "eta_min"),
}


class SchedulerConfig(Section):
    """The learning-rate schedule; each takes the parameters that name it in their description."""

    hoisted: ClassVar[tuple[str, ...]] = ("params",)

    name: Annotated[_ScheduleName, BeforeValidator(_plain_name)] = field(
        "cosine",
        "Schedule of the learning rate; cosine_warmup is warmup_cosine, and reduce_on_plateau is plateau",
        aliases=("scheduler_type", "train.scheduler_type", "scheduler._target_"),
        selects=True,
        continued="applied",
    )
    unit: Literal["step", "epoch"] | None = field(
        None,
        "What lengths count, and when the rate changes; null: steps for the warm-up schedules, epochs for others",
        continued="applied",
    )
    T_max: float | None = field(
        None, "cosine: length of the decay; null: the whole run", unit="scheduler.unit", gt=0, continued="applied"
    )
    eta_min: float | None = field(None, "cosine, cosine_warm_restart: lowest learning rate", ge=0, continued="applied")
    step_size: float | None = field(
        None, "step: interval of the decay; null: 30", unit="scheduler.unit", gt=0, continued="applied"
    )
    gamma: float | None = field(None, "step, exponential: factor of each decay", gt=0, le=1, continued="applied")
    mode: Literal["min", "max"] | None = field(
        None,
        "plateau: whether what it watches should fall or rise; null: as train.early_stopping's metric, which it then "
        "watches; min beside a metric that should rise: it watches the validation loss",
        continued="reset",
        resets="what the plateau schedule has seen",
    )
    factor: float | None = field(None, "plateau: factor of each reduction; null: 0.1", gt=0, lt=1, continued="applied")
    patience: int | None = field(
        None,
        "plateau: evaluations without improvement that are tolerated; null: 10",
        unit="evaluations",
        ge=0,
        continued="applied",
    )
    verbose: bool | None = field(
        None, "plateau: kept for old files; changes of the learning rate are always logged", continued="applied"
    )
    warmup_steps: float | None = field(
        None, "warm-up schedules: length of the linear rise", unit="scheduler.unit", ge=0, continued="applied"
    )
    max_steps: float | None = field(
        None,
        "warm-up schedules: end of the decay; null: the whole run",
        unit="scheduler.unit",
        gt=0,
        continued="applied",
    )
    min_lr: float | None = field(None, "warm-up schedules: learning rate at the end", ge=0, continued="applied")
    warmup_start_lr: float | None = field(None, "warm-up schedules: learning rate at step 0", ge=0, continued="applied")
    T_0: float | None = field(
        None, "cosine_warm_restart: length of the first cycle", unit="scheduler.unit", gt=0, continued="applied"
    )
    T_mult: float | None = field(
        None, "cosine_warm_restart: how much longer each next cycle is", ge=1, continued="applied"
    )

    @model_validator(mode="after")
    def _check_params(self) -> Self:
        takes = _TAKES[self.name]
        for key in type(self).model_fields:
            if key not in ("name", "unit", *takes) and getattr(self, key) is not None:
                reject(key, f"schedule '{self.name}' does not take it; it takes {', '.join(takes) or 'no parameters'}")
        needed = {"exponential": "gamma", "cosine_warm_restart": "T_0"}.get(self.name)
        if needed is not None and getattr(self, needed) is None:
            reject(needed, f"schedule '{self.name}' needs it")
        return self

    def params(self) -> dict[str, Any]:
        """The parameters that were given for the chosen schedule, ready to be its keyword arguments."""
        given = {key: getattr(self, key) for key in _TAKES[self.name] if key != "verbose"}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def resolved_unit(self) -> Literal["step", "epoch"]:
        """What lengths count."""
        return self.unit or ("step" if "warmup_steps" in _TAKES[self.name] else "epoch")

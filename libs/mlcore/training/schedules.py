"""Learning-rate schedules as pure functions of training progress.

A schedule maps progress `t` (float64 array; updates done, or epochs done when its unit is "epoch") and a base learning
rate to learning rates of the same shape. Nothing is stateful, so resuming needs no scheduler state; the one exception
is `Plateau`, which listens to a metric and returns a factor.

Parameter names follow torch's schedulers where those exist. Where torch's cosine turns up again after `T_max`, ours
stays at `eta_min`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError

FloatArray = NDArray[np.float64]
Schedule = Callable[[FloatArray, float], FloatArray]


def constant(t: FloatArray, base: float) -> FloatArray:
    """`base`, always."""
    return np.full_like(t, base)


def cosine(t: FloatArray, base: float, *, T_max: float, eta_min: float = 0.0) -> FloatArray:
    """Half a cosine from `base` at 0 to `eta_min` at `T_max`, then `eta_min` (arXiv 1608.03983 without restarts)."""
    done = np.clip(t / T_max, 0.0, 1.0)
    return eta_min + (base - eta_min) * 0.5 * (1.0 + np.cos(np.pi * done))


def step(t: FloatArray, base: float, *, step_size: float = 30.0, gamma: float = 0.1) -> FloatArray:
    """`base * gamma ** floor(t / step_size)`."""
    return base * gamma ** np.floor(t / step_size)


def exponential(t: FloatArray, base: float, *, gamma: float) -> FloatArray:
    """`base * gamma ** floor(t)`: one factor per unit."""
    return base * gamma ** np.floor(t)


def warmup_cosine(
    t: FloatArray,
    base: float,
    *,
    warmup_steps: float,
    max_steps: float,
    min_lr: float = 0.0,
    warmup_start_lr: float = 0.0,
) -> FloatArray:
    """Linear from `warmup_start_lr` to `base` over `warmup_steps`, then a cosine to `min_lr` at `max_steps`."""
    rest = cosine(t - warmup_steps, base, T_max=max(max_steps - warmup_steps, 1e-12), eta_min=min_lr)
    return _after_warmup(t, base, rest, warmup_steps, warmup_start_lr)


def warmup_linear(
    t: FloatArray,
    base: float,
    *,
    warmup_steps: float,
    max_steps: float,
    min_lr: float = 0.0,
    warmup_start_lr: float = 0.0,
) -> FloatArray:
    """Linear from `warmup_start_lr` to `base` over `warmup_steps`, then linear to `min_lr` at `max_steps`."""
    done = np.clip((t - warmup_steps) / max(max_steps - warmup_steps, 1e-12), 0.0, 1.0)
    return _after_warmup(t, base, base + (min_lr - base) * done, warmup_steps, warmup_start_lr)


def cosine_warm_restart(
    t: FloatArray, base: float, *, T_0: float, T_mult: float = 1.0, eta_min: float = 0.0
) -> FloatArray:
    """Cosines from `base` to `eta_min` of lengths `T_0, T_0 * T_mult, ...` (SGDR, arXiv 1608.03983)."""
    if T_mult == 1.0:
        into, length = np.mod(t, T_0), np.full_like(t, T_0)
    else:
        cycle = np.floor(np.log1p(t / T_0 * (T_mult - 1.0)) / math.log(T_mult) + 1e-9)
        length = T_0 * T_mult**cycle
        into = t - T_0 * (T_mult**cycle - 1.0) / (T_mult - 1.0)
    return eta_min + (base - eta_min) * 0.5 * (1.0 + np.cos(np.pi * into / length))


def _after_warmup(t: FloatArray, base: float, rest: FloatArray, warmup: float, start: float) -> FloatArray:
    if warmup <= 0:
        return rest
    return np.where(t < warmup, start + (base - start) * t / warmup, rest)


# Which keyword falls back to the length of the run when it is not given.
_RUN_LENGTH = {"cosine": "T_max", "warmup_cosine": "max_steps", "warmup_linear": "max_steps"}
_FUNCTIONS: dict[str, Callable[..., FloatArray]] = {
    "constant": constant,
    "plateau": constant,  # the metric-driven factor comes from `Plateau`
    "reduce_on_plateau": constant,
    "cosine": cosine,
    "step": step,
    "exponential": exponential,
    "warmup_cosine": warmup_cosine,
    "cosine_warmup": warmup_cosine,
    "warmup_linear": warmup_linear,
    "cosine_warm_restart": cosine_warm_restart,
}


def lr_table(
    name: str,
    params: Mapping[str, Any],
    *,
    base_lrs: list[float],
    total_steps: int,
    steps_per_epoch: int,
    unit: Literal["step", "epoch"] = "step",
) -> FloatArray:
    """Learning rate of every parameter group for every update of the run.

    Args:
        name: constant, cosine, step, exponential, plateau (or reduce_on_plateau), warmup_cosine (or cosine_warmup),
            warmup_linear, cosine_warm_restart.
        params: Keyword arguments of the schedule, in `unit`s where they are lengths.
        base_lrs: Base learning rate of each parameter group.
        total_steps: Updates of the whole run; lengths that are not given become this.
        steps_per_epoch: Updates of one epoch.
        unit: Whether lengths (and decay intervals) count updates or epochs; with "epoch" the rate changes once an
        epoch.

    Returns:
        float64 [total_steps + 1, groups]; row i is used by update i (0-based), the last row after the end.

    Raises:
        UserError: Unknown schedule, or a parameter is missing or not known to it.
    """
    if name not in _FUNCTIONS:
        raise UserError(f"unknown schedule '{name}'; choose one of {', '.join(sorted(_FUNCTIONS))}")
    t = np.arange(total_steps + 1, dtype=np.float64)
    if unit == "epoch":
        t = np.floor(t / steps_per_epoch)
    given = dict(params) if name not in ("plateau", "reduce_on_plateau") else {}
    canonical = _FUNCTIONS[name].__name__
    if canonical in _RUN_LENGTH and given.get(_RUN_LENGTH[canonical]) is None:
        given[_RUN_LENGTH[canonical]] = max(1.0, total_steps if unit == "step" else total_steps / steps_per_epoch)
    try:
        schedule: Schedule = partial(_FUNCTIONS[name], **given)
        return np.stack([schedule(t, base) for base in base_lrs], axis=1)
    except TypeError as error:
        raise UserError(f"scheduler '{name}': {str(error).split('() ')[-1]}") from None


@dataclass
class Plateau:
    """Multiply learning rates by `factor` when a metric has not improved for more than `patience` evaluations.

    Same decisions as `torch.optim.lr_scheduler.ReduceLROnPlateau` with relative threshold.

    Attributes:
        mode: "min" or "max": which direction is better.
        factor: Multiplier at each reduction, in (0, 1).
        patience: Evaluations without improvement that are tolerated.
        threshold: Relative improvement that counts.
        scale: Product of all reductions so far; the learning rate is `base * scale`.
    """

    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    scale: float = 1.0
    best: float | None = None
    bad: int = 0

    def update(self, metric: float) -> float:
        """Take one evaluation's metric; return the new `scale`. A NaN metric counts as no improvement."""
        if self._improves(metric):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.scale, self.bad = self.scale * self.factor, 0
        return self.scale

    def _improves(self, metric: float) -> bool:
        if math.isnan(metric):
            return False
        if self.best is None:
            return True
        if self.mode == "min":
            return metric < self.best * (1.0 - self.threshold)
        return metric > self.best * (1.0 + self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: scale, best metric, bad evaluations in a row."""
        state = asdict(self)
        return {key: state[key] for key in ("scale", "best", "bad")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self.scale, self.best, self.bad = state["scale"], state["best"], state["bad"]

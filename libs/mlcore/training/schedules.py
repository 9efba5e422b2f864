"""Learning-rate schedules as pure functions of training progress.

A schedule maps progress `t` (float64 array; updates done, or epochs done when its unit is "epoch") and a base learning
rate to learning rates of the same shape. Nothing is stateful, so resuming needs no scheduler state; the one exception
is `Plateau`, which listens to a metric and returns a factor.

Parameter names follow torch's schedulers where those exist. Where torch's cosine turns up again after `T_max`, ours
stays at `eta_min`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mlcore.base.errors import UserError

FloatArray = NDArray[np.float64]

STEP_SIZE = 30.0
"""Units between the falls of `step` where nothing else is given."""


def constant(t: FloatArray, base: float) -> FloatArray:
    """`base`, always."""
    return np.full_like(t, base)


def cosine(t: FloatArray, base: float, *, T_max: float, eta_min: float = 0.0) -> FloatArray:
    """Half a cosine from `base` at 0 to `eta_min` at `T_max`, then `eta_min` (arXiv 1608.03983 without restarts)."""
    done = np.clip(t / T_max, 0.0, 1.0)
    return eta_min + (base - eta_min) * 0.5 * (1.0 + np.cos(np.pi * done))


def step(t: FloatArray, base: float, *, step_size: float = STEP_SIZE, gamma: float = 0.1) -> FloatArray:
    """`base * gamma ** floor(t / step_size)`."""
    return base * gamma ** np.floor(t / step_size)


def exponential(t: FloatArray, base: float, *, gamma: float) -> FloatArray:
    """`base * gamma ** floor(t)`: one factor per unit."""
    return base * gamma ** np.floor(t)


def warmup(
    t: FloatArray,
    base: float,
    *,
    decay: Literal["cosine", "linear"],
    warmup_steps: float,
    max_steps: float,
    min_lr: float = 0.0,
    warmup_start_lr: float = 0.0,
) -> FloatArray:
    """Linear from `warmup_start_lr` to `base` over `warmup_steps`, then as `decay` says to `min_lr` at `max_steps`."""
    since, length = t - warmup_steps, max(max_steps - warmup_steps, 1e-12)
    if decay == "cosine":
        rest = cosine(since, base, T_max=length, eta_min=min_lr)
    else:
        rest = base + (min_lr - base) * np.clip(since / length, 0.0, 1.0)
    if warmup_steps <= 0:
        return rest
    return np.where(t < warmup_steps, warmup_start_lr + (base - warmup_start_lr) * t / warmup_steps, rest)


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


_WARMUP_COSINE = partial(warmup, decay="cosine")
_FUNCTIONS: dict[str, Callable[..., FloatArray]] = {
    "constant": constant,
    "plateau": constant,  # the metric-driven factor comes from `Plateau`
    "reduce_on_plateau": constant,
    "cosine": cosine,
    "step": step,
    "exponential": exponential,
    "warmup_cosine": _WARMUP_COSINE,
    "cosine_warmup": _WARMUP_COSINE,
    "warmup_linear": partial(warmup, decay="linear"),
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
    at: FloatArray | None = None,
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
        at: float64 [rows], other places on the schedule, in updates, than 0, 1, ... `total_steps`: those between two
            updates are where a run is that goes on with another batch size.

    Returns:
        float64 [total_steps + 1, groups]; row i is used by update i (0-based), the last row after the end. With `at`
        [rows, groups].

    Raises:
        UserError: Unknown schedule, or a parameter is missing or not known to it.
    """
    if name not in _FUNCTIONS:
        raise UserError(f"unknown schedule '{name}'; choose one of {', '.join(sorted(_FUNCTIONS))}")
    t = np.arange(total_steps + 1, dtype=np.float64) if at is None else at
    if unit == "epoch":
        t = np.floor(t / steps_per_epoch)
    given = dict(params) if name not in ("plateau", "reduce_on_plateau") else {}
    length = "T_max" if name == "cosine" else "max_steps" if "warmup" in name else None
    if length is not None and given.get(length) is None:
        given[length] = max(1.0, total_steps if unit == "step" else total_steps / steps_per_epoch)
    try:
        return np.stack([_FUNCTIONS[name](t, base, **given) for base in base_lrs], axis=1)
    except TypeError as error:
        raise UserError(f"scheduler '{name}': {str(error).split('() ')[-1]}") from None


class Plateau:
    """Multiply learning rates by `factor` when a metric has not improved for more than `patience` evaluations.

    torch's `ReduceLROnPlateau` decides (with its relative threshold); it watches over one rate that starts at 1.

    Args:
        metric: Name of the metric, as `Monitor` has it.
        mode: "min" or "max": which direction is better. A NaN metric counts as no improvement.
        factor: Multiplier at each reduction, in (0, 1).
        patience: Evaluations without improvement that are tolerated.
    """

    def __init__(
        self, *, metric: str = "loss", mode: Literal["min", "max"] = "min", factor: float = 0.1, patience: int = 10
    ) -> None:
        self.metric = metric
        self._rate = SGD([torch.zeros(1)], lr=1.0)
        self._watch = ReduceLROnPlateau(self._rate, mode=mode, factor=factor, patience=patience, eps=0.0)

    @property
    def scale(self) -> float:
        """Product of all reductions so far; the learning rate is `base * scale`."""
        return float(self._rate.param_groups[0]["lr"])

    def update(self, metric: float) -> float:
        """Take one evaluation's metric; return the new `scale`."""
        self._watch.step(metric)
        return self.scale

    def forget(self) -> None:
        """Let the next metric be the best so far; the scale stays."""
        self._watch.best, self._watch.num_bad_epochs = self._watch.mode_worse, 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: scale, and of which metric the best value and the bad evaluations in a row are."""
        watched = {"metric": self.metric, "mode": self._watch.mode}
        return {"scale": self.scale, **watched, "best": self._watch.best, "bad": self._watch.num_bad_epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; of another metric, or one that was watched the other way round, only the scale."""
        self._rate.param_groups[0]["lr"] = state["scale"]
        if (state["metric"], state["mode"]) != (self.metric, self._watch.mode):
            return
        if state["best"] is not None:
            self._watch.best = state["best"]
        self._watch.num_bad_epochs = state["bad"]

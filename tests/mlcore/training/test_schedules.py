"""Schedules agree with torch's own where those exist, and join where they should."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.training.schedules import Plateau, lr_table

BASE = 0.3


def rates(name: str, *, total: int = 100, unit: Any = "step", per_epoch: int = 10, **params: float) -> list[float]:
    table = lr_table(name, params, base_lrs=[BASE], total_steps=total, steps_per_epoch=per_epoch, unit=unit)
    return [float(value) for value in table[:, 0]]


def torch_rates(make: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


SCHEDULERS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("name", "params", "make"),
    [
        ("cosine", {"T_max": 99, "eta_min": 0.01}, lambda o: SCHEDULERS.CosineAnnealingLR(o, 99, eta_min=0.01)),
        ("step", {"step_size": 30, "gamma": 0.1}, lambda o: SCHEDULERS.StepLR(o, 30, gamma=0.1)),
        ("exponential", {"gamma": 0.97}, lambda o: SCHEDULERS.ExponentialLR(o, 0.97)),
        ("cosine_warm_restart", {"T_0": 7, "T_mult": 2}, lambda o: SCHEDULERS.CosineAnnealingWarmRestarts(o, 7, 2)),
        (
            "cosine_warm_restart",
            {"T_0": 10, "eta_min": 0.02},
            lambda o: SCHEDULERS.CosineAnnealingWarmRestarts(o, 10, eta_min=0.02),
        ),
    ],
)
def test_agrees_with_torch(name: str, params: dict[str, float], make: Any) -> None:
    assert rates(name, **params)[:100] == pytest.approx(torch_rates(make, 100), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["warmup_cosine", "warmup_linear", "cosine_warmup"])
def test_warm_up_meets_the_decay_and_ends_at_the_minimum(name: str) -> None:
    found = rates(name, warmup_steps=20, min_lr=0.03, warmup_start_lr=0.1)
    assert found[0] == pytest.approx(0.1)
    assert found[10] == pytest.approx(0.2)
    assert found[20] == pytest.approx(BASE)
    assert found[-1] == pytest.approx(0.03)
    assert all(a > b for a, b in itertools.pairwise(found[20:]))


def test_without_warm_up_it_is_the_plain_cosine() -> None:
    assert rates("warmup_cosine", warmup_steps=0) == pytest.approx(rates("cosine"))


def test_cosine_stays_at_its_minimum_after_the_end() -> None:
    assert rates("cosine", T_max=50, eta_min=0.01)[50:] == pytest.approx([0.01] * 51)


def test_epoch_units_change_the_rate_once_an_epoch() -> None:
    found = rates("step", unit="epoch", step_size=3, gamma=0.5)
    assert found[:30] == pytest.approx([BASE] * 30)
    assert found[30:60] == pytest.approx([BASE / 2] * 30)
    assert len(set(rates("cosine", unit="epoch"))) == 11


def test_every_group_follows_from_its_own_base() -> None:
    table = lr_table("cosine", {}, base_lrs=[1.0, 0.1], total_steps=10, steps_per_epoch=5)
    np.testing.assert_allclose(table[:, 1], table[:, 0] / 10)


@pytest.mark.parametrize("name", ["constant", "plateau", "reduce_on_plateau"])
def test_schedules_without_shape_are_constant(name: str) -> None:
    assert set(rates(name)) == {BASE}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown schedule 'cosin'.*cosine"):
        rates("cosin")
    with pytest.raises(UserError, match=r"exponential.*gamma"):
        rates("exponential")
    with pytest.raises(UserError, match="unexpected keyword argument 'T_max'"):
        rates("exponential", gamma=0.9, T_max=3)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_decides_as_torch_does(mode: Any) -> None:
    rng = np.random.default_rng(0)
    metrics = [float(x) for x in rng.normal(size=60).cumsum() * 0.1 + 5]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = SCHEDULERS.ReduceLROnPlateau(optimizer, mode=mode, factor=0.5, patience=3)
    ours = Plateau(mode=mode, factor=0.5, patience=3)
    for metric in metrics:
        theirs.step(metric)
        assert ours.update(metric) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.scale < 1


def test_plateau_continues_from_its_state_and_a_nan_is_no_improvement() -> None:
    whole, first = Plateau(patience=1, factor=0.5), Plateau(patience=1, factor=0.5)
    metrics = [3.0, 2.0, math.nan, 2.5, 2.4, 1.0, 2.0]
    expected = [whole.update(m) for m in metrics]
    found = [first.update(m) for m in metrics[:3]]
    second = Plateau(patience=1, factor=0.5)
    second.load_state_dict(first.state_dict())
    assert found + [second.update(m) for m in metrics[3:]] == expected
    assert expected[-1] < 1


def test_plateau_compares_no_metric_with_the_best_of_another() -> None:
    score = Plateau(metric="macro_f1", mode="max", patience=0, factor=0.5)
    assert [score.update(m) for m in (0.2, 0.1)] == [1.0, 0.5]
    loss = Plateau(metric="loss", patience=0, factor=0.5)
    loss.load_state_dict(score.state_dict())
    assert [loss.update(m) for m in (3.0, 2.9)] == [0.5, 0.5]  # what was reduced stays; 0.2 is no loss to beat

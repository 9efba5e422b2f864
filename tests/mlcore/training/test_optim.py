"""Parameter groups, and optimisers that can be told on the device to leave everything alone."""

from typing import Any, Literal

import pytest
import torch
from torch import nn

from mlcore.base.errors import UserError
from mlcore.training.optim import GroupRule, build_optimizer, parameter_groups


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 2)


def names(model: nn.Module, group: dict[str, Any]) -> set[str]:
    by_id = {id(p): n for n, p in model.named_parameters()}
    return {by_id[id(p)] for p in group["params"]}


def test_only_matrices_decay() -> None:
    model = Model()
    groups = {g["name"]: g for g in parameter_groups(model, lr=0.1, weight_decay=0.5)}
    assert names(model, groups["all/decay"]) == {"encoder.0.weight", "head.weight"}
    assert groups["all/decay"]["weight_decay"] == 0.5
    assert groups["all/no_decay"]["weight_decay"] == 0.0
    assert sum(len(g["params"]) for g in groups.values()) == len(list(model.parameters()))


def test_rules_give_parts_their_own_rate_and_the_longest_prefix_wins() -> None:
    rules = [GroupRule("encoder.", 0.01), GroupRule("encoder.1.", 0.001)]
    model = Model()
    groups = parameter_groups(model, lr=0.1, rules=rules)
    rate = {name: group["lr"] for group in groups for name in names(model, group)}
    assert rate["encoder.0.weight"] == 0.01
    assert rate["encoder.1.weight"] == 0.001
    assert rate["head.weight"] == 0.1


def test_a_rate_of_zero_freezes() -> None:
    model = Model()
    groups = parameter_groups(model, lr=0.1, rules=[GroupRule("encoder.", 0.0)])
    assert not any(name.startswith("encoder") for group in groups for name in names(model, group))
    assert not model.encoder[0].weight.requires_grad


def test_a_rule_that_matches_nothing_and_nothing_to_train_are_errors() -> None:
    with pytest.raises(UserError, match="enkoder"):
        parameter_groups(Model(), lr=0.1, rules=[GroupRule("enkoder.", 0.1)])
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_optimizer(parameter_groups(Model().requires_grad_(requires_grad=False), lr=0.1))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_cancelled_first_step_leaves_no_trace(name: Literal["adamw", "adam", "sgd"]) -> None:
    """Updates after a cancelled step equal those of an optimiser that never saw it."""
    gradients = [torch.full((3,), float("nan")), torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.1, 0.2, 0.3])]
    found = []
    for skip in (True, False):
        parameter = nn.Parameter(torch.ones(3))
        optimizer = build_optimizer([{"params": [parameter], "lr": 0.1, "weight_decay": 0.01}], name=name)
        for gradient in gradients[0 if skip else 1 :]:
            parameter.grad = gradient.clone()
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.found_inf = torch.tensor(float(not bool(torch.isfinite(gradient).all())))  # type: ignore[attr-defined]
            optimizer.step()
        found.append(parameter.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("as_method", [False, True])
def test_what_a_module_exempts_from_decay_is_not_decayed(as_method: bool) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(4, 3))
            self.matrix = nn.Parameter(torch.zeros(4, 3))
            self.no_weight_decay: object = (lambda: {"positions"}) if as_method else {"positions"}

    model = nn.Sequential(Table())
    groups = parameter_groups(model, lr=0.1, weight_decay=0.01)
    decayed = [parameter for group in groups if group["weight_decay"] for parameter in group["params"]]
    assert [id(parameter) for parameter in decayed] == [id(model[0].matrix)]

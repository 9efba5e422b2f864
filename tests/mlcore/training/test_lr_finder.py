"""The range test suggests a rate that trains, and leaves the trainer as it was."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.lr_finder import find_learning_rate
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.progress import Limits
from mlcore.training.trainer import Trainer


class Line:
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = np.random.default_rng(index).normal(size=3).astype(np.float32)
        return {"x": x, "y": x.sum()}


class Fit:
    def __init__(self) -> None:
        self.model: nn.Module = nn.Linear(3, 1)

    def training_step(self, model: nn.Module, batch: dict[str, Tensor]) -> StepOutput:
        return StepOutput((model(batch["x"])[:, 0] - batch["y"]).square().sum(), len(batch["y"]))

    def evaluation_step(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {}

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    @property
    def metadata(self) -> dict[str, Any]:
        return {}


def test_suggestion_lies_between_no_progress_and_divergence() -> None:
    torch.manual_seed(0)
    task = Fit()
    optimizer = build_optimizer(parameter_groups(task.model, lr=0.1), name="sgd", momentum=0.0)
    engine = Engine(task.model, optimizer, learning_rates=np.full((100, 1), 0.1))
    loader = BatchLoader(Line(), EpochOrder(64, 8))
    trainer = Trainer(task=task, engine=engine, loader=loader, evaluator=None, limits=Limits(epochs=1))
    before = copy.deepcopy(task.model.state_dict())
    curve = find_learning_rate(trainer, steps=60, lowest=1e-5, highest=100.0)
    assert 1e-4 < curve.suggestion < 0.5, "a quadratic with curvature 2 diverges at a rate of about 1"
    assert len(curve.losses) < 60, "it stopped when the loss rose"
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())
    assert engine.read_totals().updates == 0
    engine.run_window(task.training_step, next(iter(trainer.windows_over_epochs(1))))
    assert engine.learning_rates() == [np.float32(0.1).item()], "the schedule is back"


@pytest.mark.parametrize(("name", "momentum"), [("adamw", 0.0), ("adam", 0.0), ("sgd", 0.9)])
def test_training_after_it_is_training_without_it(name: Literal["adamw", "adam", "sgd"], momentum: float) -> None:
    trained = []
    for test_before in (False, True):
        torch.manual_seed(0)
        task = Fit()
        optimizer = build_optimizer(parameter_groups(task.model, lr=0.1), name=name, momentum=momentum)
        engine = Engine(task.model, optimizer, learning_rates=np.full((100, 1), 0.1))
        loader = BatchLoader(Line(), EpochOrder(64, 8))
        trainer = Trainer(task=task, engine=engine, loader=loader, evaluator=None, limits=Limits(epochs=1))
        begun = copy.deepcopy(optimizer.state_dict()["state"])
        if test_before:
            find_learning_rate(trainer, steps=10, lowest=1e-5, highest=0.1)
        assert str(optimizer.state_dict()["state"]) == str(begun), "its moments are those that it had"
        trainer.fit()
        trained.append(task.model.state_dict())
    assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items())

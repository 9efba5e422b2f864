"""The planner: what two small micro-batches say of a large one."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlcore.base.distributed import World
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training import memory
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.memory import MemoryPlan, available_bytes, largest_windows, plan_memory
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.progress import Limits
from mlcore.training.trainer import Trainer

MIB = 2**20


class Pictures:
    """Mean squared output of a small network."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten()]
        self.model: nn.Module = nn.Sequential(*layers, nn.Linear(8 * 30 * 30, 64))
        self.metadata: Mapping[str, str] = {}

    def training_step(self, model: nn.Module, batch: Tensor) -> StepOutput:
        return StepOutput(model(batch).square().mean(1).sum(), len(batch))

    def evaluation_step(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return {"output": model(batch)}

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        return {"loss": float(predictions["output"].mean())}


@pytest.fixture
def trainer() -> Trainer:
    torch.manual_seed(0)
    task = Pictures()
    groups = parameter_groups(task.model, lr=1e-3, weight_decay=0.0)
    rates = np.full((2, len(groups)), 1e-3)
    engine = Engine(task.model, build_optimizer(groups), learning_rates=rates, ema_decay=0.9, world=World())
    loader = BatchLoader([torch.randn(3, 32, 32) for _ in range(8)], EpochOrder(size=8, batch_size=8))  # type: ignore[arg-type]
    return Trainer(task=task, engine=engine, loader=loader, evaluator=None, limits=Limits(epochs=1))


def test_a_large_batch_needs_what_two_small_ones_foretell(trainer: Trainer) -> None:
    plan = plan_memory(trainer)
    assert plan.sizes[0] >= 2  # batch norms have no statistics of one
    (window,) = largest_windows(trainer, (64,), 1)
    found = int(memory._curve(trainer, window).max())
    assert found > 20 * MIB
    assert plan.parts(64, accumulation=1)["activations and gradients"] == pytest.approx(found, rel=0.01)


def test_parts_that_do_not_depend_on_the_batch_are_counted(trainer: Trainer) -> None:
    plan = plan_memory(trainer)
    trained = sum(p.nbytes for p in trainer.engine.model.parameters())
    assert plan.held["parameters"] == pytest.approx(trained, rel=0.01)
    assert plan.held["averages"] == pytest.approx(trained, rel=0.01)
    assert plan.held["optimiser"] == pytest.approx(2 * trained, rel=0.01)
    assert plan.checkpoint == pytest.approx(4 * trained, rel=0.01)
    assert plan.sample == 3 * 32 * 32 * 4
    assert plan.parts(8, accumulation=3)["batches"] == 2 * 3 * 8 * plan.sample


def test_the_highest_point_may_be_another_in_a_larger_batch() -> None:
    """A step of whose allocations one grows with the batch; where they cannot be told apart the peaks are taken."""
    about = {"held": {"parameters": 5}, "sample": 0, "sizes": (1, 2), "checkpoint": 0}
    flat = MemoryPlan(curves=(np.array([0, 100, 10]), np.array([0, 100, 20])), **about)  # type: ignore[arg-type]
    assert [flat.peak(size, accumulation=1) for size in (1, 2, 50)] == [105, 105, 505]
    other = MemoryPlan(curves=(np.array([0, 10]), np.array([0, 20, 5])), **about)  # type: ignore[arg-type]
    assert other.peak(50, accumulation=1) == 505


def test_a_container_has_the_memory_that_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = available_bytes(cpu)
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 999999\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(cpu) == pytest.approx(whole, rel=0.2)
    (tmp_path / "memory.max").write_text("10000\n")
    assert available_bytes(cpu) == 7000

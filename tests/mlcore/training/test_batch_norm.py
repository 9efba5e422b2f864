"""Batch norm: statistics of averaged weights, of recomputed passes, and over ranks."""

import copy
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlcore.base.distributed import World, start_world
from mlcore.base.errors import UserError
from mlcore.base.seeding import seed_everything
from mlcore.data.batch import MicroBatch
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.batch_norm import batch_norms, estimate_statistics, synchronise
from mlcore.training.checkpoint import CheckpointStore, inference_weights, load_checkpoint
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.evaluator import Evaluator
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.progress import Cadence, Limits, Monitor
from mlcore.training.trainer import Trainer
from tests.mlcore.training.test_trainer import assert_same_state

CLASSES = 6


class Blobs:
    """Points around the corners of a simplex, far from 0, so that initial running statistics are useless."""

    def __init__(self, size: int, *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.label = rng.integers(CLASSES, size=size)
        centres = 3.0 * np.eye(CLASSES, 8) + 20.0
        self.x = (centres[self.label] + rng.normal(size=(size, 8))).astype(np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "label": int(self.label[index])}


def shifted(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**sample, "x": sample["x"] + 0.1 * rng.normal(size=8).astype(np.float32)}


class Block(nn.Sequential):
    """Part of a network whose activations may be recomputed."""

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(super().forward, x, use_reentrant=False)
            return out
        return super().forward(x)


class Classes:
    """A network with batch norm and dropout."""

    metadata: Mapping[str, Any] = {}

    def __init__(self) -> None:
        hidden = [Block(nn.Linear(width, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1)) for width in (8, 32, 32)]
        self.model: nn.Module = nn.Sequential(*hidden, nn.Linear(32, CLASSES))

    def training_step(self, model: nn.Module, batch: dict[str, Tensor]) -> StepOutput:
        loss = nn.functional.cross_entropy(model(batch["x"]), batch["label"], reduction="sum")
        return StepOutput(loss, len(batch["label"]))

    def evaluation_step(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"right": model(batch["x"]).argmax(1) == batch["label"]}

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        return {"accuracy": float(predictions["right"].float().mean())}


def make(folder: Path | None = None, *, epochs: int = 3, decay: float | None = 0.999, settle: bool = True) -> Trainer:
    seed_everything(0)
    task, data = Classes(), Blobs(600, seed=1)
    groups = parameter_groups(task.model, lr=0.01)
    engine = Engine(task.model, build_optimizer(groups), learning_rates=np.full((2, 1), 0.01), ema_decay=decay)
    if settle:
        steady = BatchLoader(data, EpochOrder(320, 32, shuffle=False), transform=shifted)
        engine.settle = partial(estimate_statistics, task, loader=steady, world=World())
    return Trainer(
        task=task,
        engine=engine,
        loader=BatchLoader(data, EpochOrder(600, 32), transform=shifted),
        evaluator=Evaluator(task, BatchLoader(Blobs(300, seed=2), EpochOrder(300, 64, shuffle=False))),
        limits=Limits(epochs=epochs),
        cadence=Cadence(log_every=5, save_every_steps=7),
        monitor=Monitor(metric="accuracy", mode="max"),
        store=None if folder is None else CheckpointStore(folder, keep_last=100),
    )


def test_a_short_run_with_a_slow_average_is_judged_as_what_it_has_learnt(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    assert trainer.fit().metrics["accuracy"] > 0.9
    task = Classes()
    task.model.load_state_dict(inference_weights(load_checkpoint(tmp_path / "best_model.pth"), source="best"))
    evaluator = trainer.evaluator
    assert evaluator is not None
    assert evaluator.run(task.model)[0]["accuracy"] == trainer.progress.best, "it is exported as it was judged"


def test_statistics_are_those_of_the_batches_with_the_present_weights() -> None:
    trainer = make(epochs=1)
    trainer.fit()
    model = trainer.task.model
    norm = model[0][1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm1d)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    loader = BatchLoader(Blobs(600, seed=1), EpochOrder(96, 32, shuffle=False))
    estimate_statistics(trainer.task, loader=loader, world=World())
    inputs = torch.stack([model[0][0](batch.data["x"]) for batch in loader.epoch(0)])  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, inputs.mean(dim=(0, 1)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, inputs.var(dim=1).mean(dim=0), rtol=1e-4, atol=1e-5)
    once = copy.deepcopy(model.state_dict())
    estimate_statistics(trainer.task, loader=loader, world=World())
    for name, value in model.state_dict().items():
        assert torch.equal(value, once[name]), "a function of the weights and batches"
        assert "running" in name or torch.equal(value, before[name])
    assert model.training
    assert norm.momentum == 0.1
    assert torch.equal(torch.get_rng_state(), generator), "dropout is off"


def test_a_batch_that_is_not_finite_leaves_no_trace_in_the_statistics() -> None:
    task = Classes()
    good, bad = Blobs(96, seed=1), Blobs(96, seed=1)
    bad.x[40] = np.nan
    for data, size in ((bad, 96), (good, 96)):
        order = EpochOrder(size, 32, shuffle=False)
        estimate_statistics(task, loader=BatchLoader(data, order), world=World())
        assert all(torch.isfinite(value).all() for value in task.model.state_dict().values())
    bad.x[:] = np.nan
    before = copy.deepcopy(task.model.state_dict())
    estimate_statistics(task, loader=BatchLoader(bad, EpochOrder(96, 32)), world=World())
    assert_same_state(before, task.model.state_dict())


def test_frozen_parts_keep_their_statistics() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode=False)
            return self

    task = Classes()
    task.model = nn.Sequential(Frozen(nn.BatchNorm1d(8)), task.model)
    assert len(batch_norms(task.model)) == 3
    estimate_statistics(task, loader=BatchLoader(Blobs(96, seed=1), EpochOrder(96, 32)), world=World())
    assert float(task.model[0][0].running_mean.abs().max()) == 0  # type: ignore[index, union-attr]


@pytest.mark.parametrize("step", [7, 21, 42])
def test_resuming_with_settled_averages_ends_bit_identical(step: int, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    whole.fit()
    part = make(tmp_path / "part")
    part.load_state_dict(load_checkpoint(tmp_path / "whole" / f"step_{step:08d}.pth"), source="part")
    part.fit()
    assert_same_state(whole.state_dict(), part.state_dict())


def test_settling_is_felt_by_nothing_but_the_averaged_statistics() -> None:
    states = []
    for settle in (False, True):
        trainer = make(settle=settle)
        trainer.fit()
        states.append(trainer.state_dict())
    one, other = states
    assert_same_state(one["model"], other["model"])
    averages = [state["engine"]["ema"] for state in (one, other)]
    different = {name for name in averages[0] if not torch.equal(averages[0][name], averages[1][name])}
    assert different == {name for name in averages[0] if "running" in name}
    assert_same_state({"rng": one["rng"]}, {"rng": other["rng"]})


def test_last_weights_of_a_run_without_validation_data_are_settled(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    judge, trainer.evaluator = trainer.evaluator, None
    trainer.fit()
    task = Classes()
    task.model.load_state_dict(inference_weights(load_checkpoint(tmp_path / "latest_model.pth"), source="latest"))
    assert judge is not None
    assert judge.run(task.model)[0]["accuracy"] > 0.9


def test_milestones_between_evaluations_are_settled(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.cadence = Cadence(evaluate_every=100, milestone_every_epochs=1)
    trainer.fit()
    scores = []
    for epoch in (1, 2, 3):
        task = Classes()
        weights = inference_weights(load_checkpoint(tmp_path / f"epoch_{epoch:04d}.pth"), source="milestone")
        task.model.load_state_dict(weights)
        assert trainer.evaluator is not None
        scores.append(trainer.evaluator.run(task.model)[0]["accuracy"])
    assert min(scores) > 0.8


def _rank(rank: int, rendezvous: str, out: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = rendezvous
    torch.set_num_threads(1)
    with start_world("cpu") as world:
        torch.save(
            _estimated(EpochOrder(96, 16, rank=world.rank, world_size=world.size, shuffle=False)), f"{out}/{rank}"
        )


def _estimated(order: EpochOrder) -> dict[str, Tensor]:
    torch.manual_seed(0)
    task = Classes()
    loader = BatchLoader(Blobs(96, seed=1), order)
    estimate_statistics(task, loader=loader, world=World(order.rank, order.world_size))
    return task.model.state_dict()


def test_ranks_estimate_together(tmp_path: Path, free_port: int) -> None:
    mp.spawn(_rank, args=(str(free_port), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    one, other = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    assert_same_state(one, other)
    torch.testing.assert_close(one, _estimated(EpochOrder(96, 16, shuffle=False)))


def test_the_average_warms_up_by_the_updates_that_were_applied() -> None:
    task = Classes()
    weight = task.model[3].weight  # type: ignore[index]
    groups = parameter_groups(task.model, lr=0.01)
    engine = Engine(task.model, build_optimizer(groups), learning_rates=np.full((2, 1), 0.01), ema_decay=0.5)
    x, expected, updates = torch.randn(16, 8), weight.detach().clone(), 0
    for window in range(14):
        bad = window in (0, 4, 5)
        batch = {"x": x * float("nan") if bad else x, "label": torch.arange(16) % CLASSES}
        engine.run_window(task.training_step, [MicroBatch(batch)])
        if not bad:
            decay = min(0.5, (1 + updates) / (10 + updates))
            expected = decay * expected + (1 - decay) * weight.detach()
            updates += 1
    torch.testing.assert_close(engine.state_dict()["ema"]["3.weight"], expected)


def test_recomputed_passes_are_not_counted_again() -> None:
    states = []
    for recompute in (False, True):
        seed_everything(0)
        task = Classes()
        for block in list(task.model)[:3]:  # type: ignore[call-overload]
            block.recompute = recompute
        groups = parameter_groups(task.model, lr=0.01)
        engine = Engine(task.model, build_optimizer(groups), learning_rates=np.full((2, 1), 0.01))
        engine.recomputes = recompute
        data = Blobs(32, seed=1)
        halves = [
            MicroBatch({"x": torch.tensor(data.x[half]), "label": torch.tensor(data.label[half])})
            for half in (slice(16), slice(16, 32))
        ]
        engine.run_window(task.training_step, halves)
        states.append(copy.deepcopy(task.model.state_dict()))
    assert int(states[1]["0.1.num_batches_tracked"]) == 2, "one for each micro-batch"
    assert_same_state(*states)


def test_a_window_that_is_not_finite_is_not_counted() -> None:
    task = Classes()
    groups = parameter_groups(task.model, lr=0.01)
    engine = Engine(task.model, build_optimizer(groups), learning_rates=np.full((2, 1), 0.01))
    before = copy.deepcopy(task.model.state_dict())
    batch = {"x": torch.full((16, 8), float("nan")), "label": torch.arange(16) % CLASSES}
    engine.run_window(task.training_step, [MicroBatch(batch)])
    assert_same_state(before, task.model.state_dict())


def test_synchronised_batch_norms_have_the_same_names_and_weights() -> None:
    from timm.layers import BatchNormAct2d, SyncBatchNormAct

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), BatchNormAct2d(4), nn.ModuleList([nn.BatchNorm2d(4)])[0])

    plain, other = network(), network()
    synchronise(other, world=World())
    assert type(other[1]) is BatchNormAct2d, "nothing to do on one rank"  # type: ignore[index]
    two = World(size=2, device=torch.device("cuda"))
    for _ in range(2):  # the second time it finds them done
        synchronise(other, world=two)
    assert type(other[1]) is SyncBatchNormAct  # type: ignore[index]
    assert type(other[2]) is nn.SyncBatchNorm  # type: ignore[index]
    assert_same_state(plain.state_dict(), other.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(plain.eval()(x), other.eval()(x)), "with its activation"


def test_synchronised_batch_norms_are_refused_where_torch_has_none() -> None:
    with pytest.raises(UserError, match=r"sync_batch_norm.*CUDA devices only, and this is cpu"):
        synchronise(Classes().model, world=World(size=2))
    synchronise(nn.Linear(2, 2), world=World(size=2))


def test_a_batch_norm_of_an_unknown_kind_is_refused() -> None:
    class Own(nn.BatchNorm1d):
        """One that may do more."""

    with pytest.raises(UserError, match="Own is neither torch's nor timm's"):
        synchronise(nn.Sequential(Own(3)), world=World(size=2, device=torch.device("cuda")))

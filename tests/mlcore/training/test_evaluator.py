"""Evaluation sees every sample once, in order, on any number of ranks."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from mlcore.base.distributed import start_world
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.engine import StepOutput
from mlcore.training.evaluator import Evaluator, largest_difference

SIZE = 21
LENGTHS = np.random.default_rng(1).integers(1, 9, SIZE).tolist()


class Numbers:
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.tensor([float(index)]), "id": index}


class Doubling:
    """Predicts twice the input; the model is in training mode when it is not evaluated."""

    def __init__(self) -> None:
        self.model: nn.Module = nn.Dropout(0.5)

    def training_step(self, model: nn.Module, batch: Any) -> StepOutput:
        raise AssertionError("evaluation must not train")

    def evaluation_step(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"id": batch["id"], "value": 2 * model(batch["x"])[:, 0]}

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        return {"mean": float(predictions["value"].mean())}

    @property
    def metadata(self) -> dict[str, Any]:
        return {}


def evaluate(rank: int, world_size: int, lengths: list[int] | None, out: str, port: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = port
    with start_world("cpu") as world:
        order = EpochOrder(SIZE, 5, shuffle=False, lengths=lengths, rank=world.rank, world_size=world.size)
        task = Doubling()
        metrics, predictions = Evaluator(task, BatchLoader(Numbers(), order), world=world).run(task.model.train())
        assert task.model.training, "the model's mode is put back"
        torch.save({"metrics": metrics, "predictions": dict(predictions)}, f"{out}/{rank}.pt")


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["in-order", "by-length"])
@pytest.mark.parametrize("world_size", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_sample_once_in_dataset_order(
    world_size: int, lengths: list[int] | None, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two ranks the last global batch has one sample, so that one of them has none."""
    arguments = (world_size, lengths, str(tmp_path), str(free_port))
    if world_size == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "0")  # registers the variable for removal after the test
        evaluate(0, *arguments)
    else:
        mp.spawn(evaluate, args=arguments, nprocs=world_size)  # type: ignore[no-untyped-call]
    for rank in range(world_size):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["predictions"]["id"].tolist() == list(range(SIZE))
        assert found["predictions"]["value"].tolist() == [2.0 * i for i in range(SIZE)]
        assert found["metrics"] == {"mean": float(SIZE - 1), "n": float(SIZE)}


class Scoring(Doubling):
    """Scores of a linear map, beside numbers that are no scores."""

    def evaluation_step(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        scores = model(batch["x"]).float()
        return {"id": batch["id"], "score": scores, "never": torch.full((len(scores),), float("nan"))}


def test_how_far_reduced_precision_is_from_float32() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0 + 2**-8)  # bfloat16 has seven bits behind the point: rounds to 1 or 1 + 2**-7
    evaluator = Evaluator(Scoring(), BatchLoader(Numbers(), EpochOrder(SIZE, 5, shuffle=False)))
    assert evaluator.departure(model) is None, "float32 is not compared with itself"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluator.departure(model) == pytest.approx(2**-8, rel=0.01)


def test_a_number_that_is_lost_in_reduced_precision_is_an_infinite_difference() -> None:
    exact = {"score": torch.tensor([1.0, -2.0, math.nan]), "id": torch.tensor([1, 2, 3])}
    assert largest_difference({"score": torch.tensor([1.0, -1.5, 7.0]), "id": torch.zeros(3)}, exact) == 0.25
    for lost in (math.nan, math.inf):
        assert largest_difference({**exact, "score": torch.tensor([1.0, lost, 0.0])}, exact) == math.inf

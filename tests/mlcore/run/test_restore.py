"""From a run's checkpoint back to its parts, and what "auto" precision means."""

import os
import re
from pathlib import Path

import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.config.section import Section, field
from mlcore.config.sections import RunConfig
from mlcore.run.restore import load_run_checkpoint, of_this_version, rebuild, run_folder
from mlcore.training.checkpoint import CheckpointError, save_checkpoint
from mlcore.training.engine import autocast, autocast_dtype


class Config(Section):
    width: int = field(3, "Width", ge=1)


def checkpoint(path: Path, **changes: object) -> Path:
    state = {
        "app": "toy",
        "model": {"a": torch.zeros(2), "b": torch.ones(1)},
        "engine": {"ema": {"a": torch.full((2,), 5.0)}},
        "config": {"width": 7},
        "task": {"names": ["x"]},
        "progress": {"step": 12},
    }
    save_checkpoint(path, {**state, **changes})
    return path


def test_a_run_comes_back_with_its_averaged_weights(tmp_path):
    read = load_run_checkpoint(checkpoint(tmp_path / "best_model.pth"), app="toy", config_cls=Config)
    assert (read.config.width, read.step, read.metadata) == (7, 12, {"names": ["x"]})
    assert read.weights["a"].tolist() == [5.0, 5.0]
    assert read.weights["b"].tolist() == [1.0]


def test_the_checkpoint_of_another_app_is_refused(tmp_path):
    path = checkpoint(tmp_path / "model.pth", app="other")
    with pytest.raises(CheckpointError, match=r"model\.pth: a checkpoint of the app 'other', not of toy"):
        load_run_checkpoint(path, app="toy", config_cls=Config)


@pytest.mark.parametrize("changes", [{"config": {"height": 1}}, {"progress": {}}, {"config": {"width": 0}}])
def test_what_this_version_does_not_write_is_refused(tmp_path, changes):
    path = checkpoint(tmp_path / "model.pth", **changes)
    with pytest.raises(CheckpointError, match=r"model\.pth: not written by this version"):
        load_run_checkpoint(path, app="toy", config_cls=Config)


def test_a_model_of_any_size_is_outlined_before_it_is_built():
    weights = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"x\.pth: weights of another architecture"):
        rebuild(lambda: torch.nn.Linear(2**30, 2**30), weights, source=Path("x.pth"))
    with pytest.raises(CheckpointError, match=r"x\.pth: not written by this version of the app \(.*negative"):
        rebuild(lambda: torch.nn.Linear(-3, 2), weights, source=Path("x.pth"))
    model = rebuild(lambda: torch.nn.Linear(3, 2), weights, source=Path("x.pth"))
    assert torch.equal(model.weight, weights["weight"])
    assert not model.training


class Data(Section):
    split_seed: int = field(0, "Seed of the split")


class SplitConfig(Section):
    data: Data = field(Data(), "Data")
    run: RunConfig = field(RunConfig(), "Run")


@pytest.mark.parametrize(("data", "expected"), [({}, 5), ({"split_seed": 2}, 2)])
def test_an_older_run_was_split_by_its_own_seed(tmp_path, data, expected):
    path = checkpoint(tmp_path / "model.pth", config={"data": data, "run": {"seed": 5}})
    config = load_run_checkpoint(path, app="toy", config_cls=SplitConfig).config
    assert (config.run.seed, config.data.split_seed) == (5, expected)


def test_a_damaged_checkpoint_names_the_whole_one_beside_it(tmp_path):
    best = checkpoint(tmp_path / "best_model.pth")
    older, newest = checkpoint(tmp_path / "step_00000001.pth"), checkpoint(tmp_path / "latest_model.pth")
    os.utime(older, (1, 1))
    best.write_bytes(best.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=rf"best_model.pth: damaged.*beside it is {re.escape(str(newest))}$"):
        load_run_checkpoint(best, app="toy", config_cls=Config)


def test_the_run_folder_is_above_its_checkpoints(tmp_path):
    assert run_folder(tmp_path / "run" / "checkpoints" / "best_model.pth") == tmp_path / "run"
    assert run_folder(tmp_path / "elsewhere" / "best_model.pth") == tmp_path / "elsewhere"


def test_automatic_precision_is_what_the_device_multiplies_itself(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for can, expected in (
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, None),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert autocast_dtype("auto", cpu) is expected
    assert autocast_dtype("auto", torch.device("mps")) is None
    for has_bf16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert autocast_dtype("auto", gpu) is expected


def test_the_named_precisions_reach_the_forward_pass(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    layer, cpu = torch.nn.Linear(4, 4), torch.device("cpu")
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("auto", torch.float32)):
        with autocast(precision, cpu):
            assert layer(torch.ones(1, 4)).dtype is expected


def test_an_error_that_names_the_file_says_its_reason_itself():
    with pytest.raises(UserError, match=r"^x\.pth: knows 6 positions$"), of_this_version(Path("x.pth")):
        raise UserError("x.pth: knows 6 positions")
    with pytest.raises(CheckpointError, match="not written by this version"), of_this_version(Path("x.pth")):
        raise UserError("num_heads must be at least 1")

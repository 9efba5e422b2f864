"""`--batch_size auto`: a step of as many samples in pieces that fit, the same ones when the run goes on."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.base.signals import EXIT_INTERRUPTED
from mlcore.cli.parse import parse
from mlcore.data.batch import MicroBatch
from mlcore.run import auto_batch
from mlcore.run.build import build_trainer
from mlcore.run.folder import finished_run
from mlcore.run.session import run
from mlcore.training.checkpoint import load_checkpoint
from mlcore.training.memory import plan_memory
from mlcore.training.trainer import Trainer
from tests.mlcore.run.toy import ToyConfig, build, toy_app

WINDOW = 8  # samples of a step in the toy's default.yaml
Call = Callable[..., int]


def trainer_of(*arguments: str, folder: Path) -> Trainer:
    config: ToyConfig = parse(toy_app(folder), list(arguments)).config
    return build_trainer(config, build(config, World()), world=World())


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the toy where there is memory for two samples at a time; arguments are those of a command line."""
    plan = plan_memory(trainer_of(folder=tmp_path), micro_batches=2)
    two, four = (plan.peak(size, accumulation=WINDOW // size) - sum(plan.held.values()) for size in (2, 4))
    assert two < four
    monkeypatch.setattr(auto_batch, "available_bytes", lambda _: two / 0.8 + 1)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        app = toy_app(tmp_path)
        return run(app, parse(app, list(arguments)))

    return call


def outcome(folder: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """The last weights, and the settings of the training as the run's record has them."""
    weight: torch.Tensor = load_checkpoint(folder / "checkpoints/latest_model.pth")["model"]["weight"]
    return weight, json.loads((folder / "run.json").read_text("utf-8"))["config"]["train"]


def test_the_word_leaves_the_number_below_it(tmp_path: Path) -> None:
    train = parse(toy_app(tmp_path), ["--batch_size", "auto"]).config.train
    assert (train.batch_size, train.auto_batch_size) == (WINDOW, True)
    (tmp_path / "mine.yaml").write_text("train: {batch_size: auto}\n")
    train = parse(toy_app(tmp_path), ["--config", str(tmp_path / "mine.yaml")]).config.train
    assert (train.batch_size, train.auto_batch_size) == (WINDOW, True)


def test_it_is_the_run_with_the_chosen_numbers_given(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--batch_size", "auto", "--output_dir", "auto") == 0
    assert "batch size: 2 at a time, 4 accumulated, the most that fit" in capsys.readouterr().out
    assert call("--batch_size", "2", "--gradient_accumulation_steps", "4", "--output_dir", "given") == 0
    (weight, settings), (given, _) = (outcome(tmp_path / name) for name in ("auto", "given"))
    assert torch.equal(weight, given)
    assert (settings["batch_size"], settings["gradient_accumulation_steps"]) == (2, 4)
    assert "chosen for 8 samples a step" in (tmp_path / "auto/config.yaml").read_text("utf-8")


def test_a_run_that_goes_on_keeps_what_was_chosen(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--batch_size", "auto", "--output_dir", "whole") == 0
    advance, done = Trainer._advance, [0]

    def advancing(self: Trainer, window: list[MicroBatch]) -> bool:
        done[0] += 1
        if done[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, window)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_advance", advancing)
        assert call("--batch_size", "auto") == EXIT_INTERRUPTED
    monkeypatch.setattr(auto_batch, "available_bytes", lambda _: 2**40)
    assert call("--batch_size", "auto") == 0
    told = capsys.readouterr().out
    assert "2 at a time, 4 accumulated, as the run began" in told
    assert "other settings" not in told
    (folder,) = (tmp_path / "runs/line").iterdir()
    assert torch.equal(outcome(folder)[0], outcome(tmp_path / "whole")[0])
    config = parse(toy_app(tmp_path), ["--batch_size", "auto"]).config
    assert finished_run(folder, config)
    more = config.train.model_copy(update={"batch_size": 2 * WINDOW})
    assert not finished_run(folder, config.model_copy(update={"train": more}))


def test_where_nothing_fits_it_says_so(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_batch, "available_bytes", lambda _: 0)
    with pytest.raises(UserError, match="not even 1 at a time fit"):
        call("--batch_size", "auto", "--output_dir", "none")
    assert not (tmp_path / "none").exists()


def test_a_gpu_tries_until_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has memory for four samples; what torch says of it is made up."""
    trainer, tried, limits = trainer_of(folder=tmp_path), list[int](), list[float]()
    window = trainer.engine.run_window

    def run_window(forward: Callable[..., Any], batches: list[MicroBatch]) -> None:
        tried.append(len(batches[0].data["x"]))
        if tried[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        window(forward, batches)

    monkeypatch.setattr(trainer.engine, "run_window", run_window)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (600, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: limits.append(share))
    assert auto_batch._by_trial(trainer, [8, 4, 2, 1])[0] == 4
    assert tried == [8, 4, 4]  # the second step has the moments
    assert limits == [pytest.approx(0.54), 1.0]

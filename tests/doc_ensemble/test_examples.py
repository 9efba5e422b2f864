"""The example scripts: what they say is true, and secrets stay secret."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mlcore.config.schedule import SchedulerConfig
from quartet.apps.doc_ensemble import example_env_usage, example_scheduler_usage
from tests.docs_page import REPOSITORY, run_script

pytestmark = pytest.mark.pictures

FOLDER = "apps/doc_ensemble"
CONSTANT_BETWEEN = {"cosine", "step", "exponential", "plateau", "cosine_warm_restart"}  # changes once an epoch


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """None of the variables is set, no file brings any, and nobody has logged in."""
    monkeypatch.chdir(tmp_path)
    for name in (*example_env_usage.PURPOSES, "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(example_env_usage, "load_env", list)
    return monkeypatch


def run_env(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["example_env_usage.py", *arguments])
    return example_env_usage.main()


def test_nothing_is_needed_without_services(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_env(bare) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in example_env_usage.PURPOSES)
    assert "Nothing is missing" in shown


def test_what_is_missing_is_said(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_env(bare, "--use_wandb") == 1
    assert "WANDB_API_KEY: runs with --use_wandb need it" in capsys.readouterr().out
    bare.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    assert run_env(bare) == 1
    assert "AWS_SECRET_ACCESS_KEY: the other one" in capsys.readouterr().out


def test_secrets_are_masked_and_places_are_shown(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = {"WANDB_API_KEY": "k" * 40, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "hush-hush-hush"}
    for name, value in (secrets | {"S3_BUCKET_NAME": "my-models"}).items():
        bare.setenv(name, value)
    assert run_env(bare, "--use_wandb") == 0
    shown = capsys.readouterr().out
    assert "my-models" in shown
    assert not [name for name, value in secrets.items() if value in shown]
    assert shown.count("***") == len(secrets)


def test_values_of_the_example_file_are_noticed(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (REPOSITORY / "env_example.txt").read_text(encoding="utf-8").splitlines()
    for line in (line.removeprefix("# ") for line in lines):
        name, mark, value = line.partition("=")
        if mark and name in example_env_usage.PURPOSES:
            bare.setenv(name, value)
    assert run_env(bare) == 1
    shown = capsys.readouterr().out
    for name in ("WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_BUCKET_NAME"):
        assert f"{name}: still the value of env_example.txt" in shown


def make_torch(name: str, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule as torch has it, stepped once an epoch."""
    schedulers = torch.optim.lr_scheduler
    made: dict[str, Callable[[], torch.optim.lr_scheduler.LRScheduler]] = {
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.0),
        "step": lambda: schedulers.StepLR(optimizer, step_size=30, gamma=0.1),
        "exponential": lambda: schedulers.ExponentialLR(optimizer, gamma=0.95),
        "cosine_warm_restart": lambda: schedulers.CosineAnnealingWarmRestarts(
            optimizer, T_0=10, T_mult=2, eta_min=1e-6
        ),
    }
    return made[name]()


@pytest.mark.parametrize("schedule", example_scheduler_usage.SCHEDULES, ids=lambda schedule: schedule.name)
def test_the_schedules_are_what_torch_has(schedule: SchedulerConfig) -> None:
    rates = example_scheduler_usage.learning_rates(schedule).reshape(example_scheduler_usage.EPOCHS, -1)
    assert rates.max() == pytest.approx(example_scheduler_usage.LR)
    assert (np.ptp(rates, axis=1) == 0).all() == (schedule.name in CONSTANT_BETWEEN)
    if schedule.name not in ("cosine", "step", "exponential", "cosine_warm_restart"):
        return
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=example_scheduler_usage.LR)
    theirs, expected = make_torch(schedule.name, optimizer), []
    for _ in range(example_scheduler_usage.EPOCHS):
        expected.append(float(theirs.get_last_lr()[0]))
        optimizer.step()
        theirs.step()
    assert rates[:, 0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_seven_promised_schedules_are_shown() -> None:
    names = ["cosine", "step", "exponential", "plateau", "warmup_cosine", "warmup_linear", "cosine_warm_restart"]
    assert [schedule.name for schedule in example_scheduler_usage.SCHEDULES] == names


def test_the_picture_of_the_schedules_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script([f"{FOLDER}/example_scheduler_usage.py", "--output", str(tmp_path)], monkeypatch)
    assert (tmp_path / "schedulers.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("e-0") > 40


def test_the_example_of_class_metrics_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script([f"{FOLDER}/example_class_metrics_usage.py", "--output", str(tmp_path)], monkeypatch)
    left = {path.name for path in tmp_path.iterdir()}
    assert {"val_class_metrics.csv", "val_class_performance.png", "confusion_matrix.png"} <= left
    assert "train_val_comparison.png" in left
    assert "클래스별 성능 요약" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_of_convnext_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_script([f"{FOLDER}/example_convnext_usage.py"], monkeypatch)
    shown = capsys.readouterr().out
    assert "the same logits: True" in shown
    losses = [float(value) for value in shown.partition("loss of five steps: ")[2].partition("\n")[0].split(", ")]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_example_of_ensembles_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script([f"{FOLDER}/example_ensemble_usage.py", "--output", str(tmp_path)], monkeypatch)
    assert {"ensemble_predictions.csv", "cost_curve.png"} <= {path.name for path in tmp_path.iterdir()}

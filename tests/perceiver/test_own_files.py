"""Own files through the scripts: other orders of classes, gaps, bad lines, no validation data."""

import csv
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore.base.distributed import World
from mlcore.training.checkpoint import load_checkpoint
from quartet.apps.perceiver.build import build
from quartet.apps.perceiver.config import PerceiverConfig


@pytest.fixture
def train(script: Any, tiny: Sequence[str]) -> Any:
    """`train(*arguments)` in an empty folder, into the folder `run`."""
    return lambda *arguments: script("train", *tiny, "--output_dir", "run", *arguments)


def summary() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(Path("run/summary.json").read_text("utf-8"))
    return values


def save_npz(path: str, names: Sequence[str], *, scale: float = 1.0, **more: Any) -> str:
    """40 sequences whose first channel tells the class "up" from "down"; the third is constant."""
    rng = np.random.default_rng(len(names[0]))
    truth = np.arange(40) % 2  # 1 is up
    inputs = rng.standard_normal((40, 6, 3)) * 0.3
    inputs[:, :, 0] += np.where(truth, 2.0, -2.0)[:, None]
    inputs[:, :, 2] = 7.0
    labels = np.where(truth, names.index("up"), names.index("down"))
    np.savez(path, **({"inputs": scale * inputs, "labels": labels, "classes": list(names)} | more))
    return path


LEARN = ["--epochs", "12", "--lr", "1e-2", "--warmup_steps", "0"]


@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_a_test_file_with_classes_in_another_order_means_the_same(scale: float, train: Any, script: Any) -> None:
    save_npz("train.npz", ["up", "down"], scale=scale)
    save_npz("test.npz", ["down", "up"], scale=scale)
    ended = train("--dataset", "custom", "--train_path", "train.npz", "--test_path", "test.npz", *LEARN)
    assert ended.code == 0, ended.err
    assert summary()["results_of_best_checkpoint"]["test"]["accuracy"] == 1.0
    assert "1 channels are constant in the training data and tell nothing: 2" in ended.out
    command = ["--model_path", "run/checkpoints/best_model.pth", "--split", "test", "--output_dir", "results"]
    assert script("inference", *command).code == 0
    assert json.loads(Path("results/results.json").read_text("utf-8"))["metrics"]["accuracy"] == 1.0


def test_a_test_file_with_other_classes_is_refused(train: Any) -> None:
    save_npz("train.npz", ["up", "down"])
    save_npz("test.npz", ["down", "up", "still"])
    ended = train("--dataset", "custom", "--train_path", "train.npz", "--test_path", "test.npz")
    assert ended.code == 2
    assert "test.npz: its classes are down, up, still, the training data's up, down" in ended.err


HEADER = "@dimensions 2\n@classLabel true a b\n@data\n"
GOOD = "1,2,3:4,5,6:a\n3,2,1:6,5,4:b\n" * 6
BAD = "1,2:1,x:a\n1,2:1,2:c\n1,2:1:a\n1,2:a\n(0,1):(0,1):a\n"


def test_bad_lines_of_a_ts_file_are_bad_samples(train: Any, script: Any) -> None:
    Path("T_TRAIN.ts").write_text(HEADER + BAD + GOOD, "utf-8")
    Path("T_TEST.ts").write_text(HEADER + GOOD + BAD, "utf-8")
    command = ["--dataset", "ts", "--data_dir", "."]
    stopped = train(*command)
    assert stopped.code == 2
    for line, problem in ((4, ", channel 2: 'x'"), (5, ": class 'c'"), (6, ": its channels"), (7, ": 1 channels")):
        assert f"\nT_TRAIN.ts, line {line}{problem}" in stopped.err
    assert "5 of 15 samples; set --on_bad_sample skip" in stopped.err
    ended = train(*command, "--on_bad_sample", "skip")
    assert ended.code == 0, ended.err
    assert "10 training and 2 validation samples" in ended.out
    assert summary()["results_of_best_checkpoint"]["test"]["n"] == 12
    assert ended.out.count("left out: T_T") == 10
    assert "10 samples were left out" in Path("run/summary.md").read_text("utf-8")

    predict = ["predict", "--model_path", "run/checkpoints/best_model.pth", "T_TEST.ts"]
    done = script(*predict)
    assert done.code == 1, done.err
    assert "T_TEST.ts, line 16, channel 2: 'x'" in done.out
    assert "17 inputs, 4 could not be used" in done.out  # an unknown class does not matter here


GAPS = "1,?,3,?:1,2,3,?:a\n3,?,1,?:6,?,4,?:b\n"


@pytest.mark.parametrize("how", ["mask", "interpolate"])
def test_gaps_are_treated_as_the_setting_says(how: str, train: Any, script: Any) -> None:
    Path("T_TRAIN.ts").write_text(HEADER + GOOD + GAPS, "utf-8")
    Path("val.ts").write_text(HEADER + GOOD, "utf-8")
    command = ["--dataset", "ts", "--data_dir", ".", "--val_path", "val.ts"]
    stopped = train(*command)
    assert stopped.code == 2
    assert "T_TRAIN.ts, line 16: position 1, channel 0 is nan, not a finite number; on_missing says" in stopped.err
    augment = ["--jitter", "0.1", "--time_warp", "0.3", "--window_slice", "0.3"]
    ended = train(*command, "--on_missing", how, *augment)
    assert ended.code == 0, ended.err
    assert "14 training and 12 validation samples" in ended.out
    assert summary()["skipped_steps"] == 0

    predict = ["predict", "--model_path", "run/checkpoints/best_model.pth", "gaps.ts"]
    Path("gaps.ts").write_text(HEADER + GAPS + "1,2,3:1,2,3:a\n3,2,1:6,5,4:b\n", "utf-8")
    assert script(*predict).code == 0  # as in training
    with Path("predictions.csv").open(encoding="utf-8") as file:
        first, second, *whole = list(csv.DictReader(file))
    same = [row["probability"] for row in (first, second)] == [row["probability"] for row in whole]
    assert same == (how == "interpolate")
    assert script(*predict, "--on_missing", "error").code == 1


def test_no_validation_data_trains_on_all_and_keeps_the_last_weights(train: Any, script: Any) -> None:
    save_npz("train.npz", ["up", "down"])
    command = ["--dataset", "custom", "--train_path", "train.npz", "--val_fraction", "0"]
    refused = train(*command, "--patience", "3")
    assert refused.code == 2
    assert "no validation data: --patience and the plateau schedule have nothing to watch" in refused.err
    ended = train(*command, *LEARN)
    assert ended.code == 0, ended.err
    assert "40 training and 0 validation samples" in ended.out
    assert not Path("run/checkpoints/best_model.pth").exists()
    assert load_checkpoint(Path("run/checkpoints/latest_model.pth"))["progress"]["epoch"] == 12
    assert list(summary()["results_of_best_checkpoint"]) == ["train"]
    page = Path("run/summary.md").read_text("utf-8")
    assert "last weights at step 60 of 60" in page
    assert "No validation data" in page
    command = ["inference", "--model_path", "run/checkpoints/latest_model.pth"]
    there = script(*command, "--split", "train")
    assert there.code == 0, there.err
    missing = script(*command)
    assert missing.code == 2
    assert "the run's data has no val part; there is train" in missing.err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--position", "fourier"], ["--position", "learned"], ["--val_fraction", "0"]])
def test_a_dry_run_passes(arguments: list[str], script: Any, tiny: Sequence[str]) -> None:
    data = shlex.split("--dataset synthetic --num_samples 40 --seq_len_range 5 12 --feature_dim 4 --num_classes 3")
    ended = script("train", *tiny, *data, "--dry_run", *arguments)
    assert ended.code == 0, ended.err
    assert "saved, loaded in a fresh process, exported and verified" in ended.out


def test_what_is_set_aside_follows_its_own_seed(tmp_path: Path) -> None:
    data = {"dataset": "custom", "train_path": save_npz(str(tmp_path / "train.npz"), ["up", "down"])}

    def held_out(seed: int, split_seed: int) -> list[str]:
        values = {"data": {**data, "split_seed": split_seed}, "run": {"seed": seed}}
        dataset = build(PerceiverConfig.model_validate(values), World()).validation.dataset
        return [repr(dataset[index]) for index in range(len(dataset))]

    assert held_out(1, 0) == held_out(0, 0) != held_out(0, 1)

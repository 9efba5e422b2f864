"""inference.py: the figures of the training run again, from the checkpoint alone, and files that say why."""

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DETAILED = {
    "confusion_matrix.png",
    "confidence_histogram.png",
    "confidence_analysis.png",
    "results.json",
    "class_performance.png",
    "reliability.png",
    "class_metrics.csv",
    "predictions.csv",
    "report.html",
    "summary.md",
}


def best(run: Path) -> Path:
    return run / "checkpoints" / "best_model.pth"


def results(folder: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    loaded: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"), parse_constant=refuse)
    return loaded


def trained(run: Path, split: str = "val") -> dict[str, float]:
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    figures: dict[str, float] = summary["results_of_best_checkpoint"][split]
    return figures


@pytest.mark.parametrize("kind", ["series_run", "image_run"])
def test_validation_figures_equal_the_runs_own(kind: str, script: Any, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(kind)
    ended = script("inference", "--model_path", best(run), "--output_dir", "results")
    assert ended.code == 0, ended.err
    found = results(Path("results"))
    assert found["metrics"] | {"n": float(found["n"])} == trained(run)
    assert {path.name for path in Path("results").iterdir()} >= DETAILED
    assert found["split"] == "val"
    assert found["checkpoint"] == str(best(run))


def test_a_run_in_lower_precision_with_averaged_weights_is_evaluated_alike(script: Any, tiny: list[str]) -> None:
    data = shlex.split("--dataset synthetic --num_samples 40 --seq_len_range 5 9 --feature_dim 4 --output_dir run")
    assert script("train", *tiny, *data, "--precision", "bf16", "--ema_decay", "0.5").code == 0
    assert script("inference", "--model_path", best(Path("run"))).code == 0
    found = results(Path("run/evaluation_val"))
    assert found["metrics"] | {"n": float(found["n"])} == trained(Path("run"))
    summary = json.loads(Path("run/summary.json").read_text("utf-8"))
    assert 0.0 < summary["difference_from_float32"] < 0.1


def test_it_names_every_sample_the_worst_first(series_run: Path, script: Any) -> None:
    ended = script("inference", "--model_path", best(series_run), "--analyze", "--output_dir", "results")
    assert ended.code == 0, ended.err
    folder, found = Path("results"), results(Path("results"))
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["index"]) for row in rows) == list(range(found["n"]))
    wrong = [row["label"] != row["predicted"] for row in rows]
    assert wrong == sorted(wrong, reverse=True)
    confidence = np.array([float(row["probability"]) for row in rows])
    mistakes = sum(wrong)
    assert 0 < mistakes < len(rows)
    assert (np.diff(confidence[:mistakes]) <= 0).all()
    assert (np.diff(confidence[mistakes:]) >= 0).all()
    assert 1 - mistakes / len(rows) == pytest.approx(found["metrics"]["accuracy"])
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(found["metrics"]["loss"])
    assert rows[0]["origin"] in (folder / "report.html").read_text("utf-8")
    assert np.trace(found["confusion_matrix"]) == len(rows) - mistakes
    assert [row["name"] for row in found["classes"]] == ["sine", "square", "sawtooth"]


def test_batch_size_changes_no_figure(series_run: Path, script: Any) -> None:
    assert script("inference", "--model_path", best(series_run), "--output_dir", "r", "--batch_size", "1").code == 0
    assert results(Path("r"))["metrics"] == pytest.approx(
        {key: value for key, value in trained(series_run).items() if key != "n"}, rel=1e-5
    )


def test_the_training_part_is_the_rest_of_the_data(series_run: Path, script: Any) -> None:
    assert script("inference", "--model_path", best(series_run), "--split", "train", "--output_dir", "r").code == 0
    assert results(Path("r"))["n"] + trained(series_run)["n"] == 60


def test_the_test_part_and_data_that_moved(script: Any, tiny: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        inputs, labels = rng.standard_normal((16, 6, 3)), np.arange(16) % 2
        np.savez(tmp_path / f"{name}.npz", inputs=inputs, labels=labels)
    data = ["--dataset", "custom", "--train_path", "train.npz", "--test_path", "test.npz", "--output_dir", "run"]
    assert script("train", *tiny, *data).code == 0
    Path("elsewhere").mkdir()
    for name in ("train", "test"):
        Path(f"{name}.npz").rename(f"elsewhere/{name}.npz")
    command = ["inference", "--model_path", best(Path("run")), "--split", "test"]
    lost = script(*command)
    assert lost.code == 2
    assert "train.npz: not found; --train_path should be" in lost.err
    assert not Path("run/evaluation_test").exists()
    found = script(*command, "--train_path=elsewhere/train.npz", "data.test_path=elsewhere/test.npz")
    assert found.code == 0, found.err
    measured = results(Path("run/evaluation_test"))
    assert measured["metrics"] | {"n": float(measured["n"])} == trained(Path("run"), "test")
    assert measured["data"]["test_path"] == "elsewhere/test.npz"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "the run's data has no test part; there is train, val"),
        (["--d_model", "32"], "model.d_model belongs to the trained model"),
        (["--num_sample", "7"], "unknown flag or setting '--num_sample', did you mean 'num_samples'?"),
        (["num_samples=many"], "command line: data.num_samples = many: expected a whole number"),
        (["--batch_size", "0"], "train.eval_batch_size = 0: expected a whole number or null, at least 1"),
        (["--data_dir"], "--data_dir needs a value; expected a path"),
        (["--num_classes", "4"], "the data has the classes sine, square, sawtooth, chirp; the model was trained on"),
        (["feature_dim=5"], "expected [positions, 4]"),
        (["--device", "cuda:99"], "device 'cuda:99' was asked for"),
    ],
)
def test_what_cannot_be_evaluated_is_said(arguments: list[str], message: str, series_run: Path, script: Any) -> None:
    ended = script("inference", "--model_path", best(series_run), "--output_dir", "results", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert not Path("results").exists()


def test_images_cut_otherwise_do_not_fit(image_run: Path, script: Any) -> None:
    ended = script("inference", "--model_path", best(image_run), "--image_size", "32")
    assert ended.code == 2
    assert "'height': 32" in ended.err
    assert "the model was trained on" in ended.err

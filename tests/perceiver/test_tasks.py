"""Tasks other than classification, from the command line: learned, judged, used, and what is refused."""

import csv
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.training.checkpoint import load_checkpoint
from mlcore.use.exporting import export
from quartet.apps.perceiver.build import build
from quartet.apps.perceiver.config import PerceiverConfig
from tests.perceiver.conftest import Script, run
from tests.perceiver.test_export import read_elsewhere
from tests.perceiver.test_resume_after_kill import assert_a_kill_changes_nothing


def sums(samples: int, *, seed: int = 0) -> dict[str, Any]:
    """Series whose mean and number of positions are the targets; whether these are large are labels."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 14, samples)
    series = [rng.normal(size=(length, 2)) + 3 * rng.normal(size=2) for length in lengths]
    targets = np.array([[one[:, 0].mean() * 10 + 5, len(one)] for one in series])
    return {
        "inputs": np.concatenate(series).astype(np.float32),
        "lengths": lengths,
        "targets": targets,
        "target_names": ["level", "length"],
    }


def stages(samples: int, *, seed: int = 0) -> dict[str, Any]:
    """Series in two stages; above or below their own mean, of which each position alone knows nothing."""
    rng = np.random.default_rng(seed)
    places = rng.integers(3, 9, samples)
    labels = (np.arange(12) >= places[:, None]).astype(int)
    inputs = labels[..., None] * 4.0 + rng.normal(size=(samples, 1, 1)) * 8 + 0.3 * rng.normal(size=(samples, 12, 1))
    return {"inputs": inputs.astype(np.float32), "labels": labels, "classes": ["low", "high"]}


def waves(samples: int, *, seed: int = 0) -> dict[str, Any]:
    """Sines of period 8 with drift and noise, and their phase's cosine as a second channel."""
    rng = np.random.default_rng(seed)
    time = np.arange(30) + rng.integers(8, size=(samples, 1))
    drift = rng.normal(size=(samples, 1)) * 0.1
    value = np.sin(time * np.pi / 4) + drift * np.arange(30) + 0.1 * rng.normal(size=(samples, 30))
    return {"inputs": np.stack([value, np.cos(time * np.pi / 4)], axis=2).astype(np.float32)}


def many(samples: int) -> dict[str, Any]:
    found = sums(samples)
    labels = (found.pop("targets") > [5, 9]).astype(int)
    found.pop("target_names")
    return {**found, "labels": labels, "classes": ["high", "long"]}


def per_step_numbers(samples: int) -> dict[str, Any]:
    found = waves(samples)
    return {**found, "targets": found["inputs"][..., 0] * 2 + 1}


Made = Callable[[str], Path]
MADE: Mapping[str, tuple[dict[str, Any], str]] = {
    "regression": (sums(40), "--task regression"),
    "multilabel": (many(40), "--task multilabel"),
    "per_step": (stages(40), "--task per_step --position learned"),
    "numbers": (per_step_numbers(40), "--task per_step"),
    "forecast": (waves(40), "--task forecast --horizon 4 --context 20 task.covariates=[1]"),
    "masked": (waves(40), "--task masked"),
}


QUICK = ("regression", "forecast")
TASKS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MADE]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Made:
    """Gives a run of one of `MADE`; beside it is `{name}.npz`, its data."""
    folder = tmp_path_factory.mktemp("tasks")

    @cache
    def made(name: str) -> Path:
        arrays, flags = MADE[name]
        np.savez(folder / f"{name}.npz", **arrays)
        data = ["--dataset", "custom", "--train_path", folder / f"{name}.npz", "--lr", "1e-2", "--warmup_steps", "0"]
        ended = run("train", *tiny, *data, *shlex.split(flags), "--output_dir", folder / name)
        assert ended.code == 0, ended.err
        return folder / name

    return made


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


FIGURES = {
    "regression": {"r2", "rmse", "mae"},
    "multilabel": {"macro_f1", "exact_match", "average_precision"},
    "per_step": {"step_accuracy", "macro_f1"},
    "numbers": {"r2", "rmse", "mae"},
    "forecast": {"r2", "rmse", "mae"},
    "masked": {"r2", "rmse", "mae"},
}
BASELINES = {
    "regression": ["MiniRocket and ridge regression"],
    "multilabel": ["MiniRocket and ridge regression"],
    "per_step": ["majority class"],
    "numbers": ["mean"],
    "forecast": ["last value", "seasonal naive"],
    "masked": ["lines between what is seen"],
}


@pytest.mark.parametrize("name", TASKS)
def test_a_run_is_judged_by_figures_of_its_task(name: str, made: Made) -> None:
    summary = json.loads((made(name) / "summary.json").read_text("utf-8"))
    assert summary["monitor"]["metric"] == "loss"
    figures = summary["results_of_best_checkpoint"]["val"]
    assert figures.keys() == FIGURES[name] | {"loss", "n"}
    interval = summary["intervals_of_best_checkpoint"]["val"]["loss"]
    assert interval["low"] <= figures["loss"] <= interval["high"]
    assert list(summary["baselines"]) == BASELINES[name]
    for baseline in summary["baselines"].values():
        assert baseline["results"]["val"].keys() == figures.keys()
        assert "loss" in baseline["network_less_it"]["val"]
    pictures = {path.name for path in made(name).glob("*.png")}
    assert pictures & {"parity.png", "labels.png", "sequences.png"}
    assert not (made(name) / "decision.json").exists()
    assert load_checkpoint(made(name) / "checkpoints" / "best_model.pth")["task"]["task"]["kind"]


@pytest.mark.parametrize("name", TASKS)
def test_an_evaluation_gives_the_runs_figures(name: str, made: Made, script: Script) -> None:
    ended = script("inference", "--model_path", made(name), "--output_dir", "out")
    assert ended.code == 0, ended.err
    summary = json.loads((made(name) / "summary.json").read_text("utf-8"))
    found = json.loads(Path("out/results.json").read_text("utf-8"))
    assert found["metrics"] == pytest.approx(
        {key: value for key, value in summary["results_of_best_checkpoint"]["val"].items() if key != "n"}, rel=1e-5
    )
    rows = table(Path("out/predictions.csv"))
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert np.mean(losses) == pytest.approx(found["metrics"]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_rows_in_the_units_of_the_data(name: str, made: Made, script: Script) -> None:
    ended = script("predict", "--model_path", made(name), made(name).with_suffix(".npz"))
    assert ended.code == 0, ended.err
    rows, inputs = table(Path("predictions.csv")), MADE[name][0]["inputs"]
    assert len(rows) == 40
    first = rows[0]
    if name == "regression":
        assert np.mean([float(row["level"]) for row in rows]) == pytest.approx(5, abs=30)
    elif name == "multilabel":
        assert list(first)[1:] == ["labels", "p_high", "p_long", "problem"]
        expected = [label for label in ("high", "long") if float(first[f"p_{label}"]) >= 0.5]
        assert first["labels"] == "; ".join(expected)
    elif name == "per_step":
        classes, chances = (json.loads(first[key]) for key in ("classes", "probabilities"))
        assert len(classes) == len(chances) == 12
        assert set(classes) <= {"low", "high"}
    elif name == "forecast":
        assert len(json.loads(first["channel_0"])) == 4
    else:
        column = {"numbers": "target", "masked": "channel_1"}[name]
        assert len(json.loads(first[column])) == inputs.shape[1]


def train(script: Script, tiny: Sequence[str], arrays: Mapping[str, Any], *flags: str) -> str:
    """Saves `train.npz`, trains on it, and gives the message of an error."""
    np.savez("train.npz", **arrays)
    ended = script("train", *tiny, "--dataset", "custom", "--train_path", "train.npz", "--output_dir", "run", *flags)
    assert ended.code == 2, ended.err
    return ended.err


def changed(arrays: Mapping[str, Any], name: str, place: Any, value: float) -> dict[str, Any]:
    array = np.array(arrays[name], dtype=float)
    array[place] = value
    return {**arrays, name: array}


BAD: Mapping[str, tuple[dict[str, Any], str, str]] = {
    "a target that is NaN": (
        changed(sums(40), "targets", (3, 1), np.nan),
        "--task regression",
        "train.npz, row 3: length is nan, expected a finite number",
    ),
    "no targets": ({"inputs": waves(40)["inputs"]}, "--task regression", "no array named targets; --task regression"),
    "targets of other samples": (
        {**sums(40), "targets": np.zeros(39)},
        "--task regression",
        "train.npz: targets float64 [39]; --task regression wants targets [N] or [N, T]",
    ),
    "names of other targets": (
        {**sums(40), "target_names": ["a"]},
        "--task regression",
        "train.npz: [1] names; expected 2 that differ",
    ),
    "a label that is none": (
        changed(many(40), "labels", (2, 0), 3),
        "--task multilabel",
        "train.npz, row 2: high is 3, expected 0 or 1",
    ),
    "a class of a position that is none": (
        changed(stages(40), "labels", (5, 1), 2),
        "--task per_step",
        "train.npz, row 5: label 2 of a position is none of the 2 classes",
    ),
    "no position with a label": (
        changed(stages(40), "labels", 4, -1),
        "--task per_step",
        "train.npz, row 4: no position has a label",
    ),
    "labels of other positions": (
        {**stages(40), "labels": np.zeros((40, 11), dtype=int)},
        "--task per_step",
        "train.npz: labels int64 [40, 11]; --task per_step wants",
    ),
    "a horizon longer than the series": (
        waves(40),
        "--task forecast --horizon 30",
        "train.npz, row 0: 30 positions, the task needs 31 at least",
    ),
    "no horizon": (waves(40), "--task forecast", "task.horizon"),
    "a horizon of another task": (waves(40), "--task masked --horizon 3", "it is of task.kind=forecast, not of masked"),
    "covariates that are not there": (
        waves(40),
        "--task forecast --horizon 3 task.covariates=[2]",
        "task.covariates [2]: the data has 2 channels, counted from 0",
    ),
    "queries without positions": (waves(40), "--task masked --position none", "model.position=none: queries"),
    "pictures": (waves(40), "--task masked --dataset cifar10", "masked takes series: --dataset ts, custom"),
    "a loss of classes": (sums(40), "--task regression --loss focal", "task.kind=classification"),
    "a decision": (sums(40), "--task regression --decision_rule f1", "only task.kind=classification has one"),
    "positions that move": (stages(40), "--task per_step --time_warp 0.1", "per_step keeps every position where it is"),
    "generated targets": (waves(40), "--task regression --dataset synthetic", "generated patterns have classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_learned_is_one_line(case: str, script: Script, tiny: Sequence[str]) -> None:
    arrays, flags, message = BAD[case]
    told = train(script, tiny, arrays, *shlex.split(flags))
    assert message in told
    assert "Traceback" not in told
    assert not Path("run").exists()


def test_a_sample_without_target_is_left_out_where_asked(script: Script, tiny: Sequence[str]) -> None:
    np.savez("train.npz", **changed(sums(40), "targets", (3, 1), np.nan))
    data = ["--dataset", "custom", "--train_path", "train.npz", "--on_bad_sample", "skip", "--baseline", "none"]
    ended = script("train", *tiny, *data, "--task", "regression", "--output_dir", "run", "--warmup_steps", "0")
    assert ended.code == 0, ended.err
    assert "left out: train.npz, row 3: length is nan" in ended.out


TS = "@univariate true\n@targetLabel true\n@data\n" + "".join(f"{k % 5},{k % 3},2:{k / 2}\n" for k in range(20))


def test_targets_of_ts_files_are_learned(script: Script, tiny: Sequence[str]) -> None:
    Path("T_TRAIN.ts").write_text(TS, "utf-8")
    command = ["train", *tiny, "--dataset", "ts", "--data_dir", ".", "--warmup_steps", "0"]
    ended = script(*command, "--task", "regression", "--baseline", "none", "--output_dir", "run")
    assert ended.code == 0, ended.err
    assert "T_TRAIN.ts, line 2: regression targets" in script(*command).err
    Path("T_TRAIN.ts").write_text(TS.replace("2:3.5", "2:?"), "utf-8")
    ended = script(*command, "--task", "regression")
    assert "T_TRAIN.ts, line 11: target '?' is no finite number" in ended.err
    assert "reads .npz files" in script(*command, "--task", "multilabel").err


@pytest.mark.slow
def test_nothing_is_asked_at_positions_that_were_not_trained(made: Made, script: Script) -> None:
    np.savez("long.npz", inputs=np.repeat(stages(2)["inputs"], 2, axis=1))
    ended = script("predict", "--model_path", made("per_step"), "long.npz")
    assert ended.code == 2
    assert "long.npz, row 0: 24 positions, and the model's know 12" in ended.err + ended.out


POSITIONS = [
    pytest.param(name, marks=() if name == "fourier" else pytest.mark.slow)
    for name in ("fourier", "learned", "sinusoidal")
]


@pytest.mark.parametrize("position", POSITIONS)
def test_a_forecast_follows_every_series_that_a_training_takes(
    position: str, script: Script, tiny: Sequence[str]
) -> None:
    """The longest one, too, with the positions to come beside it; one position more is too many."""
    series = waves(17)["inputs"]
    np.savez("train.npz", inputs=series[:16])
    limit = ["--max_seq_len", "30"] if position == "sinusoidal" else []
    flags = ["--task", "forecast", "--horizon", "4", "--position", position, "--output_dir", "run", *limit]
    assert script("train", *tiny, "--dataset", "custom", "--train_path", "train.npz", *flags).code == 0
    ended = script("predict", "--model_path", "run", "train.npz")
    assert ended.code == 0, ended.err
    predictor = load_run("run", device="cpu")
    whole, last = predictor([series[16], series[16][4:]])  # 26 are seen, and 4 are to come
    assert whole.values.tolist() == last.values.tolist()
    export(predictor, Path("exported"), ["onnx"])
    np.savez("new.npz", inputs=series[16:])
    (found,) = read_elsewhere(Path("exported").absolute(), "new.npz")
    assert np.array(json.loads(" ".join(found[1:]))) == pytest.approx(whole.values, abs=1e-4)
    with pytest.raises(UserError, match=r"31 positions.* train with (longer ones|a larger --max_seq_len)"):
        predictor(np.zeros((31, 2)))


def test_covariates_have_to_be_known_ahead(made: Made, script: Script) -> None:
    np.savez("short.npz", inputs=waves(2)["inputs"][:, :4])
    ended = script("predict", "--model_path", made("forecast"), "short.npz")
    assert ended.code == 2
    assert "4 positions; expected those seen and 4 more, where covariates are known ahead" in ended.err + ended.out


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MADE if name != "numbers"])
def test_an_export_gives_the_same_answers_without_the_repository(name: str, made: Made, tmp_path: Path) -> None:
    predictor = load_run(made(name), device="cpu")
    export(predictor, tmp_path / "exported", ["pt2", "onnx"])
    inputs = stages(3)["inputs"] if name == "per_step" else waves(3)["inputs"]
    expected = [one.values for one in predictor([*inputs])]
    for form in ("pt2", "onnx"):
        found = load_run(tmp_path / "exported", device="cpu", network=form)([*inputs])
        for one, other in zip(found, expected, strict=True):
            assert one.values == pytest.approx(other, abs=1e-4)
    np.savez(tmp_path / "new.npz", inputs=np.concatenate(inputs), lengths=[len(one) for one in inputs])
    for row, other in zip(read_elsewhere(tmp_path / "exported", "new.npz"), expected, strict=True):
        assert np.array(json.loads(" ".join(row[1:]))) == pytest.approx(other, abs=1e-4)


def test_an_answer_does_not_depend_on_padding_or_on_other_queries(made: Made) -> None:
    network = load_run(made("forecast"), device="cpu").scorer.network
    rng = torch.Generator().manual_seed(0)
    x, mask = torch.randn(1, 9, 2, generator=rng), torch.arange(9)[None] < 5
    query = torch.tensor([[5, 6, 7, 8]])
    alone = network({"input": x, "mask": mask, "query": query})["outputs"]
    some = network({"input": x, "mask": mask, "query": query[:, 2:]})["outputs"]
    torch.testing.assert_close(some, alone[:, 2:], atol=1e-6, rtol=0)
    padded = torch.cat([x, torch.full((1, 3, 2), 7.0)], dim=1), torch.cat([mask, torch.zeros(1, 3, dtype=bool)], dim=1)
    longer = network({"input": padded[0], "mask": padded[1], "query": query})["outputs"]
    torch.testing.assert_close(longer, alone, atol=1e-6, rtol=0)
    hidden = x.clone()
    hidden[:, 5:, 0] = 99.0  # what is to be forecast is not seen
    torch.testing.assert_close(network({"input": hidden, "mask": mask, "query": query})["outputs"], alone)


SETTINGS = """
--dataset custom --train_path train.npz --d_model 16 --num_heads 2 --num_latents 4 --num_cross_attention_layers 1
--num_self_attention_layers 1 --dropout 0.1 --jitter 0.1 --batch_size 8 --epochs 4 --num_workers 2 --log_every 1
--save_every_steps 2 --num_threads 1 --no_tensorboard --baseline none --warmup_steps 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_a_killed_run_ends_bit_identical(name: str, repository: Path, tmp_path: Path) -> None:
    arrays, flags = MADE[name]
    np.savez(tmp_path / "train.npz", **arrays)
    command = [sys.executable, str(repository / "apps" / "perceiver" / "train.py"), *shlex.split(SETTINGS + flags)]
    command[command.index("train.npz")] = str(tmp_path / "train.npz")
    assert_a_kill_changes_nothing(command, tmp_path, after=7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regression", "per_step", "forecast"])
def test_folds_give_every_sample_one_prediction(name: str, script: Script, tiny: Sequence[str]) -> None:
    arrays, flags = MADE[name]
    np.savez("train.npz", **arrays)
    data = ["--dataset", "custom", "--train_path", "train.npz", "--folds", "2", "--refit", "--warmup_steps", "0"]
    ended = script("train", *tiny, *data, *shlex.split(flags), "--output_dir", "job")
    assert ended.code == 0, ended.err
    assert len(table(Path("job/out_of_fold.csv"))) == 40
    summary = json.loads(Path("job/summary.json").read_text("utf-8"))
    figures = summary["results_of_best_checkpoint"]["out_of_fold"]
    assert figures.keys() == FIGURES[name] | {"loss", "n"}
    assert np.isfinite(figures["loss"])


def test_a_start_gives_its_encoder_and_another_one_is_refused(
    made: Made, script: Script, tiny: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    np.savez("train.npz", **waves(16), labels=np.arange(16) % 2)
    data = ["--dataset", "custom", "--train_path", "train.npz", "--init_from", made("forecast"), "--output_dir", "run"]
    config = PerceiverConfig.model_validate(
        {
            "data": {"dataset": "custom", "train_path": "train.npz"},
            "model": {"d_model": 16, "num_heads": 2, "num_latents": 4, "num_self_attention_layers": 1},
            "task": {"init_from": str(made("forecast"))},
        }
    )
    found = build(config, World()).task.model.state_dict()
    start = load_checkpoint(made("forecast") / "checkpoints" / "best_model.pth")["model"]
    encoder = [name for name in found if name.startswith("encoder.")]
    assert f"best_model.pth: {len(encoder)} tensors of weights and input statistics" in caplog.text
    assert all(torch.equal(found[name], start[name]) for name in encoder)
    wider = script("train", *tiny, *data, "--d_model", "32")
    assert wider.code == 2
    assert "its encoder is another one (d_model 16 -> 32); give the model settings" in wider.err
    np.savez("train.npz", inputs=waves(16)["inputs"][..., :1], labels=np.arange(16) % 2)
    assert "(input_dim 2 -> 1)" in script("train", *tiny, *data).err
    missing = script("train", *tiny, *data[:-3], "nowhere", "--output_dir", "run")
    assert "nowhere" in missing.err

"""Time stamps are positions: real times, whatever their zero and unit, in training, predictions and exports."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.use.exporting import export
from quartet.apps.perceiver.config import ModelConfig
from quartet.apps.perceiver.data import PadCollate, series_augmentation
from quartet.apps.perceiver.data.samples import SequenceDataset
from quartet.apps.perceiver.restore import make_model, model_settings
from tests.perceiver.conftest import Script, run
from tests.perceiver.test_export import read_elsewhere, reader

TINY = {"d_model": 16, "num_heads": 2, "num_latents": 4, "num_cross_attention_layers": 2, "stem_channels": 16}
SAME = 1e-6


def make(*, time_step: float | None, patch: int = 1, visible: Sequence[int] | None = None, **settings: Any) -> Any:
    """A model of two channels, and of time where it has a step."""
    torch.manual_seed(0)
    values = model_settings(
        ModelConfig(**TINY, **settings),
        input_dim=2 + (time_step is not None),
        num_classes=3,
        max_seq_len=64,
        further={"patch": patch, "time_step": time_step},
    )
    model = make_model(values if visible is None else {**values, "visible": visible}).eval()
    with torch.no_grad():
        for weight in model.parameters():  # what begins at 0 would hide what it multiplies
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def series(length: int, *, seed: int = 0, start: float = 0.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    times = start + np.cumsum(rng.uniform(0.2, 3.0, length))
    data = SequenceDataset([rng.standard_normal((length, 2), dtype=np.float32)], labels=[0], times=[times])
    return dict(data[0])


@pytest.mark.parametrize("position", ["sinusoidal", "fourier"])
@torch.inference_mode()
def test_equal_steps_are_positions_that_are_counted(position: str) -> None:
    x = torch.randn(3, 11, 2)
    mask = torch.arange(11) < torch.tensor([[11], [4], [7]])
    times = 7.0 + 0.5 * torch.arange(11).expand(3, -1)
    counted, timed = (make(time_step=step, position=position) for step in (None, 0.5))
    timed.load_state_dict(counted.state_dict())
    torch.testing.assert_close(
        timed(torch.cat([x, times[..., None]], dim=2), mask), counted(x, mask), rtol=0, atol=SAME
    )
    squeezed = timed(torch.cat([x, times[..., None] * 0.6], dim=2), mask)
    assert (squeezed - counted(x, mask)).abs().max() > 1e-3


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("position", ["sinusoidal", "fourier"])
@torch.inference_mode()
def test_an_answer_depends_on_no_padding_company_or_zero_of_time(position: str, patch: int) -> None:
    model, collate = make(time_step=1.3, position=position, patch=patch), PadCollate()
    samples = [series(length, seed=length) for length in (9, 1, 16, 23)]
    batch = collate(samples)
    batch["input"][~batch["mask"]] = 50.0  # what stands in padding, times included, means nothing
    together = model(batch["input"], batch["mask"])
    for place, sample in enumerate(samples):
        alone = collate([sample])
        torch.testing.assert_close(model(alone["input"], alone["mask"])[0], together[place], rtol=0, atol=SAME)
    later = collate([series(9, seed=9, start=1.7e9)])  # seconds since 1970
    torch.testing.assert_close(model(later["input"], None)[0], together[0], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_queries_are_at_their_times() -> None:
    model = make(time_step=0.5, visible=[])
    x = torch.cat([torch.randn(1, 8, 2), torch.tensor([0.0, 0.3, 1.0, 4.0, 4.1, 6.0, 6.5, 9.0])[None, :, None]], dim=2)
    mask, query = torch.arange(8)[None] < 5, torch.tensor([[5, 7]])
    answers = model(x, mask, query)
    moved = x.clone()
    moved[0, 7, 2] = 6.0
    same, other = (model(moved, mask, query)[0, place] for place in (0, 1))
    torch.testing.assert_close(same, answers[0, 0], rtol=0, atol=SAME)
    torch.testing.assert_close(other, answers[0, 0], rtol=0, atol=SAME)  # at the same time the answer is the same
    assert (answers[0, 1] - other).abs().max() > 1e-4


def test_positions_that_are_counted_know_no_time() -> None:
    with pytest.raises(UserError, match=r"model\.position=learned counts positions, and these have times"):
        make(time_step=1.0, position="learned")


def test_augmentation_leaves_time_as_it_is() -> None:
    change = series_augmentation(jitter=0.5, scaling=0.5, time_mask=0.3, window_slice=0.5, timed=True)
    assert change is not None
    sample = series(20)
    times = [change(sample, np.random.default_rng(seed))["input"][:, 2] for seed in range(10)]
    assert min(map(len, times)) < 20
    assert all(set(kept.tolist()) <= set(sample["input"][:, 2].tolist()) for kept in times)
    assert all((np.diff(kept) > 0).all() for kept in times)
    with pytest.raises(UserError, match="time_warp is of equal steps"):
        series_augmentation(time_warp=0.1, timed=True)


# -------------------------------------------------------------------------------------------- from the command line


def chirps(samples: int, *, seed: int = 0) -> dict[str, Any]:
    """Sines seen at random times, which alone tell slow ones from fast ones."""
    rng = np.random.default_rng(seed)
    times = 1.7e9 + np.cumsum(rng.uniform(5, 60, (samples, 24)), axis=1)
    labels = np.arange(samples) % 2
    phase = (times - times[:, :1]) / 120 * np.where(labels, 1.0, 0.4)[:, None]
    values = np.sin(2 * np.pi * (phase + rng.random((samples, 1))))
    return {"inputs": values[..., None].astype(np.float32), "times": times, "labels": labels}


@pytest.fixture(scope="module")
def forecast(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A run of forecasts of such series; its data is train.npz beside it."""
    folder = tmp_path_factory.mktemp("stamps")
    np.savez(folder / "train.npz", **{name: array for name, array in chirps(40).items() if name != "labels"})
    flags = shlex.split("--task forecast --horizon 4 --context 15 --position fourier --lr 1e-2 --warmup_steps 0")
    data = ["--dataset", "custom", "--train_path", folder / "train.npz", "--output_dir", folder / "run"]
    ended = run("train", *tiny, *data, *flags)
    assert ended.code == 0, ended.err
    assert "time stamps" in (folder / "run" / "report.html").read_text("utf-8")
    return folder / "run"


@pytest.mark.slow
def test_an_evaluation_and_an_export_give_the_runs_answers(forecast: Path, script: Script, tmp_path: Path) -> None:
    ended = script("inference", "--model_path", forecast, "--output_dir", "out")
    assert ended.code == 0, ended.err
    summary = json.loads((forecast / "summary.json").read_text("utf-8"))["results_of_best_checkpoint"]["val"]
    assert json.loads(Path("out/results.json").read_text("utf-8"))["metrics"]["loss"] == pytest.approx(summary["loss"])

    new = chirps(3, seed=1)
    np.savez(tmp_path / "new.npz", inputs=new["inputs"], times=new["times"])
    predictor = load_run(forecast, device="cpu")
    expected = [one.values for one in predictor(str(tmp_path / "new.npz"))]
    export(predictor, tmp_path / "exported", ["pt2", "onnx"])
    for form in ("pt2", "onnx"):
        found = load_run(tmp_path / "exported", device="cpu", network=form)(str(tmp_path / "new.npz"))
        for one, other in zip(found, expected, strict=True):
            assert one.values == pytest.approx(other, abs=1e-4)
    for row, other in zip(read_elsewhere(tmp_path / "exported", "new.npz"), expected, strict=True):
        assert np.array(json.loads(" ".join(row[1:]))) == pytest.approx(other, abs=1e-4)
    np.savez(tmp_path / "bare.npz", inputs=new["inputs"])
    assert reader(tmp_path / "exported", "bare.npz").stderr.startswith("bare.npz: no array times; this model reads")


def test_a_forecast_follows_the_series_of_longest_duration(script: Script, tiny: Sequence[str]) -> None:
    """Its first positions are not seen, which would be too long ago with those to come."""
    new = chirps(16)
    np.savez("train.npz", inputs=new["inputs"], times=new["times"])
    flags = shlex.split("--task forecast --horizon 4 --position fourier --output_dir run")
    assert script("train", *tiny, "--dataset", "custom", "--train_path", "train.npz", *flags).code == 0
    ended = script("predict", "--model_path", "run", "train.npz")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": None}, "new.npz: has no time stamps, and the training data has them"),
        (
            {"times": lambda times: times * 10},
            "lasts 4366.37 in time, and the model's positions know 1007.6; shorten it",
        ),
        (
            {"times": lambda times: times[:, ::-1]},
            "position 1: the time stamp 1700000708 does not come after 1700000767, the one before it",
        ),
        (
            {"times": lambda times: np.where(times == times[0, 5], np.nan, times)},
            "position 5: the time stamp is missing, or neither",
        ),
        ({"times": lambda times: times[:, :-1]}, r"times is \[2, 23\]; expected \[2, 24\], a number a position"),
    ],
    ids=["none", "too long", "backwards", "missing", "of others"],
)
def test_times_that_cannot_be_used_are_told(change: Any, message: str, forecast: Path, tmp_path: Path) -> None:
    new = chirps(2, seed=1)
    times = change["times"] and change["times"](new["times"])
    np.savez(tmp_path / "new.npz", inputs=new["inputs"], **({} if times is None else {"times": times}))
    with pytest.raises(UserError, match=message):
        load_run(forecast, device="cpu")(str(tmp_path / "new.npz"))


def test_a_start_keeps_its_unit_of_time(forecast: Path, script: Script, tiny: Sequence[str]) -> None:
    np.savez("train.npz", **chirps(16, seed=2))
    data = ["--dataset", "custom", "--train_path", "train.npz", "--position", "fourier", "--baseline", "none"]
    ended = script("train", *tiny, *data, "--init_from", forecast, "--output_dir", "run", "--warmup_steps", "0")
    if ended.code == 2:  # drawn series that last longer than the start's
        assert "pre-train with --max_seq_len" in ended.err
        return
    here, there = (
        torch.load(path / "checkpoints" / "best_model.pth", weights_only=True) for path in (Path("run"), forecast)
    )
    steps = [state["task"]["model"]["options"]["time_step"] for state in (here, there)]
    assert steps[0] == steps[1] > 5

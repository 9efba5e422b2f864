"""predict.py: new data to a table, with the numbers that the trained model gives."""

import csv
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.run import load_run
from quartet.apps.perceiver.data import ImageSource
from quartet.apps.perceiver.data.patches import PatchLayout


def best(run: Path) -> Path:
    return run / "checkpoints" / "best_model.pth"


def table(path: str | Path = "predictions.csv") -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected(run: Path, sequence: np.ndarray[Any, Any]) -> list[float]:
    with torch.inference_mode():
        network: Any = load_run(best(run), device="cpu").scorer.network
        logits = network.module(torch.as_tensor(sequence, dtype=torch.float32)[None])
    probabilities: list[float] = torch.softmax(logits, dim=1)[0].tolist()
    return probabilities


@pytest.fixture
def sequences() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((length, 4)).astype(np.float32) for length in (3, 11, 7)]


def save_npz(path: str, sequences: list[np.ndarray[Any, Any]], **more: Any) -> None:
    np.savez(path, inputs=np.concatenate(sequences), lengths=[len(s) for s in sequences], **more)


def save_ts(path: str, sequences: list[np.ndarray[Any, Any]], *, labels: list[str] | None) -> None:
    lines = ["@classLabel false" if labels is None else "@classLabel true p q", "@data"]
    for index, series in enumerate(sequences):
        channels = [",".join(f"{value!r}" for value in channel.tolist()) for channel in series.T]
        lines.append(":".join([*channels, *([] if labels is None else [labels[index]])]))
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def test_sequences_of_all_files_get_the_models_probabilities(
    series_run: Path, script: Any, sequences: list[np.ndarray[Any, Any]]
) -> None:
    save_npz("bare.npz", sequences)
    save_npz("labelled.npz", sequences, labels=[0, 1, 7])  # labels of new data are not looked at
    save_ts("bare.ts", sequences, labels=None)
    save_ts("labelled.ts", sequences, labels=["p", "q", "other"])
    files = ["bare.npz", "labelled.npz", "bare.ts", "labelled.ts"]
    ended = script("predict", "--model_path", best(series_run), *files, "--batch_size", "2")
    assert ended.code == 0, ended.err
    rows = table()
    names = [*(f"bare.npz, row {k}" for k in range(3)), *(f"labelled.npz, row {k}" for k in range(3))]
    names += [*(f"bare.ts, line {k}" for k in (3, 4, 5)), *(f"labelled.ts, line {k}" for k in (3, 4, 5))]
    assert [row["input"] for row in rows] == names
    for number, row in enumerate(rows):
        wanted = expected(series_run, sequences[number % 3])
        given = [float(row[f"p_{name}"]) for name in ("sine", "square", "sawtooth")]
        assert given == pytest.approx(wanted, abs=1e-5)
        assert row["class"] == ("sine", "square", "sawtooth")[int(np.argmax(given))]
        assert float(row["probability"]) == max(given)
    assert "12 inputs, 0 could not be used" in ended.out


def test_images_of_files_and_folders_are_read_as_in_training(image_run: Path, pictures: Path, script: Any) -> None:
    one = pictures / "light" / "0.png"
    ended = script("predict", "--model_path", best(image_run), pictures / "dark", one, "--output", "out.csv")
    assert ended.code == 0, ended.err
    rows = table("out.csv")
    assert [row["input"] for row in rows] == [*(str(pictures / "dark" / f"{k}.png") for k in range(6)), str(one)]
    image = ImageSource(pictures).load().images[6]  # the first of the class light
    wanted = expected(image_run, PatchLayout(height=16, width=16, patch_size=8).sequence(image))
    assert [float(rows[6]["p_dark"]), float(rows[6]["p_light"])] == pytest.approx(wanted, abs=1e-6)


def test_pictures_of_another_size_are_resized(image_run: Path, pictures: Path, script: Any) -> None:
    grey = Image.new("RGB", (50, 30), (200, 200, 200))
    grey.save("large.png")
    grey.resize((16, 16)).save("small.png")
    assert script("predict", "--model_path", best(image_run), "large.png", "small.png").code == 0
    first, second = table()
    assert first["probability"] == second["probability"]


def test_bad_inputs_are_rows_with_their_reason_or_stop(
    series_run: Path, script: Any, sequences: list[np.ndarray[Any, Any]]
) -> None:
    broken = sequences[1].copy()
    broken[4, 2] = np.nan
    save_npz("new.npz", [sequences[0], broken, sequences[2][:0], sequences[2]])
    Path("cut.ts").write_text("@classLabel false\n@data\n1,2:", encoding="utf-8")
    command = ["predict", "--model_path", best(series_run), "new.npz", "cut.ts"]
    for flags in (["--strict"], ["--on_bad_sample", "error"]):
        stopped = script(*command, *flags)
        assert stopped.code == 2
        assert "new.npz, row 1: position 4, channel 2 is nan" in stopped.err
        assert "without --strict" in stopped.err
        assert not list(Path().glob("*.csv"))
    shutil.rmtree("predictions.csv.parts")
    ended = script(*command, "gone.ts", "new.npz", "--batch_size", "2")
    assert ended.code == 1, ended.err
    rows = table()
    lines = [f"new.npz, row {row}" for row in range(4)]
    assert [row["input"] for row in rows] == [*lines, "cut.ts, line 3", "gone.ts", *lines]
    assert [place for place, row in enumerate(rows) if row["class"]] == [0, 3, 6, 9]
    assert all(bool(row["problem"]) != bool(row["class"]) for row in rows)
    assert rows[0]["probability"] == rows[6]["probability"]
    assert "gone.ts: no such file or folder" in rows[5]["problem"]
    assert "10 inputs, 6 of them different, 6 could not be used" in ended.out
    assert "new.npz, row 1: position 4, channel 2 is nan" in ended.out
    assert "new.npz, row 2: the sequence has length 0" in ended.out


def test_an_unreadable_picture_is_named(image_run: Path, pictures: Path, script: Any) -> None:
    shutil.copytree(pictures / "dark", "new")
    Path("new/2.png").write_bytes((pictures / "dark" / "2.png").read_bytes()[:60])
    stopped = script("predict", "--model_path", best(image_run), "new", "--strict")
    assert stopped.code == 2
    assert "new/2.png: damaged or not a whole image" in stopped.err
    shutil.rmtree("predictions.csv.parts")
    skipped = script("predict", "--model_path", best(image_run), "new")
    assert skipped.code == 1
    assert [bool(row["problem"]) for row in table()] == [False, False, True, False, False, False]
    assert "new/2.png: damaged or not a whole image" in table()[2]["problem"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.npz"], "nothing.npz: no such file or folder"),
        (["picture.png"], "picture.png: this model reads .ts, .npz"),
        (["empty"], "empty: no file that this model reads"),
        (["narrow.npz"], "narrow.npz, row 0: input is [5, 3], expected [positions, 4]"),
        (["cut.npz"], "cut.npz: damaged or not an .npz file"),
    ],
)
def test_where_nothing_can_be_predicted_the_reasons_are_there(
    arguments: list[str], message: str, series_run: Path, script: Any
) -> None:
    Path("picture.png").touch()
    Path("empty").mkdir()
    save_npz("narrow.npz", [np.zeros((5, 3), dtype=np.float32)])
    Path("cut.npz").write_bytes(Path("narrow.npz").read_bytes()[:200])
    ended = script("predict", "--model_path", best(series_run), *arguments)
    assert ended.code == 2
    assert "nothing could be predicted, predictions.csv has the reasons; the first:" in ended.err
    assert message in ended.err
    assert [message in row["problem"] and not row["class"] for row in table()] == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good.npz", "--batch_size", "0"], "--batch_size must be at least 1"),
        (
            ["good.npz", "--output", "answers.xlsx"],
            "answers.xlsx: expected the name of a table: .csv, ",
        ),
        (["good.npz", "--on_missing", "drop"], "on_missing=drop: expected error, mask, interpolate"),
        (["good.npz", "table.csv"], "table.csv is a table; give it alone"),
        (["table.csv"], "table.csv: its columns are a, b; expected one called path"),
        ([], "nothing to predict"),
    ],
)
def test_mistakes_are_told_before_the_work(arguments: list[str], message: str, series_run: Path, script: Any) -> None:
    save_npz("good.npz", [np.zeros((5, 4), dtype=np.float32)])
    Path("table.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    before = set(Path().rglob("*"))
    ended = script("predict", "--model_path", best(series_run), *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert set(Path().rglob("*")) == before


def test_a_file_that_changed_is_read_again(
    series_run: Path, sequences: list[np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    predictor, path = load_run(series_run, device="cpu"), str(tmp_path / "new.npz")
    save_npz(path, sequences)
    assert len(predictor(path)) == 3
    save_npz(path, sequences[:1])
    os.utime(path, ns=(0, 0))
    assert len(predictor(path)) == 1


def test_positions_that_end_limit_the_length(script: Any, tiny: list[str]) -> None:
    data = shlex.split("--dataset synthetic --num_samples 40 --seq_len_range 5 9 --feature_dim 4 --output_dir run")
    assert script("train", *tiny, *data, "--position", "learned").code == 0
    predictor = load_run("run", device="cpu")
    assert len(predictor(np.ones((9, 4)))[0].probabilities) == 5
    with pytest.raises(UserError, match="10 positions, and the model's know 9; shorten it, or train with longer ones"):
        predictor(np.ones((10, 4)))

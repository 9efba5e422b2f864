"""What a user can get wrong, through the command line: an exit code, one clear message, and nothing half-written."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.pictures

REPOSITORY = Path(__file__).resolve().parents[2]
SYNTHETIC = shlex.split("--dataset synthetic --num_samples 60 --seq_len_range 5 12 --feature_dim 4 --num_classes 3")


@pytest.fixture
def train(script: Any, tiny: Sequence[str]) -> Any:
    """`train(*arguments)` in an empty folder, into the folder `run`."""
    return lambda *arguments: script("train", *tiny, "--output_dir", "run", *arguments)


def refused(ended: Any, *messages: str) -> None:
    """It ended with an error, said so once and plainly, and left no file that looks like a result."""
    assert ended.code == 2, ended.out + ended.err
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.out + ended.err
    for message in messages:
        assert message in ended.err
    half_written = [path for path in Path().rglob("*") if path.suffix in {".pth", ".html", ".png", ".partial"}]
    assert not [path for path in half_written if path.parts[0] == "run"]
    if Path("run/run.json").exists():
        assert json.loads(Path("run/run.json").read_text("utf-8"))["status"] == "failed"


def npz(path: str, *, labels: Sequence[int] = (0, 1) * 8, **more: Any) -> str:
    """A good file of 16 sequences, but for what is given."""
    inputs = np.random.default_rng(0).standard_normal((len(labels), 6, 3))
    np.savez(path, **({"inputs": inputs, "labels": np.array(labels)} | more))
    return path


def spoilt(row: int, value: float) -> Any:
    inputs = np.random.default_rng(0).standard_normal((16, 6, 3))
    inputs[row, 2, 1] = value
    return inputs


# ---------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize(
    ("damage", "message"),
    [("truncated", "damaged or not a whole image"), ("garbage", "not an image"), ("empty", "empty file (0 bytes)")],
)
def test_an_image_that_cannot_be_read(damage: str, message: str, train: Any, pictures: Path) -> None:
    shutil.copytree(pictures, "photos")
    bad, content = Path("photos/dark/3.png"), (pictures / "dark" / "3.png").read_bytes()
    bad.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"no image", "empty": b""}[damage])
    command = ["--dataset", "image_folder", "--data_dir", "photos", "--patch_size", "8"]
    refused(train(*command), f"photos/dark/3.png: {message}")
    allowed = train(*command, "--on_bad_sample", "skip")
    assert allowed.code == 0, allowed.err
    assert f"left out: photos/dark/3.png: {message}" in allowed.out
    assert "1 samples were left out" in Path("run/summary.md").read_text("utf-8").replace("\\", "")


TS = "@dimensions 2\n@classLabel true a b\n@data\n" + "1,2,3:4,5,6:a\n3,2,1:6,5,4:b\n" * 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TS[:-8], "T_TRAIN.ts, line 15"),  # cut off within the last series
        (TS.replace("@data\n", ""), "T_TRAIN.ts, line 3: expected a header line"),
        (TS[: TS.index("@data")], "T_TRAIN.ts: no @data line; this is not a .ts file, or it is cut off"),
        (TS[: TS.index("@data") + 6], "no series after @data"),
        (TS + "1,2:1,x:a\n", "T_TRAIN.ts, line 16, channel 2: 'x' is not a number"),
        (TS + "1,2:1,2:c\n", "T_TRAIN.ts, line 16: class 'c' is not one of a, b"),
        (TS + "1,?:1,2:a\n", "T_TRAIN.ts, line 16: position 1, channel 0 is nan"),
        (TS + "::a\n", "T_TRAIN.ts, line 16: the sequence has length 0"),
        ("\0\x01", "T_TRAIN.ts, line 1: expected a header line"),
    ],
)
def test_a_ts_file_that_cannot_be_used(text: str, message: str, train: Any) -> None:
    Path("T_TRAIN.ts").write_text(text, encoding="utf-8")
    # No validation part: which rows would be in it is of no interest here.
    Path("val.ts").write_text(TS, encoding="utf-8")
    refused(train("--dataset", "ts", "--data_dir", ".", "--val_path", "val.ts"), message)


@pytest.mark.parametrize("text", [TS + "1,?:1,2:a\n", TS + "::a\n"])
def test_a_series_that_cannot_be_used_may_be_left_out(text: str, train: Any) -> None:
    Path("T_TRAIN.ts").write_text(text, encoding="utf-8")
    Path("val.ts").write_text(TS, encoding="utf-8")
    ended = train("--dataset", "ts", "--data_dir", ".", "--val_path", "val.ts", "--on_bad_sample", "skip")
    assert ended.code == 0, ended.err
    assert "left out: T_TRAIN.ts, line 16" in ended.out
    assert "12 training and 12 validation samples" in ended.out


@pytest.mark.parametrize(
    ("arrays", "messages"),
    [
        ({"inputs": spoilt(5, np.nan)}, ["data.npz, row 5: position 2, channel 1 is nan, not a finite number"]),
        ({"inputs": spoilt(9, -np.inf)}, ["data.npz, row 9: position 2, channel 1 is -inf"]),
        ({"labels": np.array([0, 1] * 7 + [0, -1])}, ["data.npz, row 15: label -1 is out of range; expected 0 to 1"]),
        ({"labels": np.array([0, 1] * 7 + [0, 2]), "classes": ["a", "b"]}, ["row 15: label 2 is out of range"]),
        ({"labels": np.array([0, 2] * 8)}, ["training data: no sample of class 1"]),
        ({"labels": np.array([0, 1] * 8), "classes": ["a", "b", "c"]}, ["training data: no sample of class c"]),
        ({"labels": np.zeros(0, dtype=int), "inputs": np.zeros((0, 6, 3))}, ["empty"]),
        ({"inputs": np.zeros((16, 0, 3))}, ["data.npz, row 0: the sequence has length 0"]),
        (
            {"inputs": np.zeros((40, 3)), "lengths": np.array([0, 10] + [2] * 13 + [4])},
            ["data.npz, row 0: the sequence has length 0"],
        ),
    ],
    ids=["nan", "inf", "label -1", "label 2", "gap", "class c", "no samples", "length 0", "one of length 0"],
)
def test_arrays_that_cannot_be_used(arrays: dict[str, Any], messages: list[str], train: Any) -> None:
    npz("data.npz", **arrays)
    npz("val.npz")
    refused(train("--dataset", "custom", "--train_path", "data.npz", "--val_path", "val.npz"), *messages)


def test_bad_samples_may_be_left_out_and_are_counted(train: Any) -> None:
    npz("data.npz", inputs=spoilt(5, np.nan))
    npz("val.npz", inputs=spoilt(2, np.inf))
    command = ["--dataset", "custom", "--train_path", "data.npz", "--val_path", "val.npz"]
    ended = train(*command, "--on_bad_sample", "skip")
    assert ended.code == 0, ended.err
    assert "left out: data.npz, row 5" in ended.out
    assert "left out: val.npz, row 2" in ended.out
    assert "15 training and 15 validation samples" in ended.out
    assert "2 samples were left out" in Path("run/summary.md").read_text("utf-8").replace("\\", "")


def test_nothing_but_bad_samples_is_an_error_even_if_they_may_be_skipped(train: Any) -> None:
    npz("data.npz", inputs=np.full((16, 6, 3), np.nan))
    refused(train("--dataset", "custom", "--train_path", "data.npz", "--on_bad_sample", "skip"), "data.npz, row")


def test_a_sequence_longer_than_allowed(train: Any) -> None:
    refused(train(*SYNTHETIC, "--max_seq_len", "8"), "positions are more than max_seq_len=8", "--on_too_long truncate")
    ended = train(*SYNTHETIC, "--max_seq_len", "8", "--on_too_long", "truncate")
    assert ended.code == 0, ended.err
    assert "truncated)" in Path("run/report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cifar10"], "data: not found; --data_dir should be the folder (or .tar.gz) of CIFAR-10's"),
        (["--dataset", "cifar10", "--data_dir", "."], "no CIFAR-10 there"),
        (["--dataset", "image_folder"], "this data set needs --data_dir"),
        (["--dataset", "image_folder", "--data_dir", "empty"], "empty: no images found; expected <class>/<image>"),
        (["--dataset", "ts", "--data_dir", "empty"], "empty: expected one file named *_TRAIN.ts, found 0"),
        (["--dataset", "custom", "--train_path", "none.npz"], "none.npz: not found"),
        (["--dataset", "custom", "--train_path", "text.npz"], "text.npz: damaged or not an .npz file of plain arrays"),
        (["--dataset", "syntetic"], "did you mean 'synthetic'?"),
    ],
)
def test_data_that_is_not_there(arguments: list[str], message: str, train: Any) -> None:
    Path("empty").mkdir()
    Path("text.npz").write_text("not an archive", encoding="utf-8")
    refused(train(*arguments), message)


def test_pickled_objects_in_a_data_file_are_not_loaded(train: Any) -> None:
    np.savez("evil.npz", inputs=np.array([Evil("touch owned")], dtype=object), labels=np.array([0]))
    ended = train("--dataset", "custom", "--train_path", "evil.npz")
    refused(ended, "evil.npz: damaged or not an .npz file of plain arrays")
    assert not Path("owned").exists()


# --------------------------------------------------------------------------------------------------------- the model


def test_heads_that_do_not_divide_the_width(train: Any) -> None:
    refused(train(*SYNTHETIC, "--num_heads", "3"), "num_heads=3 does not divide d_model=16; choose a divisor")


def test_weights_for_another_number_of_classes(train: Any) -> None:
    refused(train(*SYNTHETIC, "--class_weights", "1", "2"), "objective.class_weights has 2 numbers, the data has 3")


def test_a_metric_that_is_not_measured(train: Any) -> None:
    refused(train(*SYNTHETIC, "--metric", "val_accurracy"), "'accurracy' is not among the evaluation's: ")


# --------------------------------------------------------------------------------------------------- the checkpoints


class Evil:
    """Runs a shell command when it is unpickled by a careless reader."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.fixture
def checkpoints(series_run: Path, tmp_path: Path) -> Path:
    """A folder of checkpoints that must not be used."""
    folder = tmp_path / "given"
    folder.mkdir()
    good = series_run / "checkpoints" / "best_model.pth"
    content = good.read_bytes()
    (folder / "cut.pth").write_bytes(content[: len(content) // 2])
    (folder / "flipped.pth").write_bytes(_flip(content))
    (folder / "text.pth").write_text("weights")
    torch.save({"model": {}, "run": Evil("touch owned")}, folder / "evil.pth")
    state = torch.load(good, weights_only=True)
    torch.save(state["model"], folder / "weights_only.pth")
    torch.save({**state, "app": "another"}, folder / "other_app.pth")
    torch.save({**state, "task": {}}, folder / "older.pth")
    torch.save({**state, "config": {"data": {"colour": "red"}}}, folder / "newer.pth")
    wide = {**state["task"], "model": {**state["task"]["model"], "d_model": 32}}
    torch.save({**state, "task": wide}, folder / "wider.pth")
    return folder


REFUSED = {
    "cut": "damaged, its end is missing",
    "flipped": "damaged",
    "evil": "refused, because it holds more than tensors and plain values",
    "text": "",  # damaged or refused: either will do
    "weights_only": "not a training checkpoint",
    "other_app": "a checkpoint of the app 'another'",
    "older": "not written by this version of the app",
    "newer": "not written by this version of the app",
    "wider": "weights of another architecture than PerceiverModel as configured",
    "missing": "no such checkpoint file",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("program", ["inference", "predict", "export"])
def test_a_checkpoint_that_must_not_be_used(program: str, name: str, checkpoints: Path, script: Any) -> None:
    path = checkpoints / f"{name}.pth"
    more = [npz("new.npz")] if program == "predict" else ["--output_dir", "results"]
    ended = script(program, "--model_path", path, *more)
    refused(ended, f"{path}: {REFUSED[name]}")
    assert not Path("owned").exists()
    assert not Path("results").exists()
    assert not Path("predictions.csv").exists()


@pytest.mark.parametrize("name", ["cut", "flipped", "text", "evil", "weights_only", "other_app"])
def test_a_checkpoint_that_cannot_be_resumed(name: str, checkpoints: Path, train: Any) -> None:
    path = checkpoints / f"{name}.pth"
    refused(train(*SYNTHETIC, "--resume", path), f"{path}: {REFUSED[name]}")
    assert not Path("owned").exists()


def test_resuming_another_architecture(series_run: Path, train: Any) -> None:
    path = series_run / "checkpoints" / "best_model.pth"
    ended = train(*SYNTHETIC, "--num_latents", "8", "--resume", path)
    refused(ended, f"{path}: a run cannot go on with another value of model.num_latents 4 -> 8.")


def test_a_refused_resume_leaves_the_run_as_it_was(series_run: Path, train: Any) -> None:
    shutil.copytree(series_run, "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    ended = train(*SYNTHETIC, "--num_latents", "8", "--resume", "run/checkpoints/best_model.pth")
    assert ended.code == 2
    assert "another value of model.num_latents 4 -> 8" in ended.err
    own = {Path("run/run.json"), Path("run/train.log")}  # they tell of the attempt
    assert {path: path.read_bytes() for path in before if path not in own} == {
        path: content for path, content in before.items() if path not in own
    }


def test_resuming_what_is_not_there(train: Any) -> None:
    refused(train(*SYNTHETIC, "--resume", "none.pth"), "--resume none.pth: no such checkpoint or run folder")


def test_resume_auto_passes_over_damaged_checkpoints(series_run: Path, train: Any) -> None:
    shutil.copytree(series_run, "run")
    newest = max(Path("run/checkpoints").glob("step_*.pth"))
    newest.write_bytes(newest.read_bytes()[:-100])  # latest and best are other names of this very file
    for name in ("latest_model.pth", "best_model.pth"):
        path = Path("run/checkpoints") / name
        path.unlink()
        shutil.copy(newest, path)
    refused_all = train(*SYNTHETIC)
    assert refused_all.code == 2
    assert "none of the 3 checkpoint files can be read" in refused_all.err
    shutil.copy(series_run / "checkpoints" / "latest_model.pth", "run/checkpoints/step_00000001.pth")
    finished = train(*SYNTHETIC)  # other settings than the run's, and nothing left to train with them
    assert finished.code == 2
    assert "raise --epochs" in finished.err
    ended = train(*SYNTHETIC, "--epochs", "6")
    assert ended.code == 0, ended.err
    assert "trying the one before it" in ended.out
    assert "resuming run/checkpoints/step_00000001.pth" in ended.out


# ------------------------------------------------------------------------------------------------- where results go


def _mount_point(folder: Path) -> Path:
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed")
    folder.mkdir()
    return folder


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, less than a checkpoint takes."""
    folder = _mount_point(tmp_path / "small")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # the run's log is still open


def test_a_disk_without_space(full_disk: Path, script: Any, tiny: Sequence[str]) -> None:
    ended = script("train", *tiny, *SYNTHETIC, "--d_model", "64", "--output_dir", full_disk / "run")
    assert ended.code == 2, ended.out
    assert "one being written need" in ended.err
    assert "256.0 KiB are free: free some space" in ended.err
    left = [path for path in full_disk.rglob("*") if path.suffix in {".pth", ".partial"}]
    assert left == []


def test_results_on_a_disk_without_space(full_disk: Path, series_run: Path, script: Any) -> None:
    (full_disk / "filler").write_bytes(bytes(200 * 1024))
    checkpoint = series_run / "checkpoints" / "best_model.pth"
    ended = script("inference", "--model_path", checkpoint, "--output_dir", full_disk / "results")
    assert ended.code == 2, ended.out
    assert "no space left on the disk" in ended.err
    exported = script("export", "--model_path", checkpoint, "--output_dir", full_disk / "exported")
    assert exported.code == 2
    assert "no space left on the disk" in exported.err
    assert not list(full_disk.rglob("*.partial"))
    assert not (full_disk / "results" / "results.json").exists()


@pytest.mark.parametrize("program", ["train", "inference", "export", "predict"])
def test_an_output_folder_that_is_a_file(program: str, series_run: Path, script: Any, tiny: Sequence[str]) -> None:
    Path("taken").write_text("a file", encoding="utf-8")
    checkpoint = series_run / "checkpoints" / "best_model.pth"
    arguments = {
        "train": [*tiny, *SYNTHETIC, "--output_dir", "taken/run"],
        "inference": ["--model_path", checkpoint, "--output_dir", "taken"],
        "export": ["--model_path", checkpoint, "--output_dir", "taken"],
        "predict": ["--model_path", checkpoint, npz("new.npz", inputs=np.zeros((16, 6, 4))), "--output", "taken/x.csv"],
    }[program]
    refused(script(program, *arguments), "taken", "cannot be written")
    assert Path("taken").read_text("utf-8") == "a file"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody, not even root, can write to."""
    folder = _mount_point(tmp_path / "archive")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("neither a read-only mount nor file permissions keep this user from writing")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)


def test_an_output_folder_that_is_read_only(
    read_only: Path, series_run: Path, script: Any, tiny: Sequence[str]
) -> None:
    checkpoint = series_run / "checkpoints" / "best_model.pth"
    for ended in (
        script("train", *tiny, *SYNTHETIC, "--output_dir", read_only / "run"),
        script("inference", "--model_path", checkpoint, "--output_dir", read_only / "results"),
        script("predict", "--model_path", checkpoint, npz("n.npz"), "--output", read_only / "x.csv"),
    ):
        refused(ended, str(read_only), "not writable", "choose another output folder")


def test_the_process_itself_ends_so(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "apps/perceiver/train.py"), "--dataset", "ts", "--data_dir", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: none: not found; --data_dir")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""

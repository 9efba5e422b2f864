import json
import math
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from mlcore.trackers.table import TableTracker, read_history
from tests.mlcore.trackers.written import read_csv


def value(step: int, name: str) -> float:
    """An awkward float that depends only on its place."""
    return random.Random(f"{step} {name}").gauss(0, 1) / 3


def run(tracker: TableTracker, start: int, stop: int) -> None:
    """Train rows at every step, evaluation rows at every third, as a trainer would log them."""
    for step in range(start, stop):
        tracker.log(step, {"train/loss": value(step, "loss"), "train/lr": value(step, "lr")})
        if step % 3 == 2:
            tracker.log(step, {"val/accuracy": value(step, "accuracy")})


def kill(tracker: TableTracker) -> None:
    """Let go of the files without the work of `close`, as the death of the process does."""
    tracker._jsonl.close()
    if tracker._csv is not None:
        tracker._csv.close()


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "metrics.jsonl").read_bytes(), (folder / "metrics.csv").read_bytes()


def test_values_read_back_bit_for_bit(tmp_path: Path) -> None:
    tracker = TableTracker(tmp_path)
    values = {"a": 0.1 + 0.2, "b": 1e-320, "c": -0.0, "d": math.inf, "e": math.nan, "f": 5.0, "g": 2.0**70}
    tracker.log(7, values)
    tracker.close(status="finished")
    for [(step, row)] in (read_history(tmp_path), read_csv(tmp_path / "metrics.csv")):
        assert step == 7
        assert {k: struct.pack("d", v) for k, v in row.items()} == {k: struct.pack("d", v) for k, v in values.items()}


def test_values_of_one_step_form_one_row_and_columns_may_come_later(tmp_path: Path) -> None:
    tracker = TableTracker(tmp_path)
    run(tracker, 0, 4)
    tracker.close(status="finished")
    lines = (tmp_path / "metrics.csv").read_text("utf-8").splitlines()
    assert lines[0] == "step,train/loss,train/lr,val/accuracy"
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2", "3"]
    assert [line.endswith(",") for line in lines[1:]] == [True, True, False, True]
    assert read_csv(tmp_path / "metrics.csv") == read_history(tmp_path)


def test_the_csv_trails_by_the_newest_step_only(tmp_path: Path) -> None:
    tracker = TableTracker(tmp_path)
    for stop in range(1, 8):
        run(tracker, stop - 1, stop)
        assert read_csv(tmp_path / "metrics.csv") == read_history(tmp_path)[:-1]
    tracker.close(status="finished")
    assert read_csv(tmp_path / "metrics.csv") == read_history(tmp_path)


@pytest.mark.parametrize("saved", [0, 2, 4, 8])
def test_a_resumed_record_equals_an_uninterrupted_one(tmp_path: Path, saved: int) -> None:
    whole = TableTracker(tmp_path / "whole")
    run(whole, 0, 9)
    whole.close(status="finished")

    killed = TableTracker(tmp_path / "parts")
    run(killed, 0, 9)
    kill(killed)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "train/lo')
    resumed = TableTracker(tmp_path / "parts", resume_step=saved)
    assert [step for step, _ in read_history(tmp_path / "parts")] == list(range(saved + 1))
    run(resumed, saved + 1, 9)
    resumed.close(status="finished")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_values_may_be_added_to_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    killed = TableTracker(tmp_path)
    run(killed, 0, 3)
    kill(killed)
    resumed = TableTracker(tmp_path, resume_step=2)
    resumed.log(2, {"test/accuracy": 0.5})
    resumed.log(3, {"train/loss": 0.25})
    resumed.close(status="finished")
    rows = dict(read_csv(tmp_path / "metrics.csv"))
    assert sorted(rows) == [0, 1, 2, 3]
    assert rows[2]["test/accuracy"] == 0.5
    assert rows[2]["val/accuracy"] == value(2, "accuracy")


def test_rows_survive_sigkill(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal; from mlcore.trackers.table import TableTracker\n"
        f"tracker = TableTracker(pathlib.Path({str(tmp_path)!r}))\n"
        "for step in range(50): tracker.log(step, {'a': step / 7})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert read_history(tmp_path) == [(step, {"a": step / 7}) for step in range(50)]


def test_a_new_record_replaces_an_old_one(tmp_path: Path) -> None:
    old = TableTracker(tmp_path)
    run(old, 0, 3)
    old.close(status="finished")
    TableTracker(tmp_path).close(status="finished")
    assert files(tmp_path) == (b"", b"step\n")


def test_resuming_into_an_empty_folder_starts_with_no_rows(tmp_path: Path) -> None:
    tracker = TableTracker(tmp_path / "new", resume_step=10)
    tracker.log(11, {"a": 1.0})
    tracker.close(status="finished")
    assert read_csv(tmp_path / "new" / "metrics.csv") == [(11, {"a": 1.0})]


def test_mistakes_of_the_caller(tmp_path: Path) -> None:
    tracker = TableTracker(tmp_path)
    tracker.log(5, {"a": 1.0})
    with pytest.raises(ValueError, match="step 4 comes after step 5"):
        tracker.log(4, {"a": 1.0})
    with pytest.raises(ValueError, match="first column"):
        tracker.log(6, {"step": 1.0})
    tracker.close(status="finished")
    assert read_history(tmp_path) == [(5, {"a": 1.0})]


@pytest.mark.parametrize("damage", ["not json\n", "[1]\n", '{"loss": 1.0}\n', '{"step": "a"}\n', "\n"])
def test_damage_in_the_middle_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0}) + "\n" + damage + json.dumps({"step": 1}) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged"):
        TableTracker(tmp_path, resume_step=5)

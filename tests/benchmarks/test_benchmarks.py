"""The benchmarks' own logic, and that each of them runs with whichever peers are installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import Goal, Report, alternate, ratio
from benchmarks.run import DOCUMENT, NAMES, with_section

ROOT = Path(__file__).resolve().parents[2]


def test_sides_take_turns_and_neither_always_comes_first():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    figures = alternate(sides, rounds=3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert figures == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_ratios_are_taken_within_a_round():
    # The machine is ten times slower in the second round; the ratio of each round is 2.
    assert ratio([2.0, 20.0], [1.0, 10.0]) == (2.0, 2.0, 2.0)


def test_a_missed_goal_is_said_so_in_the_document():
    report = Report(title="t", method="m", header=["x"], rows=[["1"]], goals=[Goal("below 1", "2", reached=False)])
    assert "below 1. Measured: 2; **missed**" in report.markdown()
    assert "| x |\n| --- |\n| 1 |" in report.markdown()


def test_every_benchmark_has_its_place_in_the_document():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in NAMES:
        changed = with_section(text, name, "new content")
        assert changed.count("new content") == 1
        assert with_section(changed, name, "newer")  # markers survive
        assert all(f"<!-- {other}: end -->" in changed for other in NAMES)


def test_a_document_without_markers_is_an_error():
    with pytest.raises(ValueError, match="padding_waste"):
        with_section("# nothing here", "padding_waste", "x")


def test_every_benchmark_module_is_listed():
    own = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "run_alone(measure)" in path.read_text("utf-8")}
    assert own == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "complete"), [("20", True), ("0", False)])
def test_the_tables_of_a_gpu_are_tried_on_a_processor(minutes, complete, tmp_path):
    path = tmp_path / "gpu.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--quick",
        "--minutes",
        minutes,
        "--json",
        path,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(path.read_text("utf-8"))
    late = [line for line in found["left_out"] if line.endswith("no time was left")]
    assert bool(found["reports"]) == complete
    assert len(late) == (0 if complete else 8)
    if complete:
        assert len(found["reports"]["steps"]["rows"]) == 4
        assert not [line for line in found["left_out"] if "Error" in line], found["left_out"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_reports(name, tmp_path):
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["skipped"] or report["rows"], report

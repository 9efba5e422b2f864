"""Comparing runs: nothing is dropped, only settings that differ are shown, the order is that of the metric."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image as reader

from mlcore.base.errors import UserError
from mlcore.compare.comparison import compare_runs, write_comparison
from mlcore.compare.reading import find_runs
from mlcore.metrics.ranking import Interval
from mlcore.report.plots.runs import Bar, plot_runs
from mlcore.run.folder import RunRecord

pytestmark = pytest.mark.pictures

CONFIG = {"train": {"lr": 0.1, "epochs": 3}, "run": {"output_dir": "x", "seed": 0}, "tracking": {"log_every": 10}}


def write(path: Path, values: object) -> None:
    """Write JSON, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def make_run(
    folder: Path,
    *,
    val: dict[str, float | None] | None = None,
    test: dict[str, float | None] | None = None,
    status: str = "finished",
    monitor: tuple[str, str] = ("auroc", "max"),
    config: dict[str, Any] | None = None,
) -> Path:
    """A run folder as a session leaves it; without `val` there is no summary."""
    write(folder / "run.json", {"status": status, "config": config or CONFIG})
    if val is not None:
        results = {"val": {**val, "n": 40.0}} | ({} if test is None else {"test": test})
        summary = {
            "status": status,
            "monitor": {"metric": monitor[0], "mode": monitor[1], "best": 0.0},
            "results_of_best_checkpoint": results,
            "progress": {"step": 50, "seconds": 61.4},
        }
        write(folder / "summary.json", summary)
    return folder


def with_lr(lr: float, **more: object) -> dict[str, Any]:
    """A configuration with another learning rate."""
    return {**CONFIG, "train": {"lr": lr, "epochs": 3, **more}, "run": {"output_dir": str(lr), "seed": 0}}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three runs that are done, with different learning rates."""
    for name, lr, auroc in (("a", 0.1, 0.8), ("b", 0.01, 0.9), ("c", 0.001, 0.85)):
        values = {"auroc": auroc, "loss": 1 - auroc}
        make_run(tmp_path / "sweep" / name, val=values, test={"auroc": auroc - 0.1}, config=with_lr(lr))
    return tmp_path / "sweep"


def names(path: Path, **asked: Any) -> list[str]:
    """Folder names of the ranked runs."""
    return [run.folder.name for run in compare_runs([path], **asked).ranked]


def test_runs_are_sorted_by_what_chose_their_checkpoints(sweep: Path) -> None:
    comparison = compare_runs([sweep])
    assert (comparison.metric, comparison.mode) == ("val/auroc", "max")
    assert names(sweep) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ({"metric": "loss"}, "b"),
        ({"metric": "val_loss"}, "b"),
        ({"metric": "val/loss", "mode": "max"}, "a"),
        ({"metric": "test/auroc"}, "b"),
        ({"metric": "test_auroc"}, "b"),
        ({"metric": "auroc", "mode": "min"}, "a"),
    ],
)
def test_another_metric_and_direction_can_be_asked_for(sweep: Path, asked: dict[str, Any], first: str) -> None:
    assert names(sweep, **asked)[0] == first


def test_only_settings_that_differ_are_shown(sweep: Path) -> None:
    assert compare_runs([sweep]).varied == ["train.lr"]
    make_run(sweep / "d", val={"auroc": 0.7}, config=with_lr(0.1, warmup=5))
    make_run(sweep / "e", val={"auroc": 0.7}, config=with_lr(0.1, warmup=6))
    assert compare_runs([sweep]).varied == ["train.lr", "train.warmup"]


def test_secrets_stay_out(sweep: Path) -> None:
    make_run(sweep / "d", val={"auroc": 0.7}, config={**CONFIG, "data": {"api_key": "hunter2"}})
    make_run(sweep / "e", val={"auroc": 0.7}, config={**CONFIG, "data": {"api_key": "hunter3"}})
    write_comparison(compare_runs([sweep]), sweep)
    assert not any("hunter" in path.read_text("utf-8") for path in sweep.glob("comparison.[cm]*"))


def test_ties_and_undefined_metrics(tmp_path: Path) -> None:
    for name, value in (("a", None), ("b", 0.5), ("c", 0.5), ("d", 0.6)):
        make_run(tmp_path / name, val={"auroc": value})
    make_run(tmp_path / "e", val={"loss": 1.0})
    assert names(tmp_path) == ["d", "b", "c", "a", "e"]
    assert "–" in write_comparison(compare_runs([tmp_path]), tmp_path)


def test_runs_that_are_not_done_are_listed_with_the_reason(sweep: Path) -> None:
    make_run(sweep / "failed", val={"auroc": 0.99}, status="failed")
    make_run(sweep / "interrupted", status="interrupted")
    make_run(sweep / "killed", status="running")
    make_run(sweep / "limit", status="time is up")
    make_run(sweep / "no_summary")
    make_run(sweep / "torn", val={"auroc": 0.9})
    (sweep / "torn/summary.json").write_text('{"status": "fin')
    (sweep / "garbage").mkdir()
    (sweep / "garbage/run.json").write_bytes(b"\xff\xfe\x00")
    make_run(sweep / "lost", val={"auroc": 0.9})
    (sweep / "lost/run.json").unlink()
    make_run(sweep / "odd", val={"auroc": 0.9})
    write(sweep / "odd/summary.json", {"results_of_best_checkpoint": []})
    comparison = compare_runs([sweep])
    assert {run.folder.name for run in comparison.ranked} == {"a", "b", "c"}
    told = {run.folder.name: (run.status, run.trouble) for run in comparison.others}
    assert {name: status for name, (status, _) in told.items()} == {
        "failed": "failed",
        "garbage": "broken",
        "interrupted": "interrupted",
        "killed": "killed",
        "limit": "time is up",
        "lost": "missing",
        "no_summary": "finished",
        "odd": "broken",
        "torn": "broken",
    }
    text = write_comparison(comparison, sweep)
    assert "Not in the comparison: 9" in text
    assert told["limit"][1] == "its time was up; the same command continues it"
    for name, (status, trouble) in told.items():
        assert any(name in line and status in line for line in text.splitlines())
        assert trouble


def test_a_failed_run_is_listed_with_its_reason(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "a")
    record.start(CONFIG)
    record.close(status="failed", reason="2 pictures cannot be used:\n  a.png: empty\n  b.png: empty")
    assert find_runs([tmp_path])[0].trouble == "2 pictures cannot be used:"


def test_a_run_that_somebody_works_on_is_not_called_killed(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "a")
    record.start(CONFIG)
    (run,) = find_runs([tmp_path])
    assert (run.status, run.trouble) == ("running", "still running")
    record.close(status="interrupted")
    assert find_runs([tmp_path])[0].status == "interrupted"


def test_jobs_of_a_sweep_that_never_began_are_listed(sweep: Path) -> None:
    jobs = [
        {"overrides": ["train.lr=0.1"], "folder": "a", "status": "finished", "exit_code": 0, "seconds": 1.0},
        {"overrides": ["train.lr=9"], "folder": "x", "status": "failed", "exit_code": 2, "seconds": 1.0},
        {"overrides": ["train.lr=8"], "folder": "y", "status": "pending", "exit_code": None, "seconds": 0.0},
    ]
    write(sweep / "sweep.json", {"digest": "0", "jobs": jobs})
    others = {run.folder.name: run for run in compare_runs([sweep]).others}
    assert others.keys() == {"x", "y"}
    assert "exit code 2" in others["x"].trouble
    assert others["y"].trouble == "not started yet"
    assert others["y"].settings["train.lr"] == "8"


def test_a_run_given_twice_counts_once(sweep: Path) -> None:
    assert len(find_runs([sweep, sweep / "a", sweep / "b" / ".." / "b"])) == 3


def test_files(sweep: Path, tmp_path: Path) -> None:
    steps = [{"step": step, "perf/memory_gib": memory} for step, memory in ((10, 0.5), (20, 1.25), (30, 1.0))]
    (sweep / "b/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    write(sweep / "b/results.json", {"val": {"auroc_interval": {"level": 0.95, "low": 0.87, "high": 0.93}}})
    write(sweep / "c/results.json", ["something else"])
    make_run(sweep / "z", status="failed")
    out = tmp_path / "out"
    printed = write_comparison(compare_runs([sweep]), out)
    assert {path.name for path in out.iterdir()} == {"comparison.md", "comparison.csv", "comparison.png"}
    assert "0.9000 (0.8700, 0.9300)" in printed
    assert printed in (out / "comparison.md").read_text("utf-8")
    assert "0:01:01" in printed
    with (out / "comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == ["b", "c", "a", "z"]
    best, *_, failed = table
    assert (best["val/auroc"], best["test/auroc"], best["train.lr"]) == ("0.9", "0.8", "0.01")
    assert (best["val/auroc_low"], best["val/auroc_high"], best["peak_memory_gib"]) == ("0.87", "0.93", "1.25")
    assert (failed["status"], failed["val/auroc"], failed["train.lr"]) == ("failed", "", "0.1")
    lengths = {len(line) for line in printed.split("\n\n")[1].splitlines()}
    assert len(lengths) == 1, "columns are flush"


def test_a_single_run_and_none_that_is_done(sweep: Path, tmp_path: Path) -> None:
    assert "| a " in write_comparison(compare_runs([sweep / "a"]), tmp_path)
    make_run(tmp_path / "only/bad", status="failed")
    out = tmp_path / "out"
    assert "Not in the comparison: 1" in write_comparison(compare_runs([tmp_path / "only"], metric="auroc"), out)
    assert not (out / "comparison.png").exists()


def test_a_setting_with_a_bar_stays_in_its_cell(tmp_path: Path) -> None:
    for name, value in (("a", "x|y"), ("b", "<b>")):
        make_run(tmp_path / name, val={"auroc": 0.5}, config={"data": {"name": value}})
    text = write_comparison(compare_runs([tmp_path]), tmp_path)
    assert "x\\|y" in text
    assert "\\<b>" in text


def test_short_names_stay_unambiguous(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        config = {"vision": {"model": value}, "text": {"model": value}, "train": {"lr": value}}
        make_run(tmp_path / name, val={"auroc": 0.5}, config=config)
    head = write_comparison(compare_runs([tmp_path]), tmp_path).split("\n\n")[1].splitlines()[0]
    assert [cell.strip() for cell in head.split("|")[4:7]] == ["vision.model", "text.model", "lr"]


def test_mistakes_are_told(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'val/auroc'"):
        compare_runs([sweep], metric="aurok")
    with pytest.raises(UserError, match="no such folder"):
        compare_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run in there"):
        compare_runs([tmp_path / "empty"])
    make_run(sweep / "d", val={"auroc": 0.7, "loss": 0.2}, monitor=("loss", "min"))
    with pytest.raises(UserError, match=r"val/auroc, val/loss.*--metric"):
        compare_runs([sweep])
    assert compare_runs([sweep], metric="loss").mode == "min"


@pytest.mark.parametrize("runs", [2, 60])
@pytest.mark.parametrize("values", ["apart", "close", "equal", "negative", "zero"])
def test_the_picture_is_drawn(runs: int, values: str, tmp_path: Path) -> None:
    value = {
        "apart": lambda n: 1.0 / (n + 1),
        "close": lambda n: 0.99 - 0.0001 * n,
        "equal": lambda n: 0.5,
        "negative": lambda n: -1.0 - n,
        "zero": lambda n: 0.0,
    }[values]
    bars = [
        Bar(
            label=[f"lr={n}", "model=" + "m" * (n * 9 % 70), f"text={'가' * (n % 2)}$a$"],
            value=value(n),
            name=f"#{n}",
            interval=Interval(value(n) - 0.01, value(n) + 0.02) if n % 3 else None,
        )
        for n in range(runs)
    ]
    height, width, _ = reader.imread(plot_runs(bars, metric="val/x", path=tmp_path / "x.png")).shape
    assert width == 1238
    assert height < 4000


def test_the_script(sweep: Path, repository: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repository / "scripts/compare_results.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = call(str(sweep), "--metric", "test/auroc")
    assert done.returncode == 0, done.stderr
    assert "Sorted by test/auroc, highest first." in done.stdout
    assert (sweep / "comparison.png").is_file()
    wrong = call(str(sweep / "nowhere"))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)

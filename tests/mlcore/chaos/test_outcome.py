"""What two runs are compared in: nothing that matters is left out, and the first differing item is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlcore.chaos.outcome import difference, outcome, windows, windows_difference
from mlcore.training.checkpoint import load_checkpoint, save_checkpoint


def write_run(folder: Path) -> Path:
    """A run folder with what a run leaves."""
    (folder / "checkpoints").mkdir(parents=True)
    state = {
        "model": {"weight": torch.arange(4.0)},
        "engine": {"optimizer": {"exp_avg": [torch.zeros(2), torch.tensor(float("nan"))]}, "ema": {}, "updates": 3},
        "progress": {"step": 3, "seconds": 1.25},
        "rng": [{"python": [1, 2], "torch": torch.arange(5, dtype=torch.uint8)}],
        "config": {"run": {"output_dir": str(folder), "seed": 0}},
    }
    save_checkpoint(folder / "checkpoints" / "latest_model.pth", state)
    rows = [{"step": 2, "train/loss": 0.5, "perf/samples_per_s": 17.0}, {"step": 3, "val/auroc": float("nan")}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "cases.csv").write_text("name,dice\na,0.5\nb,0.25\n")
    (folder / "run.json").write_text(json.dumps({"status": "finished", "started": str(folder), "config": {"lr": 0.1}}))
    (folder / "train.log").write_text(str(folder))
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Any]:
    return outcome(write_run(tmp_path / "whole"))


def test_times_and_places_are_no_difference(whole: dict[str, Any], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "other")
    text = (folder / "metrics.jsonl").read_text().replace("17.0", "18.0")
    (folder / "metrics.jsonl").write_text(text)
    assert difference(whole, outcome(folder)) is None


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "checkpoints" / "latest_model.pth"
        state = load_checkpoint(path)
        change(state)
        save_checkpoint(path, state)

    return write


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new)) and None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed(lambda s: s["model"]["weight"].view(torch.int32)[2].add_(1)), "latest_model.pth['model']['weight']"),
        (changed(lambda s: s["engine"]["optimizer"]["exp_avg"][1].fill_(0)), "['exp_avg'][1]"),
        (changed(lambda s: s["engine"].update(updates=4)), "['updates']"),
        (changed(lambda s: s["engine"].update(updates=3.0)), "['updates']"),
        (changed(lambda s: s["rng"][0]["torch"].add_(1)), "['rng'][0]['torch']"),
        (changed(lambda s: s["progress"].update(step=2)), "['progress']['step']"),
        (changed(lambda s: s["model"].update(bias=torch.zeros(1))), "['bias']: only in the second"),
        (replaced("metrics.jsonl", "0.5", "0.5000000000000001"), "metrics.jsonl[0]['train/loss']"),
        (replaced("metrics.jsonl", "NaN", "0.0"), "metrics.jsonl[1]['val/auroc']"),
        (replaced("cases.csv", "b,0.25\n", ""), "cases.csv[1]['name']: only in the first"),
        (replaced("run.json", "finished", "running"), "run.json['status']"),
        (lambda folder: (folder / "cases.csv").unlink(), "cases.csv"),
        (lambda folder: (folder / ".x.partial").touch(), ".x.partial: only in the second"),
    ],
)
def test_the_first_item_that_differs_is_named(
    whole: dict[str, Any], tmp_path: Path, change: Callable[[Path], None], named: str
) -> None:
    folder = write_run(tmp_path / "other")
    change(folder)
    assert named in str(difference(whole, outcome(folder)))


def test_a_window_with_other_samples_is_found_in_whichever_process_it_was(tmp_path: Path) -> None:
    for name, lines in {
        "whole": {"1": "run 0 0 aa\nrun 0 1 bb\n"},
        "other": {"2": "run 0 0 aa\n", "3": "run 0 1 bb\n"},
    }.items():
        (tmp_path / name).mkdir()
        for pid, text in lines.items():
            (tmp_path / name / f"windows.{pid}").write_text(text)
    undisturbed = windows(tmp_path / "whole")
    assert windows_difference(undisturbed, windows(tmp_path / "other")) is None
    (tmp_path / "other" / "windows.4").write_text("run 0 1 cc\n")  # made again after a kill, with other samples
    assert "window 'run 0 1'" in str(windows_difference(undisturbed, windows(tmp_path / "other")))
    (tmp_path / "other" / "windows.4").unlink()
    (tmp_path / "other" / "windows.3").unlink()
    assert "window 'run 0 1'" in str(windows_difference(undisturbed, windows(tmp_path / "other")))

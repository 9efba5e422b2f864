"""Cross-validation: one job that covers every page once and goes on where it was killed."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quartet.apps.doc_ensemble.ensemble.folds import fold_folders
from quartet.apps.doc_ensemble.ensemble.out_of_fold import read_out_of_fold

APP = Path(__file__).resolve().parents[2] / "apps" / "doc_ensemble"
LIMIT_S = 300.0


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(APP / "train.py"), *arguments, "--output_dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_killed_in_its_third_fold_goes_on_there(tmp_path: Path, pages: Path, tiny: list[str], run) -> None:
    job = tmp_path / "job"
    settings = [*tiny, "--data_dir", str(pages), "kfold.folds=3", "--epochs=4", "--save_every_steps=1", "--lr=1e-2"]
    third = job / "folds" / "fold_3" / "checkpoints" / "latest_model.pth"
    with start(job, *settings) as process:
        end = time.monotonic() + LIMIT_S
        while not third.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert third.exists()
    before = {fold: times(job / "folds" / fold) for fold in ("fold_1", "fold_2")}
    said, _ = start(job, *settings).communicate(timeout=LIMIT_S)

    assert before == {fold: times(job / "folds" / fold) for fold in ("fold_1", "fold_2")}
    assert "fold 1 of 3: fold_1 is finished" in said
    assert "fold 2 of 3: fold_2 is finished" in said
    assert f"resuming {job / 'folds' / 'fold_3'}" in said
    # Killed or not, the fold ends the same, bit by bit.
    code, alone = run("train", *settings, "kfold.fold=3", "--output_dir", tmp_path / "alone")
    assert code == 0, alone
    with (
        np.load(tmp_path / "alone/fold_predictions.npz") as one,
        np.load(job / "folds/fold_3/fold_predictions.npz") as two,
    ):
        np.testing.assert_array_equal(one["probabilities"], two["probabilities"])

    predicted = read_out_of_fold(job / "out_of_fold.npz")
    assert sorted(predicted.pages) == sorted(f"{path}#1" for path in (pages / "train").rglob("*.jpg"))
    with (job / "folds.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["fold"] for row in rows} == {"1", "2", "3"}
    assert (job / "report.html").is_file()
    assert [folder.name for folder in fold_folders(job)] == ["fold_1", "fold_2", "fold_3"]

    whole, *parts = (json.loads((folder / "summary.json").read_text("utf-8")) for folder in (job, *fold_folders(job)))
    assert whole["progress"]["step"] == sum(part["progress"]["step"] for part in parts)
    assert whole["monitor"]["best"] == whole["results_of_best_checkpoint"]["out_of_fold"]["macro_f1"]

    # What is out of fold is what the fold's own model says of pages that it was trained without.
    fold = predicted.folds.tolist().index(2)
    with np.load(job / "folds" / "fold_2" / "fold_predictions.npz") as file:
        row = file["pages"].tolist().index(predicted.pages[fold])
        np.testing.assert_allclose(predicted.probabilities[0, fold], file["probabilities"][row], atol=1e-6)
        assert len(set(file["digests"].tolist())) == len(file["pages"])
        assert not set(file["digests"].tolist()) & set(file["trained_on"].tolist())


def test_a_class_with_fewer_pages_than_folds_is_named(pages: Path, tiny: list[str], run, tmp_path: Path) -> None:
    code, said = run("train", *tiny, "--data_dir", pages, "kfold.folds=7", "--output_dir", tmp_path / "job")
    assert code == 2
    assert "7 folds need at least 7 pages of each class" in said
    assert "kfold.folds=6" in said
    assert not (tmp_path / "job").exists()


@pytest.mark.slow
def test_folds_that_ran_out_of_time_are_not_joined(pages: Path, tiny: list[str], run, tmp_path: Path) -> None:
    job = tmp_path / "job"
    settings = [*tiny, "--data_dir", pages, "kfold.folds=2", "--output_dir", job]
    code, said = run("train", *settings, "--max_hours=1e-9")
    assert code == 76, said
    assert not (job / "out_of_fold.npz").exists()
    code, said = run("train", *settings, "--max_hours=1")
    assert code == 0, said
    assert said.count("going on with other settings than before: train.max_hours") == 1  # the limit ended the whole job
    assert len(read_out_of_fold(job / "out_of_fold.npz").pages) == 102


def test_a_fold_that_fails_says_why_in_its_own_record_and_in_the_jobs(
    pages: Path, tiny: list[str], run, tmp_path: Path
) -> None:
    job = tmp_path / "job"
    diverging = ["--optimizer", "sgd", "--lr", "1e30", "--warmup_steps", "0", "--max_bad_steps", "1"]
    code, said = run("train", *tiny, *diverging, "--data_dir", pages, "kfold.folds=2", "--output_dir", job)
    assert code == 2
    for folder in (job, job / "folds" / "fold_1"):
        record = json.loads((folder / "run.json").read_text("utf-8"))
        assert record["status"] == "failed"
        assert "not finite" in record["reason"]
        assert record["reason"] in said
    assert not (job / "folds" / "fold_2").exists()

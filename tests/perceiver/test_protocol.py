"""Cross-validation, seeds and a last run on all data, as one job that goes on where it was stopped."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.config.protocol import ProtocolConfig
from mlcore.report.classification import figures
from mlcore.run import load_run, load_runs
from mlcore.run.averaged import is_run
from mlcore.run.member import member_splits
from mlcore.run.splits import Splits
from tests.perceiver.conftest import Script, run
from tests.scripts import REPOSITORY

SETTINGS = ("--dataset", "custom", "--train_path", "train.npz", "--test_path", "test.npz", "--lr", "1e-2")
PROTOCOL = ("--folds", "3", "--seeds", "2", "--refit", "protocol.inner=3")


def write_series(path: Path, *, samples: int, seed: int, copies: int = 0) -> None:
    """Two classes; the last samples are copies of the first ones."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % 2
    inputs = rng.normal(size=(samples, 6, 3)).astype(np.float32) + labels[:, None, None]
    if copies:
        inputs[-copies:], labels[-copies:] = inputs[:copies], labels[:copies]
    np.savez(path, inputs=inputs, labels=labels)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A folder with data and `out`, a finished job."""
    folder = tmp_path_factory.mktemp("protocol")
    write_series(folder / "train.npz", samples=48, seed=0, copies=6)
    write_series(folder / "test.npz", samples=20, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = run("train", *tiny, *SETTINGS, *PROTOCOL, "--output_dir", "out")
        assert ended.code == 0, ended.err
        assert "out-of-fold accuracy" in ended.err + ended.out
    return folder


def summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text("utf-8"))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "out_of_fold.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_sample_is_predicted_once_by_a_run_that_knew_neither_it_nor_a_copy(job: Path) -> None:
    rows = table(job / "out")
    assert len({row["sample"] for row in rows}) == len(rows) == 48
    folds = {row["unit"]: row["fold"] for row in rows}
    assert len(folds) == 42, "six are copies"
    assert all(row["fold"] == folds[row["unit"]] for row in rows)
    for seed in (0, 1):
        held = [np.load(job / f"out/folds/fold_{fold}_seed_{seed}/held_out.npz")["name"] for fold in (1, 2, 3)]
        assert sorted(np.concatenate(held).tolist()) == sorted(row["sample"] for row in rows)


def test_figures_are_those_of_all_predictions_together(job: Path) -> None:
    arrays = np.load(job / "out" / "out_of_fold.npz")
    found = []
    for seed in range(2):
        rows = {key: torch.from_numpy(arrays[key][seed]) for key in ("label", "probabilities", "loss")}
        found.append(figures(rows))
    reached = summary(job / "out")["results_of_best_checkpoint"]["out_of_fold"]
    assert reached["n"] == 48
    for name in ("accuracy", "macro_f1", "auroc", "loss"):
        assert reached[name] == pytest.approx(np.mean([one[name] for one in found]), rel=1e-9)
    interval = summary(job / "out")["intervals_of_best_checkpoint"]["out_of_fold"]["accuracy"]
    assert interval["low"] <= reached["accuracy"] <= interval["high"]


def test_only_the_last_run_knows_all_data_and_looks_at_the_test(job: Path) -> None:
    for seed in (0, 1):
        last = summary(job / "out" / "refit" / f"seed_{seed}")
        assert set(last["results_of_best_checkpoint"]) == {"train", "test"}, "nothing was held out"
        assert last["samples"] == {"train": 48, "test": 20}
    of_folds = [summary(path.parent) for path in (job / "out" / "folds").glob("*/summary.json")]
    assert len(of_folds) == 6
    assert all(one["samples"]["test"] == 16 and one["samples"]["val"] > 0 for one in of_folds)
    best = np.median([one["best_step"] for one in of_folds])
    assert best > 0
    steps = {summary(path.parent)["progress"]["step"] for path in (job / "out" / "refit").glob("*/summary.json")}
    assert steps == {min(round(best / (2 / 3 * 2 / 3)), 6)}, (
        "as many passes over more data, and no more epochs than asked"
    )


@pytest.mark.slow
def test_a_job_goes_on_where_it_was_stopped_and_side_by_side_it_is_the_same(job: Path, tiny: Sequence[str]) -> None:
    whole = (job / "out" / "out_of_fold.npz").read_bytes()
    again = job / "again"
    shutil.copytree(job / "out", again)
    for gone in ("folds/fold_3_seed_0", "folds/fold_2_seed_1", "refit"):
        shutil.rmtree(again / gone)
    for name in ("out_of_fold.npz", "summary.json"):
        (again / name).unlink()
    flags = [*tiny, *SETTINGS, *PROTOCOL, "--jobs", "2", "--output_dir", "again"]
    command = [sys.executable, str(REPOSITORY / "apps/perceiver/train.py"), *map(str, flags)]
    done = subprocess.run(command, cwd=job, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 2 at a time" in done.stderr + done.stdout
    assert (again / "out_of_fold.npz").read_bytes() == whole
    own, other = (summary(folder)["results_of_best_checkpoint"] for folder in (job / "out", again))
    assert own == other


def test_seeds_alone_are_as_many_runs(script: Script, tiny: Sequence[str]) -> None:
    write_series(Path("train.npz"), samples=24, seed=0)
    ended = script("train", *tiny, *SETTINGS[:4], "--seeds", "2", "--output_dir", "out")
    assert ended.code == 0, ended.err
    runs = [summary(Path(f"out/seeds/seed_{seed}"))["results_of_best_checkpoint"]["val"] for seed in (0, 1)]
    reached = summary(Path("out"))["results_of_best_checkpoint"]["val"]
    assert reached["accuracy"] == pytest.approx(np.mean([one["accuracy"] for one in runs]))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--refit"], "protocol.folds"),
        (["--folds", "1"], "expected at least 2"),
        (["--folds", "50"], "use protocol.folds=24"),
        (["--folds", "3", "protocol.fold=4"], "expected one of the 3 folds"),
        (["--folds", "3", "--refit", "scheduler=plateau"], "plateau"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    flags: Sequence[str], said: str, script: Script, tiny: Sequence[str]
) -> None:
    write_series(Path("train.npz"), samples=48, seed=0)
    ended = script("train", *tiny, *SETTINGS[:4], *flags, "--output_dir", "out")
    assert ended.code == 2
    assert said in ended.err
    assert not list(Path().glob("out/**/*.pth"))


@pytest.mark.parametrize("inner", [0, 4])
def test_folds_share_classes_and_part_no_unit(inner: int) -> None:
    items = list(range(90))
    splits = Splits(train=items[:70], validation=items[70:], test=[1000])
    everything = []
    for fold in range(1, 6):
        protocol = ProtocolConfig(folds=5, fold=fold, inner=inner)
        found = member_splits(
            splits, protocol, label=lambda k: k // 3 % 2, unit=lambda k: k // 3, classes=("a", "b"), seed=0
        )
        parts = {name: {k // 3 for k in part} for name, part in found.named().items()}
        assert set(parts) == {"train", "test", *(["val"] if inner else [])}
        assert sum(map(len, parts.values())) == 30, "no unit is in two parts"
        assert sum(k // 3 % 2 for k in found.test or ()) == 9, "each class in its share"
        everything += found.test or ()
    assert sorted(everything) == items
    last = member_splits(
        splits, ProtocolConfig(folds=5, fold=0), label=lambda k: 0, unit=lambda k: k, classes=("a",), seed=0
    )
    assert (last.train, last.validation, last.test) == (items, (), [1000])


def test_a_jobs_folder_is_used_as_its_last_runs(job: Path) -> None:
    sample = np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32)
    last = sorted((job / "out" / "refit").glob("seed_*"))
    assert len(last) == 2
    expected = load_runs(last)(sample)[0].probabilities
    for place in ("out", "out/refit"):
        np.testing.assert_array_equal(load_runs([job / place])(sample)[0].probabilities, expected)
        assert is_run(str(job / place))
    folds = sorted((job / "out" / "folds").glob("fold_*"))
    mean = load_runs(folds)(sample)[0].probabilities
    np.testing.assert_array_equal(load_runs([job / "out" / "folds"])(sample)[0].probabilities, mean)
    with pytest.raises(UserError, match="holds several runs"):
        load_run(job / "out")
    one = load_run(last[0])(sample)[0].probabilities
    np.testing.assert_array_equal(load_runs(last[:1])(sample)[0].probabilities, one)


def test_too_few_of_a_class_are_told() -> None:
    splits = Splits(train=list(range(10)), validation=(), test=None)
    with pytest.raises(UserError, match=r"5 folds need at least 5 rows of each class.*b \(2\): use protocol\.folds=2"):
        member_splits(
            splits,
            ProtocolConfig(folds=5, fold=1),
            label=lambda k: int(k > 7),
            unit=lambda k: k,
            classes=("a", "b"),
            seed=0,
            what="rows",
        )


def test_a_fold_with_too_few_for_its_inner_part_is_told_in_every_fold() -> None:
    splits = Splits(train=list(range(23)), validation=(), test=None)  # 7 of class b: one fold holds 3 of them out
    for fold in (1, 2, 3):
        with pytest.raises(UserError, match=r"^protocol\.inner=5: 5 folds need .* b \(4\): use protocol\.inner=4"):
            member_splits(
                splits,
                ProtocolConfig(folds=3, fold=fold, inner=5),
                label=lambda k: int(k >= 16),
                unit=lambda k: k,
                classes=("a", "b"),
                seed=0,
            )

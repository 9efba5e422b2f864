"""The best checkpoint is what a run is evaluated by, and summary and report say so."""

import json
import math
from pathlib import Path

import pytest
import torch

from mlcore.base.distributed import World
from mlcore.config.dump import to_values
from mlcore.report.page import RunReport
from mlcore.run.build import TrainingSetup, build_trainer
from mlcore.run.copy import Copied
from mlcore.run.final_evaluation import (
    Evaluation,
    Pages,
    best_checkpoint,
    evaluate_best,
    pages_of_run,
    read_results,
    write_pages,
)
from mlcore.training.checkpoint import CheckpointError
from mlcore.training.progress import Monitor, Outcome, Progress
from tests.mlcore.run.toy import ToyConfig, build

CONFIG = ToyConfig.model_validate(
    {
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.1, "early_stopping": {"metric": "loss"}},
        "run": {"num_workers": 0, "device": "cpu"},
    }
)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Those of a trained toy."""
    trainer = build_trainer(CONFIG, build(CONFIG, World()), world=World(), folder=tmp_path / "checkpoints")
    trainer.fit()
    assert trainer.store is not None
    trainer.store.close()
    return tmp_path / "checkpoints"


def evaluate(setup: TrainingSetup, checkpoints: Path) -> Evaluation:
    trainer = build_trainer(CONFIG, setup, world=World())
    return evaluate_best(trainer, setup, config=CONFIG, folder=checkpoints.parent, checkpoints=checkpoints)


def test_the_best_checkpoint_is_evaluated_on_every_split_in_order(checkpoints: Path) -> None:
    setup = build(CONFIG, World())
    with torch.no_grad():
        setup.task.model.weight.fill_(100.0)  # type: ignore[operator, union-attr]
    found = evaluate(setup, checkpoints)
    assert list(found.results) == ["val", "test"]
    assert found.results["val"]["loss"] < 4.0  # that of the checkpoint, not of the weights that were there
    assert found.results["val"]["n"] == 8


def test_without_a_best_the_newest_stands_for_the_run(checkpoints: Path) -> None:
    assert best_checkpoint(checkpoints) == checkpoints / "best_model.pth"
    (checkpoints / "best_model.pth").unlink()
    assert best_checkpoint(checkpoints) == checkpoints / "latest_model.pth"
    assert evaluate(build(CONFIG, World()), checkpoints).results["val"]["n"] == 8
    assert best_checkpoint(checkpoints / "none") is None


def test_a_checkpoint_of_other_classes_is_refused(checkpoints: Path) -> None:
    other = CONFIG.model_copy(update={"line": CONFIG.line.model_copy(update={"classes": ("up", "down")})})
    with pytest.raises(CheckpointError, match="class_names"):
        evaluate(build(other, World()), checkpoints)


def pages(folder: Path, *, skipped: int = 0, demo: bool = False) -> Pages:
    outcome = Outcome("finished", Progress(epoch=2, step=8, best=0.5, best_step=4), {"loss": 0.6}, skipped)
    return pages_of_run(
        outcome,
        Evaluation({"val": {"loss": 0.5, "n": 8.0}, "test": {"loss": math.nan, "n": 6.0}}, []),
        build(CONFIG, World()),
        title="Toy",
        monitor=Monitor(metric="loss", mode="min"),
        config=to_values(CONFIG),
        demo=demo,
        folder=folder,
    )


def test_summary_and_report_say_the_same(tmp_path: Path) -> None:
    written = pages(tmp_path, skipped=3, demo=True)
    assert written.summary["best_step"] == 4
    assert written.summary["monitor"] == {"metric": "loss", "mode": "min", "best": 0.5}
    told = " ".join(written.report.warnings)
    assert all(word in told for word in ("the demo", "a toy", "3 training steps were skipped"))
    headline = written.report.headlines[0]
    assert (headline.label, headline.value) == ("validation loss", 0.5)
    report = write_pages(written, folder=tmp_path, copied=None)
    assert report == tmp_path / "report.html"
    assert read_results(tmp_path)["val"] == {"loss": 0.5, "n": 8.0}
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["copied"] is None


def test_what_a_copy_lacks_is_in_both(tmp_path: Path) -> None:
    lacking = Copied("s3://bucket/toy", {"summary.json": "denied"})
    write_pages(pages(tmp_path), folder=tmp_path, copied=lacking)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert summary["copied"] == {"to": "s3://bucket/toy", "missing": {"summary.json": "denied"}}
    assert "Not uploaded to s3://bucket/toy: summary.json (denied)" in (tmp_path / "summary.md").read_text("utf-8")


def test_a_folder_without_a_summary_has_no_results(tmp_path: Path) -> None:
    assert read_results(tmp_path) == {}
    write_pages(
        Pages(
            summary={"results_of_best_checkpoint": {"val": {"loss": 1.0}}},
            report=RunReport(title="", subtitle="", headlines=[], sections=[]),
        ),
        folder=tmp_path,
        copied=None,
    )
    assert read_results(tmp_path) == {"val": {"loss": 1.0}}


def test_weights_of_another_step_than_the_best_are_not_called_the_best(tmp_path: Path) -> None:
    outcome = Outcome("finished", Progress(epoch=2, step=8, best=0.5, best_step=4), {"loss": 0.6}, 0)
    said = pages_of_run(
        outcome,
        Evaluation({"val": {"loss": 0.6, "n": 8.0}}, [], step=8),
        build(CONFIG, World()),
        title="Toy",
        monitor=Monitor(),
        config={},
        demo=False,
        folder=tmp_path,
    )
    assert said.report.subtitle.endswith("last weights at step 8 of 8")
    assert [section.title for section in said.report.sections if "Results" in section.title] == [
        "Results of the last checkpoint"
    ]

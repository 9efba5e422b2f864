"""What validation chose is kept in the run, shown in its report, and used for new data."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlcore.run.decision import REVIEW, Decision, read_decision, write_decision
from tests.perceiver.conftest import run


def decision_of(folder: Path) -> Decision:
    decision = read_decision(folder)
    assert decision is not None
    return decision


@pytest.fixture(scope="module")
def trained(pictures: Path, tiny: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of two classes that leaves some to a person; the training images are the test set, too."""
    folder = tmp_path_factory.mktemp("zoned") / "run"
    where = ["--dataset", "image_folder", "--data_dir", pictures, "--patch_size", "8", "--val_fraction", "0.5"]
    rule = ["--test_path", pictures, "--decision_rule", "zones", "--decision_value", "0.9", "--decision_npv", "0.8"]
    ended = run("train", *tiny, *where, *rule, "--output_dir", folder)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def zoned(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def test_the_decision_of_validation_is_applied_to_the_test_and_to_new_data(
    zoned: Path, pictures: Path, script: Any, tmp_path: Path
) -> None:
    decision = decision_of(zoned)
    assert (decision.rule, decision.value, decision.npv, decision.chosen_on) == ("zones", 0.9, 0.8, "val")
    assert decision.class_names == ("dark", "light")
    figures = decision.figures
    assert list(figures) == ["val", "test"]
    assert sum(figures["test"][name].hits or 0 for name in ("accepted", "reviewed", "rejected")) == 12
    for split in ("operating_point.png", "test_operating_point.png"):
        assert (zoned / split).is_file()
    summary = (zoned / "summary.md").read_text(encoding="utf-8")
    assert "chosen on the validation data" in summary
    assert "chosen on these samples" in summary

    # Whatever the tiny model says: a decision that leaves some pictures to a person.
    chances = predict(zoned, pictures, script, tmp_path / "before.csv")
    middle = sorted(float(row["p_light"]) for row in chances)
    # Between two of them, as tables round the last digits.
    changed = {"threshold": (middle[7] + middle[8]) / 2, "lower": (middle[3] + middle[4]) / 2}
    write_decision(zoned, decision.model_copy(update=changed))
    rows = predict(zoned, pictures, script, tmp_path / "after.csv")
    assert [row["review"] for row in rows].count("yes") == 4
    decided = decision_of(zoned).decide([float(row["p_light"]) for row in rows])
    for row, index in zip(rows, decided.tolist(), strict=True):
        assert (row["review"] == "yes") == (index == REVIEW)
        assert index == REVIEW or row["class"] == decision.class_names[index]
        assert float(row["probability"]) == float(row[f"p_{row['class']}"])


def predict(folder: Path, data: Path, script: Any, output: Path) -> list[dict[str, str]]:
    ended = script("predict", "--model_path", folder, "--output", output, data)
    assert ended.code == 0, ended.err
    with output.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_without_a_decision_the_most_probable_class_counts(series_run: Path) -> None:
    decision = decision_of(series_run)
    assert (decision.kind, decision.rule, decision.least, decision.chosen_on) == ("multiclass", "none", (), None)
    values = json.loads((series_run / "decision.json").read_text(encoding="utf-8"))
    assert values["figures"]["val"]["kept"]["value"] == 1.0


def test_a_rule_for_two_classes_is_refused_before_the_training(script: Any, tiny: Sequence[str]) -> None:
    data = ["--dataset", "synthetic", "--num_samples", "60", "--num_classes", "3"]
    ended = script("train", *tiny, *data, "--decision_rule", "f1", "--output_dir", "run")
    assert ended.code == 2
    assert "decision.rule=f1 is for two classes; for more there are none, precision, class_precision" in ended.err
    assert not Path("run").exists()


def test_a_damaged_decision_stops_the_prediction(zoned: Path, pictures: Path, script: Any) -> None:
    (zoned / "decision.json").write_text('{"kind": "binary"', encoding="utf-8")
    ended = script("predict", "--model_path", zoned, pictures)
    assert ended.code == 2
    assert "decision.json: damaged or not the decision of a run" in ended.err

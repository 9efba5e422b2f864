"""quartet evaluate: the run's own figures, another operating point, other data, and what is refused."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.run.decision import read_decision
from mlcore.use.verbs import evaluate


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return values


def save(path: Path, classes: list[str], *, channels: int = 4) -> Path:
    """Labelled sequences of these classes, the same ones always."""
    rng = np.random.default_rng(0)
    labels = [classes[place % len(classes)] for place in range(12)]
    np.savez(path, inputs=rng.standard_normal((12, 7, channels)), labels=labels)
    return path


def test_own_data_gives_the_figures_that_the_run_wrote(series_run: Path, tmp_path: Path) -> None:
    before = (series_run / "decision.json").read_bytes()
    assert evaluate([str(series_run), "--output", str(tmp_path / "out")]) == 0
    found, summary = read(tmp_path / "out" / "metrics.json"), read(series_run / "summary.json")
    own = summary["results_of_best_checkpoint"]
    assert found["results"].keys() == {"val"}
    assert found["results"]["val"] == pytest.approx(own["val"], abs=1e-6)
    assert found["intervals"] == summary["intervals_of_best_checkpoint"]
    assert found["checkpoint"] == str(series_run / "checkpoints" / "best_model.pth")
    kept, used = read_decision(series_run), read_decision(tmp_path / "out")
    assert kept is not None
    assert used == kept.model_copy(update={"figures": {"val": kept.figures["val"]}})
    assert (series_run / "decision.json").read_bytes() == before


def test_validation_chooses_another_point_and_other_data_shows_what_it_gives(
    series_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (series_run / "decision.json").read_bytes()
    data = save(tmp_path / "new.npz", ["sine", "square", "sawtooth"])
    run = Path(shutil.copytree(series_run, tmp_path / "run"))
    record = read(run / "run.json") | {"status": "interrupted"}
    (run / "run.json").write_text(json.dumps(record), "utf-8")
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        evaluate([str(run), "--data", str(data), "--operating_point", "precision=0.6", "--output", str(out)])
    decision = read_decision(out)
    assert decision is not None
    assert (decision.rule, decision.value, decision.chosen_on) == ("precision", 0.6, "val")
    assert decision.figures.keys() == {"val", "test"}
    assert (run / "decision.json").read_bytes() == before
    found = read(out / "metrics.json")
    assert list(found["results"]) == ["val", "test"]
    assert found["results"]["val"] == pytest.approx(read(run / "summary.json")["results_of_best_checkpoint"]["val"])
    assert found["results"]["test"]["n"] == 12
    page = (out / "report.html").read_text("utf-8")
    assert "chosen on the validation data" in page
    assert "The run is not finished (interrupted)" in page
    assert (out / "test_operating_point.png").is_file()
    assert evaluate([str(run), "--data", str(data), "--output", str(tmp_path / "plain")]) == 0
    plain = read(tmp_path / "plain" / "metrics.json")["results"]
    assert plain == {"test": pytest.approx(found["results"]["test"])}


def test_labels_of_other_data_are_names(series_run: Path, tmp_path: Path) -> None:
    """What the model itself says of them is right, all of it."""
    inputs = np.random.default_rng(3).standard_normal((12, 7, 4))
    said = [one.predicted for one in load_run(series_run, device="cpu")([*inputs])]
    np.savez(tmp_path / "new.npz", inputs=inputs, labels=said)
    evaluate([str(series_run), "--data", str(tmp_path / "new.npz"), "--output", str(tmp_path / "out")])
    assert read(tmp_path / "out" / "metrics.json")["results"]["test"]["accuracy"] == 1.0


def test_images_of_another_folder_are_read_as_in_training(image_run: Path, pictures: Path, tmp_path: Path) -> None:
    evaluate([str(image_run), "--data", str(pictures), "--output", str(tmp_path / "out"), "--batch_size", "5"])
    found = read(tmp_path / "out" / "results.json")
    assert (found["split"], found["n"]) == ("test", 12)
    assert [row["name"] for row in found["classes"]] == ["dark", "light"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "the run's data has no test part; there is train, val; --data names other data"),
        (["--data", "DATA", "--split", "val"], "--split val: validation data is what a decision is chosen on"),
        (["--operating_point", "recall=0.9"], "decision.rule=recall is for two classes"),
        (["--operating_point", "score"], "operating point 'score': expected f1"),
        (["--data", "OTHER"], "other.npz, row 1: label 'triangle' is not one of sine, square, sawtooth"),
        (["--data", "WIDE"], r"expected \[positions, 4\]"),
        (["--data", "none.npz"], "none.npz: no such file"),
        (["--d_model", "32"], "model.d_model belongs to the trained model"),
        (["--output", "RUN"], "run: holds a run, whose files would be overwritten"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    arguments: list[str], message: str, series_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {
        "DATA": save(tmp_path / "data.npz", ["sine"]),
        "OTHER": save(tmp_path / "other.npz", ["sine", "triangle"]),
        "WIDE": save(tmp_path / "wide.npz", ["sine"], channels=5),
        "RUN": series_run,
    }
    given = [str(places.get(argument, argument)) for argument in arguments]
    output = [] if "--output" in given else ["--output", "out"]
    with pytest.raises(UserError, match=message):
        evaluate([str(series_run), *given, *output])
    assert not Path("out").exists()


def test_what_is_no_run_of_this_project_is_said(series_run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match="is an export; evaluate the run that it was made of"):
        evaluate([str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        evaluate([str(tmp_path / "empty")])

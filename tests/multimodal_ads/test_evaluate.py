"""quartet evaluate on ads: the run's own figures at a threshold that its validation data chooses anew."""

import json
from pathlib import Path

import pytest

from mlcore.run.decision import read_decision
from mlcore.use.verbs import evaluate
from tests.multimodal_ads.conftest import run

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_evaluation_of_own_data_gives_all_figures_and_another_threshold(finished: Path) -> None:
    assert evaluate([str(finished), "--split", "test", "--operating_point", "recall=0.9", "--output", "out"]) == 0
    own = json.loads((finished / "summary.json").read_text("utf-8"))
    found = json.loads(Path("out/metrics.json").read_text("utf-8"))
    for split in ("val", "test"):
        assert found["results"][split] == pytest.approx(own["results_of_best_checkpoint"][split], abs=1e-6)
        assert found["intervals"][split] == own["intervals_of_best_checkpoint"][split]
    decision = read_decision(Path("out"))
    assert decision is not None
    assert (decision.rule, decision.chosen_on) == ("recall", "val")
    reached = decision.figures["val"]["recall"].value
    assert reached is not None
    assert reached >= 0.9
    results = json.loads(Path("out/results.json").read_text("utf-8"))
    assert results["threshold"]["value"] == results["test"]["threshold"] == decision.threshold
    assert len(json.loads(Path("out/test_predictions.json").read_text("utf-8"))) == 24
    code, said = run("test", "--model_path", finished, "--csv", "none.csv", "--threshold", "2", "--output_dir", "x")
    assert (code, Path("x").exists()) == (2, False), said

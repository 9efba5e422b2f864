"""quartet evaluate on pages: the run's own figures and tables, and other pages of the same classes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlcore.base.errors import UserError
from mlcore.run.decision import read_decision
from mlcore.use.verbs import evaluate


def results(path: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))[key]
    return found


def test_own_and_other_pages_give_the_figures_that_the_run_wrote(
    finished: tuple[Path, str], pages: Path, tmp_path: Path
) -> None:
    run, out = finished[0], tmp_path / "out"
    own = results(run / "summary.json", "results_of_best_checkpoint")
    evaluate([str(run), "--split", "test", "--operating_point", "precision=0.9", "--output", str(out)])
    found = results(out / "metrics.json", "results")
    assert found == {split: pytest.approx(own[split], abs=1e-6) for split in ("val", "test")}
    chosen, kept = read_decision(out), read_decision(run)
    assert chosen is not None
    assert kept is not None
    assert (chosen.rule, chosen.chosen_on, chosen.temperature) == ("precision", "val", pytest.approx(kept.temperature))
    other = tmp_path / "other"
    evaluate([str(run), "--data", str(pages / "test"), "--output", str(other)])
    assert results(other / "metrics.json", "results") == {"test": pytest.approx(own["test"], abs=1e-6)}
    assert (other / "test_predictions.csv").read_text("utf-8") == (run / "test_predictions.csv").read_text("utf-8")


def test_pages_of_other_classes_are_named(finished: tuple[Path, str], pages: Path, tmp_path: Path) -> None:
    page = next((pages / "test").rglob("*.jpg"))
    (tmp_path / "new" / "postcard").mkdir(parents=True)
    shutil.copy(page, tmp_path / "new" / "postcard")
    with pytest.raises(UserError, match=r"folder postcard: unknown class 'postcard'; the 17 classes of training are"):
        evaluate([str(finished[0]), "--data", str(tmp_path / "new")])
    assert not (finished[0] / "evaluation_new").exists()

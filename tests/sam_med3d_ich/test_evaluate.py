"""quartet evaluate on volumes: the run's own figures and table of cases, at its decision or at another one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlcore.base.errors import UserError
from mlcore.run.decision import read_decision
from mlcore.use.verbs import evaluate

Trained = Callable[[str], Path]


def results(path: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))[key]
    return found


def test_own_and_other_cases_give_the_figures_that_the_run_wrote(trained: Trained, heads: Path, tmp_path: Path) -> None:
    run = trained("plain")
    own = results(run / "summary.json", "results_of_best_checkpoint")
    table = ["--data", str(heads / "val.csv"), f"data.mask_dir={heads / 'masks'}"]
    for split, more in (("val", []), ("test", table)):
        out = tmp_path / split
        evaluate([str(run), *more, "--output", str(out)])
        expected = pytest.approx(own["val"], abs=1e-6, nan_ok=True)
        assert results(out / "metrics.json", "results") == {split: expected}
        cases = out / f"{'' if split == 'val' else 'test_'}cases.csv"
        assert cases.read_text("utf-8") == (run / "cases.csv").read_text("utf-8")
    with pytest.raises(UserError, match="no folder of masks is known; give data"):
        evaluate([str(run), *table[:2]])


def test_another_point_is_the_one_that_a_run_would_choose(trained: Trained, tmp_path: Path) -> None:
    chosen, plain = trained("score"), trained("plain")
    evaluate([str(plain), "--operating_point", "score", "--output", str(tmp_path / "out")])
    found, expected = read_decision(tmp_path / "out"), read_decision(chosen)
    assert found is not None
    assert expected is not None
    assert (found.rule, found.threshold, found.min_volume_ml) == ("score", expected.threshold, expected.min_volume_ml)
    assert (tmp_path / "out" / "operating_point.png").is_file()
    with pytest.raises(UserError, match="operating point 'f1': sam_med3d_ich has none, score"):
        evaluate([str(plain), "--operating_point", "f1"])

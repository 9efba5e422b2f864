"""Figures of the ad classifier: what is undefined is said, thresholds come from validation, figures are right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.report.page import Picture, Text
from mlcore.report.plots.contact_sheet import plot_contact_sheet
from mlcore.run.decision import Decision, choose, parse_operating_point
from quartet.apps.multimodal_ads.evaluation import (
    CLASS_NAMES,
    ad_metrics,
    ad_sections,
    probabilities_of,
    results,
    split_results,
    undefined_figures,
)
from quartet.apps.multimodal_ads.plots import plot_values_by_class

pytestmark = pytest.mark.pictures


def predictions(labels: list[int], logits: list[float]) -> dict[str, Tensor]:
    """Evaluation rows."""
    return {"label": torch.tensor(labels), "logit": torch.tensor(logits), "loss": torch.ones(len(labels))}


def noisy(seed: int, samples: int = 60) -> dict[str, Tensor]:
    """Rows of a model that is right most of the time; logits on a coarse grid, so that many are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, samples)
    return predictions(labels.tolist(), np.round(2 * labels - 1 + rng.normal(0, 1.5, samples), 1).tolist())


def decided(rows: dict[str, Tensor], rule: str = "f1") -> Decision:
    """What a run chooses on its validation data."""
    asked = parse_operating_point(rule)
    labels, chances = rows["label"].numpy(), probabilities_of(rows)
    return choose(asked, labels=labels, probabilities=chances, class_names=CLASS_NAMES, kind="binary")


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_largest_f1_of_all(seed: int) -> None:
    rows = noisy(seed)
    labels, chances = rows["label"].numpy(), probabilities_of(rows)
    threshold = decided(rows).threshold
    best = max(f1_score(labels, chances >= t, zero_division=0) for t in [*np.unique(chances), 2.0])
    assert ad_metrics(rows, threshold)["f1"] == f1_score(labels, chances >= threshold) == best


def test_figures_of_a_perfect_model() -> None:
    values = ad_metrics(predictions([0, 0, 1, 1], [-40.0, -30.0, 30.0, 40.0]))
    assert values == pytest.approx(
        {
            "loss": 1.0,
            "auroc": 1.0,
            "average_precision": 1.0,
            "accuracy": 1.0,
            "precision": 1.0,
            "recall": 1.0,
            "f1": 1.0,
            "ece": 0.0,
            "brier": 0.0,
            "positives": 0.5,
        }
    )


@pytest.mark.parametrize(("label", "logit", "missing"), [(0, -1.0, 5), (0, 1.0, 2), (1, -1.0, 2), (1, 1.0, 2)])
def test_one_class_only_is_told_and_never_crashes(label: int, logit: float, missing: int, tmp_path: Path) -> None:
    rows = predictions([label] * 4, [logit] * 4)
    values = ad_metrics(rows)
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert {"auroc", "average_precision"} <= undefined
    assert undefined_figures(rows).keys() == undefined
    assert len(undefined) == missing

    written = split_results(rows, threshold=0.5)
    assert {name for name, value in written.items() if value is None} == undefined | {"auroc_interval"}
    assert f"labelled as '{['not an ad', 'ad'][label]}'" in written["undefined"]["auroc"]

    sections = ad_sections(rows, threshold=0.5, folder=tmp_path)
    assert isinstance(sections[-1], Text)
    about = results(decided(rows), {"val": rows})["threshold"]
    assert about == {"value": 0.5, "chosen_on": None, "note": f"every sample is of class {label}: nothing to choose by"}


def test_results_use_the_threshold_of_validation_on_the_test() -> None:
    validation, test = noisy(0), noisy(1)
    decision = decided(validation)
    values, chosen = results(decision, {"val": validation, "test": test}), decision.threshold
    assert values["threshold"] == {"value": chosen, "chosen_on": "val", "maximises": "f1"}
    assert values["threshold"]["value"] == values["val"]["threshold"] == values["test"]["threshold"] == chosen
    taken = probabilities_of(test) >= chosen
    assert values["test"]["f1"] == f1_score(test["label"].numpy(), taken)
    (kept, alarms), (missed, found) = values["test"]["confusion_matrix"]["counts"]
    assert kept + alarms + missed + found == values["test"]["n"] == 60
    assert missed + found == values["test"]["positives"]
    assert alarms + found == taken.sum()
    interval = values["test"]["auroc_interval"]
    assert interval["low"] <= values["test"]["auroc"] <= interval["high"]
    assert sum(row["count"] for row in values["test"]["reliability_bins"]) == 60
    assert "test" not in results(decision, {"val": validation})


def test_results_say_what_was_asked_and_not_reached() -> None:
    rows = predictions([0, 1, 1, 0], [2.0, 1.0, 0.5, -3.0])
    about = results(decided(rows, "precision=0.95"), {"val": rows})["threshold"]
    assert (about["rule"], about["asked"], about["chosen_on"]) == ("precision", 0.95, "val")
    assert about["note"].startswith("precision 0.95 is not reached on these data: the highest is 0.6667 (2 of 3)")
    zones = results(decided(rows, "zones=0.6,0.9"), {"val": rows})["threshold"]
    assert zones["lower"] < zones["value"] < 0.63


def test_results_are_strict_json(tmp_path: Path) -> None:
    splits = {"val": noisy(0), "test": predictions([0, 0], [-1.0, -2.0])}
    write_json(tmp_path / "results.json", results(decided(noisy(0)), splits))
    text = (tmp_path / "results.json").read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["test"]["auroc"] is None
    assert "null" in text


def test_the_threshold_moves_decisions_but_no_ranking() -> None:
    rows = noisy(2)
    low, high = ad_metrics(rows, 0.1), ad_metrics(rows, 0.9)
    assert low["recall"] > high["recall"]
    assert {name for name in low if low[name] == high[name]} >= {"loss", "auroc", "average_precision", "ece", "brier"}


def test_a_diverged_model_is_named() -> None:
    with pytest.raises(UserError, match="not finite"):
        ad_metrics(predictions([0, 1], [math.nan, 1.0]))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_pictures_are_drawn(threshold: float, tmp_path: Path) -> None:
    sections = ad_sections(noisy(3), threshold=threshold, folder=tmp_path, prefix="test_")
    drawn = {section.path.name for section in sections if isinstance(section, Picture)}
    assert drawn == {path.name for path in tmp_path.iterdir()}
    assert "test_confusion_matrix.png" in drawn
    assert all(section.title.startswith("Test: ") for section in sections)


def test_pictures_refuse_what_they_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        plot_values_by_class([2.0], labels=[0], class_names=["a", "b"], path=tmp_path / "x.png", x_label="")
    with pytest.raises(UserError, match="at least one picture"):
        plot_contact_sheet([], path=tmp_path / "x.png", title="")
    assert list(tmp_path.iterdir()) == []

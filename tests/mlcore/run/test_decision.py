"""A run's decision: chosen as the settings ask, kept to the last digit, applied as it was chosen."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.config.decision import DecisionConfig
from mlcore.metrics.arrays import FloatArray, IntArray
from mlcore.run.decision import (
    DECISION,
    REVIEW,
    Decision,
    check_rule,
    choose,
    measured,
    parse_operating_point,
    read_decision,
    write_decision,
)

TWO, THREE = ("no", "yes"), ("a", "b", "c")


def predictions(classes: int, *, seed: int = 0, samples: int = 120) -> tuple[IntArray, FloatArray]:
    """Labels and probabilities ``[N, C]`` of a model that is right most of the time."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    logits = rng.normal(0, 1.4, (samples, classes)) + 2.2 * np.eye(classes)[labels]
    powers = np.exp(logits)
    return labels, powers / powers.sum(axis=1, keepdims=True)


def chosen(rule: str, *, classes: int = 2, temperature: float = 1.0, seed: int = 0) -> Decision:
    labels, chances = predictions(classes, seed=seed)
    return choose(
        parse_operating_point(rule),
        labels=labels,
        probabilities=chances,
        class_names=TWO if classes == 2 else THREE,
        kind="binary" if classes == 2 else "multiclass",
        temperature=temperature,
    )


@pytest.mark.parametrize("rule", ["f1", "precision=0.95", "recall=0.9", "fpr=0.02", "zones=0.95,0.9"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_what_is_kept_decides_on_its_own_data_as_was_asked(rule: str, temperature: float, tmp_path: Path) -> None:
    write_decision(tmp_path, chosen(rule, temperature=temperature))
    decision = read_decision(tmp_path)
    assert decision is not None
    assert decision == chosen(rule, temperature=temperature)
    labels, chances = predictions(2)
    decided = decision.decide(decision.calibrated(chances))
    taken, left, positive = decided == 1, decided == 0, labels == 1
    figures = decision.figures["val"]
    precision, npv = positive[taken].mean(), (~positive[left]).mean()
    recall, fpr = taken[positive].mean(), taken[~positive].mean()
    assert (figures["precision"].value, figures["npv"].value) == (precision, npv)
    assert (figures["recall"].value, figures["fpr"].value) == (recall, fpr)
    assert (figures["reviewed"].hits, figures["reviewed"].of) == (np.count_nonzero(decided == REVIEW), 120)
    reached = {"precision": precision >= 0.95, "recall": recall >= 0.9, "fpr": fpr <= 0.02, "f1": True}
    assert reached.get(rule.split("=")[0], precision >= 0.95 and npv >= 0.9)
    assert (decision.note, decision.chosen_on) == ("", "val")


@pytest.mark.parametrize("rule", ["precision=0.95", "class_precision=0.9"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_unsure_predictions_are_left_to_a_person(rule: str, temperature: float, tmp_path: Path) -> None:
    write_decision(tmp_path, chosen(rule, classes=3, temperature=temperature))
    decision = read_decision(tmp_path)
    assert decision is not None
    labels, chances = predictions(3)
    decided = decision.decide(decision.calibrated(chances))
    kept = decided != REVIEW
    assert 0 < kept.sum() < 120
    assert (decided[kept] == chances.argmax(axis=1)[kept]).all()
    right = (decided == labels)[kept].mean()
    assert decision.figures["val"]["precision"].value == right
    assert decision.figures["val"]["kept"].hits == kept.sum()
    assert len(set(decision.least)) == (1 if rule.startswith("precision") else 3)
    for label in range(3):
        assert rule.startswith("precision") or (labels[decided == label] == label).mean() >= 0.9
    assert rule.startswith("class") or right >= 0.95


def test_without_a_rule_the_most_probable_class_counts() -> None:
    for classes in (2, 3):
        decision = chosen("none", classes=classes)
        labels, chances = predictions(classes)
        assert (decision.decide(chances) == chances.argmax(axis=1)).all()
        assert decision.calibrated(chances) is chances
        assert decision.chosen_on is None
        assert decision.figures["val"]["precision"].of == (120 if classes == 3 else (chances[:, 1] >= 0.5).sum())
        other = decision.with_figures("test", measured(decision, labels=labels[:9], probabilities=chances[:9]))
        assert list(other.figures) == ["val", "test"]


def test_a_temperature_is_that_of_logits() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (20, 4))
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cooled = np.exp(logits / 2.5) / np.exp(logits / 2.5).sum(axis=1, keepdims=True)
    decision = Decision(kind="multiclass", class_names=tuple("abcd"), temperature=2.5)
    assert decision.calibrated(soft) == pytest.approx(cooled, abs=1e-12)
    assert decision.calibrated(np.array([[1.0, 0.0, 0.0, 0.0]])).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_one_class_chooses_nothing_and_says_so() -> None:
    decision = choose(
        DecisionConfig(rule="f1"), labels=[1, 1], probabilities=[0.9, 0.2], class_names=TWO, kind="binary"
    )
    assert (decision.threshold, decision.chosen_on) == (0.5, None)
    assert decision.note == "every sample is of class 1: nothing to choose by"
    assert decision.figures["val"]["fpr"].value is None


def test_a_zone_that_cannot_be_had_survives_the_file(tmp_path: Path) -> None:
    labels, chances = [0, 1, 1, 0], [0.9, 0.8, 0.7, 0.1]
    asked = parse_operating_point("zones=0.99")
    decision = choose(asked, labels=labels, probabilities=chances, class_names=TWO, kind="binary")
    write_decision(tmp_path, decision)
    assert json.loads((tmp_path / DECISION).read_text(encoding="utf-8"))["threshold"] is None
    read = read_decision(tmp_path)
    assert read == decision
    assert read is not None
    assert read.threshold == math.inf
    assert read.decide(np.array(chances)).tolist() == [REVIEW, REVIEW, REVIEW, 0]
    assert "nothing is accepted" in read.note
    assert json.loads(json.dumps(read.identity, allow_nan=False)) == read.identity
    assert read.identity != decision.model_copy(update={"lower": 0.4}).identity
    assert read.identity == decision.model_copy(update={"note": ""}).identity


def test_runs_of_before_have_none(tmp_path: Path) -> None:
    assert read_decision(tmp_path) is None
    assert read_decision(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "written by a newer version"),
        ({"kind": "other"}, "kind"),
        ({"threshold": "x"}, "threshold"),
        ({"threshold": float("nan")}, "not NaN"),
        ({"temperature": 0}, "temperature"),
        ({"least": [0.1]}, "1 thresholds for 2 classes"),
        ({"class_names": ["a"]}, "two classes expected"),
        ({"lower": 0.9, "threshold": 0.2}, "above the upper"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_no_decision_is_told_with_its_file(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / DECISION
    write_decision(tmp_path, chosen("f1"))
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **change}), encoding="utf-8")
    with pytest.raises(UserError, match=rf"decision\.json: .*{told}") as caught:
        read_decision(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b"\xff\xfe", b'"x"', b"[" * 9000])
def test_a_damaged_file_is_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / DECISION).write_bytes(content)
    with pytest.raises(UserError, match=r"decision\.json: damaged or not the decision of a run"):
        read_decision(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f1", DecisionConfig(rule="f1")),
        ("none", DecisionConfig()),
        (" precision=0.95 ", DecisionConfig(rule="precision", value=0.95)),
        ("class_precision=1", DecisionConfig(rule="class_precision", value=1)),
        ("recall=0.9", DecisionConfig(rule="recall", value=0.9)),
        ("fpr=0", DecisionConfig(rule="fpr", value=0)),
        ("zones=0.95", DecisionConfig(rule="zones", value=0.95)),
        ("zones=0.95,0.99", DecisionConfig(rule="zones", value=0.95, npv=0.99)),
    ],
)
def test_an_operating_point_is_read(text: str, expected: DecisionConfig) -> None:
    assert parse_operating_point(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        *(
            (text, "expected f1, none, precision=0.95")
            for text in ("", "f2", "precision", "f1=0.5", "precision=", "=1")
        ),
        *((text, "expected f1, none, precision=0.95") for text in ("precision=x", "fpr=0.1,0.2", "zones=1,1,1")),
        *((text, "expected a share above 0") for text in ("precision=95", "recall=0", "zones=0.9,0", "precision=nan")),
        *((text, "expected a share at least 0 and below 1") for text in ("fpr=1", "fpr=-0.1", "fpr=inf")),
    ],
)
def test_an_operating_point_that_makes_no_sense_is_refused(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        parse_operating_point(text)
    assert str(caught.value).startswith(f"operating point '{text}'")


@pytest.mark.parametrize(
    ("rule", "kind", "told"),
    [
        ("f1", "multiclass", "for two classes; for more there are none, precision, class_precision"),
        ("zones=0.9", "multiclass", "for two classes"),
        ("class_precision=0.9", "binary", "for more than two classes"),
    ],
)
def test_a_rule_for_other_classes_is_refused(rule: str, kind: Literal["binary", "multiclass"], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_rule(parse_operating_point(rule), kind=kind)


def test_a_decision_between_other_classes_is_refused() -> None:
    with pytest.raises(UserError, match="probabilities of 3 classes; the decision is between 2"):
        chosen("f1").decide(np.full((2, 3), 1 / 3))

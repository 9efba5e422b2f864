"""A decision is chosen on validation alone, and each split's section says what it gives there."""

from pathlib import Path

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.config.decision import DecisionConfig
from mlcore.report.page import Picture, Section, Table, Text
from mlcore.report.plots.operating_points import plot_operating_point
from mlcore.run.deciding import Decider
from mlcore.run.decision import parse_operating_point, read_decision

pytestmark = pytest.mark.pictures

LABELS = np.array([1, 1, 0, 1, 0, 0, 1, 0])
CHANCES = np.array([0.95, 0.9, 0.6, 0.55, 0.5, 0.3, 0.2, 0.1])
THREE = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])


def binary(rule: str) -> Decider:
    return Decider(parse_operating_point(rule), class_names=("no", "yes"), kind="binary")


def table_of(sections: list[Section]) -> Table:
    return next(section for section in sections if isinstance(section, Table))


@pytest.mark.parametrize("rule", ["none", "f1", "precision=0.9", "recall=0.9", "zones=1,0.6", "zones=1,1"])
def test_validation_chooses_and_the_test_only_shows(rule: str, tmp_path: Path) -> None:
    decider = binary(rule)
    chosen = decider.choose(LABELS, CHANCES)
    first = decider.sections(LABELS, CHANCES, folder=tmp_path)
    last = decider.sections(1 - LABELS, CHANCES, folder=tmp_path, prefix="test_")
    after = decider.decision
    assert (after.threshold, after.lower) == (chosen.threshold, chosen.lower)
    assert list(after.figures) == ["val", "test"]
    assert after.figures["test"]["recall"].of == 4
    assert {section.title for section in first} == {"Validation: decision"}
    assert {section.title for section in last} == {"Test: decision"}
    for sections, name in ((first, "operating_point.png"), (last, "test_operating_point.png")):
        assert [section.path for section in sections if isinstance(section, Picture)] == [tmp_path / name]
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    words = table_of(first).note, table_of(last).note
    assert ("chosen on these samples" in words[0], "on the validation data" in words[1]) == (rule != "none",) * 2
    decider.write(tmp_path, {})
    assert read_decision(tmp_path) == after


def test_rows_give_the_counts_and_intervals(tmp_path: Path) -> None:
    decider = binary("precision=1")
    decider.choose(LABELS, CHANCES)
    rows = {row[0]: row[1:] for row in table_of(decider.sections(LABELS, CHANCES, folder=tmp_path)).rows}
    assert rows["precision"] == [1.0, pytest.approx(0.3424, abs=1e-4), 1.0, "2 of 2"]
    assert rows["recall (sensitivity)"][0] == 0.5
    assert rows["false-positive rate"][::3] == [0.0, "0 of 4"]


def test_what_is_not_reached_is_in_the_report(tmp_path: Path) -> None:
    decider = Decider(parse_operating_point("class_precision=1"), class_names=tuple("abc"), kind="multiclass")
    decider.choose([0, 1, 0, 1], THREE)
    sections = decider.sections([0, 1, 0, 1], THREE, folder=tmp_path)
    told = [section.body for section in sections if isinstance(section, Text)]
    assert told == [
        "Note: c: precision 1 is not reached on these data: the highest is 0 (0 of 1) at threshold 0.4; none is kept."
    ]
    assert decider.decision.least[2] == np.inf
    assert {row[0] for row in table_of(sections).rows} >= {"kept, of all", "precision: a", "precision: c"}


def test_where_all_are_rejected_there_still_is_a_picture(tmp_path: Path) -> None:
    decider = Decider(parse_operating_point("precision=1"), class_names=tuple("abc"), kind="multiclass")
    decider.choose([1, 2, 0, 1], THREE)
    sections = decider.sections([1, 2, 0, 1], THREE, folder=tmp_path)
    assert (tmp_path / "operating_point.png").is_file()
    assert table_of(sections).rows[0][1] == 0.0
    assert table_of(sections).rows[1][1] is None


def test_without_validation_nothing_is_chosen(tmp_path: Path) -> None:
    decider = binary("recall=0.9")
    sections = decider.sections(LABELS, CHANCES, folder=tmp_path, prefix="train_")
    assert decider.decision.chosen_on is None
    assert decider.decision.threshold == 0.5
    assert any(isinstance(section, Text) and "no validation data" in section.body for section in sections)


def test_one_class_has_figures_but_no_curve(tmp_path: Path) -> None:
    decider = binary("f1")
    decider.choose([1, 1], [0.1, 0.9])
    sections = decider.sections([1, 1], [0.1, 0.9], folder=tmp_path)
    assert not any(isinstance(section, Picture) for section in sections)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="every sample is of class 1"):
        plot_operating_point([1, 1], scores=[0.1, 0.2], threshold=0.5, path=tmp_path / "x.png")


def test_a_rule_for_other_classes_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="for two classes"):
        Decider(DecisionConfig(rule="f1"), class_names=tuple("abc"), kind="multiclass")

"""Figures of parts of the data: which parts there are, and that a bad one is found."""

from typing import Any

import numpy as np
import pytest

from mlcore.run.slices import parts_by, slice_table


def names_of(values: Any) -> dict[str, int]:
    return {name: int(part.sum()) for name, part in parts_by(np.asarray(values))}


def test_numbers_are_cut_into_quarters_and_words_by_value() -> None:
    assert names_of(np.arange(100.0)) == {
        "0 to 24.75": 25, "above 24.75 to 49.5": 25, "above 49.5 to 74.25": 25, "above 74.25 to 99": 25,
    }  # fmt: skip
    assert names_of([1, 2] * 20) == {"1": 20, "2": 20}
    assert names_of(["scan"] * 30 + ["photo"] * 12 + ["fax"] * 9) == {"scan": 30, "photo": 12}
    assert names_of(["scan"] * 30) == {}, "all are alike"
    assert names_of([str(number) for number in range(100)]) == {}, "each is alone"
    skewed = names_of(np.concatenate([np.zeros(60), np.arange(1.0, 41.0)]))
    assert sum(skewed.values()) == 100, "quarters that coincide are one"


def test_a_part_that_is_worse_is_found() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=600)
    source = np.array(["scan", "fax", "photo"])[np.arange(600) % 3]
    right = rng.random(600) < np.where(source == "fax", 0.6, 0.95)
    chances = np.where(right[:, None], np.eye(2)[labels], np.eye(2)[1 - labels])
    names = np.arange(600).astype(str)
    row = {"name": names, "unit": names, "label": labels, "probabilities": chances, "about source": source}
    (table,) = slice_table([row, row], "accuracy")
    found = {part: (count, value, apart) for _, part, count, value, _, apart in table.rows}  # type: ignore[union-attr]
    assert found["fax"] == (200, pytest.approx(right[source == "fax"].mean()), "below all")
    assert found["scan"][2] == found["photo"][2] == "above all"
    assert f"{right.mean():.4f}" in table.note  # type: ignore[union-attr]


def test_what_has_no_figure_has_no_table() -> None:
    names = np.arange(40).astype(str)
    row = {"name": names, "unit": names, "dice": np.ones(40), "about length": np.arange(40.0)}
    assert not slice_table([row], "dice")
    labelled = {"name": names, "unit": names, "label": np.arange(40) % 2, "probabilities": np.eye(2)[np.arange(40) % 2]}
    assert not slice_table([labelled], "accuracy"), "nothing is known of the samples"

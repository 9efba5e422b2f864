"""A classifier's figures: how sure they are, and sections whose titles are there once."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mlcore.report.classification import classification_sections, measure, measure_interval

NAMES = ("invoice", "letter", "form", "report", "memo")


@pytest.fixture
def rows() -> dict[str, Tensor]:
    """Predictions of 200 samples, most of them right."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (200,), generator=draw)
    chances = torch.softmax(torch.randn(200, 5, generator=draw) + 2 * torch.eye(5)[label], dim=1)
    return {"label": label, "probabilities": chances, "loss": -chances[torch.arange(200), label].log()}


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "loss"])
def test_the_interval_of_a_figure_holds_it(name: str, rows: dict[str, Tensor]) -> None:
    low, high = measure_interval(rows, name)
    assert low < measure(rows, class_names=NAMES).scalars()[name] < high
    assert high - low < 0.3
    wide = measure_interval(rows, name, units=[number // 50 for number in range(200)])  # of four units only
    assert wide != (low, high)


def test_a_figure_without_an_interval_has_none(rows: dict[str, Tensor]) -> None:
    assert math.isnan(measure_interval(rows, "ece").low)


def test_titles_of_two_splits_differ(rows: dict[str, Tensor], tmp_path: Path) -> None:
    sections = [
        section
        for prefix in ("", "test_")
        for section in classification_sections(rows, class_names=NAMES, folder=tmp_path, prefix=prefix)
    ]
    titles = [section.title for section in sections]
    in_turn = [title for title, before in zip(titles, ["", *titles], strict=False) if title != before]
    assert len(in_turn) == len(set(in_turn)) == 10

"""Statistics count what is there, and can be reported and drawn, also without texts or without a class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.report.page import Picture, RunReport, Table, write_report
from quartet.apps.multimodal_ads.data.statistics import DatasetStatistics, dataset_statistics, statistics_sections
from quartet.apps.multimodal_ads.data.table import AdRow

pytestmark = pytest.mark.pictures


def make_rows(folder: Path, *, ads: int, others: int) -> list[AdRow]:
    """Pictures of height 10 and width 10 + n; every third has no text, the others one of n + 1 characters."""
    folder.mkdir()
    rows = []
    for n in range(ads + others):
        Image.new("RGB", (10 + n, 10)).save(folder / f"{n}.png")
        rows.append(AdRow(folder / f"{n}.png", int(n < ads), "x" * (n + 1) if n % 3 else "", f"t.csv, line {n + 2}"))
    return rows


def test_counts(tmp_path: Path) -> None:
    found = dataset_statistics(make_rows(tmp_path / "a", ads=4, others=5))
    table = dict(found.rows())
    assert table["pictures"] == "9"
    assert table["ads"] == "4 (44.4%), others 5"
    assert table["without text"] == "3 (33.3%)"
    assert table["width"] == "14 (10 to 18) px"
    assert table["height"] == "10 px"
    assert table["width / height"] == "1.40 (1.00 to 1.80)"
    assert table["text"] == "6 (2 to 9) characters"
    assert found.without_text(1) == pytest.approx(2 / 4)
    assert found.without_text(0) == pytest.approx(1 / 5)


def test_only_some_sizes_are_looked_at(tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "a", ads=5, others=6)
    found = dataset_statistics(rows, most_sizes=4)
    assert found.sizes.tolist() == [[10, 10], [10, 13], [10, 16], [10, 19]]
    assert len(found.labels) == 11
    table, _ = statistics_sections({"train": found}, path=tmp_path / "data.png")
    assert isinstance(table, Table)
    assert "4 of train" in table.note


def test_report_and_picture(tmp_path: Path) -> None:
    parts = {
        "train": dataset_statistics(make_rows(tmp_path / "a", ads=6, others=5)),
        "val": dataset_statistics(make_rows(tmp_path / "b", ads=0, others=2)),
    }
    table, drawn = statistics_sections(parts, path=tmp_path / "data.png")
    assert isinstance(table, Table)
    assert isinstance(drawn, Picture)
    assert list(table.columns) == ["", "train", "val"]
    assert ["ads", "6 (54.5%), others 5", "0 (0.0%), others 2"] in [list(row) for row in table.rows]
    with Image.open(drawn.path) as image:
        assert np.asarray(image).std() > 5
    write_report(tmp_path, report=RunReport("Ads", sections=[table, drawn]))


def test_no_text_at_all(tmp_path: Path) -> None:
    size = np.array([[10, 10]])
    part = DatasetStatistics(labels=np.array([1]), lengths=np.array([0]), sizes=size)
    assert dict(part.rows())["text"] == "none"
    assert np.isnan(part.without_text(0))
    statistics_sections({"train": part}, path=tmp_path / "data.png")


def test_missing_picture() -> None:
    with pytest.raises(UserError, match=r"none\.jpg"):
        dataset_statistics([AdRow(Path("none.jpg"), 0, "", "t.csv, line 2")])

"""Files and sections about the cases of an evaluation."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mlcore.base.errors import UserError
from mlcore.report.page import Picture, RunReport, Table, write_report
from mlcore.report.plots.style import picture
from quartet.apps.sam_med3d_ich import case_report
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS, CaseMetrics
from quartet.apps.sam_med3d_ich.case_report import COLUMNS, CaseRow, case_sections, plot_dice, plot_roc, write_cases

pytestmark = pytest.mark.pictures


def _row(name: str, *, ich: int = 1, score: float = 0.5, **values: float) -> CaseRow:
    given = {"volume_ml": 3.0, "predicted_ml": 2.5, "volume_error_ml": -0.5, "lesions": 1.0, "found": 1.0}
    defaults = dict.fromkeys(FIELDS, 0.0) | (given if ich else dict.fromkeys(("dice", "iou", "hd95_mm"), math.nan))
    return CaseRow(name=name, metrics=CaseMetrics(**(defaults | values)), ich=ich, score=score)


def _rows() -> list[CaseRow]:
    return [
        _row("007", score=0.9, dice=0.8123456789012345, iou=0.68, hd95_mm=3.5),
        _row("환자, 12", score=1 / 3, hd95_mm=math.nan, predicted_ml=0.0, volume_error_ml=-3.0, lesions=2.0, found=0.0),
        _row("healthy", ich=0, score=0.1),
        _row("alarm", ich=0, score=0.6, dice=0.0, hd95_mm=math.nan, predicted_ml=0.2, volume_error_ml=0.2),
    ]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_csv_reads_back_to_the_same_rows(tmp_path: Path) -> None:
    write_cases(_rows(), path=tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    for line, row in zip(lines, _rows(), strict=True):
        back = CaseMetrics.from_row(float(line[field]) if line[field] else math.nan for field in FIELDS)
        assert repr(back) == repr(row.metrics)  # NaN and all
        assert (line["name"], int(line["ich"]), float(line["ich_score"])) == (row.name, row.ich, row.score)
    assert [line["lesions"] for line in lines] == ["1", "2", "0", "0"]
    assert [line["hd95_mm"] for line in lines] == ["3.5", "", "", ""]


def test_sections_show_files_that_are_there_and_the_overlays_first(tmp_path: Path) -> None:
    overlay = Picture("Worst", tmp_path / "worst.png")
    sections = case_sections(_rows(), folder=tmp_path, prefix="val_", overlays=[overlay])
    assert _names(tmp_path) == {"val_cases.csv", "val_volumes.png", "val_dice.png", "val_roc.png"}
    assert sections[0] is overlay
    drawn = {section.path.name for section in sections[1:] if isinstance(section, Picture)}
    assert drawn == {"val_volumes.png", "val_dice.png", "val_roc.png"}
    page = write_report(tmp_path, report=RunReport("cases", sections=sections)).read_text(encoding="utf-8")
    assert "환자, 12" in page


def test_the_worst_cases_are_listed_first_and_perfect_ones_never(tmp_path: Path) -> None:
    table = case_sections(_rows(), folder=tmp_path)[-1]
    assert isinstance(table, Table)
    assert [cells[0] for cells in table.rows] == ["환자, 12", "alarm", "007"]
    many = [_row(f"{i:02d}", dice=i / 40) for i in range(30)]
    table = case_sections(many, folder=tmp_path)[-1]
    assert isinstance(table, Table)
    assert [cells[0] for cells in table.rows] == [f"{i:02d}" for i in range(10)]
    assert "30 cases" in table.note


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ([_row("a", dice=0.5)], {"cases.csv", "volumes.png", "dice.png"}),
        ([_row("a", ich=0)], {"cases.csv", "volumes.png"}),
        ([_row("a", score=math.nan), _row("b", ich=0)], {"cases.csv", "volumes.png", "dice.png"}),
    ],
)
def test_only_what_is_defined_is_drawn(rows: list[CaseRow], drawn: set[str], tmp_path: Path) -> None:
    case_sections(rows, folder=tmp_path)
    assert _names(tmp_path) == drawn


def test_the_agreement_says_whose_it_is_and_no_legend_covers_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    @contextmanager
    def kept(path: Path, **size: float) -> Iterator[Figure]:
        with picture(path, **size) as figure:
            drawn.append(figure)
            yield figure

    monkeypatch.setattr(case_report, "picture", kept)
    case_report.plot_volumes(_rows(), path=tmp_path / "volumes.png")
    for axes in drawn[0].axes:
        legend = axes.get_legend()
        assert legend is not None
        below = legend.get_window_extent()
        assert below.y1 < min(label.get_window_extent().y0 for label in [axes.xaxis.label, *axes.get_xticklabels()])
    agreement = drawn[0].axes[1]
    assert len(agreement.collections) == 2  # cases with and without a bleed
    assert agreement.get_title(loc="left") == "Agreement (Bland–Altman)"
    legend = agreement.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "bleed: mean −1.75 mL",
        "bleed: 95 % limits −5.21 to +1.71 mL",
    ]


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        case_sections(_rows(), folder=folder)
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second


def test_what_cannot_be_drawn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cases"):
        case_sections([], folder=tmp_path)
    with pytest.raises(UserError, match="every sample is of class 1"):
        plot_roc([_row("a"), _row("b")], path=tmp_path / "roc.png")
    with pytest.raises(UserError, match="no case has a bleed"):
        plot_dice([_row("a", ich=0)], path=tmp_path / "dice.png")
    assert not _names(tmp_path)

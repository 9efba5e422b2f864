"""Figures per class, the promised summary and files, confused classes with their pages, and calibration."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import f1_score, log_loss
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.metrics.classification import ClassificationReport, ClassRow, ClassScores
from mlcore.report.page import Picture, Table, Text
from mlcore.report.plots.style import Names
from quartet.apps.doc_ensemble.class_analysis import calibration_sections, confused_sections, most_confused
from quartet.apps.doc_ensemble.class_metrics import (
    class_report,
    evaluate_class_performance,
    evaluate_single_class_performance,
    format_class_summary,
    predict_logits,
    write_class_files,
)
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.temperature import fit_temperature, measure_temperature, softmax
from quartet.apps.doc_ensemble.train_val_plot import plot_train_val_comparison

pytestmark = pytest.mark.pictures

NAMES = ("송장", "letter", "form", "unused")


def predictions(rows: int = 400, *, scale: float = 1.0, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits whose softmax at temperature `scale` is the truth, of classes 0..2; class 3 never occurs."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, 4))
    logits[:, 3] = -50.0
    chances = softmax(logits)
    labels = np.array([rng.choice(4, p=row) for row in chances])
    return logits * scale, labels


class Picks(nn.Module):
    """Takes the first four pixels for the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, pixels: Tensor) -> Tensor:
        assert not self.training
        return self.factor * pixels.flatten(1)[:, :4]


def batches(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
    pixels = torch.from_numpy(logits).float().reshape(-1, 1, 2, 2)
    return [(pixels[i : i + 150], torch.from_numpy(labels)[i : i + 150]) for i in range(0, len(labels), 150)]


# ------------------------------------------------------------------------------------------------------- figures


def test_figures_of_a_class_are_scikit_learns() -> None:
    logits, labels = predictions()
    guess = logits.argmax(axis=1)
    loader = batches(logits, labels)
    for target in range(3):
        found = evaluate_single_class_performance(model=Picks(), dataloader=loader, target_class=target, device="cpu")
        own = labels == target
        assert found["accuracy"] == pytest.approx((guess[own] == target).mean())
        assert found["f1"] == pytest.approx(f1_score(own, guess == target))
        assert found["loss"] == pytest.approx(log_loss(labels[own], softmax(logits)[own], labels=range(4)), rel=1e-5)
        assert (found["support"], found["predicted"]) == (own.sum(), (guess == target).sum())


def test_a_class_without_pages_is_undefined_and_an_unknown_one_an_error() -> None:
    loader = batches(*predictions())
    found = evaluate_single_class_performance(Picks(), loader, 3)
    assert found["support"] == 0
    assert np.isnan([found["accuracy"], found["f1"], found["loss"]]).all()
    with pytest.raises(UserError, match=r"0\.\.3"):
        evaluate_single_class_performance(Picks(), loader, 4)


def test_batches_may_be_pairs_or_named_and_the_model_keeps_its_mode() -> None:
    pairs = batches(*predictions())
    named = [{"pixels": pixels, "label": label, "index": label} for pixels, label in pairs]
    model = Picks().train()
    for mine, other in zip(
        predict_logits(model, pairs, device="cpu"), predict_logits(model, named, device="cpu"), strict=True
    ):
        assert torch.equal(mine, other)
    assert model.training
    with pytest.raises(UserError, match="no batch"):
        predict_logits(model, [], device="cpu")
    with pytest.raises(UserError, match="pixels"):
        predict_logits(model, [{"image": torch.zeros(1)}], device="cpu")


# ------------------------------------------------------------------------------------------------------- summary

PROMISED = """\
============================================================
클래스별 성능 요약
============================================================
전체 정확도: 0.8542
전체 F1 점수 (Macro): 0.8234

클래스          정확도     F1 점수   손실      샘플 수  
------------------------------------------------------------
class_0        0.9234     0.9123     0.1234    150      
class_1        0.8765     0.8543     0.2345    120      
class_2        0.7890     0.7654     0.3456    180      """  # noqa: W291 - as promised


def test_the_summary_is_the_promised_one() -> None:
    figures = ((0.9234, 0.9123, 0.1234, 150), (0.8765, 0.8543, 0.2345, 120), (0.7890, 0.7654, 0.3456, 180))
    nothing = np.zeros(3)
    report = ClassificationReport(
        samples=450,
        accuracy=0.8542,
        loss=0.0,
        scores=ClassScores(nothing, nothing, nothing, np.zeros(3, int), macro=(0, 0, 0.8234)),
        auroc=0.0,
        average_precision=0.0,
        ece=0.0,
        brier=0.0,
        confusion=np.zeros((3, 3), int),
        rows=tuple(
            ClassRow(place, f"class_{place}", support, 0, 0.0, accuracy, f1, loss)
            for place, (accuracy, f1, loss, support) in enumerate(figures)
        ),
        notes=(),
    )
    assert format_class_summary(report) == PROMISED


def test_the_summary_lines_up_for_korean_and_long_names() -> None:
    names = ("송장", "a very long name of a class", "form", "unused")
    logits, labels = predictions()
    lines = format_class_summary(class_report(logits, labels=labels, class_names=names)).splitlines()[-4:]
    width = len("a very long name of a class") + 1
    assert [line[: len(name)] for line, name in zip(lines, names, strict=True)] == list(names)
    assert lines[0].index("0.") == width - 2  # two characters that take two columns each
    assert lines[2].index("0.") == lines[1].index("0.") == width
    assert lines[3].split() == ["unused", "-", "-", "-", "0"]


# --------------------------------------------------------------------------------------------------------- files


def test_writes_the_promised_files(tmp_path: Path) -> None:
    logits, labels = predictions()
    report = evaluate_class_performance(Picks(), batches(logits, labels), class_names=NAMES)
    sections = write_class_files(report, folder=tmp_path, train=report)
    wanted = {"val_class_metrics.csv", "val_class_performance.png", "confusion_matrix.png", "train_val_comparison.png"}
    assert {path.name for path in tmp_path.iterdir()} == wanted
    assert {part.path.name for part in sections if isinstance(part, Picture)} == {n for n in wanted if "png" in n}
    with (tmp_path / "val_class_metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(NAMES)
    assert float(rows[1]["accuracy"]) == pytest.approx((logits.argmax(axis=1) == labels)[labels == 1].mean())
    assert (rows[3]["support"], rows[3]["f1"], rows[3]["loss"]) == ("0", "", "")
    assert sum(int(row["support"]) for row in rows) == len(labels)


def test_where_no_font_has_the_names_numbers_stand_for_classes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = predictions()
    train, val = (class_report(factor * logits, labels=labels, class_names=NAMES) for factor in (1.0, -1.0))
    numbered = Names(("0", "1", "2", "3"), ("DejaVu Sans",), "")
    with monkeypatch.context() as patch:
        patch.setattr("quartet.apps.doc_ensemble.train_val_plot.displayable", lambda _: numbered)
        drawn = plot_train_val_comparison(train, val, path=tmp_path / "numbered.png")
    train, val = (class_report(f * logits, labels=labels, class_names=numbered.labels) for f in (1.0, -1.0))
    assert drawn.read_bytes() == plot_train_val_comparison(train, val, path=tmp_path / "plain.png").read_bytes()


@pytest.mark.parametrize("classes", [2, 17, 100])
def test_the_comparison_keeps_any_number_of_classes_apart(classes: int, tmp_path: Path) -> None:
    labels, logits = np.arange(classes), np.random.default_rng(0).normal(size=(classes, classes))
    report = class_report(logits, labels=labels, class_names=[f"class {place}" for place in labels])
    drawn = plot_train_val_comparison(report, report, path=tmp_path / "comparison.png")
    with Image.open(drawn) as picture:
        width, height = picture.size
    assert height >= 15 * classes
    assert max(width, height) < 2600


def test_reports_of_different_classes_are_not_compared(tmp_path: Path) -> None:
    logits, labels = predictions()
    train, val = (class_report(logits, labels=labels, class_names=names) for names in (NAMES, NAMES[::-1]))
    with pytest.raises(UserError, match="different classes"):
        plot_train_val_comparison(train, val, path=tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_test_pages_do_not_overwrite_those_of_validation(tmp_path: Path) -> None:
    report = class_report(predictions()[0], labels=predictions()[1], class_names=NAMES)
    write_class_files(report, folder=tmp_path)
    write_class_files(report, folder=tmp_path, prefix="test_")
    assert len(list(tmp_path.iterdir())) == 6


# ------------------------------------------------------------------------------------------------ confused classes


def test_confused_pairs_count_both_directions() -> None:
    labels = [0, 0, 0, 1, 1, 2, 2, 2]
    guess = [1, 0, 1, 0, 1, 1, 1, 2]
    sure = [0.6, 0.9, 0.8, 0.7, 0.9, 0.5, 0.9, 0.9]
    chances = np.array([[(1 - p) / 2] * 3 for p in sure])
    chances[range(8), guess] = sure
    pairs = most_confused(labels, probabilities=chances)
    assert [(pair.first, pair.second, pair.forth, pair.back) for pair in pairs] == [(0, 1, 2, 1), (2, 1, 2, 0)]
    assert [pair.rows for pair in pairs] == [(2, 3, 0), (6, 5)]
    assert len(most_confused(labels, probabilities=chances, most=1)) == 1


def test_confused_pages_are_shown_with_class_and_file_and_unreadable_ones_leave_a_frame(tmp_path: Path) -> None:
    logits, labels = predictions()
    pages = [Page(tmp_path / f"{row}.png") for row in range(len(labels))]
    for row in range(0, len(labels), 2):  # the others are missing
        Image.new("L", (400, 700), row % 256).save(pages[row].path)
    names = [f"월간 보고서 서식 {name}" for name in NAMES]
    chances = softmax(logits)
    table, picture = confused_sections(
        pages, labels=labels, probabilities=chances, class_names=names, folder=tmp_path, max_pixels=10**6
    )
    assert isinstance(table, Table)
    assert isinstance(picture, Picture)
    assert picture.title == table.title
    guess = logits.argmax(axis=1)
    assert sum(row[2] + row[3] for row in table.rows) == (guess != labels).sum()  # three classes
    for tile in picture.tiles:
        row = int(tile.text.removesuffix(".png"))
        assert tile.caption == f"{names[labels[row]]}\n→\N{NO-BREAK SPACE}{names[guess[row]]}, {chances[row].max():.0%}"
        assert (tile.image is None) == bool(row % 2)
    with Image.open(tmp_path / "confused_pairs.png") as sheet:
        assert sheet.width > 1000
    (nothing,) = confused_sections(
        pages[:2], labels=[0, 1], probabilities=np.eye(2), class_names=("a", "b"), folder=tmp_path, max_pixels=1
    )
    assert isinstance(nothing, Text)


# ------------------------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_temperature_is_found_again(scale: float) -> None:
    logits, labels = predictions(4000, scale=scale)
    found = fit_temperature(logits, labels=labels)
    assert found == pytest.approx(scale, rel=0.1)
    best = measure_temperature(logits, labels=labels, temperature=found)
    for other in (0.99 * found, 1.01 * found):
        assert measure_temperature(logits, labels=labels, temperature=other).nll_after > best.nll_after
    fresh = predictions(4000, scale=scale, seed=1)
    fit = measure_temperature(fresh[0], labels=fresh[1], temperature=found)
    assert fit.ece_after < 0.04
    assert fit.nll_after <= fit.nll_before + 1e-3
    if scale != 1.0:
        assert fit.ece_after < 0.5 * fit.ece_before


def test_temperature_changes_no_decision_and_takes_log_probabilities() -> None:
    logits, labels = predictions(scale=3.0)
    assert (softmax(logits, temperature=2.5).argmax(axis=1) == logits.argmax(axis=1)).all()
    assert fit_temperature(np.log(softmax(logits)), labels=labels) == pytest.approx(
        fit_temperature(logits, labels=labels), rel=1e-4
    )


def test_temperature_without_an_optimum_is_one() -> None:
    assert fit_temperature(np.eye(3), labels=[0, 1, 2]) == 1.0
    assert fit_temperature(np.zeros((3, 2)), labels=[0, 1, 0]) == 1.0


def test_bad_logits_are_told() -> None:
    with pytest.raises(UserError, match="row 1"):
        fit_temperature([[0.0, 1.0], [np.nan, 0.0]], labels=[0, 1])
    with pytest.raises(UserError, match="one label per row"):
        fit_temperature(np.zeros((3, 2)), labels=[0, 1])
    with pytest.raises(UserError, match="above 0"):
        softmax(np.zeros((1, 2)), temperature=0.0)


def test_calibration_is_written_down(tmp_path: Path) -> None:
    logits, labels = predictions(scale=3.0)
    fresh = predictions(scale=3.0, seed=1)
    sections = calibration_sections(logits, labels=labels, folder=tmp_path, test=fresh)
    values = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    assert values["val"]["temperature"] == values["test"]["temperature"] == pytest.approx(3.0, rel=0.3)
    assert values["test"]["ece_after"] < values["test"]["ece_before"]
    assert [part.path.name for part in sections if isinstance(part, Picture)] == [
        "reliability.png",
        "reliability_scaled.png",
    ]

"""Pictures are drawn without a warning (missing glyphs are warnings, warnings are errors), whole or not at all."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib import image as reader

from mlcore.base.errors import UserError
from mlcore.report.plots.classes import plot_class_bars, plot_confusion_matrix, plot_train_val_comparison
from mlcore.report.plots.confidence import plot_accuracy_by_confidence, plot_confidence_histogram, plot_reliability
from mlcore.report.plots.curves import plot_curves, plot_histogram, plot_lr_finder, plot_panels
from mlcore.report.plots.style import displayable, picture

KOREAN = ["비행기", "자동차", "고양이"]
STEPS = list(range(0, 100, 10))
FALLING = [math.exp(-step / 30) for step in STEPS]


def _install_only(monkeypatch: pytest.MonkeyPatch, extra: Sequence[font_manager.FontEntry] = ()) -> None:
    """Pretend that matplotlib's own fonts and `extra` are all there is."""
    own = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*own, *extra])


def _font_with(characters: str, path: Path) -> font_manager.FontEntry:
    """A font with one box-shaped glyph for all of `characters`."""
    pen = TTGlyphPen(None)
    for step, point in enumerate([(80, 0), (80, 800), (900, 800), (900, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord(character): "box" for character in characters})
    box = pen.glyph()
    builder.setupGlyf({".notdef": box, "box": box})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "box": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return font_manager.FontEntry(fname=str(path), name=path.stem, style="normal", weight=400)


def _matrix(classes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 9, (classes, classes)) + 50 * np.eye(classes, dtype=int)


def _draw_classes(names: Sequence[str], folder: Path) -> list[Path]:
    share = np.linspace(0.2, 1.0, len(names))
    return [
        plot_confusion_matrix(_matrix(len(names)), class_names=names, path=folder / "matrix.png"),
        plot_class_bars({"F1": share, "loss": 3 * share}, class_names=names, path=folder / "bars.png"),
        plot_train_val_comparison(names, train=share, val=share**2, path=folder / "comparison.png"),
    ]


DRAWINGS: dict[str, Callable[[Path], Path]] = {
    "curves": lambda path: plot_curves(
        {"train/loss": (STEPS, FALLING), "val/loss": ([50], [0.5])}, path=path, title="Loss", best=(50, "best")
    ),
    "curves with gaps, log": lambda path: plot_curves(
        {"loss": (STEPS, [math.nan, 0.0, -1.0, *FALLING[3:]])}, path=path, title="Loss", log=True
    ),
    "panels": lambda path: plot_panels(
        {"loss": {"train": (STEPS, FALLING)}, "accuracy": {"val": ([1], [0.5])}, "rate": {"rate": (STEPS, FALLING)}},
        path=path,
        log=["loss"],
    ),
    "learning-rate finder": lambda path: plot_lr_finder(
        [1e-4, 1e-3, 1e-2], losses=[2.0, 1.0, math.inf], path=path, suggestion=1e-3
    ),
    "histogram": lambda path: plot_histogram(
        {"train": [1, 2, 2, math.nan], "val": [2.5]}, path=path, title="Length", x_label="steps", log=True
    ),
    "histogram of one value": lambda path: plot_histogram({"all": [3, 3]}, path=path, title="Length", x_label="steps"),
    "matrix with an empty row": lambda path: plot_confusion_matrix(
        np.array([[3, 1], [0, 0]]), class_names=["a", "b"], path=path
    ),
    "bars without samples": lambda path: plot_class_bars(
        {"F1": [math.nan, 0.5], "loss": [math.nan, math.nan]}, class_names=["a", "b"], path=path, worst_first=False
    ),
    "reliability": lambda path: plot_reliability(
        [0, 0.5, 1], count=[0, 4], confidence=[math.nan, 0.8], accuracy=[math.nan, 0.5], path=path
    ),
    "confidence": lambda path: plot_confidence_histogram([0.6, 0.9, 1.0], right=[False, True, True], path=path),
    "all right and sure": lambda path: plot_confidence_histogram([1.0, 1.0], right=[True, True], path=path),
    "accuracy by confidence": lambda path: plot_accuracy_by_confidence([0.6, 0.9], right=[False, True], path=path),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_a_picture_is_drawn_and_the_same_values_give_the_same_bytes(
    draw: Callable[[Path], Path], tmp_path: Path
) -> None:
    one, two = draw(tmp_path / "one.png"), draw(tmp_path / "two.png")
    assert one == tmp_path / "one.png"
    assert reader.imread(one)[..., :3].std() > 0.02  # not an empty sheet
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


@pytest.mark.parametrize("classes", [2, 17, 100])
def test_any_number_of_classes_keeps_its_rows_apart(classes: int, tmp_path: Path) -> None:
    for path in _draw_classes([f"class {index}" for index in range(classes)], tmp_path):
        height, width = reader.imread(path).shape[:2]
        assert height >= 15 * classes
        assert max(height, width) < 2600


def test_korean_names_use_an_installed_font_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = _font_with("비행", tmp_path / "Poor Hangul.ttf")
    rich = _font_with("".join(KOREAN), tmp_path / "Rich Hangul.ttf")
    _install_only(monkeypatch, [poor, rich])
    names = displayable([*KOREAN, "cat"])
    assert names.labels == (*KOREAN, "cat")
    assert names.fonts == ("DejaVu Sans", "Rich Hangul")
    assert names.note == ""
    _draw_classes(KOREAN, tmp_path)


def test_without_such_a_font_names_become_indices_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_only(monkeypatch)
    names = displayable(KOREAN)
    assert names.labels == ("0", "1", "2")
    assert "class indices" in names.note
    with_note = _draw_classes(KOREAN, tmp_path)
    plain = tmp_path / "plain"
    plain.mkdir()
    for one, two in zip(with_note, _draw_classes(["0", "1", "2"], plain), strict=True):
        assert one.read_bytes() != two.read_bytes()  # the same labels, and the note


def test_a_broken_font_file_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "Broken.ttf"
    broken.write_bytes(b"no font")
    entry = font_manager.FontEntry(fname=str(broken), name="Broken", style="normal", weight=400)
    _install_only(monkeypatch, [entry])
    assert displayable(KOREAN).labels == ("0", "1", "2")


def test_odd_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["$5 and $6", "<script>alert(1)</script>", "two\nlines\x00", "", "x" * 200, "a_b^{c}"]
    shown = displayable(names).labels
    assert shown[0] == r"\$5 and \$6"  # not a formula
    assert shown[2] == "two lines"
    assert len(shown[4]) <= 28
    _draw_classes(names, tmp_path)


def test_a_failure_leaves_the_old_picture(tmp_path: Path) -> None:
    path = plot_lr_finder([1e-3, 1e-2], losses=[1.0, 2.0], path=tmp_path / "rate.png")
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), picture(path, width=2, height=2):
        _ = 1 / 0
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="folder"):
        plot_lr_finder([1e-3, 1e-2], losses=[1.0, 2.0], path=tmp_path / "missing" / "rate.png")


def test_pyplot_and_its_global_state_stay_untouched(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, matplotlib\n"
        "from mlcore.report.plots.curves import plot_lr_finder\n"
        "before = matplotlib.rcParams.copy()\n"
        "plot_lr_finder([1e-3, 1e-2], losses=[1.0, 2.0], path=pathlib.Path(sys.argv[1]))\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "rate.png")], check=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: plot_curves({}, path=path, title="Loss"), "no series"),
        (lambda path: plot_curves({"loss": ([1, 2], [1])}, path=path, title="Loss"), "'loss' has 2 x and 1 y"),
        (lambda path: plot_panels({}, path=path), "no panels"),
        (lambda path: plot_panels({"loss": {"a": ([1], [1])}}, path=path, log=["los"]), "'los'.*loss"),
        (lambda path: plot_histogram({"a": [math.nan]}, path=path, title="T", x_label=""), "no values.*'T'"),
        (lambda path: plot_confusion_matrix(np.ones((2, 3)), class_names=["a"], path=path), r"\(2, 3\)"),
        (lambda path: plot_confusion_matrix(np.ones((2, 2)), class_names=["a"], path=path), "1 class names for 2"),
        (lambda path: plot_class_bars({}, class_names=["a"], path=path), "no metrics"),
        (lambda path: plot_class_bars({"F1": [1, 2]}, class_names=["a"], path=path), "'F1' has shape"),
        (lambda path: plot_confidence_histogram([], right=[], path=path), "at least one"),
        (lambda path: plot_reliability([0, 1], count=[0], confidence=[0], accuracy=[0], path=path), "samples"),
    ],
)
def test_wrong_values_are_named_and_leave_no_file(call: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        call(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []

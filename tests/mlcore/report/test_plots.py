"""Pictures are drawn without a warning (missing glyphs are warnings, warnings are errors), whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont
from matplotlib import font_manager
from matplotlib import image as reader

from mlcore.base.errors import UserError
from mlcore.metrics.calibration import reliability_bins
from mlcore.report.plots.classes import plot_class_bars, plot_confusion_matrix
from mlcore.report.plots.confidence import plot_accuracy_by_confidence, plot_confidence_histogram, plot_reliability
from mlcore.report.plots.curves import plot_lr_finder, plot_panels
from mlcore.report.plots.style import _add_new_fonts, displayable, picture

pytestmark = pytest.mark.pictures

KOREAN = ["비행기", "자동차", "고양이"]
STEPS = list(range(0, 100, 10))
FALLING = [math.exp(-step / 30) for step in STEPS]


InstallOnly = Callable[..., list[str]]


@pytest.fixture
def install_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallOnly]:
    """Pretends that matplotlib's own fonts, those `listed` and the files of `system` are all there is.

    Only the `listed` ones are in matplotlib's list. Returns a list that grows by an entry with each scan of the system.
    """

    def install(listed: Sequence[font_manager.FontEntry] = (), *, system: Sequence[Path] = ()) -> list[str]:
        scans: list[str] = []
        own = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", [*own, *listed])
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: scans.append("scan") or [str(p) for p in system])
        _add_new_fonts.cache_clear()
        return scans

    yield install
    _add_new_fonts.cache_clear()


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
    ]


DRAWINGS: dict[str, Callable[[Path], Path]] = {
    "gaps": lambda path: plot_panels({"loss": {"loss": (STEPS, [math.nan, 0.0, -1.0, *FALLING[3:]])}}, path=path),
    "panels": lambda path: plot_panels(
        {"loss": {"train": (STEPS, FALLING)}, "accuracy": {"val": ([1], [0.5])}, "rate": {"rate": (STEPS, FALLING)}},
        path=path,
    ),
    "learning-rate finder": lambda path: plot_lr_finder(
        [1e-4, 1e-3, 1e-2], losses=[2.0, 1.0, math.inf], path=path, suggestion=1e-3
    ),
    "matrix with an empty row": lambda path: plot_confusion_matrix(
        np.array([[3, 1], [0, 0]]), class_names=["a", "b"], path=path
    ),
    "bars without samples": lambda path: plot_class_bars(
        {"F1": [math.nan, 0.5], "loss": [math.nan, math.nan]}, class_names=["a", "b"], path=path
    ),
    "reliability": lambda path: plot_reliability(
        reliability_bins([1, 0, 1, 0], probabilities=[0.8] * 4, bins=2), path=path
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


def test_korean_names_use_an_installed_font_that_has_them(tmp_path: Path, install_only: InstallOnly) -> None:
    poor = _font_with("비행", tmp_path / "Poor Hangul.ttf")
    rich = _font_with("".join(KOREAN), tmp_path / "Rich Hangul.ttf")
    scans = install_only([poor, rich])
    names = displayable([*KOREAN, "cat"])
    assert names.labels == (*KOREAN, "cat")
    assert names.fonts == ("DejaVu Sans", "Rich Hangul")
    assert names.note == ""
    assert scans == []
    _draw_classes(KOREAN, tmp_path)


def test_a_font_that_matplotlib_has_not_listed_is_found_by_one_scan(tmp_path: Path, install_only: InstallOnly) -> None:
    listed = _font_with("비행", tmp_path / "Listed Hangul.ttf")
    _font_with("".join(KOREAN), tmp_path / "New Hangul.ttf")
    broken = tmp_path / "Broken New.ttf"
    broken.write_bytes(b"no font")
    scans = install_only([listed], system=[Path(listed.fname), broken, tmp_path / "New Hangul.ttf"])
    assert displayable(["cat", "비행"]).fonts == ("DejaVu Sans", "Listed Hangul")
    assert scans == []  # no need to look for more
    assert displayable(KOREAN) == displayable(KOREAN)
    assert displayable(KOREAN).fonts == ("DejaVu Sans", "New Hangul")
    assert displayable(["漢字"]).labels == ("0",)
    assert len(scans) == 1
    assert [font.fname for font in font_manager.fontManager.ttflist].count(listed.fname) == 1
    _draw_classes(KOREAN, tmp_path)


def test_a_collection_is_asked_face_by_face(tmp_path: Path, install_only: InstallOnly) -> None:
    collection = TTCollection()
    for name, characters in (("First Face", "비행"), ("Second Face", "".join(KOREAN))):
        _font_with(characters, tmp_path / f"{name}.ttf")
        collection.fonts.append(TTFont(tmp_path / f"{name}.ttf"))
    collection.save(tmp_path / "Both.ttc")
    install_only(system=[tmp_path / "Both.ttc"])
    assert displayable(KOREAN).fonts == ("DejaVu Sans", "Second Face")
    _draw_classes(KOREAN, tmp_path)


def test_a_font_installed_between_two_runs_is_used_by_the_second(tmp_path: Path) -> None:
    # Matplotlib keeps its list of fonts from the first run. Cuneiform signs are in no font that machines usually have.
    sign = "\U00012000"
    _font_with(sign, tmp_path / "Test Cuneiform.ttf")
    fonts = tmp_path / "share/fonts"
    fonts.mkdir(parents=True)
    script = f"from mlcore.report.plots.style import displayable\nprint(displayable([{sign!r}]).fonts[-1])"
    places = {"XDG_DATA_HOME": str(fonts.parent), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}

    def chosen() -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, env={**os.environ, **places}, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert chosen() == "DejaVu Sans"
    shutil.copy(tmp_path / "Test Cuneiform.ttf", fonts)
    assert chosen() == "Test Cuneiform"


def test_noto_draws_korean_names_although_it_was_installed_late(tmp_path: Path, install_only: InstallOnly) -> None:
    noto = [Path(path) for path in font_manager.findSystemFonts() if "NotoSansCJK-" in path]
    if not noto:
        pytest.skip("Noto Sans CJK is not installed (Debian: apt-get install fonts-noto-cjk)")
    install_only(system=noto)
    assert displayable(KOREAN).fonts == ("DejaVu Sans", "Noto Sans CJK KR")
    drawn = _draw_classes(KOREAN, tmp_path)
    install_only()
    plain = tmp_path / "plain"
    plain.mkdir()
    for one, two in zip(drawn, _draw_classes(KOREAN, plain), strict=True):
        assert one.read_bytes() != two.read_bytes()  # names, and not numbers


def test_without_such_a_font_names_become_indices_and_a_note(tmp_path: Path, install_only: InstallOnly) -> None:
    install_only()
    names = displayable(KOREAN)
    assert names.labels == ("0", "1", "2")
    assert "class indices" in names.note
    with_note = _draw_classes(KOREAN, tmp_path)
    plain = tmp_path / "plain"
    plain.mkdir()
    for one, two in zip(with_note, _draw_classes(["0", "1", "2"], plain), strict=True):
        assert one.read_bytes() != two.read_bytes()  # the same labels, and the note


def test_a_broken_font_file_is_passed_over(tmp_path: Path, install_only: InstallOnly) -> None:
    broken = tmp_path / "Broken.ttf"
    broken.write_bytes(b"no font")
    entry = font_manager.FontEntry(fname=str(broken), name="Broken", style="normal", weight=400)
    install_only([entry])
    assert displayable(KOREAN).labels == ("0", "1", "2")


def test_odd_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["$5 and $6", "<script>alert(1)</script>", "two\nlines\x00", "", "x" * 200, "a_b^{c}"]
    shown = displayable(names).labels
    assert shown[0] == r"\$5 and \$6"  # not a formula
    assert shown[2] == "two lines"
    assert len(shown[4]) <= 28
    _draw_classes(names, tmp_path)


def test_long_names_are_told_apart_and_a_common_beginning_is_said_once(tmp_path: Path) -> None:
    names = [f"national_vehicle_registration_{part}" for part in ("front", "back", "front_with_a_very_long_annex_page")]
    shown = displayable(names)
    assert shown.labels[:2] == ("front", "back")
    assert len(set(shown.labels)) == 3
    assert max(map(len, shown.labels)) <= 28
    assert "national_vehicle_registration_" in shown.note
    _draw_classes(names, tmp_path)
    assert displayable(["class one", "class two"]).labels == ("class one", "class two")  # they have room
    alike = [f"{'x' * 30}{end}{'y' * 30}" for end in "ab"]
    assert len(set(displayable(alike).labels)) == 2


def test_few_wrong_ones_among_many_right_ones_are_seen(tmp_path: Path) -> None:
    right = np.arange(20_000) >= 3
    path = plot_confidence_histogram(np.linspace(0.5, 1, 20_000), right=right, path=tmp_path / "histogram.png")
    pixels = reader.imread(path)[..., :3]
    red = (pixels[..., 0] > 0.7) & (pixels[..., 1] < 0.5) & (pixels[..., 2] < 0.6)
    assert red.any(axis=1).sum() > 0.2 * len(pixels)  # a bar as high as its panel


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
        (lambda path: plot_panels({"loss": {}}, path=path), "no series"),
        (lambda path: plot_panels({"loss": {"val": ([1, 2], [1])}}, path=path), "'val' has 2 x and 1 y"),
        (lambda path: plot_panels({}, path=path), "no panels"),
        (lambda path: plot_confusion_matrix(np.ones((2, 3)), class_names=["a"], path=path), r"\(2, 3\)"),
        (lambda path: plot_confusion_matrix(np.ones((2, 2)), class_names=["a"], path=path), "1 class names for 2"),
        (lambda path: plot_class_bars({}, class_names=["a"], path=path), "no metrics"),
        (lambda path: plot_class_bars({"F1": [1, 2]}, class_names=["a"], path=path), "'F1' has shape"),
        (lambda path: plot_confidence_histogram([], right=[], path=path), "at least one"),
    ],
)
def test_wrong_values_are_named_and_leave_no_file(call: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        call(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []

"""The list of wrong ones: order, alignment, thumbnails, and texts that must not become markup."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.data.images import read_image
from mlcore.report.page import Picture, Text, literal
from quartet.apps.multimodal_ads.wrong_ones import (
    Classified,
    classify,
    worst_first,
    write_predictions,
    write_report,
    wrong_sections,
)

pytestmark = pytest.mark.pictures

READ = partial(read_image, max_pixels=10_000)
EVIL = "a | b `c` <img src=http://x.y/z.png> ![w](http://x.y/z.png)\n\n# head *i* _u_ [l](http://x.y) &lt; $x$ \\"


@dataclass
class Row:
    """A row of a table."""

    image: Path
    label: int
    text: str = ""


def classified(rows: list[Row], logits: list[float], *, threshold: float = 0.5, gated: bool = True) -> list[Classified]:
    """Samples as an evaluation leaves them."""
    rows_of = {"label": torch.tensor([row.label for row in rows]), "logit": torch.tensor(logits)}
    gate = {"gate": torch.linspace(0.0, 1.0, len(rows))} if gated else {}
    return classify(rows_of | gate, rows, threshold=threshold)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Six rows: pictures of odd shapes, one broken, one missing."""
    for number, size in enumerate([(300, 20), (20, 300), (8, 8), (64, 64)]):
        Image.new("RGB", size, (40 * number, 90, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"")
    texts = ["sale", EVIL, "세일 50% 🎉", "x" * 1000, "", "nothing"]
    return [Row(tmp_path / f"{n}.png", n % 2, text) for n, text in enumerate(texts)]


def test_wrong_ones_come_first_most_confident_first_and_ties_in_order() -> None:
    rows = [Row(Path(f"{n}"), label) for n, label in enumerate([1, 0, 1, 1, 0, 1])]
    ordered = worst_first(classified(rows, [2.0, 1.0, -3.0, -1.0, -2.0, 2.0]))
    assert [sample.index for sample in ordered] == [2, 1, 3, 0, 4, 5]
    assert [sample.is_wrong for sample in ordered] == [True] * 3 + [False] * 3


def test_confidence_is_the_distance_from_the_threshold_in_log_odds() -> None:
    threshold = 1 / (1 + np.exp(2.0))  # log-odds -2
    samples = classified([Row(Path("a"), 0), Row(Path("b"), 1)], [-1.0, -4.0], threshold=threshold)
    assert [sample.predicted for sample in samples] == [1, 0]
    assert [sample.confidence for sample in samples] == pytest.approx([1.0, 2.0])
    assert [sample.index for sample in worst_first(samples)] == [1, 0]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_extreme_thresholds_leave_confidence_finite(threshold: float) -> None:
    samples = classified([Row(Path("a"), 0), Row(Path("b"), 1)], [-1.0, 4.0], threshold=threshold)
    assert np.isfinite([sample.confidence for sample in samples]).all()


@pytest.mark.parametrize("labels", [[0], [1, 0], [0, 1, 1]])
def test_rows_of_another_table_are_refused(labels: list[int]) -> None:
    rows = {"label": torch.tensor([0, 1]), "logit": torch.zeros(2)}
    with pytest.raises(UserError, match="do not belong together"):
        classify(rows, [Row(Path("x"), label) for label in labels], threshold=0.5)


def test_predictions_are_in_the_order_of_the_data(rows: list[Row], tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.json", classified(rows, [3.0, -3.0, 0.0, 1.0, -1.0, 2.0], threshold=0.5))
    written = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert [Path(row["image"]).name for row in written] == [row.image.name for row in rows]
    assert [row["predicted"] for row in written] == [1, 0, 1, 1, 0, 1]  # a probability of one half is an ad
    assert [row["has_text"] for row in written] == [True, True, True, True, False, True]
    assert [len(row["text"]) for row in written] == [4, len(EVIL), len(rows[2].text), 300, 0, 7]
    assert written[2]["text"] == rows[2].text
    assert written[2]["probability"] == 0.5
    assert written[5]["gate"] == 1.0


def test_without_a_gated_fusion_the_gate_is_null(rows: list[Row], tmp_path: Path) -> None:
    samples = classified(rows, [1.0] * 6, gated=False)
    write_predictions(tmp_path / "p.json", samples)
    assert {row["gate"] for row in json.loads((tmp_path / "p.json").read_text("utf-8"))} == {None}
    write_report(tmp_path / "r.md", samples, headlines={}, threshold=0.5, read_image=READ)
    assert "gate" not in (tmp_path / "r.md").read_text("utf-8")
    sections = wrong_sections(samples, folder=tmp_path, read_image=READ)
    assert [section.title for section in sections] == ["Validation: wrong ones"]


def test_a_file_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    samples = classified([Row(Path("bad\udcff.jpg"), 1, "t")], [-1.0])
    write_predictions(tmp_path / "p.json", samples)
    write_report(tmp_path / "r.md", samples, headlines={}, threshold=0.5, read_image=READ)
    assert json.loads((tmp_path / "p.json").read_text("utf-8"))[0]["image"] == "bad\\udcff.jpg"


def test_the_report_shows_thumbnails_and_names_what_cannot_be_read(rows: list[Row], tmp_path: Path) -> None:
    samples = classified(rows, [3.0, -3.0, 2.0, -1.0, 1.0, -2.0])  # all wrong
    headlines = {"auroc": 0.91234, "ece": None, "n": 6}
    write_report(tmp_path / "test_report.md", samples, headlines=headlines, threshold=0.5, read_image=READ)
    text = (tmp_path / "test_report.md").read_text(encoding="utf-8")
    assert "| auroc | 0.9123 |" in text
    assert "| ece | – |" in text
    assert "## Wrong: 6 of 6" in text
    assert "## Right: 0 of 6" in text
    links = re.findall(r"!\[\d+\]\((thumbnails/[^)]+)\)", text)
    assert sorted(links) == [f"thumbnails/{number:06d}.jpg" for number in range(4)]
    assert sorted(path.name for path in (tmp_path / "thumbnails").iterdir()) == sorted(
        Path(link).name for link in links
    )
    for link in links:
        with Image.open(tmp_path / link) as thumbnail:
            assert thumbnail.format == "JPEG"
            assert max(thumbnail.size) <= 160
    assert text.count("| unreadable |") == 2


def test_the_report_is_limited_and_says_so(tmp_path: Path) -> None:
    def pixels(path: Path) -> NDArray[np.uint8]:
        return np.zeros((4, 4, 3), np.uint8)

    samples = classified([Row(Path(f"{n}"), int(n < 130)) for n in range(180)], [-1.0] * 180)
    write_report(tmp_path / "r.md", samples, headlines={}, threshold=0.5, read_image=pixels)
    text = (tmp_path / "r.md").read_text("utf-8")
    assert "## Wrong: 130 of 180, the 100 most confident ones" in text
    assert "## Right: 50 of 180, the 20 most confident ones" in text
    assert len(list((tmp_path / "thumbnails").iterdir())) == text.count("](thumbnails/") == 120


def test_texts_stay_in_their_cell_and_become_no_markup(rows: list[Row], tmp_path: Path) -> None:
    samples = classified(rows, [3.0, -3.0, 2.0, -1.0, 1.0, -2.0])
    write_report(tmp_path / "r.md", samples, headlines={"a|b": "c|d"}, threshold=0.5, read_image=READ)
    tables = [line for line in (tmp_path / "r.md").read_text("utf-8").splitlines() if line.startswith("|")]
    unescaped = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in tables]
    assert set(unescaped) == {3, 9}
    (line,) = [line for line in tables if "1\\.png" in line or "| 1.png" in line]
    bare = re.sub(r"\\.", "", line.split("|", 3)[3])
    assert not re.search(r"[\[\]<>`*_#!&$]", bare)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\n\tc\x00\u2028d", "a b c d"),
        ("![x](http://y)", "\\!\\[x\\](http\\://y)"),
        ("www.x.org", "www\\.x.org"),
        ("<!-- x -->", "\\<\\!-- x --\\>"),
        ("\\", "\\\\"),
        ("\u202eabc", "abc"),
        ("50% off, 세일", "50% off, 세일"),
    ],
)
def test_literal(text: str, shown: str) -> None:
    assert literal(text) == shown


def test_pictures_of_the_report(rows: list[Row], tmp_path: Path) -> None:
    samples = classified(rows, [3.0, -3.0, 2.0, -1.0, 1.0, -2.0])
    sections = wrong_sections(samples, folder=tmp_path, prefix="test_", read_image=READ)
    assert [section.title for section in sections] == ["Test: gate", "Test: wrong ones"]
    for section in sections:
        assert isinstance(section, Picture)
        with Image.open(section.path) as picture:
            assert picture.format == "PNG"


def test_a_model_without_mistakes_has_a_report(rows: list[Row], tmp_path: Path) -> None:
    samples = classified(rows, [-3.0, 3.0, -2.0, 1.0, -1.0, 2.0], gated=False)
    (section,) = wrong_sections(samples, folder=tmp_path, read_image=READ)
    assert isinstance(section, Text)
    write_report(tmp_path / "r.md", samples, headlines={}, threshold=0.5, read_image=READ)
    assert "## Wrong: 0 of 6\n\n## Right: 6 of 6, most confident first" in (tmp_path / "r.md").read_text("utf-8")

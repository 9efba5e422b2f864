"""A report is one file, shows everything it is given literally, and no secret."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from markupsafe import Markup
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.report.page import Headline, Picture, RunReport, Table, Text, describe_environment, write_report
from mlcore.report.tile import Tile

pytestmark = pytest.mark.pictures

ATTACK = "<script>alert('x')</script> & \"quotes\" | `tick` </style> {{ 7 * 7 }} {% raw %}"


class _Page(HTMLParser):
    """Collects tags with attributes, and the visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.words.append(data + " ")


def _picture(folder: Path) -> Path:
    path = folder / "my curves.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and the rest of a picture")
    return path


def _full(folder: Path) -> RunReport:
    picture = _picture(folder)
    return RunReport(
        title="Perceiver on 숫자",
        subtitle="finished",
        headlines=[Headline("accuracy", 0.97837, "epoch 36"), Headline("parameters", 1234567), Headline("AUROC", None)],
        warnings=["3 samples skipped"],
        sections=[
            Picture("Loss", picture, "note"),
            Picture("Again", picture, wide=True),
            Table("Per class", ["class", "F1", "n"], [["고양이", 0.5, 12], ["dog", math.nan, 0]], note="why"),
            Text("Words", "one\ntwo"),
            Text("Command", "make train APP=x", code=True),
            Picture("Last", picture),
        ],
        config={"model": {"width": 64, "names": ["고양이"]}},
        environment={"torch": "2.14"},
    )


def _write(folder: Path, report: RunReport) -> tuple[_Page, str]:
    path = write_report(folder, report=report)
    assert path == folder / "report.html"
    return _Page(path.read_text(encoding="utf-8")), (folder / "summary.md").read_text(encoding="utf-8")


def test_everything_is_told_in_both_files(tmp_path: Path) -> None:
    page, summary = _write(tmp_path, _full(tmp_path))
    assert page.stack == []
    told = [
        "숫자",
        "finished",
        "0.9784",
        "1,234,567",
        "epoch 36",
        "3 samples skipped",
        "고양이",
        "0.5000",
        "why",
        "dog",
    ]
    for words in [*told, "one", "make train APP=x", "torch", "width: 64"]:
        assert words in page.text
        assert words in summary
    assert "nan" not in page.text.lower()
    assert summary.count("![") == 3
    assert "(<my curves.png>)" in summary  # relative, so that the folder can be moved
    assert "    make train APP=x" in summary.splitlines()


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page, _ = _write(tmp_path, _full(tmp_path))
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    picture = (tmp_path / "my curves.png").read_bytes()
    assert [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in images] == [picture] * 3
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|\son\w+=", source)


def test_a_title_is_there_once_and_the_contents_lead_to_it(tmp_path: Path) -> None:
    picture = _picture(tmp_path)
    sections = [
        Table("Data", ["a"], [[1]]), Picture("Data", picture, "drawn", wide=True),
        Picture("Confusion", picture), Picture("Calibration", picture), Table("Calibration", ["b"], [[2]]),
        Text("Words", "body"),
    ]  # fmt: skip
    page, summary = _write(tmp_path, RunReport(title="R", sections=sections))
    links = [a["href"] or "" for tag, a in page.tags if tag == "a"]
    assert [link.removeprefix("#") for link in links] == [a["id"] for _, a in page.tags if "id" in a]
    for title in ("Data", "Confusion", "Calibration", "Words"):
        assert page.text.count(title) == 2  # once in the contents
        assert summary.count(f"## {title}\n") == (title != "Confusion" and title != "Calibration")
    assert "drawn" in page.text  # what is said of a picture stays


def test_drawings_are_turned_in_dark_mode_and_photographs_are_not(tmp_path: Path) -> None:
    picture = _picture(tmp_path)
    page, _ = _write(
        tmp_path, RunReport(title="R", sections=[Picture("Drawing", picture), Picture("Scan", picture, photo=True)])
    )
    assert {a["alt"]: a.get("class") for tag, a in page.tags if tag == "img"} == {"Drawing": "drawn", "Scan": None}


def test_a_sheet_is_shown_as_its_tiles_with_their_words(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    tiles = [
        Tile(image=pixels, caption="영수증\n→ letter, 90%", text="scan.png", alarm=True),
        Tile(image=None, caption=ATTACK),
    ]
    page, summary = _write(tmp_path, RunReport(title="R", sections=[Picture("P", _picture(tmp_path), tiles=tiles)]))
    (image,) = [a for tag, a in page.tags if tag == "img"]
    shown = base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), pixels)
    for words in ("영수증 → letter, 90%", "scan.png", "unreadable", "<script>alert('x')</script>"):
        assert words in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert "![P](<my curves.png>)" in summary


def test_how_to_use_a_run_comes_first_and_its_settings_with_what_was_changed_last(tmp_path: Path) -> None:
    report = replace(
        _full(tmp_path),
        places=[("folder", "outputs/a_run")],
        commands=[("look", "python -m webbrowser 'a b'"), ("predict", "quartet predict RUN")],
        changed=[("train.lr", "0.1", "1e-4", "command line")],
    )
    page, summary = _write(tmp_path, report)
    wanted = ["outputs/a_run", "# look", "python -m webbrowser 'a b'", "# predict", "one two", "train.lr", "width: 64"]
    places = [page.text.index(words) for words in wanted]
    assert places == sorted(places)
    assert "    quartet predict RUN" in summary.splitlines()
    assert "| train.lr | 0.1 | 1e-4 | command line |" in summary
    assert summary.index("| train.lr") < summary.index("    model:")


def test_neighbouring_pictures_share_a_row_and_others_do_not(tmp_path: Path) -> None:
    page, _ = _write(tmp_path, _full(tmp_path))
    rows = [
        tag if tag == "figure" else "row" for tag, a in page.tags if tag == "figure" or a.get("class") == "pictures"
    ]
    assert rows == ["row", "figure", "figure", "row", "figure"]


def test_markup_in_any_field_is_shown_not_run(tmp_path: Path) -> None:
    report = RunReport(
        title=ATTACK,
        subtitle=ATTACK,
        headlines=[Headline(ATTACK, ATTACK, ATTACK)],
        warnings=[ATTACK],
        sections=[
            Table(ATTACK, [ATTACK, "b"], [[ATTACK, 1]], note=ATTACK),
            Text(ATTACK, ATTACK),
            Text(ATTACK, ATTACK, code=True),
            Picture(ATTACK, _picture(tmp_path), ATTACK),
            Picture("missing", tmp_path / "<b>.png"),
        ],
        config={ATTACK: ATTACK},
        environment={ATTACK: ATTACK},
    )
    page, summary = _write(tmp_path, report)
    assert page.stack == []
    assert not {"script", "b.png"} & {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert('x')</script>") >= 17
    assert ("img", ATTACK) in [(tag, attributes.get("alt")) for tag, attributes in page.tags]
    # In Markdown, outside code blocks, every < is escaped and a cell's | does not make a column.
    lines = [line for line in summary.splitlines() if not line.startswith("    ") and "](<" not in line]
    assert not [line for line in lines if re.search(r"(?<!\\)<", line)]
    row = next(line for line in lines if line.endswith("| 1 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_no_value_is_trusted_to_be_markup(tmp_path: Path) -> None:
    ready = Markup("<b id='own'>bold</b>")
    report = RunReport(
        title="R", headlines=[Headline("h", ready)], sections=[Table("T", ["a"], [[ready]])], environment={"e": ready}
    )
    page, _ = _write(tmp_path, report)
    assert page.text.count("<b id='own'>bold</b>") == 3
    assert ("b", {"id": "own"}) not in page.tags


def test_secrets_are_masked_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef&<")
    found = "key is 0123456789abcdef&< here"
    report = RunReport(
        title=found,
        headlines=[Headline("a", found)],
        warnings=[found],
        sections=[Table("t", ["a"], [[found]]), Text("t", found), Text("t", found, code=True)],
        config={"tracking": {"api_key": "hunter2-hunter2"}, "note": found},
        environment={"command": found},
    )
    write_report(tmp_path, report=report)
    for name in ("report.html", "summary.md"):
        content = (tmp_path / name).read_text(encoding="utf-8")
        assert "0123456789abcdef" not in content
        assert "hunter2" not in content
        assert "***" in content or r"\*\*\*" in content


def test_a_missing_picture_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    report = RunReport(title="Run", sections=[Picture("Gone", tmp_path / "gone.png"), Text("After", "still here")])
    page, _ = _write(tmp_path, report)
    assert "gone.png is missing" in page.text
    assert "still here" in page.text


def test_an_empty_report_and_an_empty_table_are_reports(tmp_path: Path) -> None:
    page, summary = _write(tmp_path, RunReport(title="Nothing yet", sections=[Table("None", ["a", "b"], [])]))
    assert page.stack == []
    assert summary.startswith("# Nothing yet\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, "0.5000"), (1e-5, "1e-05"), (123.456, "123.46"), (12345.678, "12,345.68"), (1234567, "1,234,567"),
        (0.0, "0.0000"), (-0.25, "-0.2500"), (math.inf, "inf"), (True, "True"), ("97 %", "97 %"), (None, "–"),
        (torch.tensor(3.0).numpy()[()], "3.0000"),
    ],
)  # fmt: skip
def test_numbers_are_shown_for_reading(value: object, shown: str, tmp_path: Path) -> None:
    page, _ = _write(tmp_path, RunReport(title="R", sections=[Table("T", ["c"], [[value]])]))
    assert page.text.endswith(f"T c {shown}")


def test_a_row_of_another_length_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'Per class', row 2 has 1 cells, expected 2"):
        write_report(tmp_path, report=RunReport(title="R", sections=[Table("Per class", ["a", "b"], [[1, 2], [3]])]))
    assert list(tmp_path.iterdir()) == []


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    _write(tmp_path, _full(tmp_path))
    page, summary = _write(tmp_path, replace(_full(tmp_path), title="Second"))
    assert "Second" in page.text
    assert summary.startswith("# Second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my curves.png", "report.html", "summary.md"]


def test_the_environment_names_what_the_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--name", "two words"])
    facts = describe_environment(torch.device("cpu"))
    assert facts["command"] == "train.py --name 'two words'"
    assert facts["torch"] == str(torch.__version__)
    monkeypatch.setattr("sys.argv", ["quartet train toy", "--demo"])
    assert describe_environment(torch.device("cpu"))["command"] == "quartet train toy --demo"
    assert "cores" in facts["device"]
    assert facts["commit"]
    assert json.dumps(facts)

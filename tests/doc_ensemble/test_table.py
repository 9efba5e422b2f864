"""Tables of pages: labels by name or number, pages by number, and problems with their lines."""

import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.use.inputs import find_inputs
from quartet.apps.doc_ensemble.data.pages import read_page
from quartet.apps.doc_ensemble.data.table import read_table
from quartet.apps.doc_ensemble.scoring import DocScorer

SCORER: Any = SimpleNamespace(inputs=DocScorer.inputs, suffixes=DocScorer.suffixes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    blank = Image.fromarray(np.full((20, 16), 255, np.uint8))
    for name in ("a.png", "b.png", "c#2.png", "서류.png"):
        blank.save(tmp_path / name)
    blank.save(tmp_path / "m.tif", save_all=True, append_images=[blank] * 2)
    return tmp_path


def table(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_groups_and_pages(folder: Path) -> None:
    rows = "image,label,group\na.png,letter,x\nm.tif#3,form,\nm.tif,letter,x\nc#2.png,form,y\n서류.png,계약서,\n"
    pages, classes = read_table(table(folder, "\ufeff" + rows))
    assert classes == ("form", "letter", "계약서")
    assert [page.label for page in pages] == [1, 0, 1, 0, 2]
    assert [(page.path.name, page.number) for page in pages] == [
        ("a.png", 0),
        ("m.tif", 2),
        ("m.tif", 0),
        ("c#2.png", 0),
        ("서류.png", 0),
    ]
    assert [page.group for page in pages] == ["x", "", "x", "y", ""]
    assert pages[1].origin.endswith("t.csv, line 3")


def test_numbers_are_sorted_by_value(folder: Path) -> None:
    pages, classes = read_table(table(folder, "image,label\na.png,10\nb.png,9\nm.tif,2\n"))
    assert classes == ("2", "9", "10")
    assert [page.label for page in pages] == [2, 1, 0]


def test_validation_keeps_the_order_of_training(folder: Path) -> None:
    pages, classes = read_table(table(folder, "image,label\na.png,form\n"), classes=("letter", "form"))
    assert classes == ("letter", "form")
    assert pages[0].label == 1


def test_unknown_class_names_row_and_classes(folder: Path) -> None:
    path = table(folder, "image,label\na.png,form\nb.png,Letter\n")
    with pytest.raises(UserError, match=r"t\.csv, line 3: unknown class 'Letter'; did you mean 'letter'.*letter, form"):
        read_table(path, classes=("letter", "form"))


def test_all_problems_at_once(folder: Path) -> None:
    rows = "image,label\na.png,\nnone.png,x\nm.tif#4,x\nm.tif#0,x\nb.png,x\nb.png,y\n,x\n"
    with pytest.raises(UserError) as caught:
        read_table(table(folder, rows))
    text = str(caught.value)
    assert "6 problems" in text
    for part in (
        "line 2: the label is empty",
        "line 3: no such file: none.png",
        "line 4: no page 4 in m.tif, which has 3",
        "line 5: no page 0 in m.tif",
        "line 7: the same page as in line 6",
        "line 8: the path of the image is empty",
    ):
        assert part in text


def test_damaged_pages_are_named_by_row(folder: Path) -> None:
    (folder / "bad.tif").write_bytes(b"")
    with pytest.raises(UserError, match=r"line 2: .*bad\.tif: empty file"):
        read_table(table(folder, "image,label\nbad.tif#2,x\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,kind\na.png,x\n", "no column label"),
        ("image,label,label\na.png,x,y\n", "column label is there twice"),
        ("image,label\n", "no rows below the header"),
        ("image,label\na.png,x,y\n", "line 2: 3 values"),
        ('image,label\n"a.png,x\n', "not a row of a CSV table"),
        ("", "the header is empty"),
    ],
)
def test_tables_that_are_none(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table(table(folder, text))


@pytest.mark.parametrize("form", ["../outside.png", "x/../../outside.png", "link.png", "up/outside.png", "../m.tif#2"])
@pytest.mark.parametrize("given", [True, False])
def test_relative_paths_stay_inside(folder: Path, form: str, given: bool) -> None:
    inside = folder / "tables"
    (inside / "x").mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / "outside.png")
    (inside / "link.png").symlink_to(folder / "outside.png")
    (inside / "up").symlink_to(folder, target_is_directory=True)
    path = table(inside, f"image,label\n{form},x\n")
    with pytest.raises(UserError, match=r"line 2: .* is outside of"):
        read_table(path, base_dir=inside if given else None)
    with pytest.raises(UserError, match=r"line 2: .* is outside of"):
        find_inputs([str(path)], SCORER, base_dir=inside if given else None).item(0)


def test_absolute_paths_stay_in_base_dir(folder: Path) -> None:
    inside = folder / "tables"
    inside.mkdir()
    path = table(inside, f"image,label\n{folder / 'm.tif'}#2,x\n")
    assert read_table(path)[0][0].number == 1
    with pytest.raises(UserError, match=r"line 2: .*m\.tif is outside of"):
        read_table(path, base_dir=inside)
    assert read_table(path, base_dir=folder)[0][0].path == (folder / "m.tif").resolve()
    with pytest.raises(UserError, match="no such folder"):
        read_table(path, base_dir=folder / "nowhere")


def test_a_folder_is_no_page(folder: Path) -> None:
    (folder / "x.png").mkdir()
    with pytest.raises(UserError, match=r"line 2: x\.png is a folder; expected a file"):
        read_table(table(folder, "image,label\nx.png,a\n"))


def test_without_labels(folder: Path) -> None:
    rows = find_inputs([str(table(folder, "image\na.png\nm.tif#2\n"))], SCORER)
    assert [(rows.item(row).name, rows.item(row).path, rows.item(row).part) for row in range(len(rows))] == [
        ("a.png", (folder / "a.png").resolve(), 0),
        ("m.tif#2", (folder / "m.tif").resolve(), 1),
    ]
    with pytest.raises(UserError, match="no rows below the header"):
        find_inputs([str(table(folder, "image\n"))], SCORER)


def test_a_column_page_counts_from_one(folder: Path) -> None:
    rows = find_inputs([str(table(folder, "image,page\nm.tif,2\nm.tif,\nm.tif#2,\nm.tif,0\nm.tif,two\n"))], SCORER)
    assert [rows.item(row).part for row in range(3)] == [1, 0, 1]
    for row, text in ((3, "0"), (4, "two")):
        with pytest.raises(UserError, match=rf"line {row + 2}: page is '{text}'; expected a number from 1"):
            rows.item(row)


def test_rows_that_cannot_be_classified_keep_their_place_and_say_why(folder: Path) -> None:
    path = table(folder, 'image,label\nnone.png,x\na.png,y\nm.tif#0,y\na.png,y\n,y\nb.png,x,y\n"b.png"x,y\nb.png,x\n')
    rows = find_inputs([str(path)], SCORER)
    assert [rows.record(row)[0] for row in range(8)] == ["none.png", "a.png", "m.tif#0", "a.png", "", "", "", "b.png"]
    reasons = {
        2: "no such file: none.png",
        4: "no such file: m.tif#0",
        6: "the path of the image is empty",
        7: "3 values, but the header names 2 columns",
        8: "not a row of a CSV table",
    }
    for line in range(2, 10):
        if line in reasons:
            with pytest.raises(UserError) as error:
                rows.item(line - 2)
            assert str(error.value).startswith(f"{path}, line {line}: {reasons[line]}")
        else:
            assert rows.item(line - 2).path is not None


def test_paths_whose_folders_are_composed_and_files_decomposed_are_found(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "편지é") for form in ("NFC", "NFD"))
    place = tmp_path / decomposed / composed / f"{decomposed}.png"
    place.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(place)
    table = tmp_path / "t.csv"
    table.write_text(f"image,label\n{composed}/{decomposed}/{composed}.png,x\n", encoding="utf-8")
    ((page,), _) = read_table(table)
    assert page.path.is_file()
    assert read_page(page.path, max_pixels=16).shape == (4, 4, 3)

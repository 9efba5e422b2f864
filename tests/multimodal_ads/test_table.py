"""Tables: labels in any usual spelling, texts as they come, and every problem named with its line."""

import csv
import unicodedata
from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.data.table import LABELS, clean_text, read_table

HEADER = "local_image_path,label,text_info\n"


def table(folder: Path, lines: str, *, name: str = "train.csv", header: str = HEADER) -> Path:
    path = folder / name
    path.write_text(header + lines, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with files a.jpg to f.jpg and, beside it, outside.jpg."""
    data = tmp_path / "data"
    data.mkdir()
    for name in "abcdef":
        (data / f"{name}.jpg").write_bytes(b"x")
    (tmp_path / "outside.jpg").write_bytes(b"x")
    return data


@pytest.mark.parametrize(("text", "label"), LABELS.items())
def test_label_spellings(folder: Path, text: str, label: int) -> None:
    lines = "\n".join(
        f"{name}.jpg, {form} ," for name, form in zip("abc", (text, text.upper(), text.title()), strict=True)
    )
    assert [row.label for row in read_table(table(folder, lines), base_dir=None)] == [label] * 3


def test_rows_in_order_with_origin_and_text(folder: Path) -> None:
    path = table(folder, '\nb.jpg,True,"two\nlines, ""quoted"""\na.jpg,0,\nc.jpg,no,nan\nd.jpg,yes,  \n')
    rows = read_table(path, base_dir=None)
    assert [row.image.name for row in rows] == ["b.jpg", "a.jpg", "c.jpg", "d.jpg"]
    assert [row.text for row in rows] == ['two\nlines, "quoted"', "", "", ""]
    assert [row.origin for row in rows] == [f"{path}, line {line}" for line in (3, 5, 6, 7)]
    assert all(row.image.is_absolute() for row in rows)


def test_byte_order_mark_extra_columns_and_order(folder: Path) -> None:
    path = folder / "t.csv"
    path.write_text("id,text_info,label,local_image_path\n7,hello,1,a.jpg\n", encoding="utf-8-sig")
    (row,) = read_table(path, base_dir=None)
    assert (row.text, row.label, row.image) == ("hello", 1, (folder / "a.jpg").resolve())


def test_labels_and_files_that_cannot_be_used_are_named_together(folder: Path) -> None:
    path = table(folder, "a.jpg,maybe,x\nb.jpg,,x\nnone.jpg,1,x\n,1,x\nc.jpg,1,ok\nc.jpg,1,again\n")
    with pytest.raises(UserError) as caught:
        read_table(path, base_dir=None)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: 5 problems"
    assert "line 2: label is 'maybe'; expected true, yes or 1" in lines[0]
    assert "line 3: label is empty" in lines[1]
    assert "line 4: no such file: none.jpg" in lines[2]
    assert "line 5: the path of the image is empty" in lines[3]
    assert "line 7: the same image as in line 6" in lines[4]


def test_many_problems_are_counted(folder: Path) -> None:
    path = table(folder, "".join(f"{n}.png,1,\n" for n in range(13)))
    with pytest.raises(UserError, match="13 problems") as caught:
        read_table(path, base_dir=None)
    assert str(caught.value).splitlines()[-1].strip() == "and 3 more"


@pytest.mark.parametrize("form", ["../outside.jpg", "x/../../outside.jpg", "link.jpg", "folder/outside.jpg"])
@pytest.mark.parametrize("given", [True, False])
def test_relative_paths_stay_inside(folder: Path, form: str, given: bool) -> None:
    (folder / "x").mkdir()
    (folder / "link.jpg").symlink_to(folder.parent / "outside.jpg")
    (folder / "folder").symlink_to(folder.parent, target_is_directory=True)
    path = table(folder, f"{form},1,\n")
    with pytest.raises(UserError, match=r"line 2: .* is outside of"):
        read_table(path, base_dir=folder if given else None)


def test_absolute_paths(folder: Path) -> None:
    outside = folder.parent / "outside.jpg"
    path = table(folder, f"{outside},1,\n")
    assert read_table(path, base_dir=None)[0].image == outside.resolve()
    with pytest.raises(UserError, match="is outside of"):
        read_table(path, base_dir=folder)
    (row,) = read_table(table(folder, f"{folder / 'a.jpg'},1,\n"), base_dir=folder)
    assert row.image == (folder / "a.jpg").resolve()


def test_a_folder_is_no_image(folder: Path) -> None:
    (folder / "x.jpg").mkdir()
    with pytest.raises(UserError, match=r"line 2: x\.jpg is a folder; expected a file"):
        read_table(table(folder, "x.jpg,1,\n"), base_dir=None)


def test_paths_start_at_base_dir(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "tables"
    other.mkdir()
    path = table(other, "data/a.jpg,1,\n")
    assert read_table(path, base_dir=tmp_path)[0].image == (folder / "a.jpg").resolve()
    with pytest.raises(UserError, match="no such folder"):
        read_table(path, base_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a\0.jpg", "x" * 5000 + ".jpg"])
def test_impossible_paths(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"train\.csv, line 2: .* is not a path \("):
        read_table(table(folder, f"{name},1,\n"), base_dir=None)
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    with pytest.raises(UserError, match=r"line 2: .*loop\.jpg"):
        read_table(table(folder, "loop.jpg,1,\n"), base_dir=None)


def test_decomposed_file_names(folder: Path) -> None:
    name = "광고.jpg"
    (folder / unicodedata.normalize("NFD", name)).write_bytes(b"x")
    (row,) = read_table(table(folder, f"{unicodedata.normalize('NFC', name)},1,\n"), base_dir=None)
    assert row.image.is_file()


def test_a_text_of_a_megabyte_and_nul_bytes(folder: Path) -> None:
    limit = csv.field_size_limit()
    long = "광고 sale " * 130_000
    path = table(folder, f'a.jpg,1,"{long}"\nb.jpg,0,"a\0b\x07c\tok\r\nend"\n')
    first, second = read_table(path, base_dir=None)
    assert first.text == long.strip()
    assert second.text == "abc\tok\nend"
    assert csv.field_size_limit() == limit


def test_clean_text_composes() -> None:
    decomposed = unicodedata.normalize("NFD", "할인 café")
    assert clean_text(f" {decomposed}\n") == unicodedata.normalize("NFC", decomposed)
    assert clean_text("NaN") == ""
    assert clean_text("Nantes") == "Nantes"


def test_a_table_needs_labels(folder: Path) -> None:
    path = table(folder, "a.jpg,x\n", header="local_image_path,text_info\n")
    with pytest.raises(UserError, match="no column label"):
        read_table(path, base_dir=None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header is empty"),
        (b"local_image_path,label\na.jpg,1\n", "no column text_info.*leave its values empty"),
        (HEADER.encode(), "no rows below the header"),
        (HEADER.encode() + b"a.jpg,1,x,y\n", "line 2: 4 values, but the header names 3"),
        (HEADER.encode() + b'a.jpg,1,"never closed\n', "line 2: not a row of a CSV table"),
        (HEADER.encode() + "a.jpg,1,할인\n".encode("cp949"), "line 2: not UTF-8"),
        (b"label,label,local_image_path,text_info\n", "the column label is there twice"),
    ],
)
def test_files_that_are_no_table(folder: Path, content: bytes, message: str) -> None:
    (folder / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(folder / "t.csv", base_dir=None)


def test_missing_table(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: cannot be read \(No such file"):
        read_table(folder / "none.csv", base_dir=None)


@pytest.mark.parametrize("encoding", ["cp949", "utf-16", "utf-16-le", "utf-8-sig"])
def test_tables_in_other_encodings_say_the_same(folder: Path, encoding: str) -> None:
    text = '할인 50 %, 오늘만\n"둘째" 줄'
    path = folder / "t.csv"
    quoted = text.replace('"', '""')
    path.write_bytes((HEADER + f'a.jpg,1,"{quoted}"\nb.jpg,0,\n').encode(encoding))
    rows = read_table(path, base_dir=None, encoding=encoding)
    assert [(row.image.name, row.label, row.text) for row in rows] == [("a.jpg", 1, text), ("b.jpg", 0, "")]
    assert [row.origin for row in rows] == [f"{path}, line {line}" for line in (2, 4)]


def test_a_table_in_another_encoding_than_is_said_is_refused(folder: Path) -> None:
    path = table(folder, "a.jpg,1,할인\n")
    with pytest.raises(UserError, match=r"train\.csv: damaged or not a text in ascii"):
        read_table(path, base_dir=None, encoding="ascii")
    with pytest.raises(UserError, match=r"no encoding is called cp9; such are .*cp949"):
        read_table(path, base_dir=None, encoding="cp9")


@pytest.mark.parametrize(
    ("masked", "text"),
    [
        ("ѕАLE now", "sALE now"),
        ("s\u200ba\u00adl\u2060e", "sale"),
        ("ＦＲＥＥ ①", "FREE 1"),
        ("𝐛𝐮𝐲 𝓷𝓸𝔀", "buy now"),
        ("скидка сегодня", "скидка сегодня"),  # Russian, not a mask
        ("오늘만 할인", "오늘만 할인"),
    ],
)
def test_masks_are_taken_off_where_asked(folder: Path, masked: str, text: str) -> None:
    path = table(folder, f"a.jpg,1,{masked}\n")
    assert read_table(path, base_dir=None, unmask=True)[0].text == text
    assert read_table(path, base_dir=None)[0].text == clean_text(masked)
    assert clean_text(text, unmask=True) == text

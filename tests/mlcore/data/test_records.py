"""CSV tables as records, and what is said of those that are none."""

import unicodedata
from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text
from mlcore.data.records import as_stored, failed, read_records


def table(folder: Path, content: str | bytes) -> Path:
    path = folder / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def records(folder: Path, content: str | bytes) -> list[tuple[int, dict[str, str]]]:
    columns = {"optional": ("group",), "hints": {"label": "give it one"}}
    return list(read_records(table(folder, content), ("image", "label"), **columns))


def test_lines_are_those_a_record_starts_in(tmp_path: Path) -> None:
    content = 'image, label ,note\na.png,x,"two\nlines"\n\n ,,\nb.png\n'
    assert records(tmp_path, content) == [
        (2, {"image": "a.png", "label": "x", "note": "two\nlines"}),
        (6, {"image": "b.png", "label": "", "note": ""}),
    ]


def test_byte_order_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    assert records(tmp_path, "image,label\r\na.png,x\r\n".encode("utf-8-sig")) == [
        (2, {"image": "a.png", "label": "x"})
    ]


def test_line_ends_of_old_macs(tmp_path: Path) -> None:
    found = records(tmp_path, 'image,label\ra.png,x\r"two\rlines",y\rb.png,z\r')
    assert [(line, row["image"]) for line, row in found] == [(2, "a.png"), (3, "two\rlines"), (5, "b.png")]


def test_a_field_of_a_megabyte(tmp_path: Path) -> None:
    ((_, record),) = records(tmp_path, f"image,label\na.png,{'x' * 2**20}\n")
    assert len(record["label"]) == 2**20


def test_what_a_spreadsheet_is_not_to_evaluate_is_read_as_it_was(tmp_path: Path) -> None:
    names = ["=1+1.png", "'=x", "-rf", "@a", "+1", "'plain'"]
    content = csv_text([("image", "label"), *((name, "-") for name in names)], exact=True)
    assert "\n'=1+1.png,'-\n" in content
    assert [(row["image"], row["label"]) for _, row in records(tmp_path, content)] == [(name, "-") for name in names]


def test_columns_nobody_reads_may_be_there_twice(tmp_path: Path) -> None:
    assert len(records(tmp_path, "image,label,note,note\na.png,x,1,2\n")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no columns image, label; the header is empty, expected image,label; give it one"),
        ("image\n", "no column label; the header is image, expected image,label; give it one"),
        ("label\n", "no column image; the header is label, expected image,label$"),
        ("x" * 200, r"the header is x{100}\.\.\. \(200 characters\)"),
        ("image,label,image\n", "the column image is there twice"),
        ("group,image,label,group\n", "the column group is there twice"),
        ("image;label\n", "its separator seems to be ';'; expected commas: image,label"),
        ('"image";"label"\n', "its separator seems to be ';'"),
        ("\ufeffimage\tlabel\n", "its separator seems to be a tab"),
        ("image,label\na,b\na,b,c\n", "line 3: 3 values, but the header names 2 columns"),
        ('image,label\n"a,b\n', "line 2: not a row of a CSV table"),
        (
            "image,label\na,\ud560".encode("cp949", "replace") + b"\xff",
            r"line 2: not UTF-8; .*in Excel.*'CSV UTF-8",
        ),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=r"t\.csv.*" + message):
        records(tmp_path, content)


def test_records_that_are_no_rows_may_be_noted_and_cost_no_other_row(tmp_path: Path) -> None:
    content = 'image,label\na,1\nb,2,3\n"c"d,4\ne,5\n"f,6\n"g","two\nlines"\nh,\n"never closed\ni,7\n'
    broken: dict[int, str] = {}
    found = list(read_records(table(tmp_path, content), ("image", "label"), broken=broken))
    assert [(line, record.get("image")) for line, record in found] == [
        (2, "a"), (3, "b"), (4, ""), (5, "e"), (6, ""), (7, "g"), (9, "h"), (10, ""), (11, "i"),
    ]  # fmt: skip
    assert dict(found)[7]["label"] == "two\nlines"
    assert broken.keys() == {3, 4, 6, 10}
    assert broken[3].startswith("3 values, but the header names 2 columns")
    assert all("not a row of a CSV table" in broken[line] for line in (4, 6, 10))


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: cannot be read \(No such file"):
        list(read_records(tmp_path / "none.csv", ()))


def test_problems_are_named_together() -> None:
    assert str(failed(Path("t.csv"), ["line 2: bad"])) == "t.csv, line 2: bad"
    many = str(failed(Path("t.csv"), [f"line {number}: bad" for number in range(2, 14)])).splitlines()
    assert many[0] == "t.csv: 12 problems"
    assert [many[1], many[-1]] == ["  line 2: bad", "  and 2 more"]


def test_files_are_found_however_accents_are_stored_in_each_folder(tmp_path: Path) -> None:
    """Composed, decomposed, and both in one name; on file systems that make no difference, too."""
    composed, decomposed = (unicodedata.normalize(form, "한글 é") for form in ("NFC", "NFD"))
    mixed = composed[:-1] + decomposed[-2:]
    stored = tmp_path / decomposed / composed / mixed
    stored.mkdir(parents=True)
    (stored / f"{decomposed}.png").touch()
    for names in ([composed] * 4, [decomposed] * 4, [composed, decomposed, composed, composed], [mixed] * 4):
        asked = tmp_path.joinpath(*names[:3], f"{names[3]}.png")
        assert as_stored(asked).is_file()
    for missing in (tmp_path / composed / "é.png", tmp_path / "é" / composed, stored / f"{composed}.png" / "é"):
        assert as_stored(missing).name == missing.name
        assert not as_stored(missing).exists()
    assert as_stored(tmp_path / "none") == tmp_path / "none"
    assert not as_stored(Path("é\0")).exists()

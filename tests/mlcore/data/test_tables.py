"""Tables row by row: every row is its own, whatever is wrong with another one."""

import json
import pickle
import random
from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text
from mlcore.data.tables import NOT_UTF8, CsvTable, Table, open_table, warn_of_misspelt

BAD = '\ufeffid,image,note\n1,a.png,"x\ny"\n\n2,"b""q.png",z\n3,"bad"x,1\n4,c.png,,5\n5,d.png\n'


def rows(table: Table) -> list[dict[str, str] | str]:
    found: list[dict[str, str] | str] = []
    for row in range(len(table)):
        try:
            found.append(dict(table.record(row)))
        except UserError as error:
            found.append(str(error))
    return found


def test_a_bad_row_of_a_csv_table_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(BAD.encode() + b'6,\xff.png,k\n7,"open,1\n8,e,\n')
    found = rows(open_table(path))
    assert found[:2] == [{"id": "1", "image": "a.png", "note": "x\ny"}, {"id": "2", "image": 'b"q.png', "note": "z"}]
    assert [str(row).partition(": ")[0] for row in found[2:4]] == [f"{path}, line 6", f"{path}, line 7"]
    assert found[4] == {"id": "5", "image": "d.png", "note": ""}
    assert str(found[5]) == f"{path}, line 9: {NOT_UTF8}"
    assert str(found[6]).startswith(f"{path}, line 10: not a row of a CSV table")
    assert found[7] == {"id": "8", "image": "e", "note": ""}


@pytest.mark.parametrize(
    ("content", "kept", "others"),
    [
        (b'text\nfirst\n""\nthird\n\n  \n', ["first", "", "third"], ["first", "third"]),
        (b"text,image\r\na,b\r\n,\r\n\r\nc,\r\n , \r\n", ["a", "", "c", ""], ["a", "c"]),
        (b'text\n"\n\n"\nlast', ["", "last"], ["last"]),
    ],
)
def test_a_row_of_empty_cells_is_one_where_it_is_asked_for(
    content: bytes, kept: list[str], others: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    for empty_rows, expected in ((True, kept), (False, others)):
        table = CsvTable(path, empty_rows=empty_rows)
        assert [table.record(row)["text"] for row in range(len(table))] == expected
        assert [values[0] for _, values, _ in table.rows()] == expected
        assert [cell for batch in table.batches(["text"]) for cell in batch["text"]] == expected


def test_any_text_comes_back_from_any_row_in_any_order(tmp_path: Path) -> None:
    rng = random.Random(0)
    letters = "a,\"\n;='é한 \t"
    values = [["".join(rng.choices(letters, k=rng.randrange(6))).strip() for _ in range(3)] for _ in range(200)]
    values = [row for row in values if any(row)]
    (tmp_path / "t.csv").write_text(csv_text([["a", "b", "c"], *values], exact=True), encoding="utf-8", newline="")
    lines = [json.dumps(dict(zip("abc", row, strict=True))) for row in values]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("t.csv", "t.jsonl"):
        table = pickle.loads(pickle.dumps(open_table(tmp_path / name)))
        for place in rng.sample(range(len(values)), k=len(values)):
            assert list(table.record(place).values()) == values[place], name


def test_json_lines_have_the_columns_of_all_their_objects(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1, "b": "x"}\n\n[1]\n{"a": null, "c": [1, true]}\nnope\n', encoding="utf-8")
    table = open_table(path)
    found = rows(table)
    assert found[0] == {"a": "1", "b": "x", "c": ""}
    assert found[1] == f"{path}, line 3: expected a JSON object, {{...}}"
    assert found[2] == {"a": "", "b": "", "c": "[1, true]"}
    assert str(found[3]).startswith(f"{path}, line 5: damaged or not a JSON object")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the table has no columns"),
        (b"a,b,a\n1,2,3\n", "the column a is there twice"),
        (b'"a,b\n1,2\n', "line 1: damaged or not a CSV table"),
        (b"image;note\na.png;1\n", "its separator seems to be ';'; expected commas: image,note"),
        (b"\xff\xfe,b\n1,2\n", "line 1: not UTF-8"),
        (b"a,b\n" + b"".join(b'1",",%d\n' % row for row in range(3000)), "damaged or not a CSV table"),
    ],
)
def test_a_file_that_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_table(tmp_path / "t.csv")


def test_a_column_that_may_be_misspelt_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = ["texts", "img", "series", "Group", "labels", "label", "shop"]
    warn_of_misspelt(tmp_path / "t.csv", columns, ["text", "image", "series", "group", "label", "split"])
    assert [message.partition("t.csv: ")[2] for message in caplog.messages] == [
        "the column texts is not read, did you mean 'text'?",
        "the column img is not read, did you mean 'image'?",
        "the column Group is not read, did you mean 'group'?",
    ]


def test_a_parquet_file_is_read_by_row_groups(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"id": list(range(25)), "name": [None, *map(str, range(24))], "tags": [[1]] * 25})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=10)
    read = open_table(tmp_path / "t.parquet")
    assert len(read) == 25
    assert read.record(0) == {"id": "0", "name": "", "tags": "[1]"}
    assert read.record(24) == {"id": "24", "name": "23", "tags": "[1]"}
    (tmp_path / "no.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UserError, match=r"no\.parquet: damaged or not a Parquet file"):
        open_table(tmp_path / "no.parquet")

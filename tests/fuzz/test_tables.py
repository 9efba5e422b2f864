"""CSV tables of every app, and the series of `.ts` files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hypothesis import strategies as st

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_text
from mlcore.data.records import read_records
from mlcore.data.tables import open_table
from quartet.apps.doc_ensemble.data import table as doc_table
from quartet.apps.multimodal_ads.data import table as ads_table
from quartet.apps.multimodal_ads.preparation import Preparation, _table_rows
from quartet.apps.perceiver.data.long_tables import LongColumns, read_long
from quartet.apps.perceiver.data.ts_files import read_ts
from quartet.apps.sam_med3d_ich.data.table import read_cases
from tests.fuzz.cases import Parser, Record, checks_of, explore, judge

CSV = (
    b'"',
    b'""',
    b",",
    b";",
    b"\r\n",
    b"\r",
    b"True",
    b"1.0",
    b"a.png",
    b"../a.png",
    b"/",
    b"#2",
    b"/dev/stdin",
    b"e\xcc\x81",
)
SERIES = """# a comment
@problemName x
@timestamps false
@univariate false
@dimensions 2
@seriesLength 3
@classLabel true up down
@data
1,2,3:4,5.5,-6:up
1,?,3:4,5e-1,6:down
"""
STAMPS = """@timestamps true
@univariate false
@dimensions 2
@classLabel true up down
@data
(0,1),(2.5,2):(1,3):up
(2026-01-31 12:00:00,1),(2026-01-31T12:00:01,?):(2026-02-01,4):down
"""
LONG = "id,time,a,b,label\nx,0,1,2,up\ny,2026-01-31 12:00,3,,down\nx,1,?,4,up\n"
QUOTES = b"".join(b'a",",%d\n' % number for number in range(30_000))


def table(name: str, text: str, *files: str) -> Callable[[Path], object]:
    """Writes a table and the files that it names, which are empty."""

    def write(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).touch()

    return write


ADS = table("t.csv", 'local_image_path,label,text_info\na.png,True,"one, two\nthree"\nb.png,0,\n', "a.png", "b.png")
DOC = table("t.csv", 'image,label,group,note\na.png,letter,7,\n가.png,"x""y",7,z\n', "a.png", "가.png")
SAM = table(
    "t.csv", "path,ich,patient_id\n1.pkl,1,a\n2.nii.gz,0,b\n", "1.pkl", "2.nii.gz", "masks/001.nii", "masks/2.nii.gz"
)


def rows_of(path: Path) -> list[Mapping[str, str] | str]:
    """All rows, or the reasons why they are none."""
    given, found = open_table(path, empty_rows=True), list[Mapping[str, str] | str]()
    for row in range(len(given)):
        try:
            found.append(given.record(row))
        except UserError as error:
            found.append(str(error))
    return found


LATER = Preparation(label_column="label", skip_unreadable=False)
QUADRATIC = {"quotes that never end": b"local_image_path,label,text_info\n" + QUOTES}
PARSERS = [
    Parser(name="ads table", write=ADS, read=lambda folder: ads_table.read_table(folder / "t.csv", base_dir=folder)),
    Parser(name="table to predict", write=ADS, read=lambda folder: rows_of(folder / "t.csv"), found=QUADRATIC),
    Parser(name="ads preparation", write=ADS, read=lambda folder: _table_rows(folder / "t.csv", LATER, [])),
    Parser(name="doc table", write=DOC, read=lambda folder: doc_table.read_table(folder / "t.csv")),
    Parser(name="sam table", write=SAM, read=lambda folder: read_cases(folder / "t.csv", mask_dir=folder / "masks")),
]
for parser in PARSERS:
    many = {
        "a cell of many lines": b'"' + b"x\n" * 40 + b'",label,text_info,image,path,ich,patient_id,local_image_path\n'
    }
    parser.__dict__.update(edited="t.csv", words=CSV, lines=12, found={**parser.found, **many})
PARSERS += [
    Parser(
        name=".ts",
        write=table("x_TRAIN.ts", SERIES),
        read=lambda folder: list(read_ts(folder / "x_TRAIN.ts", on_missing="interpolate")),
        words=[
            b"@data",
            b"@classLabel",
            b"@dimensions",
            b"@timestamps true",
            b"(0,1)",
            b"?",
            b":",
            b"inf",
            b"\xe2\x91\xa0",
        ],
        found={
            "not a digit": b"@dimensions \xc2\xb2\n@data\n",
            "many digits": b"@seriesLength " + b"9" * 5000 + b"\n@data\n",
            "too large for 32 bits": b"@data\n1,2:3,1e300:a\n",
        },
    ),
    Parser(
        name=".ts with time stamps",
        write=table("x_TRAIN.ts", STAMPS),
        read=lambda folder: list(read_ts(folder / "x_TRAIN.ts", on_missing="interpolate")),
        words=[b"(", b")", b"),(", b":", b",", b"?", b"inf", b"1e400", b"0001-01-01", b"2026-01-31 24:00:00+99:00"],
        share=0.3,
    ),
    Parser(
        name="series in long format",
        write=table("t.csv", LONG),
        read=lambda folder: list(read_long(folder / "t.csv", LongColumns(id="id", time="time"), on_missing="mask")),
        words=[*CSV, b"id", b"time", b"1e400", b"nan", b"0001-01-01", b"9999-12-31T23:59:59-23:59"],
        share=0.3,
        lines=12,
    ),
]

test_a_damaged_file_is_a_value_or_one_error, test_inputs_that_went_wrong_once = checks_of(PARSERS)


def test_what_is_written_as_csv_is_read_again(tmp_path: Path, record_property: Record) -> None:
    path = tmp_path / "t.csv"

    def check(rows: Sequence[Sequence[str]]) -> str:
        write_text(path, csv_text([("a", "b"), *rows], exact=True))
        found: list[list[str]] = []
        outcome = judge(lambda: found.extend(list(row.values()) for _, row in read_records(path, ("a", "b"))), names=[])
        assert found == [stripped for row in rows if any(stripped := [cell.strip() for cell in row])]
        return outcome

    cell = st.text(max_size=12) | st.sampled_from(["", " ", '"', "a,b", "a\nb", "\r", "'"])
    explore(st.lists(st.tuples(cell, cell), max_size=5), check, record=record_property)

"""Folders and tables become the tables that training reads; texts come from Tesseract, or a clear error does."""

import csv
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.data.images import content_digest
from quartet.apps.multimodal_ads.data import ocr
from quartet.apps.multimodal_ads.data.duplicates import check_duplicates
from quartet.apps.multimodal_ads.data.generated_pictures import draw_picture
from quartet.apps.multimodal_ads.data.table import AdRow, read_table
from quartet.apps.multimodal_ads.preparation import Preparation, Sources, prepare_data, run

# Knows two languages, finds the name of the language and the size of the picture's file, and counts its runs.
TESSERACT = """#!{python}
import os, sys
if "WANDB_API_KEY" in os.environ or any("word-for-proxy" in value for value in os.environ.values()):
    sys.exit("it was given a secret")
if "--list-langs" in sys.argv:
    print("List of available languages (2):\\neng\\nkor")
elif "--version" in sys.argv:
    print("tesseract 5.3.0")
else:
    with open({log!r}, "a") as log:
        log.write("run\\n")
    with open(sys.argv[2] + ".txt", "w") as out:
        out.write("SALE " + sys.argv[sys.argv.index("-l") + 1] + "\\n\\x0c")
"""


@pytest.fixture
def tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for Tesseract on the PATH; returns the file with a line for each picture it was run on."""
    folder, log = tmp_path / "bin", tmp_path / "runs.txt"
    folder.mkdir()
    (folder / "tesseract").write_text(TESSERACT.format(python=sys.executable, log=str(log)), encoding="utf-8")
    (folder / "tesseract").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:word-for-proxy@127.0.0.1:9")
    return log


def runs(log: Path) -> int:
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folders ad (10 pictures, some deeper) and not_ad (20)."""
    folder = tmp_path / "pictures"
    for n in range(30):
        place = folder / ("ad/deeper" if n < 5 else "ad" if n < 10 else "not_ad")
        place.mkdir(parents=True, exist_ok=True)
        draw_picture(np.random.default_rng(n), priced=n < 10).save(place / f"{n}.jpg")
    return folder


def read(output: Path, *, base_dir: Path | None = None) -> dict[str, list[AdRow]]:
    return {name: read_table(output / f"{name}.csv", base_dir=base_dir) for name in ("train", "val", "test")}


def test_folders(pictures: Path, tmp_path: Path) -> None:
    (pictures / "ad/notes.txt").write_text("no picture", encoding="utf-8")
    output = tmp_path / "out"
    prepare_data(Sources(train=pictures), output, Preparation(val_fraction=0.2, test_fraction=0.1))
    parts = read(output)
    assert {name: (len(rows), sum(row.label for row in rows)) for name, rows in parts.items()} == {
        "train": (21, 7),
        "val": (6, 2),
        "test": (3, 1),
    }
    rows = [row for part in parts.values() for row in part]
    assert {row.image for row in rows} == {path.resolve() for path in pictures.rglob("*.jpg")}
    assert all(row.label == int("not_ad" not in row.image.parts) for row in rows)
    assert sorted(path.name for path in output.iterdir()) == ["test.csv", "train.csv", "val.csv"]


def test_paths_relative_to_base_dir(pictures: Path, tmp_path: Path) -> None:
    prepare_data(Sources(train=pictures), tmp_path / "out", Preparation(base_dir=tmp_path))
    assert "\npictures/" in (tmp_path / "out/train.csv").read_text(encoding="utf-8")
    assert len(read(tmp_path / "out", base_dir=tmp_path)["train"]) == 20
    with pytest.raises(UserError, match="is outside of --base_dir"):
        prepare_data(Sources(train=pictures), tmp_path / "again", Preparation(base_dir=tmp_path / "out"))
    assert not (tmp_path / "again").exists()


def test_copies_go_to_one_part(pictures: Path, tmp_path: Path) -> None:
    for n in range(30):
        original = next(pictures.rglob(f"{n}.jpg"))
        draw_picture(np.random.default_rng(n), priced=n < 10).save(original.with_name(f"copy{n}.png"))
    prepare_data(Sources(train=pictures), tmp_path / "out", Preparation())
    assert check_duplicates(read(tmp_path / "out"), allow=False, max_pixels=10**8) == []


def table(pictures: Path, name: str, numbers: range, *, labels: tuple[str, str] = ("banner", "news")) -> Path:
    path = pictures / name
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "file", "words"])
        for n in numbers:
            place = next(pictures.rglob(f"{n}.jpg")).relative_to(pictures)
            writer.writerow([labels[int(n >= 10)], place, f"text, {n}" if n % 2 else ""])
    return path


COLUMNS = {"image_column": "file", "label_column": "kind", "text_column": "words"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_any_table(pictures: Path, tmp_path: Path, encoding: str) -> None:
    source = table(pictures, "all.csv", range(30))
    source.write_text(source.read_text("utf-8"), encoding)
    settings = Preparation(**COLUMNS, ad_labels=("Banner",), encoding=encoding)
    prepare_data(Sources(train=source), tmp_path / "out", settings)
    rows = [row for part in read(tmp_path / "out").values() for row in part]
    assert len(rows) == 30
    for row in rows:
        number = int(row.image.stem)
        assert row.label == int(number < 10)
        assert row.text == (f"text, {number}" if number % 2 else "")


def test_tables_given_for_parts_stay(pictures: Path, tmp_path: Path) -> None:
    sources = Sources(train=table(pictures, "a.csv", range(5, 30)), val=table(pictures, "b.csv", range(3)), test=None)
    settings = Preparation(**COLUMNS, ad_labels=("banner",), test_fraction=0.2)
    parts = prepare_data(sources, tmp_path / "out", settings)
    assert [row.image.stem for row in parts["val"]] == ["0", "1", "2"]
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 20, "val": 3, "test": 5}
    both = Sources(train=sources.train, val=sources.val, test=table(pictures, "c.csv", range(3, 5)))
    parts = prepare_data(both, tmp_path / "both", settings)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 25, "val": 3, "test": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Preparation(), "no columns local_image_path, label, text_info"),
        (Preparation(**COLUMNS), r"30 problems\n  line 2: label is 'banner'.*--ad_labels"),
        (Preparation(**COLUMNS, ad_labels=("poster",)), r"no row has the label poster .*labels are banner, news"),
        (Preparation(**COLUMNS, ad_labels=("banner",), val_fraction=0.7, test_fraction=0.4), "no training part"),
        (Preparation(**COLUMNS, ad_labels=("banner",), max_megapixels=0.001), "30 of 30 images cannot be used"),
    ],
)
def test_what_cannot_be_used(pictures: Path, tmp_path: Path, settings: Preparation, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_data(Sources(train=table(pictures, "all.csv", range(30))), tmp_path / "out" / "deeper", settings)
    assert not (tmp_path / "out").exists()


def test_missing_class_folder(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"deeper/ad: no images; expected pictures in the folders ad and not_ad"):
        prepare_data(Sources(train=pictures / "ad/deeper"), tmp_path / "out", Preparation())
    with pytest.raises(UserError, match="cannot be read"):
        prepare_data(Sources(train=tmp_path / "none"), tmp_path / "out", Preparation())


def test_tables_are_not_written_over(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"val\.csv: exists already"):
        prepare_data(Sources(train=pictures), tmp_path, Preparation())
    assert (tmp_path / "val.csv").read_text(encoding="utf-8") == "mine"


def test_all_tables_are_written_or_none(pictures: Path, tmp_path: Path) -> None:
    """The table of the training pictures, which is the largest and the last, does not fit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        with pytest.raises(UserError, match=r"train\.csv"):
            prepare_data(Sources(train=pictures), tmp_path / "out", Preparation(base_dir=tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()


def test_unreadable_images(pictures: Path, tmp_path: Path) -> None:
    (pictures / "ad/7.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 30 images cannot be used:\n.*7\.jpg: empty file"):
        prepare_data(Sources(train=pictures), tmp_path / "out", Preparation())
    parts = prepare_data(Sources(train=pictures), tmp_path / "out", Preparation(skip_unreadable=True))
    assert sum(map(len, parts.values())) == 29
    ((image, origin, reason),) = left_out_of(tmp_path / "out")
    assert image == origin == str(pictures / "ad/7.jpg")
    assert "empty file" in reason


def left_out_of(output: Path) -> list[list[str]]:
    with (output / "left_out.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "origin", "reason"]
    return rows


def test_rows_of_a_table_that_cannot_be_used_are_left_out_one_by_one(pictures: Path, tmp_path: Path) -> None:
    source = table(pictures, "all.csv", range(30))
    header, *lines = source.read_text("utf-8").splitlines()
    bad = ["banner,none.jpg,x", lines[0], "banner,ad/9.jpg,50 % off, today", '"banner"x,ad/9.jpg,y', ",ad/9.jpg,z"]
    (pictures / "not_ad/12.jpg").write_bytes(b"")
    mixed = [*lines[:3], bad[0], *lines[3:9], *bad[1:], *lines[10:]]  # all but the good row of 9.jpg
    source.write_text("\n".join([header, *mixed]) + "\n", "utf-8")
    settings = Preparation(**COLUMNS, ad_labels=("banner",), skip_unreadable=True)
    parts = prepare_data(Sources(train=source), tmp_path / "out", settings)
    assert sum(map(len, parts.values())) == 28
    rows = left_out_of(tmp_path / "out")
    assert [origin for _, origin, _ in rows] == [f"{source}, line {line}" for line in (5, 12, 13, 14, 15, 18)]
    assert [image for image, _, _ in rows] == [
        "none.jpg",
        "ad/deeper/0.jpg",
        "ad/9.jpg",
        "",
        "ad/9.jpg",
        "not_ad/12.jpg",
    ]
    expected = (
        "no such file",
        "the same image as in line 2",
        "4 values",
        "not a row of a CSV table",
        "label is ''",
        "empty file",
    )
    for (_, _, reason), words in zip(rows, expected, strict=True):
        assert words in reason


def test_where_all_is_left_out_the_reasons_are_there(pictures: Path, tmp_path: Path) -> None:
    source = table(pictures, "all.csv", range(30))
    for path in pictures.rglob("*.jpg"):
        path.write_bytes(b"")
    settings = Preparation(**COLUMNS, ad_labels=("banner",), skip_unreadable=True)
    with pytest.raises(UserError, match=r"all\.csv: none of its rows can be used, .*left_out\.csv has the reasons"):
        prepare_data(Sources(train=source), tmp_path / "out", settings)
    assert len(left_out_of(tmp_path / "out")) == 30
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["left_out.csv"]


# ----------------------------------------------------------------------------------------------------------------- OCR


def test_ocr_fills_what_is_missing(pictures: Path, tmp_path: Path, tesseract: Path) -> None:
    source = table(pictures, "all.csv", range(30))
    prepare_data(
        Sources(train=source), tmp_path / "out", Preparation(**COLUMNS, ad_labels=("banner",), ocr=True, ocr_lang="eng")
    )
    for row in [row for part in read(tmp_path / "out").values() for row in part]:
        number = int(row.image.stem)
        assert row.text == (f"text, {number}" if number % 2 else "SALE eng")
    assert runs(tesseract) == 15
    assert not (tmp_path / "out/ocr.jsonl").exists()


def test_ocr_goes_on_where_it_stopped(pictures: Path, tmp_path: Path, tesseract: Path) -> None:
    (pictures / "not_ad/29.jpg").write_bytes(b"broken")
    settings = Preparation(ocr=True)
    with pytest.raises(UserError, match=r"29\.jpg"):
        prepare_data(Sources(train=pictures), tmp_path / "out", settings)
    record = tmp_path / "out/ocr.jsonl"
    done = len(record.read_text(encoding="utf-8").splitlines())
    assert 20 <= done <= 29
    with record.open("a", encoding="utf-8") as file:
        file.write('{"image": "cut o')
    (pictures / "not_ad/29.jpg").unlink()
    before = runs(tesseract)
    parts = prepare_data(Sources(train=pictures), tmp_path / "out", settings)
    assert {row.text for rows in parts.values() for row in rows} == {"SALE kor+eng"}
    assert runs(tesseract) - before == 29 - done


def test_ocr_that_finds_nothing_leaves_nothing(pictures: Path, tmp_path: Path, tesseract: Path) -> None:
    for path in pictures.rglob("*.jpg"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="not an image"):
        prepare_data(Sources(train=pictures), tmp_path / "out", Preparation(ocr=True))
    assert not (tmp_path / "out").exists()


def test_other_languages_are_looked_for_again(pictures: Path, tmp_path: Path, tesseract: Path) -> None:
    (row,) = (AdRow(path, 1, "", str(path)) for path in pictures.rglob("3.jpg"))
    record = tmp_path / "ocr.jsonl"
    for languages, count in (("eng", 1), ("eng", 1), ("kor", 2)):
        assert ocr.recognise([row], languages=languages, max_pixels=10**8, record=record) == [f"SALE {languages}"]
        assert runs(tesseract) == count
    assert content_digest(row.image) in record.read_text(encoding="utf-8")


def test_unknown_language(pictures: Path, tmp_path: Path, tesseract: Path) -> None:
    message = (
        r"does not know jpn \(it knows eng, kor\): apt-get install tesseract-ocr tesseract-ocr-eng tesseract-ocr-jpn"
    )
    with pytest.raises(UserError, match=message):
        prepare_data(Sources(train=pictures), tmp_path / "out", Preparation(ocr=True, ocr_lang="eng+jpn"))


def test_no_tesseract(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"not installed.*: apt-get install tesseract-ocr tesseract-ocr-kor tesseract-ocr-eng"
    ):
        prepare_data(Sources(train=pictures), tmp_path / "out", Preparation(ocr=True))


def test_no_pytesseract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytesseract", None)
    with pytest.raises(UserError, match="pip install pytesseract"):
        ocr.check_tesseract("eng")


# -------------------------------------------------------------------------------------------------------- command line


def test_command_line(pictures: Path, tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, str(repository / "apps/multimodal_ads/prepare.py"), "--input", str(pictures)]
    command += ["--output", str(tmp_path / "out"), "--val_fraction", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["split", "pictures", "ads", "without", "text"]
    assert lines[2] == ["val", "6", "2", "6"]
    assert f"data.test_csv={tmp_path / 'out'}/test.csv" in done.stdout
    assert "left out" not in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: {tmp_path / 'out/train.csv'}: exists already")
    assert "Traceback" not in again.stderr


def test_the_summary_says_what_was_left_out_and_what_will_be_cut_off(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "pictures.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["local_image_path", "label", "text_info"])
        for n in range(30):
            writer.writerow([str(next(pictures.rglob(f"{n}.jpg"))), n < 10, "sale " * (40 if n % 2 else 10)])
        writer.writerow(["none.jpg", 1, "x"])
    settings = Preparation(
        skip_unreadable=True, text_encoder="minilm", max_length=32, val_fraction=0.4, test_fraction=0
    )
    assert run(Sources(train=source), tmp_path / "out", settings) == 0
    said = capsys.readouterr().out
    assert f"left out: 1; {tmp_path / 'out' / 'left_out.csv'} has the reasons" in said
    for split in ("train", "val"):
        assert f"{split}: " in said
    assert "texts are longer than the 32 tokens that the text encoder reads" in said
    with pytest.raises(UserError, match=r"max_length=600: .*give 512 or less"):
        run(Sources(train=source), tmp_path / "new", replace(settings, max_length=600))
    assert not (tmp_path / "new").exists()


def test_documents(real_data: Path, tmp_path: Path) -> None:
    """Real pages; a fifth of them are advertisements."""
    documents = real_data / "documents"
    settings = Preparation(image_column="image", text_column="text", ad_labels=("advertisement",))
    val = prepare_data(Sources(train=documents / "val.csv"), tmp_path / "out", settings)
    rows = [row for part in val.values() for row in part]
    assert len(rows) == 375
    assert 0.1 < np.mean([row.label for row in rows]) < 0.3
    shares = [np.mean([row.label for row in part]) for part in val.values()]
    assert max(shares) - min(shares) < 0.03
    assert len(read(tmp_path / "out")["train"]) == len(val["train"])

"""What is read of tables of raw samples, and what is said of rows that cannot be used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mlcore.base.errors import UserError
from quartet.apps.perceiver.build import parts_of
from quartet.apps.perceiver.config import DataConfig, PerceiverConfig
from quartet.apps.perceiver.data.manifest import RawDataset, load_raw
from quartet.apps.perceiver.data.raw import read_series
from quartet.apps.perceiver.data.raw_batches import inspect_raw
from quartet.apps.perceiver.data.sources import load_sources, samples_to_check

GOOD = {"text": "gut ß", "label": "a"}
OTHER = {"text": "x", "label": "b"}


def lines(folder: Path, *rows: dict[str, Any], name: str = "table.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def train(path: Path, **settings: Any) -> RawDataset:
    return load_raw(DataConfig(dataset="manifest", **settings), path)["train"]


def test_values_stay_what_they_are(tmp_path: Path) -> None:
    Image.new("L", (8, 4), 200).save(tmp_path / "grey.png")
    np.save(tmp_path / "s.npy", np.arange(3))
    rows = [
        {"text:title": "gut ß\0", "image": "grey.png", "series:a": [[1, 2], [3, None], [5, 6]], "label": 10},
        {"series": "s.npy", "image": None, "label": 9},
    ]
    dataset = train(lines(tmp_path, *rows), on_missing="interpolate")
    assert dataset.classes == ("9", "10")
    first, second = dataset[0]["input"], dataset[1]["input"]
    assert bytes(first["text:title"]) == "gut ß ".encode()
    assert (first["image"] == np.full((4, 8, 3), 200, dtype=np.uint8)).all()
    assert first["series:a"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert {value.dtype.name for value in first.values()} == {"uint8", "float32"}
    assert [*second] == ["series"]
    assert second["series"].tolist() == [[0], [1], [2]]


def test_the_three_kinds_of_tables_say_the_same(tmp_path: Path) -> None:
    rows = [{"text": "eins", "series": [1.5, 2.0], "label": "a"}, {"text": "", "series": [0.0], "label": "b"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    (tmp_path / "table.csv").write_text('text,series,label\neins,"[1.5, 2.0]",a\n,[0.0],b\n', encoding="utf-8")
    found = [train(path) for path in (lines(tmp_path, *rows), tmp_path / "table.parquet", tmp_path / "table.csv")]
    for dataset in found:
        assert [[*dataset[place]["input"]] for place in range(2)] == [["text", "series"], ["series"]]
        assert dataset[0]["input"]["series"].tolist() == [[1.5], [2.0]]
        assert dataset.reader.modalities == found[0].reader.modalities


def test_what_is_read_of_a_table_and_what_may_be_misspelt_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    row = {"texts": "ab", "image:front": None, "series": [1, 2], "label": "a", "grp": "x"}
    train(lines(tmp_path, row, {**row, "label": "b"}))
    said = [message.partition("table.jsonl: ")[2] for message in caplog.messages]
    assert said == [
        "reads image:front, series; label",
        "the column texts is not read, did you mean 'text'?",
        "the column grp is not read, did you mean 'group'?",
    ]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("s.npz", lambda path: np.savez(path, series=np.array([[1, 2], [3, 4]]))),
        ("s.csv", lambda path: path.write_text("x,y\n1,2\n3,4\n")),
        ("t.csv", lambda path: path.write_text("1,2\n3,4\n")),
    ],
)
def test_series_come_from_several_kinds_of_files(name: str, write: Any, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert read_series(tmp_path / name).tolist() == [[1, 2], [3, 4]]


def test_a_gap_in_a_csv_file_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("1,2\n,4\n")
    assert np.isnan(read_series(tmp_path / "s.csv")[1, 0])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"text": "", "image": None}, "there is nothing in text, image, series; expected at least one of them"),
    ({"image": "no.png"}, "image: no such file: no.png"),
    ({"image": "broken.png"}, "image: .*broken.png: not an image"),
    ({"image": "../a.png"}, "image: ../a.png is outside of"),
    ({"image": "small.png"}, r"image: 2x2 pixels \(set image_size\) where others have 4x4"),
    ({"series": [[1, 2], [3]]}, "series: the list: damaged or not a series"),
    ({"series": [[1, 2, 3]]}, "series: 3 channels where others have 2"),
    ({"series": [[1, 2], [None, 3], [4, 5]]}, "series: step 1, channel 0 is nan, .*on_missing interpolate"),
    ({"series": [[1, 2], [1e400, 3]]}, "series: step 1, channel 0 is inf"),
    ({"series": []}, r"series: a series of shape \[0, 1\]"),
    ({"series": "objects.npy"}, "series: .*objects.npy: damaged or not a series of numbers"),
    ({"series": "cut.npy"}, "series: .*cut.npy: damaged or not a series of numbers"),
    ({"series": "two.npz"}, "series: .*two.npz: holds the arrays a, b; expected one"),
    ({"series": "a.png"}, "series: .*a.png: expected a series: .npy, .npz, .csv"),
    ({"series": "words.csv"}, "series: .*words.csv: damaged or not a series of numbers"),
    ({"text": "y" * 50}, "text: 50 positions are more than max_seq_len=40"),
    ({"text": "y", "label": ""}, "label '' is not one of a, b"),
]


def test_an_odd_first_row_condemns_itself_alone(tmp_path: Path) -> None:
    good = [{"series": [[1, 2, 3]], "label": label} for label in "abab"]
    path = lines(tmp_path, {"series": [[1, 2]], "label": "a"}, *good)
    dataset = train(path)
    assert [dataset[place]["input"]["series"].shape for place in range(1, 5)] == [(1, 3)] * 4
    with pytest.raises(UserError, match=r"line 1: series: 2 channels where others have 3"):
        dataset[0]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_a_row_that_cannot_be_used_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    for name, side in (("a.png", 4), ("small.png", 2)):
        Image.new("RGB", (side, side)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "whole.npy", np.zeros((50, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:200])
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "words.csv").write_text("a,b\n1,2\nx,3\n")
    good = {"text": "x", "image": "a.png", "series": [[1, 2]], "label": "a"}
    path = lines(tmp_path, good, {**good, "label": "b"}, {"label": "a", **row})
    dataset = train(path, max_seq_len=40)
    with pytest.raises(UserError, match=message) as told:
        dataset[2]
    assert str(told.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(told.value)
    looking: Any = {"classes": dataset.classes, "modalities": dataset.reader.modalities, "name": "training data"}
    with pytest.raises(UserError, match=rf"training data cannot be used:\n.*line 3: {message}"):
        inspect_raw(dataset, **looking)
    look = inspect_raw(dataset, **looking, on_bad_sample="skip")
    assert look.kept.tolist() == [0, 1]
    assert len(look.problems) == 1
    assert look.rows[0] == ("samples", "2 (1 skipped)")
    checked = samples_to_check(DataConfig(dataset="manifest", train_path=path, max_seq_len=40), seed=0)
    with pytest.raises(UserError, match=message):
        checked["train"][2]


def test_rows_in_another_encoding_are_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"text,label\ngut,a\nsch\xf6n,b\nnein,b\n")
    dataset = train(path)
    assert [dataset[place]["label"] for place in (0, 2)] == [0, 1]
    with pytest.raises(UserError, match=r"table\.csv, line 3: not UTF-8"):
        dataset[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text:": "x", "label": "a"}], r"the column 'text:' needs a name"),
        ([{"text:a b": "x", "label": "a"}], r"the column 'text:a b' needs a name"),
        ([{"words": "x", "label": "a"}], "its columns are words, label; expected label and at least one of text"),
        ([{"text": "x"}], "expected label and at least one of"),
        ([{**GOOD, "split": "train"}, {**GOOD, "split": "dev"}], "line 2: split is 'dev'; expected train, val or test"),
        ([{**GOOD, "split": "val"}], "no row of the split train"),
        ([{**GOOD, "image": "no.png"}], "line 1: image: no such file"),
        (
            [{**GOOD, "split": "train", "group": "g"}, {**OTHER, "split": "test", "group": "g"}],
            r"line 2: the group 'g' is in test, and in train \(.*line 1\)",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_named(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    path = lines(tmp_path, *rows)
    with pytest.raises(UserError, match=message) as told:
        train(path)
    assert str(told.value).startswith(str(path))


def test_other_files_must_be_like_the_training_data(tmp_path: Path) -> None:
    path = lines(tmp_path, GOOD, OTHER)
    more = lines(tmp_path, {**GOOD, "image": "a.png"}, name="more.jsonl")
    with pytest.raises(UserError, match=r"more\.jsonl: the column image is not in the training data"):
        load_raw(DataConfig(dataset="manifest", val_path=more), path)
    split = [{**GOOD, "split": "val"}, {**OTHER, "label": "c", "split": "test"}]
    whole = load_raw(DataConfig(dataset="manifest", test_path=lines(tmp_path, *split, name="t.jsonl")), path)["test"]
    assert len(whole) == 2  # all of it is the test data
    with pytest.raises(UserError, match=r"t\.jsonl, line 2: label 'c' is not one of a, b"):
        whole[1]


def test_texts_are_cut_where_asked(tmp_path: Path) -> None:
    dataset = train(lines(tmp_path, {"text": "äöü", "label": "a"}, OTHER), max_seq_len=4, on_too_long="truncate")
    assert bytes(dataset[0]["input"]["text"]) == "äö".encode()


@pytest.mark.parametrize("folds", [0, 3])
def test_groups_stay_together(folds: int, tmp_path: Path) -> None:
    rows = [{"text": f"{k}", "label": "ab"[k // 3 % 2], "group": f"g{k // 3}"} for k in range(48)]
    path = lines(tmp_path, *rows)
    protocol = {"folds": folds, "inner": 2, "fold": 1} if folds else {}
    config = PerceiverConfig.model_validate(
        {"data": {"dataset": "manifest", "train_path": path, "val_fraction": 0.25}, "protocol": protocol}
    )
    parts = parts_of(load_sources(config.data, seed=0), config)
    groups = [{part.group(place) for place in range(len(part))} for part in parts.values()]  # type: ignore[attr-defined]
    assert len(parts) == (3 if folds else 2)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 16

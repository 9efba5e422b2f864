"""Series in long format: rows of CSV and Parquet tables become the samples that arrays of the same numbers are."""

import csv
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.long_tables import LongColumns, read_long
from tests.perceiver.conftest import Script

COLUMNS = LongColumns(id="unit", time="at")
Rows = Sequence[Mapping[str, Any]]


def rows(series: int = 12, *, seed: int = 0) -> list[dict[str, Any]]:
    """Series of two channels, the second of which tells the class, at irregular times; all rows in order of time."""
    rng = np.random.default_rng(seed)
    found = [
        {
            "unit": f"u{k}",
            "at": at,
            "a": rng.normal(),
            "b": rng.normal() + 4 * (k % 2),
            "label": "yes" if k % 2 else "no",
        }
        for k in range(series)
        for at in np.cumsum(rng.uniform(0.5, 2, 6 + k % 4)).tolist()
    ]
    return sorted(found, key=lambda row: row["at"])


def save(path: Path, table: Rows) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist([dict(row) for row in table]), path, row_group_size=7)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_become_series(suffix: str, tmp_path: Path) -> None:
    table = rows()
    data = read_long(save(tmp_path / f"t{suffix}", table), COLUMNS)
    assert (data.classes, list(data.channels)) == (("no", "yes"), ["a", "b"])
    assert len(data) == 12
    for place in range(12):
        unit = data.origin(place).rpartition(" ")[2]
        own = [row for row in table if row["unit"] == unit]
        expected = np.array([[row["a"], row["b"], row["at"] - own[0]["at"]] for row in own])
        np.testing.assert_allclose(data[place]["input"], expected, rtol=1e-6, atol=1e-6)
        assert data.classes[data[place]["label"]] == own[0]["label"]
        assert data[place]["mask"].all()


def test_dates_gaps_and_labels_of_their_own(tmp_path: Path) -> None:
    zero = datetime(2026, 1, 31, 23, 0, tzinfo=UTC)
    kept = [
        {"unit": 3, "at": zero, "a": 1.0, "note": 5},
        {"unit": 3, "at": zero.replace(minute=30), "a": None, "note": 5},
        {"unit": 3, "at": zero.replace(minute=40), "a": 3.0, "note": 5},
        {"unit": 7, "at": zero, "a": 4.0, "note": 5},
    ]
    save(tmp_path / "labels.csv", [{"unit": 7, "label": "b"}, {"unit": 3, "label": "a"}, {"unit": 9, "label": "c"}])
    columns = LongColumns(id="unit", time="at", channels=("a",), labels=tmp_path / "labels.csv")
    for suffix in (".csv", ".parquet"):
        data = read_long(save(tmp_path / f"t{suffix}", kept), columns, on_missing="interpolate")
        np.testing.assert_allclose(data[0]["input"], [[1, 0], [2.5, 1800], [3, 2400]])
        assert [data.classes[sample["label"]] for sample in (data[0], data[1])] == ["a", "b"]
        assert data.classes == ("a", "b")


def changed(place: int, **values: Any) -> Callable[[], list[dict[str, Any]]]:
    def change() -> list[dict[str, Any]]:
        table = sorted(rows(4), key=lambda row: row["unit"])  # of u0 rows 0 to 5, of u1 6 to 12
        table[place] |= values
        return table

    return change


@pytest.mark.parametrize(
    ("change", "series", "message"),
    [
        (changed(8, at=0.0), 1, "line 10: the time stamp 0 does not come after"),
        (changed(7, at="soon"), 1, "line 9: the time stamp is missing, or neither a number nor a date"),
        (changed(6, at=""), 1, "line 8: the time stamp is missing"),
        (changed(9, label="no"), 1, "line 11: label 'no', and 'yes' before; a series has one"),
        (changed(2, a="much"), 0, "line 4: a 'much' is not a number; data.channels names"),
    ],
    ids=["backwards", "no time", "first without time", "two labels", "no number"],
)
def test_a_row_that_cannot_be_used_is_one_bad_series(
    change: Callable[[], Rows], series: int, message: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "t.csv", change())
    data = read_long(path, COLUMNS)
    with pytest.raises(UserError, match=rf"t\.csv, series u{series}: {message}"):
        data[series]
    assert len(data[3 - series]["input"])


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (
            rows(2),
            {"time": "when"},
            "no column when; its columns are unit, at, a, b, label; --time_column, null for none,",
        ),
        (rows(2), {"channels": ("c",)}, r"no column c; .*; data\.channels names another one"),
        (changed(4, unit="")(), {}, "line 6: unit is empty; expected a series"),
        ([{"unit": 1, "at": 2, "label": 3}], {}, "no columns of values besides unit, at, label"),
        ([{"unit": 1, "at": 2, "a": 3, "label": ""}], {}, "no series has a label"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(table: Rows, columns: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"t\.csv.*{message}"):
        read_long(save(tmp_path / "t.csv", table), LongColumns(**({"id": "unit", "time": "at"} | columns)))


def test_forecasts_and_gaps_are_called_by_the_columns_of_the_table(script: Script, tiny: Sequence[str]) -> None:
    table = rows(16)
    save(Path("train.csv"), table)
    data = shlex.split("--dataset long --id_column unit --time_column at --baseline none --task forecast --horizon 2")
    train = ("train", *tiny, *data, "data.channels=[a,b]", "--train_path")
    assert script(*train, "train.csv", "--output_dir", "run").code == 0
    assert script("predict", "--model_path", "run", "train.csv").code == 0
    with Path("predictions.csv").open(encoding="utf-8", newline="") as file:
        assert csv.DictReader(file).fieldnames == ["input", "a", "b", "problem"]
    save(Path("gap.csv"), [{**row, "b": "" if place == 20 else row["b"]} for place, row in enumerate(table)])
    ended = script(*train, "gap.csv", "--output_dir", "other")
    assert "position 1, b is nan, not a finite number; on_missing says" in ended.err
    script("predict", "--model_path", "run", "gap.csv", "--output", "gap.jsonl")
    assert "position 1, b is nan, not a finite number" in Path("gap.jsonl").read_text("utf-8")


def test_a_table_of_labels_without_the_column_names_the_flag(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", rows(2))
    labels = save(tmp_path / "labels.csv", [{"unit": "u0", "state": "yes"}])
    message = r"labels\.csv: no column label; its columns are unit, state; --label_column names another one"
    with pytest.raises(UserError, match=message):
        read_long(path, LongColumns(id="unit", time="at", labels=labels))


def test_classes_of_rows_and_targets_of_series(tmp_path: Path) -> None:
    table = [{"unit": unit, "a": step, "label": step % 2} for unit in range(3) for step in range(4)]
    path, columns = save(tmp_path / "t.parquet", table), LongColumns(id="unit", time=None)
    steps = read_long(path, columns, kind="per_step")
    assert steps.targets is not None
    assert steps.targets.names == ("0", "1")
    assert steps[1]["target"].tolist() == [0, 1, 0, 1]
    assert steps[1]["input"].shape == (4, 1)  # without time stamps
    numbers = read_long(save(path, [{**row, "label": row["unit"] / 2} for row in table]), columns, kind="regression")
    assert [numbers[place]["target"].tolist() for place in range(3)] == [[0], [0.5], [1]]
    with pytest.raises(UserError, match="--task multilabel reads"):
        read_long(path, columns, kind="multilabel")


def test_a_run_of_a_long_table_from_training_to_predictions(script: Script, tiny: Sequence[str]) -> None:
    save(Path("train.parquet"), rows(40))
    new = [{name: value for name, value in row.items() if name != "label"} for row in rows(5, seed=1)]
    for suffix in (".csv", ".parquet"):
        save(Path(f"new{suffix}"), new)
    data = shlex.split("--dataset long --train_path train.parquet --id_column unit --time_column at --baseline none")
    ended = script(
        "train", *tiny, *data, "--output_dir", "run", "--lr", "1e-2", "--warmup_steps", "0", "--epochs", "15"
    )
    assert ended.code == 0, ended.err
    found = []
    for name in ("new.csv", "new.parquet"):
        ended = script("predict", "--model_path", "run", name)
        assert ended.code == 0, ended.err
        with Path("predictions.csv").open(encoding="utf-8", newline="") as file:
            found.append(list(csv.DictReader(file)))
        Path("predictions.csv").unlink()
    assert {row["input"].rpartition(" ")[2]: row["class"] for row in found[0]} == {
        "u0": "no", "u1": "yes", "u2": "no", "u3": "yes", "u4": "no"
    }  # fmt: skip
    assert [row["p_yes"] for row in found[0]] == pytest.approx([row["p_yes"] for row in found[1]])
    save(Path("test.csv"), rows(6, seed=2))
    ended = script("inference", "--model_path", "run", "--split", "test", "test_path=test.csv", "--output_dir", "out")
    assert ended.code == 0, ended.err
    save(Path("bare.csv"), [{"unit": 1, "a": 2, "b": 3}])
    refused = script("predict", "--model_path", "run", "bare.csv")
    assert refused.code != 0
    assert "bare.csv: no column at" in refused.err + refused.out

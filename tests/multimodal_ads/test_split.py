"""Splits keep the share of ads, keep equal pictures together, and depend on the seed only."""

from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.data.split import stratified_split
from quartet.apps.multimodal_ads.data.table import AdRow


def rows_of(labels: list[int], folder: Path = Path("/nowhere")) -> list[AdRow]:
    return [AdRow(folder / f"{n}.jpg", label, "", f"t.csv, line {n + 2}") for n, label in enumerate(labels)]


def test_shares_and_proportions() -> None:
    rows = rows_of([int(n % 5 == 0) for n in range(200)])
    for seed in range(5):
        parts = stratified_split(rows, val_fraction=0.2, test_fraction=0.1, seed=seed, groups=range(200))
        assert [len(part) for part in parts] == [140, 40, 20]
        assert [sum(row.label for row in part) for part in parts] == [28, 8, 4]
        assert sorted(row.origin for part in parts for row in part) == sorted(row.origin for row in rows)
        for part in parts:
            places = [rows.index(row) for row in part]
            assert places == sorted(places)


def test_seed_names_the_draw() -> None:
    rows = rows_of([n % 2 for n in range(60)])
    first, again, other = (
        stratified_split(rows, val_fraction=0.25, test_fraction=0.25, seed=seed, groups=range(60)) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_groups_stay_together() -> None:
    labels = [int(n % 3 == 0) for n in range(90)]
    rows = rows_of(labels)
    groups = [n // 4 for n in range(90)]  # with labels that differ inside a group
    parts = stratified_split(rows, val_fraction=0.2, test_fraction=0.2, seed=0, groups=groups)
    sides = [{groups[rows.index(row)] for row in part} for part in parts]
    assert sum(map(len, sides)) == len(set(groups))
    assert all(14 <= len(part) <= 18 for part in parts[1:])


def test_same_bytes_stay_together(tmp_path: Path) -> None:
    rows = rows_of([n % 2 for n in range(40)], tmp_path)
    for n, row in enumerate(rows):
        row.image.write_bytes(f"{n // 2 // 2}".encode())
    train, val, test = stratified_split(rows, val_fraction=0.3, test_fraction=0.2, seed=1)
    contents = [{row.image.read_bytes() for row in part} for part in (train, val, test)]
    assert sum(map(len, contents)) == 10
    assert len(train) + len(val) + len(test) == 40


def test_no_test_part_and_few_rows() -> None:
    train, val, test = stratified_split(
        rows_of([0] * 9 + [1]), val_fraction=0.2, test_fraction=0, seed=0, groups=range(10)
    )
    assert (len(train), len(val), len(test)) == (8, 2, 0)
    assert [row.label for row in train].count(1) == 1  # a single ad is best used in training
    parts = stratified_split(rows_of([0, 1] * 3), val_fraction=0.1, test_fraction=0.1, seed=0, groups=range(6))
    assert [[row.label for row in part].count(1) for part in parts] == [1, 1, 1]


@pytest.mark.parametrize(("val", "test"), [(0.6, 0.4), (1.0, 0.0), (-0.1, 0.2)])
def test_impossible_fractions(val: float, test: float) -> None:
    with pytest.raises(UserError, match="leave no training part"):
        stratified_split(rows_of([0, 1] * 9), val_fraction=val, test_fraction=test, seed=0, groups=range(18))


def test_too_few_rows() -> None:
    with pytest.raises(UserError, match=r"2 rows \(2 different images\) are too few for a validation part"):
        stratified_split(rows_of([0, 1]), val_fraction=0.2, test_fraction=0, seed=0, groups=range(2))

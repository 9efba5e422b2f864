"""Damaged checkpoints: what is made, and that a store which takes a damaged one is found out."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mlcore.chaos import damage as module
from mlcore.chaos.bench import Bench, Row
from mlcore.chaos.damage import damage, damaged
from mlcore.training.checkpoint import CheckpointStore, State


def test_every_tenth_is_cut_and_flipped_and_none_is_whole() -> None:
    data = bytes(range(256)) * 4
    made = list(damaged(data, random.Random(0)))
    assert len(made) == 210
    assert all(copy != data for _, copy in made)
    for tenth in range(10):
        inside = range(len(data) * tenth // 10, len(data) * (tenth + 1) // 10)
        cut, *flipped = [copy for what, copy in made if what.endswith(f" tenth {tenth + 1}")]
        assert len(cut) in inside
        for copy in flipped:
            places = [place for place, (old, new) in enumerate(zip(data, copy, strict=True)) if old != new]
            assert places
            assert set(places) <= set(inside)


class Prepared(Bench):
    """A run that was killed after two checkpoints."""

    def kill_in_training(self, place: Path, *_: object, **__: object) -> None:  # type: ignore[override]
        store = CheckpointStore(place / "run" / "checkpoints", asynchronous=False)
        for step in (1, 2):
            store.save({"model": {"w": torch.full((300,), float(step))}, "step": step}, step=step, best=step == 1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Prepared([], tmp_path, random.Random(0), say=lambda _: None)


def test_the_store_refuses_each_of_them(bench: Bench) -> None:
    row = damage(bench, 0)
    assert (row.tries, row.passed, row.problems) == (210, 210, [])
    assert "refused, the one before it taken" in row.evidence


def test_a_reader_that_checks_nothing_is_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def newest(store: CheckpointStore) -> tuple[Path, State]:
        path = store.step_files()[0]
        return path, {"model": {"w": torch.zeros(300)}, "step": 2}

    monkeypatch.setattr(CheckpointStore, "newest_good", newest)
    row: Row = damage(bench, 0)
    assert row.failed
    assert row.passed == 0
    assert "loaded wrong" in row.problems[0]


def test_a_store_that_takes_an_older_one_is_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_made_up(data: bytes, *_: object, **__: object) -> Iterator[tuple[str, bytes]]:
        yield "cut off", data[:10]

    monkeypatch.setattr(module, "damaged", one_made_up)
    monkeypatch.setattr(
        CheckpointStore, "newest_good", lambda store: (store.folder / "best_model.pth", {"model": {}, "step": 0})
    )
    assert "not the newest whole one" in damage(bench, 0).problems[0]

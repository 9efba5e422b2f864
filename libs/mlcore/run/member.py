"""One of the runs that a `ProtocolConfig` asks for: what it is trained and judged on, and what it keeps of that."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write
from mlcore.base.reading import reading
from mlcore.config.protocol import ProtocolConfig
from mlcore.data.folds import check_units, fold_numbers
from mlcore.data.packed import read_arrays
from mlcore.report.page import Section
from mlcore.run.baseline import Judged
from mlcore.run.build import TrainingSetup
from mlcore.run.splits import Held, Splits
from mlcore.training.evaluator import Predictions

__all__ = ["ABOUT", "keep_baselines", "keeping", "member_splits", "read_held_out"]

ABOUT = "about "
"""What the names of arrays begin with that hold `Held.about`."""

ItemT = TypeVar("ItemT")


def member_splits(
    splits: Splits[ItemT],
    protocol: ProtocolConfig,
    *,
    label: Callable[[ItemT], int],
    unit: Callable[[ItemT], Hashable],
    classes: Sequence[str],
    seed: int,
    what: str = "samples",
) -> Splits[ItemT]:
    """What a run of a protocol is trained and judged on; of any other run the splits as they are.

    Args:
        splits: All data; training and validation samples together are divided.
        protocol: Its `fold` says which run it is.
        label: Class of a sample.
        unit: What it belongs to.
        classes: Names, for messages.
        seed: Names the draw.
        what: What samples are called in messages.

    Raises:
        UserError: A class has fewer units than there are folds.
    """
    if protocol.fold is None:
        return splits
    pool = [*splits.train, *splits.validation]
    if protocol.fold == 0:
        return replace(splits, train=pool, validation=())

    def about(items: Sequence[ItemT]) -> dict[str, Any]:
        labels, units = [label(item) for item in items], [unit(item) for item in items]
        return {"labels": labels, "units": units, "classes": classes, "what": what}

    outer: dict[str, Any] = {"folds": protocol.folds, "setting": "protocol.folds"}
    inner: dict[str, Any] = {"folds": protocol.inner, "setting": "protocol.inner"}
    numbers = fold_numbers(**about(pool), **outer, seed=seed)
    parts = [_parted(pool, numbers == fold) for fold in range(protocol.folds)]
    train, test = parts[protocol.fold - 1]
    validation: list[ItemT] = []
    if protocol.inner:
        for rest, _ in parts:  # of every fold, so that a job fails at its first run or not at all
            check_units(**about(rest), **inner)
        train, validation = _parted(train, fold_numbers(**about(train), **inner, seed=seed) == 0)
    return replace(splits, train=train, validation=validation, test=test)


def _parted(items: Sequence[ItemT], out: NDArray[np.bool_]) -> tuple[list[ItemT], list[ItemT]]:
    """The items that are not out, and those that are."""
    pairs = list(zip(items, out.tolist(), strict=True))
    return [item for item, is_out in pairs if not is_out], [item for item, is_out in pairs if is_out]


def keeping(setup: TrainingSetup) -> TrainingSetup:
    """A setup that, where it is a fold's, also keeps what the fold's model says of the fold."""
    if not setup.held_out:
        return setup
    held, analyse = setup.held_out, setup.analyse

    def analyse_and_keep(predictions: Predictions, folder: Path, prefix: str) -> Sequence[Section]:
        if prefix == "test_":
            _write_held_out(_place(folder), predictions, held)
        return [] if analyse is None else analyse(predictions, folder, prefix)

    return replace(setup, analyse=analyse_and_keep)


def keep_baselines(folder: Path, judged: Sequence[Judged], held: Sequence[Held]) -> None:
    """Keep what baselines say of a fold beside what its model says; of any other run nothing."""
    for number, one in enumerate(judged, 1):
        if held and "test" in one.rows:
            _write_held_out(_place(folder, number), one.rows["test"], held)


def _place(folder: Path, baseline: int = 0) -> Path:
    return folder / (f"held_out_baseline_{baseline}.npz" if baseline else "held_out.npz")


def _write_held_out(path: Path, predictions: Predictions, held: Sequence[Held]) -> None:
    names = {key: np.array([getattr(one, key) for one in held]) for key in ("name", "unit", "copies")}
    names |= {f"{ABOUT}{key}": np.array([one.about.get(key, "") for one in held]) for key in held[0].about}
    rows = {f"row_{key}": value.numpy() for key, value in predictions.items()}
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **names, **rows)


def read_held_out(folder: Path, *, baseline: int = 0) -> dict[str, Any]:
    """What a fold's run kept: "name", "unit", "copies" and "about ..." [N] of `Held`, and the predictions [N, ...].

    Args:
        folder: The run's.
        baseline: Of which baseline, counted from 1; 0: of its model.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = _place(folder, baseline)
    if not path.is_file():
        raise UserError(f"{path}: no such file; remove {folder} and start again")
    arrays = read_arrays(path)
    with reading(path, f"a fold's predictions; remove {folder} and start again"):
        rows = {key.removeprefix("row_"): value for key, value in arrays.items() if key.startswith("row_")}
        return {**{key: value for key, value in arrays.items() if not key.startswith("row_")}, **rows}

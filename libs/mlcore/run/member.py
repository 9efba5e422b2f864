"""One of the runs that a `ProtocolConfig` asks for: what it is trained and judged on, and what it keeps of that."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write
from mlcore.base.reading import reading
from mlcore.config.protocol import ProtocolConfig
from mlcore.data.folds import fold_numbers
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

    def part(items: Sequence[ItemT], folds: int, number: int, setting: str) -> tuple[list[ItemT], list[ItemT]]:
        """Items without a part, and the part."""
        numbers = fold_numbers(
            [label(item) for item in items],
            [unit(item) for item in items],
            folds=folds,
            seed=seed,
            classes=classes,
            setting=setting,
            what=what,
        )
        out = (numbers == number).tolist()
        rest = [item for item, held_out in zip(items, out, strict=True) if not held_out]
        return rest, [item for item, held_out in zip(items, out, strict=True) if held_out]

    train, test = part(pool, protocol.folds, protocol.fold - 1, "protocol.folds")
    validation: Sequence[ItemT] = ()
    if protocol.inner:
        train, validation = part(train, protocol.inner, 0, "protocol.inner")
    return replace(splits, train=train, validation=validation, test=test)


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

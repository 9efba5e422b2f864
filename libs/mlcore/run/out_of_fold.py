"""The predictions that a cross-validation keeps of its samples."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, csv_text, write_text
from mlcore.base.reading import reading
from mlcore.data.packed import read_arrays
from mlcore.metrics.arrays import IntArray
from mlcore.metrics.ranking import Interval, bootstrap_interval
from mlcore.metrics.resampled import Figure, figure_of
from mlcore.run.member import ABOUT, read_held_out
from mlcore.training.evaluator import Predictions

__all__ = [
    "OUT_OF_FOLD",
    "Figures",
    "by_seed",
    "interval_of",
    "mean_figure",
    "read_out_of_fold",
    "rows_of",
    "write_out_of_fold",
]

Figures = Callable[[Predictions], Mapping[str, float]]
"""From rows of predictions to their figures; what the app's task does."""

_RESAMPLES = 200

OUT_OF_FOLD = "out_of_fold"
"""Name of the split that the figures of a cross-validation are of, and of the files with its predictions."""


def read_out_of_fold(folder: Path) -> Mapping[str, NDArray[Any]] | None:
    """What the cross-validation in a folder kept of labelled samples.

    Returns:
        "name" and "unit" [N], "label" int64 [seeds, N], and further predictions [seeds, N, ...]; None where there is no
        such file, or one of another kind, such as of volumes.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / f"{OUT_OF_FOLD}.npz"
    if not path.is_file():
        return None
    arrays = read_arrays(path)
    if not {"name", "unit", "label"} <= set(arrays):
        return None
    with reading(path, "out-of-fold predictions"):
        return {**arrays, "label": arrays["label"].astype(np.int64)}


def by_seed(folder: Path, places: Sequence[str], *, folds: int, baseline: int = 0) -> list[dict[str, Any]]:
    """Out-of-fold rows of each seed, by name of the sample; "fold" and what `Held` says beside the predictions'.

    Args:
        folder: The job's.
        places: Folders in it, all folds of a seed after one another.
        folds: How many these are.
        baseline: Of which baseline, counted from 1; 0: of the models.

    Raises:
        UserError: A file is missing, or a sample is in two folds, or not in the same with another seed.
    """
    seeds = []
    for first in range(0, len(places), folds):
        parts = [read_held_out(folder / place, baseline=baseline) for place in places[first : first + folds]]
        for number, part in enumerate(parts, 1):
            part["fold"] = np.full(len(part["name"]), number)
        shared = [key for key in parts[0] if all(key in part for part in parts)]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in shared}
        order = np.argsort(joined["name"], kind="stable")
        seeds.append({key: value[order] for key, value in joined.items()})
    for found in seeds:
        names = found["name"]
        if len(set(names.tolist())) < len(names) or names.tolist() != seeds[0]["name"].tolist():
            raise UserError(
                f"{folder}: the runs' folds do not make up the data; the data changed while they were trained"
            )
    return seeds


def rows_of(found: Mapping[str, Any], chosen: IntArray | None = None) -> dict[str, Tensor]:
    """The predictions alone, as the app's task gave them."""
    rows = {key: value for key, value in found.items() if not _is_known(key)}
    return {key: torch.from_numpy(value if chosen is None else value[chosen]) for key, value in rows.items()}


def interval_of(seeds: Sequence[Mapping[str, Any]], figures: Figures, metric: str) -> Interval:
    """The 95 % interval of a figure's mean over seeds, drawing units whole."""
    quick = mean_figure(seeds, metric)

    def figure(times: IntArray) -> float:
        drawn = np.repeat(np.arange(len(times)), times)
        return mean(float(figures(rows_of(found, drawn)).get(metric, np.nan)) for found in seeds)

    return bootstrap_interval(quick or figure, units=seeds[0]["unit"], resamples=_RESAMPLES)


def mean_figure(seeds: Sequence[Mapping[str, Any]], metric: str) -> Figure | None:
    """A figure's mean over seeds; None for one that the app has to make of each draw."""
    known = [found for found in (figure_of(metric, rows) for rows in seeds) if found is not None]
    return (lambda times: mean(one(times) for one in known)) if known else None


def write_out_of_fold(folder: Path, seeds: Sequence[Mapping[str, Any]]) -> None:
    """The predictions as `out_of_fold.npz`, rows [seeds, N, ...], and as a table, the mean over seeds."""
    known = {key: value for key, value in seeds[0].items() if _is_known(key)}
    rows = {key: np.stack([found[key] for found in seeds]) for key in seeds[0] if key not in known}
    with atomic_write(folder / f"{OUT_OF_FOLD}.npz") as file:
        np.savez(file, allow_pickle=False, **known, **rows)
    columns: dict[str, Sequence[object]] = {
        {"name": "sample"}.get(key, key.removeprefix(ABOUT)): value.tolist() for key, value in known.items()
    }
    for key, values in rows.items():
        whole = values.dtype.kind in "iub"
        shown = values[0] if whole else values.mean(axis=0)  # a label is the same with every seed
        if shown.ndim == 1:
            columns[key] = shown.tolist()
        elif shown.ndim == 2:
            columns |= {f"{key}_{number}": column.tolist() for number, column in enumerate(shown.T)}
    cells = zip(*([_cell(value) for value in column] for column in columns.values()), strict=True)
    write_text(folder / f"{OUT_OF_FOLD}.csv", csv_text([tuple(columns), *cells]))


def _is_known(key: str) -> bool:
    """Whether an array is of the samples, not of what models say of them."""
    return key in ("name", "unit", "copies", "fold") or key.startswith(ABOUT)


def _cell(value: object) -> object:
    return f"{value:.6f}" if isinstance(value, float) else value

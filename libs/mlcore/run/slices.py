"""Figures of parts of the data: of short and long samples, of each source, of those with and without text."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.metrics.ranking import bootstrap_interval
from mlcore.report.page import Section, Table
from mlcore.run.member import ABOUT
from mlcore.run.out_of_fold import mean_figure

__all__ = ["parts_by", "slice_table"]

_LEAST = 10  # samples, of which a figure says something
_MOST = 12  # values that are shown each
_RESAMPLES = 300

Mask = NDArray[np.bool_]


def slice_table(seeds: Sequence[Mapping[str, Any]], metric: str) -> list[Section]:
    """A figure of each part of the samples, by all that is known of them; nothing where nothing is known.

    Args:
        seeds: Out-of-fold rows of each seed, with what `Held.about` says.
        metric: One of `mlcore.metrics.resampled`.
    """
    whole = mean_figure(seeds, metric)
    if whole is None:
        return []
    count = len(seeds[0]["name"])
    overall = whole(np.ones(count, dtype=np.int64))
    rows: list[list[object]] = []
    for key in seeds[0]:
        if not key.startswith(ABOUT):
            continue
        for name, part in parts_by(seeds[0][key]):
            figure = mean_figure([{k: v[part] for k, v in found.items()} for found in seeds], metric)
            value = np.nan if figure is None else figure(np.ones(int(part.sum()), dtype=np.int64))
            if figure is None or not np.isfinite(value):
                continue  # such as the AUROC of one class
            low, high = bootstrap_interval(figure, units=seeds[0]["unit"][part], resamples=_RESAMPLES)
            apart = "below all" if high < overall else "above all" if low > overall else ""
            interval = f"{low:.4f} to {high:.4f}" if np.isfinite(low) else ""
            rows.append([key.removeprefix(ABOUT), name, int(part.sum()), value, interval, apart])
    note = f"All samples: {overall:.4f}. Of many parts one in twenty lies apart by chance."
    columns = ["", "part", "samples", metric, "95 % interval", "all samples are not in it"]
    return [Table("Parts of the data", columns, rows, note=note)] if rows else []


def parts_by(values: NDArray[Any]) -> Iterator[tuple[str, Mask]]:
    """Parts of N samples by what is known of each, with at least ten samples: values, or a number's quarters.

    Args:
        values: [N], numbers or words; "" and NaN are no values.

    Yields:
        What a part is called, and whose it is, bool [N]; nothing where all samples are alike.
    """
    if values.dtype.kind in "fiu" and len(np.unique(values)) > _MOST:
        yield from _quarters(values.astype(np.float64))
        return
    names = np.array([_called(value) for value in values.tolist()])
    found, counts = np.unique(names, return_counts=True)
    kept = [(name, names == name) for name, n in zip(found.tolist(), counts.tolist(), strict=True) if n >= _LEAST]
    kept.sort(key=lambda part: -int(part[1].sum()))
    if len(kept) > 1:
        yield from kept[:_MOST]


def _quarters(values: NDArray[np.float64]) -> Iterator[tuple[str, Mask]]:
    edges = np.unique(np.nanquantile(values, [0, 0.25, 0.5, 0.75, 1]))
    for number, (low, high) in enumerate(pairwise(edges.tolist())):
        part = (values <= high) & (values >= low if number == 0 else values > low)
        if part.sum() >= _LEAST:
            yield f"{low:g} to {high:g}" if number == 0 else f"above {low:g} to {high:g}", part


def _called(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)

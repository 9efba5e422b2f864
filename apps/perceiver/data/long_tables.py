"""Series in long format: CSV or Parquet tables with a row for each time of each series.

Columns say which series a row belongs to, its time stamp, values of channels, and perhaps the class or target, which
may also stand in a table of its own with a row for each series. Rows of a series need not stand together; their stamps
rise. A table is read in one pass, some thousand rows at a time; of a value memory keeps four bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.data.tables import CsvTable, ParquetTable, open_table
from quartet.apps.perceiver.config import DataConfig, TaskKind
from quartet.apps.perceiver.data.gaps import OnMissing
from quartet.apps.perceiver.data.labels import in_order
from quartet.apps.perceiver.data.samples import Array, Cut, SequenceDataset
from quartet.apps.perceiver.data.targets import Targets, as_number
from quartet.apps.perceiver.data.times import as_times, told

__all__ = ["LONG", "LongColumns", "read_long"]

LONG = (".csv", ".parquet")
"""Suffixes of such tables."""

_Table = CsvTable | ParquetTable
_GAPS = ("", "?", "None")


@dataclass(frozen=True, kw_only=True)
class LongColumns:
    """Names of columns.

    Attributes:
        id: Of the series.
        time: Of time stamps; None: rows of a series are equal steps.
        channels: Of values; none: all others.
        label: Of the class or target.
        labels: Table that this column, and `id`, are in; None: the same.
    """

    id: str
    time: str | None
    channels: tuple[str, ...] = ()
    label: str = "label"
    labels: Path | None = None

    @staticmethod
    def of(preprocessing: Mapping[str, Any], settings: DataConfig | None = None) -> "LongColumns":
        """Those that a model notes, and of its labels what settings say."""
        noted = preprocessing["columns"]
        found = LongColumns(id=noted["id"], time=noted["time"], channels=tuple(noted["channels"]))
        return found if settings is None else replace(found, label=settings.label_column, labels=settings.label_path)


def read_long(
    path: Path,
    columns: LongColumns,
    *,
    like: SequenceDataset | None = None,
    labelled: bool = True,
    on_missing: OnMissing = "error",
    kind: TaskKind = "classification",
) -> SequenceDataset:
    """Reads a table.

    Args:
        path: The table.
        columns: Which they are.
        like: The training data, whose classes hold; None: this is it.
        labelled: Whether there must be labels, where the task has them.
        on_missing: What to do with gaps, see ``settle``.
        kind: The task: of classification and regression a series has one label, of per_step each row a class.

    Returns:
        Its series, in the order of their first rows; ``origin`` names them, ``problems`` are with line or row.

    Raises:
        UserError: It cannot be read, lacks a column, a row names no series, or there are no labels.
    """
    if labelled and kind == "multilabel":
        raise UserError(f"{path}: a long table has one label a series; --task multilabel reads .npz files")
    asked = labelled and kind not in ("forecast", "masked")
    within = asked and (columns.labels is None or kind == "per_step")
    table = _opened(path)
    names = _channels(table, columns, labelled=within)
    rows = _Rows(table, columns, names, labelled=within)
    for batch in table.batches(rows.wanted):
        rows.add(batch)
    found = rows.grouped()
    classes: tuple[str, ...] = ("0",)
    labels, targets = np.zeros(len(found.ids), dtype=np.int64), None
    if asked and kind == "per_step":
        targets = _of_positions(found, None if like is None else like.targets)
    elif asked:
        texts = found.one_label(table) if within else _from_table(columns, found.ids)
        if kind == "classification":
            classes, labels = _classes(found, texts, None if like is None else like.classes)
        else:
            targets = _numbers_of(found, texts, columns.label)
    data = SequenceDataset(
        found.series,
        labels=labels,
        classes=classes,
        times=found.times,
        origins=found.origins,
        on_missing=on_missing,
        problems=found.problems,
        targets=targets,
    )
    data.channels = names
    return data


def _opened(path: Path) -> _Table:
    if path.suffix.lower() not in LONG:
        raise UserError(f"{path}: expected a table of series in long format: {', '.join(LONG)}")
    table = open_table(path)
    assert isinstance(table, CsvTable | ParquetTable)  # noqa: S101 - by its suffix
    return table


def _channels(table: _Table, columns: LongColumns, *, labelled: bool) -> list[str]:
    """The channels, and whether all columns are there."""
    hints = {columns.id: "--id_column", columns.time: "--time_column, null for none,"}
    hints |= {columns.label: "--label_column"} if labelled else {}
    names = columns.channels or [
        name for name in table.columns if name not in (columns.id, columns.time, columns.label)
    ]
    for name in (*filter(None, hints), *names):
        if name not in table.columns:
            raise _missing(table, name, f"{hints.get(name, 'data.channels')} names another one")
    if not names:
        raise UserError(f"{table.path}: no columns of values besides {', '.join(table.columns)}")
    return list(names)


def _missing(table: _Table, name: str, advice: str) -> UserError:
    return UserError(f"{table.path}: no column {name}; its columns are {', '.join(table.columns)}; {advice}")


class _Rows:
    """What is kept of the rows of a table, in its order."""

    def __init__(self, table: _Table, columns: LongColumns, names: Sequence[str], *, labelled: bool) -> None:
        self.table, self._columns, self._names, self._labelled = table, columns, names, labelled
        self._known, self._labels, self._problems = dict[str, int](), dict[str, int](), dict[int, str]()
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._count = 0

    @property
    def wanted(self) -> list[str]:
        """The columns that are read."""
        columns = self._columns
        named = (columns.time, columns.label if self._labelled else None)
        return list(dict.fromkeys([columns.id, *self._names, *(name for name in named if name is not None)]))

    def add(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """Some rows more."""
        columns, start = self._columns, self._count
        ids = _texts(batch[columns.id])
        if "" in ids:
            raise UserError(f"{self.table.where(start + ids.index(''))}: {columns.id} is empty; expected a series")
        codes = _codes(ids, self._known)
        values = np.empty((len(ids), len(self._names)), dtype=np.float32)
        for channel, name in enumerate(self._names):
            values[:, channel], bad = _numbers(batch[name])
            for place in bad:
                text, where = str(batch[name][place])[:40], _row(self.table, start + place)
                problem = f"{where}: {name} {text!r} is not a number; data.channels names the columns of values"
                self._problems.setdefault(int(codes[place]), problem)
        self._count += len(ids)
        times = as_times(batch[columns.time]) if columns.time else np.arange(start, self._count, dtype=np.float64)
        labels = _codes(_texts(batch[columns.label]), self._labels) if self._labelled else np.zeros_like(codes)
        self._parts.append((codes, values, times, labels.astype(np.int32)))

    def grouped(self) -> "_Grouped":
        """The rows of each series together."""
        table = self.table
        if not self._count:
            raise UserError(f"{table.path}: no rows below the header")
        codes, values, times, labels = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts.clear()
        order = np.argsort(codes, kind="stable")
        if not (codes[1:] >= codes[:-1]).all():
            values, times, labels = values[order], times[order], labels[order]
        ends = np.cumsum(np.bincount(codes))
        found = _Grouped(
            path=table.path, ids=list(self._known), ends=ends, order=order, labels=labels, names=list(self._labels),
            series=Cut(values, ends), times=Cut(times, ends) if self._columns.time else None, problems=self._problems,
        )  # fmt: skip
        rises = np.ones(len(times), dtype=bool)
        rises[1:] = times[1:] > times[:-1]
        rises[ends[:-1]] = True  # where the next series begins
        good = rises & np.isfinite(times)
        for place in np.flatnonzero(~good).tolist():
            series = int(np.searchsorted(ends, place, side="right"))
            found.problems.setdefault(series, f"{_row(table, order[place])}: {told(times, place)}")
        found.problems = {series: f"{found.origins[series]}: {problem}" for series, problem in found.problems.items()}
        return found


@dataclass(kw_only=True)
class _Grouped:
    """Rows by series: ``ids``, where each ends, the row that each came from, labels and their ``names``."""

    path: Path
    ids: list[str]
    ends: NDArray[np.int64]
    order: NDArray[np.int64]
    labels: NDArray[np.int32]
    names: list[str]
    series: Cut
    times: Cut | None
    problems: dict[int, str]
    origins: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.origins = [f"{self.path}, series {name[:60]}" for name in self.ids]

    def one_label(self, table: _Table) -> list[str]:
        """The label of each series, which all of its rows have."""
        starts = np.concatenate([[0], self.ends[:-1]])
        first = self.labels[starts]
        other = np.flatnonzero(self.labels != np.repeat(first, np.diff(self.ends, prepend=0)))
        for place in other.tolist():
            series = int(np.searchsorted(self.ends, place, side="right"))
            labels = self.names[self.labels[place]][:40], self.names[first[series]][:40]
            where = _row(table, self.order[place])
            problem = (
                f"{where}: label {labels[0]!r}, and {labels[1]!r} before; a series has one, but for --task per_step"
            )
            self.problems.setdefault(series, f"{self.origins[series]}: {problem}")
        return [self.names[label] for label in first.tolist()]

    def no_label(self, series: int, label: str, expected: str) -> None:
        """Note a series without a label that can be used."""
        what = f"label {label[:40]!r} is not {expected}" if label else "has no label"
        self.problems.setdefault(series, f"{self.origins[series]}: {what}")


def _classes(
    found: _Grouped, texts: Sequence[str], known: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    classes = tuple(known) if known is not None else in_order(set(texts) - {""})
    if not classes:
        raise UserError(f"{found.path}: no series has a label")
    places = {name: place for place, name in enumerate(classes)}
    for series, text in enumerate(texts):
        if text not in places:
            found.no_label(series, text, f"one of {', '.join(classes)}")
    return classes, np.array([places.get(text, -1) for text in texts], dtype=np.int64)


def _numbers_of(found: _Grouped, texts: Sequence[str], name: str) -> Targets:
    values = []
    for series, text in enumerate(texts):
        try:
            values.append(np.array([as_number("", text)]))
        except UserError:
            found.no_label(series, text, "a finite number")
            values.append(np.full(1, np.nan))
    return Targets(values=values, names=(name,))


def _of_positions(found: _Grouped, like: Targets | None) -> Targets:
    classes = like.names if like is not None else in_order(set(found.names) - {""})
    if not classes:
        raise UserError(f"{found.path}: no row has a label")
    places = {**{name: place for place, name in enumerate(classes)}, "": -1}
    numbers = np.array([places.get(name, -2) for name in found.names], dtype=np.int64)
    values = Cut(numbers[found.labels], found.ends)
    for series, row in enumerate(values):
        if (row == -2).any():
            found.no_label(series, "of a row", f"one of {', '.join(classes)}")
        elif (row < 0).all():
            found.no_label(series, "", "")
    return Targets(values=values, names=tuple(classes), classes=True)


def _from_table(columns: LongColumns, ids: Sequence[str]) -> list[str]:
    """The label of each series in the table of labels; "" for none."""
    assert columns.labels is not None  # noqa: S101 - the caller looks
    table, found = _opened(columns.labels), dict[str, str]()
    for name, flag in ((columns.id, "--id_column"), (columns.label, "--label_column")):
        if name not in table.columns:
            raise _missing(table, name, f"{flag} names another one")
    row = 0
    for batch in table.batches([columns.id, columns.label]):
        for series, label in zip(_texts(batch[columns.id]), _texts(batch[columns.label]), strict=True):
            if found.setdefault(series, label) != label:
                raise UserError(f"{table.where(row)}: series {series[:40]} has two labels")
            row += 1
    return [found.get(series, "") for series in ids]


def _texts(values: NDArray[Any]) -> list[str]:
    """As text; "" for nothing."""
    texts = ["" if value is None or value != value else str(value) for value in values.tolist()]
    return [text.removesuffix(".0") for text in texts] if values.dtype.kind == "f" else texts


def _codes(texts: Sequence[str], known: dict[str, int]) -> NDArray[np.int64]:
    return np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int64)


def _numbers(values: NDArray[Any]) -> tuple[Array, Sequence[int]]:
    """Numbers, NaN where there are none, and the places of what is something else."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the inspection refuses
        if values.dtype.kind in "biuf":
            return values.astype(np.float32), ()
        texts = ["nan" if str(value) in _GAPS else str(value) for value in values.tolist()]
        try:
            return np.array(texts, dtype=np.float64).astype(np.float32), ()
        except ValueError:
            numbers = [_number(text) for text in texts]
            bad = [place for place, number in enumerate(numbers) if number is None]
            return np.array([np.nan if number is None else number for number in numbers], dtype=np.float32), bad


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _row(table: _Table, row: int) -> str:
    """A row without its file."""
    return table.where(int(row)).removeprefix(f"{table.path}, ")

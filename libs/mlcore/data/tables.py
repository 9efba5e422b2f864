"""Tables of any length whose rows are read one at a time: CSV, JSON Lines and Parquet.

A million rows take their offsets in memory (8 bytes each), not their text, and processes that read ahead open the file
for themselves. What is wrong with a row is told when it is asked for.
"""

import codecs
import csv
import json
import logging
from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError, nearest
from mlcore.base.files import plain_cell
from mlcore.base.reading import check_unpacked, reading

__all__ = ["NOT_UTF8", "TABLES", "UTF8", "CsvTable", "ParquetTable", "Table", "open_table", "warn_of_misspelt"]

_log = logging.getLogger(__name__)

TABLES = (".csv", ".jsonl", ".parquet")
"""Suffixes of the tables that can be read and written."""

UTF8 = "utf-8"
"""The encoding of tables for which no other is named."""

NOT_UTF8 = "not UTF-8; save the table as UTF-8 (in Excel: Save As, 'CSV UTF-8 (Comma delimited)')"
"""What is wrong with a row in another encoding."""

_LONGEST_LINE = 64 << 20  # bytes
_MOST_COLUMNS = 10_000
_BATCH = 65_536  # rows
_READ_IN_VAIN = 4 << 20  # bytes of a small file that may be read for records that turn out to be none
_TIMES_IN_VAIN = 4  # or how often the whole of a larger one may be
_MARK = b"\xef\xbb\xbf"
_FIELD = 2**31 - 1  # characters; the csv module's own limit is less than the text of a long page


class Table(Protocol):
    """Rows with named columns.

    Attributes:
        path: The file.
    """

    path: Path

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns, in the file's order."""

    def __len__(self) -> int: ...

    def record(self, row: int) -> Mapping[str, str]:
        """The values of a row; raises `UserError` with its reason where it is none."""

    def where(self, row: int) -> str:
        """How messages call a row."""


def open_table(path: Path, *, empty_rows: bool = False) -> Table:
    """The table in a file.

    Args:
        path: The file.
        empty_rows: Whether rows of a CSV table whose cells are all empty count, too, as those of other kinds do;
            lines without anything never do.

    Raises:
        UserError: The file cannot be read, its suffix is none of `TABLES`, or it has no columns.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise UserError(f"{path}: expected a table: {', '.join(TABLES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    kinds: dict[str, Callable[[Path], Table]] = {
        ".csv": partial(CsvTable, empty_rows=empty_rows),
        ".jsonl": JsonLines,
        ".parquet": ParquetTable,
    }
    table = kinds[suffix](path)
    if not table.columns:
        raise UserError(f"{path}: the table has no columns; expected their names in its first line")
    if double := next((name for name, times in Counter(table.columns).items() if times > 1), None):
        raise UserError(f"{path}: the column {double} is there twice")
    return table


def warn_of_misspelt(path: Path, columns: Sequence[str], known: Sequence[str]) -> None:
    """Name the columns that nobody reads and that are nearly called as one is that could be there and is not."""
    absent = [name for name in known if name not in columns]
    for name in columns:
        if name not in known and (meant := nearest(name.partition(":")[0].lower(), absent)):
            _log.warning("%s: the column %s is not read%s", path, name, meant)


class _Lines:
    """A text file whose records begin at known places.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        encoding: Of another kind of file, which is then held in memory as a whole.

    Raises:
        UserError: Python has no such encoding, or the file is in another one.
    """

    def __init__(self, path: Path, *, encoding: str = UTF8) -> None:
        self.path = path
        self._whole = None if encoding == UTF8 else _as_utf8(path, encoding)
        self.columns: Sequence[str] = ()
        self._offsets, self._numbers = array("q"), array("q")  # of records: bytes, lines (from 1)
        self._taken, self._end = 0, 0  # by the `_from` that is under way: lines, and where the last one ends
        self._blank = False  # whether that line has nothing but white space

    def __len__(self) -> int:
        return len(self._offsets)

    def _from(self, offset: int) -> Iterator[str]:
        """The lines from a place on; bytes that are no UTF-8 become surrogates."""
        with reading(self.path, "a table"):
            file = self.path.open("rb") if self._whole is None else BytesIO(self._whole)
        self._taken, end = 0, offset
        with file:
            file.seek(offset)
            while line := file.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise UserError(f"{self.path}: a line of more than {_LONGEST_LINE >> 20} MiB; this is no table")
                parts = line.splitlines(keepends=True) if b"\r" in line else (line,)  # it ends a line alone, too
                for part in parts:
                    mark = len(_MARK) if end == 0 and part.startswith(_MARK) else 0
                    end += len(part)
                    self._end, self._taken, self._blank = end, self._taken + 1, not part.strip()
                    yield part[mark:].decode("utf-8", "surrogateescape")

    def _note(self, offset: int, line: int) -> None:
        self._offsets.append(offset)
        self._numbers.append(line)

    def _named(self, row: int, values: Sequence[str]) -> dict[str, str]:
        """Values by column."""
        if any(_undecodable(value) for value in values):
            raise self._bad(row, NOT_UTF8)
        return dict(zip(self.columns, [*values, *[""] * (len(self.columns) - len(values))], strict=True))

    def where(self, row: int) -> str:
        """File and line."""
        return f"{self.path}, line {self._numbers[row]}"

    def _bad(self, row: int, reason: str) -> UserError:
        return UserError(f"{self.where(row)}: {reason}")


class CsvTable(_Lines):
    """A CSV table (RFC 4180), its columns in the first line.

    Args:
        path: The file.
        encoding: Its own.
        empty_rows: Whether rows whose cells are all empty count; a line without even a separator or quote is no row.
    """

    def __init__(self, path: Path, *, encoding: str = UTF8, empty_rows: bool = False) -> None:
        super().__init__(path, encoding=encoding)
        self._empty_rows = empty_rows
        _check_separator(path, next(self._from(0), ""))
        for begin, line, values, problem in self._records(0, 1):
            if begin == 0:
                if problem:
                    raise UserError(f"{path}, line 1: {problem}")
                self.columns = _checked(values, path)
            elif problem or self._is_row(values):
                self._note(begin, line)

    def rows(self) -> Iterator[tuple[int, list[str], str]]:
        """All rows in one reading: the line each begins in, its stripped values, and why it is none ("": it is one)."""
        if len(self):
            for _, line, values, problem in self._records(self._offsets[0], self._numbers[0]):
                if problem or self._is_row(values):
                    yield line, values, problem

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """All rows in one reading, some thousand at a time: texts of some columns, objects [n], "" where missing.

        Raises:
            UserError: A row is none.
        """
        places, rows = {name: list(self.columns).index(name) for name in columns}, self.rows()
        while some := list(islice(rows, _BATCH)):
            if wrong := next((row for row in some if row[2]), None):
                raise UserError(f"{self.path}, line {wrong[0]}: {wrong[2]}")
            yield {
                name: np.array([values[at] if at < len(values) else "" for _, values, _ in some], dtype=object)
                for name, at in places.items()
            }

    def record(self, row: int) -> Mapping[str, str]:
        """The stripped values of a row, "" for those that are missing at its end."""
        _, _, values, problem = next(self._records(self._offsets[row], self._numbers[row]))
        if problem:
            raise self._bad(row, problem)
        return self._named(row, values)

    def _records(self, begin: int, line: int) -> Iterator[tuple[int, int, list[str], str]]:
        """From a place on: place and line of each record, its values, and what is wrong with it."""
        csv.field_size_limit(_FIELD)
        vain = max(_READ_IN_VAIN, _TIMES_IN_VAIN * self.path.stat().st_size)
        while True:
            reader, before = csv.reader(self._from(begin), strict=True), 0
            try:
                for cells in reader:
                    values = [(plain_cell(cell) if cell[:1] == "'" else cell).strip() for cell in cells]
                    yield begin, line, values, self._problem(values)
                    begin, line, before = self._end, line + self._taken - before, self._taken
                return
            except csv.Error as error:  # a record that is none costs its first line only
                vain -= self._end - begin  # where a quote has no end, that is the whole rest of the file
                if begin == 0 or vain < 0:
                    raise UserError(f"{self.path}, line {line}: damaged or not a CSV table ({error})") from None
                yield begin, line, [], f"not a row of a CSV table ({error})"
                deque(islice(self._from(begin), 1))
                begin, line = self._end, line + 1

    def _is_row(self, values: Sequence[str]) -> bool:
        """Of the record that was read last."""
        return any(values) or (self._empty_rows and not self._blank)

    def _problem(self, values: Sequence[str]) -> str:
        if _undecodable("".join(values)):
            return NOT_UTF8
        if len(values) > len(self.columns) > 0:
            named = f"the header names {len(self.columns)} columns; put values with commas in quotes"
            return f"{len(values)} values, but {named}"
        return ""


class JsonLines(_Lines):
    """A JSON object in each line; its columns are the names that the objects have."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        columns: dict[str, None] = {}
        begin = 0
        for line, text in enumerate(self._from(0), 1):
            if text.strip():
                self._note(begin, line)
                with suppress(UserError):
                    columns.update(dict.fromkeys(self._object(len(self) - 1, text)))
            begin = self._end
        self.columns = _checked(list(columns), path)

    def record(self, row: int) -> Mapping[str, str]:
        """The values of an object as text: JSON of those that are lists or objects, "" for null."""
        found = self._object(row, next(self._from(self._offsets[row])))
        return self._named(row, [_as_text(found.get(name)) for name in self.columns])

    def _object(self, row: int, text: str) -> dict[str, Any]:
        with reading(self.where(row), "a JSON object"):
            found = json.loads(text)
        if not isinstance(found, dict):
            raise self._bad(row, "expected a JSON object, {...}")
        return found


class ParquetTable:
    """An Apache Parquet file; one row group at a time is in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file = self._open()
        self.columns: Sequence[str] = _checked(list(file.schema_arrow.names), path)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        for group in groups:
            check_unpacked(path, unpacked=group.total_byte_size, stored=path.stat().st_size)
        self._starts: list[int] = [0, *accumulate(group.num_rows for group in groups)]
        self._group: tuple[int, Any] = (-1, None)

    def _open(self) -> Any:
        try:
            from pyarrow import parquet  # takes long to import, and only this kind of table needs it
        except ModuleNotFoundError:
            raise UserError(f"{self.path}: reading Parquet needs the package pyarrow: pip install pyarrow") from None
        with reading(self.path, "a Parquet file"):
            return parquet.ParquetFile(self.path)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_group": (-1, None)}

    def where(self, row: int) -> str:
        """File and row, from 0."""
        return f"{self.path}, row {row}"

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """All rows, some thousand at a time: some columns, [n], of their own type; null is NaN, NaT or None."""
        with reading(self.path, "a Parquet file"):
            for batch in self._open().iter_batches(batch_size=_BATCH, columns=list(columns)):
                yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}

    def record(self, row: int) -> Mapping[str, str]:
        """The values of a row as text: JSON of those that are lists or structures, "" for null."""
        group = bisect_right(self._starts, row) - 1
        if self._group[0] != group:
            with reading(self.path, "a Parquet file"):
                self._group = group, self._open().read_row_group(group)
        columns = self._group[1]
        place = row - self._starts[group]
        return {name: _as_text(columns.column(number)[place].as_py()) for number, name in enumerate(self.columns)}


def _as_utf8(path: Path, encoding: str) -> bytes:
    """A text file in another encoding."""
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise UserError(f"{path}: no encoding is called {encoding}; such are utf-8, cp949, utf-16, shift_jis") from None
    with reading(path, f"a text in {encoding}"):
        return path.read_bytes().decode(encoding).encode(UTF8)


def _checked(columns: Sequence[str], path: Path) -> Sequence[str]:
    if len(columns) > _MOST_COLUMNS:
        raise UserError(f"{path}: {len(columns)} columns; at most {_MOST_COLUMNS} are read")
    if any(_undecodable(name) for name in columns):
        raise UserError(f"{path}, line 1: {NOT_UTF8}")
    return columns


def _check_separator(path: Path, header: str) -> None:
    for separator, name in ((";", "';'"), ("\t", "a tab")):
        if separator in header and "," not in header:
            expected = ",".join(cell.strip(' "\r\n') for cell in header.split(separator))
            raise UserError(f"{path}: its separator seems to be {name}; expected commas: {expected}")


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _undecodable(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)

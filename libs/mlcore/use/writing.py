"""Tables that are written row by row, all or nothing: CSV, JSON Lines, Parquet, as the file's suffix says."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, csv_text
from mlcore.base.secrets import masking
from mlcore.data.tables import TABLES

__all__ = ["check_table_name", "write_table"]

_ROWS = 10_000  # in memory at once
_DIGITS = 7  # what a float32 holds


def check_table_name(path: Path) -> None:
    """Raise a `UserError` unless the name says which kind of table is meant, and what that takes is installed."""
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path}: expected the name of a table: {', '.join(TABLES)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)


def write_table(path: Path, columns: Mapping[str, type], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; numbers have seven digits, what is not finite is missing, secrets are masked.

    Args:
        path: Its suffix is one of `TABLES`.
        columns: Names, and what the values are: float, int, or text; a missing value is None.
        rows: Values in the order of the columns.

    Raises:
        UserError: As `mlcore.base.files.atomic_write`.
    """
    write = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}[path.suffix.lower()]
    with atomic_write(path) as file:
        write(path, file, columns, _chunks(rows))


def _chunks(rows: Iterable[Sequence[object]]) -> Iterator[list[list[object]]]:
    iterator, mask = iter(rows), masking()
    while chunk := [[_short(value, mask) for value in row] for row in islice(iterator, _ROWS)]:
        yield chunk


def _short(value: object, mask: Callable[[str], str]) -> object:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return mask(value) if isinstance(value, str) else value


def _write_csv(_path: Path, file: BinaryIO, columns: Mapping[str, type], chunks: Iterable[Any]) -> None:
    file.write(csv_text([columns]).encode("utf-8", errors="backslashreplace"))
    for chunk in chunks:
        file.write(csv_text(chunk).encode("utf-8", errors="backslashreplace"))


def _write_json_lines(_path: Path, file: BinaryIO, columns: Mapping[str, type], chunks: Iterable[Any]) -> None:
    for chunk in chunks:
        for row in chunk:
            line = json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
            file.write(f"{line}\n".encode("utf-8", errors="backslashreplace"))


def _write_parquet(path: Path, file: BinaryIO, columns: Mapping[str, type], chunks: Iterable[Any]) -> None:
    pa = _pyarrow(path)
    kinds = {float: pa.float64(), int: pa.int64()}
    schema = pa.schema([(name, kinds.get(kind, pa.string())) for name, kind in columns.items()])
    with pa.parquet.ParquetWriter(file, schema) as writer:
        for chunk in chunks:
            arrays = [list(values) for values in zip(*chunk, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))


def _pyarrow(path: Path) -> Any:
    with suppress(ModuleNotFoundError):
        import pyarrow  # takes long to import, and only this kind of table needs it
        import pyarrow.parquet

        return pyarrow
    raise UserError(f"{path}: Parquet needs the package pyarrow: pip install pyarrow")

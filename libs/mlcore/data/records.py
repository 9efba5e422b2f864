"""The records of a CSV table, the files that they name, and the error that names all the rows that cannot be used."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mlcore.base.errors import UserError, listed
from mlcore.data.tables import NOT_UTF8, UTF8, CsvTable, warn_of_misspelt

__all__ = ["as_stored", "failed", "further", "read_records"]

_SHORT = 60  # characters of a value by which samples may be told apart


def read_records(
    path: Path,
    wanted: Sequence[str],
    *,
    optional: Sequence[str] = (),
    hints: Mapping[str, str] | None = None,
    broken: dict[int, str] | None = None,
    encoding: str = UTF8,
) -> Iterator[tuple[int, dict[str, str]]]:
    """The records of a CSV table (RFC 4180) that are not blank.

    Args:
        path: The file, with or without byte order mark.
        wanted: Columns that must be there.
        optional: Columns that are read if they are there; others are in the records, too, but may be there twice.
        hints: What to do if a column is missing, for the message.
        broken: Records that are no row of the table are yielded with what values they have, and their lines with the
            reasons are added to it. None: such a record is an error.
        encoding: Of the file, by Python's name.

    Yields:
        The line a record starts in, and its stripped values by column, without the apostrophe before what looks like a
        formula (see `plain_cell`); "" for values that are missing at the end.

    Raises:
        UserError: It cannot be read, is no CSV table in this encoding, lacks a column or has it twice, or has more than
            100 records that are not even a row of another table.
    """
    table = CsvTable(path, encoding=encoding)
    _check_header(path, table.columns, wanted, optional, hints or {})
    warn_of_misspelt(path, table.columns, [*wanted, *optional])
    for line, values, problem in table.rows():
        if problem and (broken is None or problem == NOT_UTF8):
            raise UserError(f"{path}, line {line}: {problem}")
        if problem and broken is not None:
            broken[line] = problem
        padded = [*values, *[""] * (len(table.columns) - len(values))]
        yield line, dict(zip(table.columns, padded, strict=False))


def further(values: Mapping[str, str], known: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The columns of a record besides those that are known, in their order, where their values are short."""
    return tuple((name, value) for name, value in values.items() if name and name not in known and len(value) <= _SHORT)


def as_stored(path: Path) -> Path:
    """The path of a table's cell in the spelling of the file system; the path itself where nothing is called so.

    Some systems store accents and Hangul composed, others decomposed, and copies between them mix both in one path.
    What cannot be looked up raises what `Path.exists` does.
    """
    if str(path).isascii() or path.exists():
        return path
    place = Path(path.anchor)
    for part in path.parts[len(place.parts) :]:
        if not (place / part).exists():
            wanted = unicodedata.normalize("NFC", part)
            names: list[str] = []
            with suppress(OSError):  # no folder, or one that may be entered, but not listed
                names = sorted(entry.name for entry in place.iterdir())
            part = next((name for name in names if unicodedata.normalize("NFC", name) == wanted), part)
        place /= part
    return place


def failed(place: Path, problems: Sequence[str]) -> UserError:
    """The error that names all problems of a table or folder, each "line 7: ...", or the first ones and their number.

    Args:
        place: What has the problems.
        problems: At least one.
    """
    each = [" ".join(problem.split()) for problem in problems]  # cells may go over many lines
    if len(each) == 1:
        return UserError(f"{place}, {each[0]}")
    return UserError(listed(f"{place}: {len(each)} problems", each))


def _check_header(
    path: Path, header: Sequence[str], wanted: Sequence[str], optional: Sequence[str], hints: Mapping[str, str]
) -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        given = " ".join(",".join(header).split())
        shown = given if len(given) <= 120 else f"{given[:100]}... ({len(given)} characters)"
        ending = "".join(f"; {hints[name]}" for name in missing if name in hints)
        raise UserError(
            f"{path}: no column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; the header is "
            f"{shown or 'empty'}, expected {','.join(wanted)}{ending}"
        )
    double = [name for name in (*wanted, *optional) if header.count(name) > 1]
    if double:
        raise UserError(f"{path}: the column {double[0]} is there twice")

"""The records of a CSV table, the files that they name, and the error that names all the rows that cannot be used."""

import csv
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from mlcore.base.errors import UserError, listed
from mlcore.base.files import plain_cell
from mlcore.base.reading import reading

__all__ = ["as_stored", "failed", "read_records"]

_MOST_BROKEN = 100  # records without an end, for which the whole rest of the file is looked through
_LONGEST_FIELD = 2**31 - 1  # the csv module's own limit is 128 KiB, less than the text of a long page


def read_records(
    path: Path,
    wanted: Sequence[str],
    *,
    optional: Sequence[str] = (),
    hints: Mapping[str, str] | None = None,
    broken: dict[int, str] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """The records of a CSV table (RFC 4180) that are not blank.

    Args:
        path: The file, UTF-8 with or without byte order mark.
        wanted: Columns that must be there.
        optional: Columns that are read if they are there; others are in the records, too, but may be there twice.
        hints: What to do if a column is missing, for the message.
        broken: Records that are no row of the table are yielded with what values they have, and their lines with the
            reasons are added to it. None: such a record is an error.

    Yields:
        The line a record starts in, and its stripped values by column, without the apostrophe before what looks like a
        formula (see `plain_cell`); "" for values that are missing at the end.

    Raises:
        UserError: It cannot be read, is no CSV table, lacks a column or has it twice, or has more than 100 records
            that are not even a row of another table.
    """
    expected = "a CSV table in UTF-8; in Excel: Save As, 'CSV UTF-8 (Comma delimited)'"
    with reading(path, expected), path.open(encoding="utf-8-sig", newline="") as file:
        lines = file.readlines()
    _check_separator(path, lines[0] if lines else "", wanted)
    with _long_fields():
        reader = csv.reader(lines, strict=True)
        with reading(f"{path}, line 1", "the header of a CSV table"):
            header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, wanted, optional, hints or {})
        count = 0
        for line, values, problem in _rows(lines, start=reader.line_num, columns=len(header)):
            count += bool(problem) and not values
            if problem and (broken is None or count > _MOST_BROKEN):
                raise UserError(f"{path}, line {line}: {problem}")
            if problem and broken is not None:
                broken[line] = problem
            plain = [plain_cell(value).strip() for value in values]
            if problem or any(plain):
                padded = [*plain, *[""] * (len(header) - len(plain))]
                yield line, dict(zip(header, padded, strict=False))


def _rows(lines: Sequence[str], *, start: int, columns: int) -> Iterator[tuple[int, list[str], str]]:
    """Line (from 1), values and what is wrong with them ("": nothing) of each record from `start` (from 0) on.

    A record that is none costs its first line only: a quote too many would take all rows up to the next one with it.
    """
    while start < len(lines):
        reader = csv.reader(islice(lines, start, None), strict=True)
        begun = start
        try:
            for values in reader:
                yield begun + 1, values, _too_many(values, columns) if len(values) > columns else ""
                begun = start + reader.line_num
            return
        except csv.Error as error:
            yield begun + 1, [], f"not a CSV table ({error})"
            start = begun + 1


def _too_many(values: Sequence[str], columns: int) -> str:
    return f"{len(values)} values, but the header names {columns} columns; put values with commas in quotes"


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


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_separator(path: Path, header: str, wanted: Sequence[str]) -> None:
    for separator, name in ((";", "';'"), ("\t", "a tab")):
        cells = {cell.strip(' "\r\n') for cell in header.split(separator)}
        if len(cells & set(wanted)) > 1:
            raise UserError(f"{path}: its separator seems to be {name}; expected commas: {','.join(wanted)}")


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

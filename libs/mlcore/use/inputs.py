"""What a model is to predict: files, folders, or the rows of one table, each an `Item` or the reason why it is none."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.data.images import find_images, is_hidden
from mlcore.data.places import Places
from mlcore.data.tables import TABLES, Table, open_table, warn_of_misspelt
from mlcore.remote.s3 import is_remote, stored_file
from mlcore.run.scorer import FURTHER, FolderScorer, Ignoring, Item, Scorer

__all__ = ["Files", "Inputs", "find_inputs"]

_log = logging.getLogger(__name__)

_FIRST = {"part": 0, "page": 1}  # what the first of a file's things is called in a column of this kind
_DIGITS = 9


class Inputs(Protocol):
    """What is to be predicted, in an order."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the caller's own columns, which are passed through."""

    def __len__(self) -> int: ...

    def item(self, place: int) -> Item:
        """One of them; raises `UserError` with the reason why it cannot be used."""

    def record(self, place: int) -> Sequence[str]:
        """The caller's values of one of them, in the order of `columns`; none for a row that is no row."""


def find_inputs(given: Sequence[str], scorer: Scorer, *, base_dir: Path | None = None) -> Inputs:
    """What a command line names: one table, or files and folders.

    Args:
        given: Paths, or `s3://bucket/key` of files.
        scorer: Says which files and columns a model takes.
        base_dir: Where the paths of a table start; None: in its own folder.

    Raises:
        UserError: There is nothing, a table beside other things, or a table without rows or the columns.
    """
    suffixes = [suffix for suffix in TABLES if suffix not in scorer.suffixes]  # others are files that hold inputs
    tables = [text for text in given if Path(text).suffix.lower() in suffixes]
    if tables and len(given) > 1:
        raise UserError(f"{tables[0]} is a table; give it alone, or files and folders")
    if tables:
        folders = isinstance(scorer, FolderScorer)
        table = open_table(stored_file(tables[0]), empty_rows=True)  # each is answered, in its place
        rows = Rows(table, scorer.inputs, base_dir=base_dir, folders=folders)
        rows.tell()
        if not len(rows):
            raise UserError(f"{tables[0]}: no rows below the header")
        unseen = [name for name in rows.columns if isinstance(scorer, Ignoring) and name in scorer.ignored]
        if unseen:
            _log.warning("%s: this model does not look at the column %s", tables[0], ", ".join(unseen))
        return rows
    if base_dir is not None:
        raise UserError("--base_dir says where the paths of a table start, and no table is given")
    files = Files([place for text in given for place in _files(text, scorer)])
    if not len(files):
        raise UserError("nothing to predict: give files, folders of them, or a table")
    return files


class Files:
    """Files, or what is in them.

    Args:
        found: Items, or pairs of a name and the reason why it cannot be used.
    """

    columns: Sequence[str] = ("input",)

    def __init__(self, found: Sequence[Item | tuple[str, str]]) -> None:
        self._found = found

    def __len__(self) -> int:
        return len(self._found)

    def item(self, place: int) -> Item:
        """One of them."""
        found = self._found[place]
        if isinstance(found, tuple):
            raise UserError(found[1])
        return found

    def record(self, place: int) -> Sequence[str]:
        """Its name."""
        found = self._found[place]
        return [found[0] if isinstance(found, tuple) else found.name]


def _files(text: str, scorer: Scorer) -> list[Item | tuple[str, str]]:
    """What is in a file or folder; hidden files and folders in a folder are left out."""
    try:
        path = stored_file(text) if is_remote(text) else Path(text)
        paths = [path]
        if path.is_dir():
            paths = _inside(path, scorer)
            if not paths:
                raise UserError(f"{path}: no file that this model reads; expected {', '.join(scorer.suffixes)}")
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder")
    except (UserError, OSError) as error:
        return [(text, str(error))]
    found: list[Item | tuple[str, str]] = []
    for one in paths:
        try:
            found += scorer.items(one)
        except UserError as error:
            found.append((str(one), str(error)))
    return found


def _inside(folder: Path, scorer: Scorer) -> list[Path]:
    """What is to be predicted of a folder: files, and where the scorer takes such, the folder and those in it."""
    found = find_images(folder, scorer.suffixes)
    if isinstance(scorer, FolderScorer):
        folders = (path for path in (folder, *folder.rglob("*")) if path.is_dir())
        found += (path for path in folders if not is_hidden(path, folder) and scorer.takes(path))
    return sorted(found)


class Rows:
    """The rows of a table.

    Args:
        table: It, whose columns are all passed through.
        wanted: Columns of an item, as `Scorer.inputs` names them.
        base_dir: Where paths start, and must stay; None: in the table's own folder.
        folders: Whether a path may be that of a folder.

    Raises:
        UserError: It has none of the columns.
    """

    def __init__(
        self, table: Table, wanted: Mapping[str, Sequence[str]], *, base_dir: Path | None, folders: bool = False
    ) -> None:
        self.table = table
        self._places = Places(table.path, base_dir, folders=folders)
        self._named = {
            name: next(spelling for spelling in spellings if spelling in table.columns)
            for name, spellings in wanted.items()
            if any(spelling in table.columns for spelling in spellings)
        }
        self._wanted, self._paged = wanted, "page" in wanted
        if not self._named:
            expected = " or ".join(chain.from_iterable(wanted.values()))
            raise UserError(f"{table.path}: its columns are {', '.join(table.columns)}; expected one called {expected}")

    def tell(self) -> None:
        """Log which columns are read where one could be there and is not, and warn of one that may be meant to be."""
        read, lacking = list(self._named.values()), [names for kind, names in self._wanted.items() if self._lacks(kind)]
        if lacking:
            without = ", ".join(names[0] for names in lacking)
            _log.info("%s: reads %s; without %s", self.table.path, ", ".join(read), without)
        warn_of_misspelt(self.table.path, self.columns, [*read, *chain.from_iterable(lacking)])

    def _lacks(self, kind: str) -> bool:
        return bool(self._wanted[kind]) and kind not in self._named and kind not in _FIRST

    @property
    def columns(self) -> Sequence[str]:
        """Those of the table."""
        return self.table.columns

    def __len__(self) -> int:
        return len(self.table)

    def item(self, place: int) -> Item:
        """What a row says."""
        record = self.table.record(place)
        values = {name: record[column] for name, column in self._named.items()}
        text, numbers = values.pop("path", ""), {name: values.pop(name, "") for name in _FIRST}
        try:
            parts = [self._number(name, number) - _FIRST[name] for name, number in numbers.items() if number]
            path, part = self._file(text) if "path" in self._named else (None, 0)
            further = {name: cell for name, cell in values.items() if name.startswith(FURTHER) and cell}
            values |= {name: str(self._places.find(cell)) for name, cell in further.items() if cell[0] != "["}
        except UserError as error:
            raise UserError(f"{self.table.where(place)}: {error}") from None
        return Item(text or self.table.where(place), path, next(iter(parts), part), tuple(sorted(values.items())))

    def _number(self, name: str, text: str) -> int:
        if not (text.isdecimal() and len(text) <= _DIGITS and int(text) >= _FIRST[name]):
            raise UserError(f"{self._named[name]} is {text[:40]!r}; expected a number from {_FIRST[name]}")
        return int(text)

    def _file(self, text: str) -> tuple[Path, int]:
        """A file, and which part of it is meant; one whose own name ends in "#3" comes before a third page."""
        name, _, number = text.rpartition("#")
        try:
            return self._places.find(text), 0
        except UserError:
            if not (self._paged and name and number.isdecimal() and len(number) <= _DIGITS and int(number)):
                raise
            return self._places.find(name), int(number) - 1

    def record(self, place: int) -> Sequence[str]:
        """The values of a row."""
        try:
            return list(self.table.record(place).values())
        except UserError:
            return [""] * len(self.columns)


@dataclass(frozen=True)
class Once:
    """Which inputs are the same thing: each is predicted once.

    Args:
        inputs: All of them.
        strict: Whether one that cannot be used is an error.
    """

    inputs: Inputs
    strict: bool = False

    @cached_property
    def _keys(self) -> NDArray[np.void]:
        """What makes an input what it is, 16 bytes of each; those that cannot be used differ from all others."""
        keys = np.empty((len(self.inputs), 16), dtype=np.uint8)
        for place in range(len(self.inputs)):
            try:
                item = self.inputs.item(place)
                further = (value for name, value in item.values if name.startswith(FURTHER) and value[:1] != "[")
                files = [item.path, *map(Path, further)]
                states = "\0".join(_state(path) for path in files)
                known = f"{item.path}\0{states}\0{item.part}\0{item.values}"
            except UserError as error:
                if self.strict:
                    raise
                known = f"{place}\0{error}"
            digest = hashlib.blake2b(known.encode(errors="surrogateescape"), digest_size=16).digest()
            keys[place] = np.frombuffer(digest, dtype=np.uint8)
        return keys.view(np.dtype((np.void, 16)))[:, 0]

    @cached_property
    def digest(self) -> str:
        """Of all inputs in their order."""
        return hashlib.blake2b(self._keys.tobytes(), digest_size=16).hexdigest()

    @cached_property
    def _first(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each input the first one that is the same, int64 [inputs]; and those of these, in order."""
        _, first, kind = np.unique(self._keys, return_index=True, return_inverse=True)
        return first[kind], np.sort(first)

    @property
    def places(self) -> NDArray[np.int64]:
        """Of the inputs that are predicted, in their order: the first of each kind, int64 [kinds]."""
        return self._first[1]

    @cached_property
    def kinds(self) -> NDArray[np.int64]:
        """For each input, its place in `places`, int64 [inputs]."""
        return np.searchsorted(self.places, self._first[0])


def _state(path: Path | None) -> str:
    """A file that was changed is another one."""
    if path is None:
        return ""
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"

"""The files that the rows of a table name: where paths start, and what they must stay in."""

from collections.abc import Hashable
from pathlib import Path
from stat import S_ISLNK

from mlcore.base.errors import UserError
from mlcore.data.records import as_stored

__all__ = ["Places"]


class Places:
    """Finds the files of one table, and which line something was met in before.

    Relative paths stay in the folder they start at, also after symbolic links are followed: a table from elsewhere
    reads nothing but what lies with it.

    Args:
        table: The table.
        base_dir: Where relative paths start, and what absolute ones must stay in, too. None: relative paths start at
            the table's folder, absolute ones are free.
        folders: Whether a folder, too, is something to find.

    Raises:
        UserError: `base_dir` is no folder.
    """

    def __init__(self, table: Path, base_dir: Path | None, *, folders: bool = False) -> None:
        if base_dir is not None and not base_dir.is_dir():
            raise UserError(f"{base_dir}: no such folder (base_dir)")
        self._base = (table.parent if base_dir is None else base_dir).absolute().resolve()
        self._only_inside, self._folders = base_dir is not None, folders
        self._seen: dict[Hashable, int] = {}
        self._resolved: dict[Path, Path] = {}  # folders: a table has many rows in few of them

    def find(self, text: str) -> Path:
        """The file that a cell names; absolute, symbolic links resolved.

        Raises:
            UserError: There is none, or it is outside; the caller adds the line.
        """
        try:
            return self._look_up(text)
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a loop of links
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(f"{_short(text)!r} is not a path ({_short(reason)})") from None

    def only_once(self, thing: Hashable, *, line: int, text: str, what: str) -> None:
        """Note that `line` has `thing`, which it calls `text`.

        Raises:
            UserError: A line before has it, too.
        """
        if (first := self._seen.setdefault(thing, line)) != line:
            raise UserError(f"the same {what} as in line {first}: {text}")

    def _look_up(self, text: str) -> Path:
        if not text:
            raise UserError("the path of the image is empty")
        path = self._resolve(as_stored(self._base / text))
        free = not self._only_inside and Path(text).is_absolute()
        if not free and not path.is_relative_to(self._base):
            raise UserError(
                f"{_short(text)} is outside of {self._base} (symbolic links followed), which paths must stay in"
            )
        if path.is_file() or (self._folders and path.is_dir()):
            return path
        if path.exists():
            raise UserError(f"{_short(text)} is {'a folder' if path.is_dir() else 'a device'}; expected a file")
        where = "" if Path(text).is_absolute() else f" (relative paths start at {self._base})"
        raise UserError(f"no such file: {_short(text)}{where}")

    def _resolve(self, path: Path) -> Path:
        """As `Path.resolve`, which would follow the same folders for every row."""
        if path.name in ("", ".."):
            return path.resolve()
        if (folder := self._resolved.get(path.parent)) is None:
            folder = self._resolved[path.parent] = path.parent.resolve()
        path = folder / path.name
        try:
            return path.resolve() if S_ISLNK(path.lstat().st_mode) else path
        except (FileNotFoundError, NotADirectoryError):
            return path  # which the caller finds


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"

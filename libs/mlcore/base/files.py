"""Durable files: a reader sees the old file or the whole new one, never half of it, whenever the process dies.

Write with `atomic_write`; call `remove_leftovers` once when a killed run's folder is taken up again.
"""

import contextlib
import csv
import errno
import fcntl
import io
import json
import math
import mmap
import numbers
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

from mlcore.base.errors import UserError
from mlcore.base.secrets import mask_known, visible

__all__ = [
    "atomic_write",
    "csv_text",
    "ensure_folder",
    "format_bytes",
    "free_bytes",
    "output_folder",
    "partial_folder",
    "plain_cell",
    "remove_leftovers",
    "told_writing",
    "write_json",
    "write_text",
]

_SUFFIX = ".partial"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_ADDRESS = re.compile(r"\w\w+:/")


class _Disk(io.FileIO):
    """A raw file that remembers its first failure.

    Libraries hide it (`torch.save` turns a full disk into a RuntimeError), and the user must hear the true reason.
    """

    failure: OSError | None = None

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self.failure = self.failure or error
            raise


class _PastCache(io.RawIOBase):
    """Writes whole blocks to a `_Disk` past the page cache (O_DIRECT), where the file system can.

    Copying into the page cache keeps a core as busy as the disk is; a disk that fetches the blocks itself leaves it to
    whoever trains meanwhile.
    """

    _BLOCK = 4 << 20  # bytes; a multiple of any disk's

    def __init__(self, disk: _Disk) -> None:
        self._disk = disk
        self._block = memoryview(mmap.mmap(-1, self._BLOCK))  # begins at a page, as direct writes must
        self._used = 0
        self._is_direct = _set_direct(disk, on=True)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any, /) -> int:
        """Any buffer, as a whole."""
        rest = data = memoryview(data).cast("B")
        while len(rest):
            taken = min(len(rest), self._BLOCK - self._used)
            self._block[self._used : self._used + taken] = rest[:taken]
            self._used, rest = self._used + taken, rest[taken:]
            if self._used == self._BLOCK:
                self._send()
        return len(data)

    def flush(self) -> None:
        """Write what fills no block, the usual way, in which all that follows is written."""
        if self._used:
            self._is_direct = _set_direct(self._disk, on=False)
            self._send()

    def _send(self) -> None:
        rest, self._used = self._block[: self._used], 0
        while len(rest):
            try:
                rest = rest[self._disk.write(rest) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._is_direct, self._disk.failure = _set_direct(self._disk, on=False), None

    def close(self) -> None:
        """Close the file under it, too."""
        try:
            super().close()
        finally:
            self._disk.close()


def _set_direct(disk: io.FileIO, *, on: bool) -> bool:
    """Turn direct writing on or off; whether it is on now."""
    direct = getattr(os, "O_DIRECT", 0)  # not every system has it
    flags = fcntl.fcntl(disk, fcntl.F_GETFL) & ~direct
    try:
        fcntl.fcntl(disk, fcntl.F_SETFL, flags | direct if on else flags)
    except OSError:  # EINVAL of some file systems
        return False
    return on and direct != 0


@contextlib.contextmanager
def atomic_write(path: Path, *, size: int | None = None, past_cache: bool = False) -> Iterator[BinaryIO]:
    """Open `path` for writing so that it appears, complete and on the disk, when the block ends without an exception.

    Temporary file in the same folder, fsync, rename, fsync of the folder. If the block raises, `path` stays as it was.

    Args:
        path: The file to write; its folder must exist.
        size: Bytes about to be written, where known: too little space is then reported at once.
        past_cache: Write from front to back and, where the file system can, past the page cache, so that large files
            take little of the processor; they cannot be sought in.

    Yields:
        A binary file opened for writing.

    Raises:
        UserError: The disk is full, or the folder is missing or not writable; it gives the path and the space.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_SUFFIX}")
    if size is not None and path.parent.is_dir() and free_bytes(path.parent) < size:
        raise _explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path, size)
    disk = None
    try:
        with told_writing(path, size):
            disk = _Disk(temporary, "xb")
        buffer = _PastCache(disk) if past_cache else io.BufferedWriter(disk, buffer_size=1 << 20)
        try:
            yield cast("BinaryIO", buffer)
            with told_writing(path, size):
                buffer.flush()
                os.fsync(disk.fileno())
        finally:
            with contextlib.suppress(OSError):  # a failed flush raises again here; the first failure is the one to tell
                buffer.close()
        with told_writing(path, size):
            temporary.replace(path)
            sync(path.parent)
    except BaseException as error:
        # Measure before the half-written file gives its space back.
        told = None if disk is None or disk.failure is None else _explain(disk.failure, path, size)
        with contextlib.suppress(OSError):  # a folder that cannot be written to, or is none
            temporary.unlink(missing_ok=True)
        if told is None or isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise told from error


def write_text(path: Path, text: str) -> None:
    """Write `text`, without known secrets, as UTF-8 to `path`, all or nothing; errors as in `atomic_write`.

    Names of files need not be UTF-8: their bytes that are not are written as escapes, as JSON would.
    """
    data = mask_known(text).encode("utf-8", errors="backslashreplace")
    with atomic_write(path, size=len(data)) as file:
        file.write(data)


def csv_text(rows: Iterable[Iterable[object]], *, exact: bool = False) -> str:
    """Rows, the header among them, as CSV (RFC 4180 with ends of lines of one character); floats keep every digit.

    Text that a spreadsheet would take for a formula gets an apostrophe before it, which `plain_cell` takes off again.

    Args:
        rows: Numbers and text.
        exact: For tables that are read again: control characters stay what they are.
    """
    cells = ([_cell(value, exact=exact) for value in row] for row in rows)
    lines: list[str] = []
    file = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n")))
    csv.writer(file, lineterminator="\r\n").writerows(cells)  # which quotes cells with either character
    return "".join(f"{line}\n" for line in lines)


def _cell(value: object, *, exact: bool) -> object:
    if value is None or isinstance(value, numbers.Number):
        return value
    text = str(value) if exact else visible(str(value))
    if not _FORMULA.match(text):
        return text
    with contextlib.suppress(ValueError):
        float(text)
        return text
    return f"'{text}"


def plain_cell(text: str) -> str:
    """What a cell of text means: without the apostrophe that keeps spreadsheets from evaluating it."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_json(path: Path, values: object) -> None:
    """Write `values` as strict JSON to `path`, all or nothing; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(_strict(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ensure_folder(path: Path) -> Path:
    """Create the folder `path` (and parents) and prove that files can be written there.

    Returns:
        `path`.

    Raises:
        UserError: It is a file or an address, or cannot be created or written to.
    """
    path = Path(path)
    if _ADDRESS.match(str(path)):
        raise UserError(f"{path}: an address; expected a local folder")
    with told_writing(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{uuid.uuid4().hex[:8]}{_SUFFIX}"
        probe.touch()
        probe.unlink()
    return path


@contextlib.contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """`ensure_folder` for what a block writes: if it raises, folders that were made for it and are empty go again.

    Yields:
        `path`.

    Raises:
        UserError: As `ensure_folder`.
    """
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield ensure_folder(path)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # something is in it by now, or it was never made
                folder.rmdir()
        raise


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A new empty folder beside `target`, to be renamed once all is in it; it goes when the block ends otherwise.

    Folders above `target` that were made for it go with it.

    Raises:
        UserError: The folder that `target` is in cannot be made or written to.
    """
    with output_folder(target.absolute().parent) as parent:
        folder = parent / f".{target.name}.{uuid.uuid4().hex[:8]}{_SUFFIX}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what writers killed in the middle left in `folder` and below; only for a folder that one run owns.

    Returns:
        The files and folders removed, sorted.
    """
    leftovers = sorted(Path(folder).rglob(f".*{_SUFFIX}"))
    for leftover in leftovers:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)  # it may have gone with the folder it was in
    return leftovers


def free_bytes(path: Path) -> int:
    """Bytes free for this user on the disk that holds `path` or, where it does not exist yet, its nearest parent."""
    path = Path(path).absolute()
    while True:
        try:
            return shutil.disk_usage(path).free
        except OSError:  # not there, or a name that is too long
            if path == path.parent:
                raise
            path = path.parent


def format_bytes(count: int) -> str:
    """Bytes for people, in binary units: `format_bytes(1536) == "1.5 KiB"`."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@contextlib.contextmanager
def told_writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn an `OSError` of a block that writes `path`, of `size` bytes where that is known, into what a user can do."""
    try:
        yield
    except OSError as error:
        raise _explain(error, path, size) from error


def _explain(error: OSError, path: Path, size: int | None) -> UserError:
    """The user's view of a failed write to `path`."""
    if error.errno in _NO_SPACE:
        needed = "" if size is None else f"{format_bytes(size)} needed, "
        return UserError(
            f"{path}: no space left on the disk ({needed}{format_bytes(free_bytes(path))} free). "
            "Free some space or choose another output folder; the file that was there before is unharmed."
        )
    if error.errno in _FORBIDDEN:
        return UserError(
            f"{path}: not writable ({error.strerror}). Check the owner and permissions of {path.parent}, or choose "
            "another output folder."
        )
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
        return UserError(f"{path}: cannot be written ({error.strerror}). Its folder must exist and be a folder.")
    return UserError(f"{path}: writing failed ({error.strerror or error}); {format_bytes(free_bytes(path))} free.")


def sync(path: Path) -> None:
    """Make a file's data, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and FUSE file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)

"""Reading what others wrote: budgets before a file is unpacked, and one error for whatever goes wrong in it.

Readers ask `check_unpacked` with what the file's own headers say, so that a few bytes on disk do not fill the memory,
and read inside `reading`: on damaged or crafted files, readers of formats fail in any way they like.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlcore.base.errors import UserError

__all__ = ["READ_GIB", "Bounded", "allowed_bytes", "check_unpacked", "reading"]

READ_GIB = "QUARTET_READ_GIB"
"""Variable: files that unpack to at most this many GiB are read however small they are on disk."""

_RATIO = 100  # of unpacked to stored; pictures and scans of real things stay below 30
_LONGEST = 200  # characters of a reader's own words


@contextmanager
def reading(name: Path | str, expected: str, *, error: type[UserError] = UserError) -> Iterator[None]:
    """Turn whatever the block raises into one error that names the file, which its own `UserError` may lack.

    Nothing belongs into the block but calls of readers: what else fails there is told as the file's fault, too.

    Args:
        name: The file, as messages call it.
        expected: What it should be: "an .npz file of plain arrays".
        error: The class to raise.

    Raises:
        UserError: The block failed.
    """
    try:
        yield
    except UserError as told:
        if str(name) in str(told):
            raise
        raise error(f"{name}: {told}") from told
    except MemoryError as cause:
        raise error(f"{name}: there is not enough memory to read it") from cause
    except Exception as cause:
        if isinstance(cause, OSError) and cause.strerror:
            raise error(f"{name}: cannot be read ({cause.strerror})") from cause
        raise error(f"{name}: damaged or not {expected} ({_in_a_line(cause)})") from cause


def _in_a_line(cause: Exception) -> str:
    text = "nested too deeply" if isinstance(cause, RecursionError) else " ".join(str(cause).split())
    text = text or type(cause).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def check_unpacked(name: Path | str, *, unpacked: int, stored: int, always: int = 256 * 2**20) -> None:
    """Refuse a file before it is read if it would take far more memory than it takes on disk.

    Args:
        name: What messages call it.
        unpacked: Bytes that its headers announce.
        stored: Bytes on disk.
        always: Bytes that any file of this kind may unpack to.

    Raises:
        UserError: More than `always`, 100 times `stored`, and what `QUARTET_READ_GIB` allows.
    """
    if unpacked > max(always, _RATIO * stored, allowed_bytes()):
        gib = unpacked / 2**30
        raise UserError(
            f"{name}: refused, because {stored / 2**20:.2g} MiB on disk claim to be {gib:.3g} GiB, more than {_RATIO} "
            f"times as much; if the file is right, set {READ_GIB}={int(gib) + 1}"
        )


def allowed_bytes() -> float:
    """What `QUARTET_READ_GIB` allows, whatever the file; 0 where it is not set.

    Raises:
        UserError: It is no number.
    """
    given = os.environ.get(READ_GIB) or "0"
    try:
        return float(given) * 2**30
    except ValueError:
        raise UserError(f"{READ_GIB}={given}: expected a number of GiB") from None


class Bounded(io.BufferedReader):
    """A file, opened for reading, that is never asked for more bytes than it has left.

    Readers of some formats take a length in a file at its word, and Python makes room for all of it before it reads.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; all that are left where it is negative or None."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)

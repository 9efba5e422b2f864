"""How much a file may unpack to: a few bytes on disk are not to fill the memory.

Readers ask before they read, with what the file's own headers say.
"""

import os
from pathlib import Path

from mlcore.base.errors import UserError

__all__ = ["READ_GIB", "check_unpacked"]

READ_GIB = "QUARTET_READ_GIB"
"""Variable: files that unpack to at most this many GiB are read however small they are on disk."""

_RATIO = 100  # of unpacked to stored; pictures and scans of real things stay below 30


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
    given = os.environ.get(READ_GIB) or "0"
    try:
        allowed = float(given) * 2**30
    except ValueError:
        raise UserError(f"{READ_GIB}={given}: expected a number of GiB") from None
    if unpacked > max(always, _RATIO * stored, allowed):
        gib = unpacked / 2**30
        raise UserError(
            f"{name}: refused, because {stored / 2**20:.2g} MiB on disk claim to be {gib:.3g} GiB, more than {_RATIO} "
            f"times as much; if the file is right, set {READ_GIB}={int(gib) + 1}"
        )

"""Locks that processes hold on files, on every system; the kernel frees those of a killed process."""

import logging
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

__all__ = ["hold", "is_held"]

_log = logging.getLogger(__name__)


def hold(path: Path) -> BaseFileLock | None:
    """Take the lock of the file `path`, which is made if it is missing; None where another process has it.

    Forks (loader workers) do not share it, so that it does not outlive this process. Some network file systems have no
    locks: that is logged, and the lock returned holds nothing.

    Returns:
        The lock; `release()` frees it.
    """
    lock = _lock(path)
    try:
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        _log.warning("%s: cannot be locked (%s); see to it that no other process writes there", path, error)
    return lock


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of the file `path`."""
    if not path.is_file():
        return False
    try:
        with _lock(path):
            return False
    except Timeout:
        return True
    except OSError:  # a file system without locks
        return False


def _lock(path: Path) -> BaseFileLock:
    return FileLock(path, blocking=False, fallback_to_soft=False, preserve_lock_file=True, thread_local=False)

"""Uploads beside the training, which never wait for them and never fail because of them."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlcore.remote.s3 import StorageError, upload

__all__ = ["BackgroundUploader", "Failure"]

logger = logging.getLogger("mlcore")


@dataclass(frozen=True)
class Failure:
    """A file that did not arrive; the local one is unharmed."""

    path: Path
    uri: str
    reason: str


class BackgroundUploader:
    """Uploads files in a thread, one after the other, in the order of their first submission.

    Submitting a newer file for an address that still waits replaces the older one; a file that has arrived and has not
    changed since is not sent again. A fault that may pass (the network) is tried again up to `attempts` times, waiting
    `backoff`, 2 `backoff`, ... seconds in between; a lasting one (denied, no bucket) is not. The first failure is
    logged as a warning; `close` tells all.

    Args:
        attempts: How often to try each file, at least 1.
        backoff: Seconds before the second attempt.
        send: What uploads one file; exceptions it raises count as failures.
    """

    def __init__(self, *, attempts: int = 3, backoff: float = 2.0, send: Callable[[Path, str], None] = upload) -> None:
        self._attempts = attempts
        self._backoff = backoff
        self._send = send
        self._waiting: dict[str, Path] = {}
        self._current: tuple[str, Path] | None = None
        self._failures: dict[str, Failure] = {}
        self._arrived: dict[str, tuple[int, ...]] = {}
        self._warned = False
        self._down = False  # the last file failed for want of a proper answer
        self._closing = False
        self._changed = threading.Condition()
        # A daemon: a dead server must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="uploader", daemon=True)
        self._thread.start()

    def submit(self, path: Path, uri: str) -> None:
        """Upload `path` to `uri` when its turn comes; returns at once.

        Raises:
            RuntimeError: The uploader has been closed.
        """
        with self._changed:
            if self._closing:
                raise RuntimeError("the uploader is closed")
            if uri not in self._arrived or self._arrived[uri] != _version(path):
                self._waiting[uri] = Path(path)
                self._changed.notify_all()

    def close(self, timeout: float) -> list[Failure]:
        """Wait up to `timeout` seconds for what is still under way, less where the server is found to be down.

        Returns:
            What did not arrive: failed for good, or not finished in time. A later success clears an earlier failure.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            rest = dict(self._waiting)
            self._waiting.clear()
            if self._current is not None:
                rest.setdefault(*self._current)
            late = {uri: Failure(path, uri, f"not finished within {timeout:g} s") for uri, path in rest.items()}
            return list({**self._failures, **late}.values())

    def _work(self) -> None:
        while True:
            with self._changed:
                self._current = None
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                uri = next(iter(self._waiting))
                path = self._waiting.pop(uri)
                self._current = (uri, path)
            was_down, version = self._down, _version(path)
            reason = self._try(path, uri)
            with self._changed:
                self._failures.pop(uri, None)
                if reason is None:
                    self._arrived[uri] = version
                    if uri in self._waiting and _version(self._waiting[uri]) == version:
                        del self._waiting[uri]  # submitted again meanwhile
                else:
                    self._failures[uri] = Failure(path, uri, reason)
                if self._closing and was_down and self._down:  # for each of the others it would take as long again
                    self._failures |= {uri: Failure(path, uri, str(reason)) for uri, path in self._waiting.items()}
                    self._waiting.clear()
            if reason is not None and not self._warned:
                self._warned = True
                logger.warning("Upload failed, training goes on and %s stays here: %s", path, reason)

    def _try(self, path: Path, uri: str) -> str | None:
        """Upload one file; returns why it failed, or None."""
        attempt = 0
        while True:
            attempt += 1
            try:
                self._send(path, uri)
            except Exception as error:  # noqa: BLE001 - nothing that goes wrong here may reach the training
                passing = isinstance(error, StorageError) and error.passing
                if not passing or attempt >= self._attempts or (self._closing and self._down):
                    self._down = passing
                    return f"{error} (tried {attempt} times)" if passing and attempt > 1 else f"{error}"
                time.sleep(self._backoff * 2 ** (attempt - 1))
            else:
                self._down = False
                return None


def _version(path: Path) -> tuple[int, ...]:
    """What differs once a file has been replaced or written to; empty for one that cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size

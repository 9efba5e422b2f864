"""Uploads beside the training, which never wait for them and never fail because of them."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlcore.storage import StorageError, upload

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

    Submitting a newer file for an address that still waits replaces the older one. A fault that may pass (the network)
    is tried again up to `attempts` times, waiting `backoff`, 2 `backoff`, ... seconds in between; a lasting one
    (denied, no bucket) is not. The first failure of each address is logged as a warning.

    Args:
        attempts: How often to try each file, at least 1.
        backoff: Seconds before the second attempt.
        send: What uploads one file; exceptions it raises count as failures.
    """

    def __init__(
        self, *, attempts: int = 3, backoff: float = 2.0, send: Callable[[Path, str], None] | None = None
    ) -> None:
        self._attempts = attempts
        self._backoff = backoff
        self._send = send or _send
        self._waiting: dict[str, Path] = {}
        self._current: tuple[str, Path] | None = None
        self._failures: dict[str, Failure] = {}
        self._warned: set[str] = set()
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
            self._waiting[uri] = Path(path)
            self._changed.notify_all()

    def close(self, timeout: float) -> list[Failure]:
        """Wait up to `timeout` seconds for what is still under way.

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
            reason = self._try(path, uri)
            with self._changed:
                self._failures.pop(uri, None)
                if reason is not None:
                    self._failures[uri] = Failure(path, uri, reason)
            if reason is not None and uri not in self._warned:
                self._warned.add(uri)
                logger.warning("Upload failed, training goes on and %s stays here: %s", path, reason)

    def _try(self, path: Path, uri: str) -> str | None:
        """Upload one file; returns why it failed, or None."""
        for attempt in range(1, self._attempts + 1):
            try:
                self._send(path, uri)
            except Exception as error:  # noqa: BLE001 - nothing that goes wrong here may reach the training
                lasting = not (isinstance(error, StorageError) and error.passing)
                if lasting or attempt == self._attempts:
                    return f"{error}" if lasting else f"{error} (tried {attempt} times)"
                time.sleep(self._backoff * 2 ** (attempt - 1))
            else:
                return None
        return None


def _send(path: Path, uri: str) -> None:
    upload(path, uri, threads=False)  # boto3's own threads would be waited for at the end of the process

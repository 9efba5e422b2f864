"""A copy of a run folder in a bucket: checkpoints while the run trains, everything else at its end.

Paths below the address are those in the folder. What is the same in the bucket already is not sent again, so a run that
is taken up uploads what an earlier process could not.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlcore.base.secrets import mask_text
from mlcore.base.seeding import untouched_generators
from mlcore.remote.s3 import to_address
from mlcore.remote.uploader import BackgroundUploader

__all__ = ["Copied", "RunCopy", "copy_of", "run_key"]

_log = logging.getLogger(__name__)

# The lock, what trackers keep for themselves, the files behind the names of checkpoints, and halves of files.
_LEFT_OUT = ("run.lock", "tensorboard", "wandb", "step_*.pth", ".*.partial")

# Seconds to wait at the end. Who interrupts a run kills it soon (SLURM, Kubernetes); other ranks wait for five minutes.
_PATIENCE = {"finished": 300.0, "interrupted": 60.0, "time is up": 60.0, "failed": 10.0}


@dataclass(frozen=True)
class Copied:
    """What a bucket got of a run.

    Attributes:
        to: Address of the copy, `s3://bucket/...`.
        missing: Why a file did not arrive, by its path in the run folder.
        again: The flag that, with the folder, makes the same command upload what is missing.
    """

    to: str
    missing: Mapping[str, str]
    again: str = "--resume"

    def complaint(self, folder: Path) -> str:
        """What did not arrive and how to mend it; empty if all did."""
        if not self.missing:
            return ""
        names = list(self.missing)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return (
            f"Not uploaded to {self.to}: {', '.join(names[:5])}{more} ({self.missing[names[0]]}). "
            f"Nothing is lost: all is in {folder}, and the same command with {self.again} {folder} uploads it."
        )


def run_key(folder: Path, *, root: Path, name: str) -> str:
    """Where a run goes in a bucket: as it lies below `root`, the app's folder of runs; elsewhere `name`/its folder."""
    path, root = folder.resolve(), root.resolve()
    key = path.relative_to(root) if root in path.parents else Path(name, path.name)
    return key.as_posix()


def copy_of(
    folder: Path, *, upload_to: str | None, app: str, root: Path, name: str, again: str = "--resume"
) -> "RunCopy | None":
    """The copy of a run's folder, if one is wanted.

    Args:
        folder: The run folder.
        upload_to: Bucket, or s3://bucket/prefix; None: no copy.
        app: Name of the app, the first part of the key.
        root: See `run_key`, as is `name`.
        name: What the run is called.
        again: See `Copied`.
    """
    if upload_to is None:
        return None
    return RunCopy(folder, f"{to_address(upload_to)}/{app}/{run_key(folder, root=root, name=name)}", again=again)


class RunCopy:
    """Uploads a run folder's files in the background; training neither waits for it nor fails because of it.

    Args:
        folder: The run folder, which this process owns.
        address: Where the copy goes, `s3://bucket/...`; nobody else writes there.
        again: See `Copied`.
    """

    def __init__(self, folder: Path, address: str, *, again: str = "--resume") -> None:
        self.address = address
        self._again = again
        self._folder = folder
        self._uploader: BackgroundUploader | None = None

    def begin(self) -> None:
        """Start, with the checkpoints that are there already; once."""
        if self._uploader is not None:
            return
        with untouched_generators(), contextlib.suppress(ImportError):
            import boto3  # noqa: F401 - it takes a moment, which is not to fall into the training
        self._uploader = BackgroundUploader()
        for path in self._files():
            if path.parent.name == "checkpoints":
                self.submit(path)

    def submit(self, path: Path) -> None:
        """Upload a file of the folder when its turn comes; returns at once."""
        if self._uploader is not None:
            self._uploader.submit(path, f"{self.address}/{path.relative_to(self._folder).as_posix()}")

    def close(self, *, status: str) -> Copied:
        """Upload all that is there now, wait a while, and tell what did not arrive; nothing if it has not begun.

        Args:
            status: How the run ended.
        """
        if self._uploader is None:
            return Copied(self.address, {}, self._again)
        _log.info("copying the run to %s", self.address)
        # Checkpoints, which take longest, wait in the queue already or are there.
        for path in sorted(self._files(), key=lambda path: path.suffix in (".pth", ".ckpt")):
            self.submit(path)
        failures = self._uploader.close(_PATIENCE.get(status, _PATIENCE["finished"]))
        missing = {failure.path.relative_to(self._folder).as_posix(): mask_text(failure.reason) for failure in failures}
        copied = Copied(self.address, missing, self._again)
        if missing:
            _log.warning("%s", copied.complaint(self._folder))
        return copied

    def _files(self) -> Iterator[Path]:
        for path in sorted(self._folder.rglob("*")):
            parts = [Path(part) for part in path.relative_to(self._folder).parts]
            if path.is_file() and not any(part.match(pattern) for part in parts for pattern in _LEFT_OUT):
                yield path

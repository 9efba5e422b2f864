"""Run folders: where a run lives, whether it can be continued, and that only one process writes to it.

A run folder holds `run.json` (status, why it failed, configuration, command), the checkpoints and everything a run
leaves. A killed run is recognised by a status of "running" without anybody holding the lock.
"""

import contextlib
import json
import logging
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.base.files import ensure_folder, remove_leftovers, write_json
from mlcore.base.locks import hold, is_held
from mlcore.base.reading import reading
from mlcore.base.secrets import mask_arguments, mask_text
from mlcore.config.difference import changes, matters, plain_values
from mlcore.config.section import Section

_log = logging.getLogger(__name__)

ENDED = ("finished", "stopped early")
"""Statuses of runs that ended by themselves."""


@dataclass(frozen=True)
class RunFolder:
    """A chosen folder.

    Attributes:
        path: The folder.
        checkpoint: A checkpoint of another folder to start from, or None.
        resume: Whether to continue from the newest good checkpoint in the folder (or from `checkpoint`).
    """

    path: Path
    checkpoint: Path | None = None
    resume: bool = False

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are."""
        return self.path / "checkpoints"


def choose_run_folder(
    root: Path,
    *,
    config: Section,
    output_dir: Path | None = None,
    resume: str = "auto",
    start: Path | None = None,
) -> RunFolder:
    """Decide where a run lives and what it continues from.

    Args:
        root: Folder of runs of this kind; a new run gets a folder below it named by date and time.
        config: The resolved configuration.
        output_dir: Exactly this folder instead of one below `root`.
        resume: "auto" continues the newest unfinished run of the same configuration (or whatever is in `output_dir`);
            "never" starts anew; the path of a run folder (or of its latest checkpoint) continues there; the path of
            any other checkpoint starts a new run from it, unless there is one in `output_dir`, which is continued.
        start: A checkpoint from which a new run starts likewise, whatever `resume` is and wherever it lies.

    Raises:
        UserError: `resume` names nothing, "never" would overwrite a run, or there cannot be such a folder.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # those are for whoever makes it
            (output_dir or root).lstat()
        return _chosen(root, config, output_dir, resume, start)
    except OSError as error:  # such as a name that is too long for the file system
        what = error.filename or output_dir or root
        raise UserError(
            f"{what}: no folder of runs can be there ({error.strerror}); give a shorter --run.name, or another "
            "--output_dir"
        ) from error


def _chosen(root: Path, config: Section, output_dir: Path | None, resume: str, start: Path | None) -> RunFolder:
    if start is not None:
        return _branch(start, root, output_dir)
    if resume not in ("auto", "never"):
        return _named(Path(resume), root, output_dir)
    if output_dir is not None:
        holds_run = _holds_checkpoints(output_dir)
        if holds_run and resume == "never":
            raise UserError(
                f"{output_dir} already holds a run; choose another --output_dir, or --resume auto to continue it"
            )
        return RunFolder(output_dir, resume=holds_run)
    if resume == "auto":
        found = _newest_unfinished(root, config)
        if found is not None:
            return RunFolder(found, resume=True)
    return RunFolder(_fresh(root))


def _named(target: Path, root: Path, output_dir: Path | None) -> RunFolder:
    if target.is_dir():
        folder = target.parent if target.name == "checkpoints" else target
        if not _holds_checkpoints(folder):
            raise UserError(f"--resume {target}: no checkpoint in {folder / 'checkpoints'}")
        if output_dir is not None and output_dir.resolve() != folder.resolve():
            raise UserError(
                f"--resume {target} goes on in that folder, not in {output_dir}: leave out --output_dir, or give "
                "--resume one of the run's checkpoints, from which a new run starts"
            )
        return RunFolder(folder, resume=True)
    if not target.is_file():
        raise UserError(f"--resume {target}: no such checkpoint or run folder; give one, or auto, or never")
    latest = target.with_name("latest_model.pth")
    if output_dir is None and target.parent.name == "checkpoints" and latest.exists() and target.samefile(latest):
        return RunFolder(target.parent.parent, resume=True)
    # Anything but the newest state of a run starts a branch of its own, so that what came after it is not lost.
    return _branch(target, root, output_dir)


def _branch(checkpoint: Path, root: Path, output_dir: Path | None) -> RunFolder:
    """A new run that starts from `checkpoint`, or the one in `output_dir`: the same command goes on with it."""
    if output_dir is not None and any((output_dir / "checkpoints").glob("*.pth")):
        _log.info("%s holds a run, which goes on from its own newest checkpoint, not from %s", output_dir, checkpoint)
        return RunFolder(output_dir, resume=True)
    return RunFolder(output_dir or _fresh(root), checkpoint=checkpoint, resume=True)


def _fresh(root: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = (root / (stamp if k == 0 else f"{stamp}-{k}") for k in range(1000))
    return next(path for path in candidates if not path.exists())


def _holds_checkpoints(folder: Path) -> bool:
    """Whether there are any, of the run itself or of runs inside it."""
    depth = "**/" if (folder / "run.json").is_file() else ""  # a folder of runs is none itself
    return any(folder.glob(f"{depth}checkpoints/*.pth"))


def finished_run(folder: Path, config: Section) -> bool:
    """Whether `folder` holds a run of the resolved `config` that has ended by itself."""
    record = _record(folder)
    return record.get("status") in ENDED and not _differing(record, config)


def has_ended(folder: Path) -> bool:
    """Whether `folder` holds a run that has ended by itself, with whatever configuration."""
    return _record(folder).get("status") in ENDED


def _record(folder: Path) -> Mapping[str, Any]:
    """What `run.json` says; nothing where there is none or it cannot be read."""
    with contextlib.suppress(UserError), reading(folder / "run.json", "the record of a run"):
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return {**record, "config": dict(record["config"])}
    return {}


def _differing(record: Mapping[str, Any], config: Section) -> list[str]:
    """Settings that matter to the result and are not those of a run's record."""
    return [str(change) for change in changes(record["config"], config) if matters(change.path)]


def _newest_unfinished(root: Path, config: Section) -> Path | None:
    for path in sorted(root.glob("*/run.json"), reverse=True):
        folder = path.parent
        record = _record(folder)
        if not record or record.get("status") in ENDED or not _holds_checkpoints(folder):
            continue
        if is_locked(folder):
            _log.info("%s is being trained by another process; starting anew", folder)
            continue
        differing = _differing(record, config)
        if not differing:
            return folder
        told = "; ".join(differing)
        _log.info("%s is unfinished but was made with other settings (%s); starting anew", folder, told)
        _log.info("to go on with that one: --resume %s", folder)
    return None


class RunRecord:
    """Holds a run folder's lock, and from `start` on keeps its `run.json` true.

    Args:
        folder: The run folder; made if it is missing.

    Raises:
        UserError: Another process is writing to the folder, or it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self.folder = ensure_folder(folder)
        lock = hold(folder / "run.lock")
        if lock is None:
            raise _busy(folder)
        self._lock = lock
        remove_leftovers(folder)
        self._record: dict[str, Any] = {}

    def start(self, config: Mapping[str, Any], *, code: str = "unknown") -> None:
        """Note that a run with the resolved `config` (nested) of the app's version `code` is under way."""
        self._record = {
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join(mask_arguments(sys.argv)),
            "code": code,
            "host": {"python": platform.python_version(), "platform": platform.platform()},
            "config": plain_values(config),
        }
        write_json(self.folder / "run.json", self._record)

    def end(self, *, status: str, reason: str | None = None) -> None:
        """Note how the run ended and why it failed, once; the folder stays locked for what is still to do in it."""
        if self._record and "ended" not in self._record:
            self._record.update(status=status, ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
            if reason is not None:
                self._record["reason"] = reason
            with contextlib.suppress(UserError):  # a full disk must not hide why the run ended
                write_json(self.folder / "run.json", self._record)

    def close(self, *, status: str, reason: str | None = None) -> None:
        """Note how the run ended and release the folder; a new folder whose run never started goes again."""
        self.end(status=status, reason=reason)
        if not self._record and self._made:
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing of worth is in it
            with contextlib.suppress(OSError):  # nor in the folders above it, unless another run came meanwhile
                for path in self._made[1:]:
                    path.rmdir()
        self._lock.release()


def try_folder(folder: Path) -> None:
    """What `RunRecord` begins with, leaving nothing: the folder can be made and written to, and nobody holds it.

    Raises:
        UserError: As of `RunRecord`.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        ensure_folder(folder)
        if is_locked(folder):
            raise _busy(folder)
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not made, or a run has begun there meanwhile
                path.rmdir()


def _busy(folder: Path) -> UserError:
    return UserError(
        f"{folder}: another process is training in this folder; wait for it, or give --output_dir another one"
    )


def reason_of(error: BaseException) -> str:
    """Why a run failed, in words: of a user's mistake the message, of anything else its kind, too; without secrets."""
    message = mask_text(str(error))
    return message if isinstance(error, UserError) else f"{type(error).__name__}: {message}".removesuffix(": ")


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the run folder."""
    return is_held(folder / "run.lock")

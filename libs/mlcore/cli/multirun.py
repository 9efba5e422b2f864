"""Run the jobs of a sweep one after another, each as a process of its own in a folder of its own.

The state of the sweep is in `sweep.json`: the same command again skips finished jobs, takes up the interrupted one from
its checkpoint (each job's run folder is fixed, and runs resume by default), and tries failed ones again.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

import psutil
from pydantic import TypeAdapter

from mlcore.base.files import ensure_folder, write_text
from mlcore.base.locks import hold
from mlcore.base.reading import reading
from mlcore.base.secrets import mask_arguments
from mlcore.base.signals import EXIT_INTERRUPTED, EXIT_TIME_IS_UP, deferred, received
from mlcore.cli.invocation import Invocation, Override, varied
from mlcore.config.text import ConfigError, read_document

__all__ = ["Job", "own_command", "run_sweep"]

_OUTPUT_DIR = "run.output_dir"
_BUSY = "{}: this sweep, or a job of it, is still running"


@dataclass
class Job:
    """One training of a sweep.

    Attributes:
        overrides: Its settings as `name=text`, secrets masked.
        folder: Its run folder, relative to the sweep's.
        status: How far it is.
        exit_code: Of its last process; negative for a signal.
        seconds: Wall time of its last process.
        process: Of the one that is running: its number, and when it began (numbers are given out again).
    """

    overrides: list[str]
    folder: str
    status: Literal["pending", "running", "finished", "failed", "interrupted"] = "pending"
    exit_code: int | None = None
    seconds: float = 0.0
    process: Sequence[float] | None = None

    def is_alive(self) -> bool:
        """Whether its process still runs; it outlives a sweep that was killed."""
        if self.process is None:
            return False
        number, begun = self.process
        try:
            process = psutil.Process(int(number))
            return process.create_time() == begun and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def own_command(arguments: Sequence[str]) -> list[str]:
    """How this process was started (interpreter, options, script or `-m module`), without its `arguments`."""
    started = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
    return [sys.executable, *started[1:]]


def run_sweep(invocation: Invocation[Any], *, app: str, command: Sequence[str], root: Path | None = None) -> int:
    """Run (or go on with) a sweep.

    Args:
        invocation: A parsed command line with jobs.
        app: Name of the application.
        command: Start of each job's command line, see `own_command`.
        root: Where the app's runs go; None for `outputs/<app>`.

    Returns:
        0 when all jobs are finished, 75 when the sweep or a job was interrupted, 76 when the time of a job was up
        (after both, the same command goes on), 1 when some failed.

    Raises:
        ConfigError: Started under torchrun, the sweep is running already, or the given folder holds another one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep (-m) starts its jobs itself and cannot run under torchrun; sweep without NPROC")
    given_folder = dict(invocation.overrides).get(_OUTPUT_DIR)
    overrides = [[pair for pair in job if pair[0] != _OUTPUT_DIR] for job in invocation.jobs]
    digest = hashlib.sha256(json.dumps([app, overrides, invocation.passed_on]).encode()).hexdigest()[:10]
    own_folder = (root or Path("outputs") / app) / "multirun" / digest
    folder = ensure_folder(Path(given_folder) if given_folder else own_folder)
    start = [*command, *invocation.passed_on]
    with _locked(folder), deferred(), _Runner() as runner:
        jobs = _load(folder, digest) or _plan(overrides)
        if any(job.is_alive() for job in jobs):
            raise ConfigError(_BUSY.format(folder))
        for number, (job, given) in enumerate(zip(jobs, overrides, strict=False), 1):
            if job.status == "finished" or runner.signal or received():
                continue
            print(f"[{number}/{len(jobs)}] {shlex.join(job.overrides)} -> {folder / job.folder}", flush=True)
            settings = [f"{name}={text}" for name, text in given]
            runner.start(job, [*start, *settings, f"{_OUTPUT_DIR}={folder / job.folder}"])
            _save(folder, digest, jobs)
            runner.wait(job)
            _save(folder, digest, jobs)
        print(_table(folder, jobs), flush=True)
        return _exit_code(jobs, stopped=bool(runner.signal) or received())


def _exit_code(jobs: Sequence[Job], *, stopped: bool) -> int:
    """What is to go on comes first: the same command tries failed jobs again, too."""
    if all(job.status == "finished" for job in jobs):
        return 0
    codes = {job.exit_code for job in jobs if job.status == "interrupted"}
    if stopped or codes - {EXIT_TIME_IS_UP}:
        return EXIT_INTERRUPTED
    return EXIT_TIME_IS_UP if codes else 1


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others off the sweep."""
    lock = hold(folder / "sweep.lock")
    if lock is None:
        raise ConfigError(_BUSY.format(folder))
    try:
        yield
    finally:
        lock.release()


class _Runner:
    """Runs one process after another; SIGINT and SIGTERM go to the running one, and the first is remembered."""

    def __init__(self) -> None:
        self.signal = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # handlers can be set in there only
            self._handlers = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if self._process is not None:
            self._process.send_signal(number)

    def start(self, job: Job, command: Sequence[str]) -> None:
        """Start the process of a job."""
        # Own session: a terminal's Ctrl-C reaches the job once, through the handler.
        self._process = process = subprocess.Popen(command, start_new_session=True)  # noqa: S603 (our own command)
        self._started = time.monotonic()
        job.status, job.process = "running", (process.pid, psutil.Process(process.pid).create_time())
        if self.signal:
            process.send_signal(self.signal)  # it came while the job was starting

    def wait(self, job: Job) -> None:
        """Wait for the process that was started, and note how it ended."""
        assert self._process is not None  # noqa: S101 - it was started
        job.exit_code = self._process.wait()
        job.seconds = round(time.monotonic() - self._started, 1)
        self._process = job.process = None
        goes_on = self.signal or job.exit_code in (EXIT_INTERRUPTED, EXIT_TIME_IS_UP)
        job.status = "finished" if job.exit_code == 0 else "interrupted" if goes_on else "failed"


def _plan(jobs: Sequence[Sequence[Override]]) -> list[Job]:
    names = varied(jobs)
    return [
        Job(mask_arguments([f"{name}={text}" for name, text in job]), f"{number}-{_slug(different)}".rstrip("-"))
        for number, (job, different) in enumerate(zip(jobs, names, strict=True), 1)
    ]


def _slug(overrides: Sequence[Override]) -> str:
    text = ",".join(mask_arguments([f"{name.rpartition('.')[2]}={value}" for name, value in overrides]))
    return re.sub(r"[^\w=.,+-]+", "_", text)[:80]


def _load(folder: Path, digest: str) -> list[Job]:
    path = folder / "sweep.json"
    if not path.exists():
        return []
    with reading(path, "the record of a sweep", error=ConfigError):
        state = read_document(path).values
        if state["digest"] != digest:
            raise ConfigError(f"{path} belongs to another sweep; choose another output_dir")
        return TypeAdapter(list[Job]).validate_python(state["jobs"])


def _save(folder: Path, digest: str, jobs: Sequence[Job]) -> None:
    state = {"digest": digest, "jobs": [asdict(job) for job in jobs]}
    write_text(folder / "sweep.json", json.dumps(state, indent=2) + "\n")


def _table(folder: Path, jobs: Sequence[Job]) -> str:
    rows = [
        f"{job.status:<11} {job.seconds:>9.1f} s  {job.folder}"
        + (f"  (exit code {job.exit_code})" if job.status == "failed" else "")
        for job in jobs
    ]
    return "\n".join([f"sweep {folder}:", *rows])

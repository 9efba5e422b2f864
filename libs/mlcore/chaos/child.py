"""A training run as a child process: started, watched through its stack, disturbed, and ended."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mlcore.chaos.inside import END, PLACE

__all__ = ["PHASES", "Child", "phase_of"]

PHASES = (
    "imports",
    "cache write",
    "step",
    "half-written checkpoint",
    "evaluation",
    "epoch boundary",
    "fold switch",
    "final evaluation",
)
_POLL = 0.01  # seconds; short-lived files are looked for more often


def phase_of(stack: str, *, later: bool = False) -> str:
    """The phase that a process is in, of `PHASES`.

    Args:
        stack: Of its main thread as the process writes it; "" before it can say.
        later: Whether a run of its group is finished already.
    """
    frames = set(re.findall(r'/([\w.]+)", line \d+ in (\w+)', stack))
    functions = {function for _, function in frames}
    if functions & {"_evaluate_and_report"}:
        return "final evaluation"
    if "fit" in functions:
        if ("evaluator.py", "run") in frames or "settle_averages" in functions:
            return "evaluation"
        return "step" if functions & {"run_window", "_windows", "windows"} else "epoch boundary"
    if "_train_group" in functions and (later or "_train" not in functions):
        return "fold switch"
    return "cache write" if functions & {"build", "_build"} else "imports"


@dataclass
class Child:
    """A run in a process of its own, or, with ranks, in several.

    Args:
        command: What starts it, with all arguments.
        place: Where it runs; its notes and what it says go beside, into `notes` and `said.txt`.
        environment: Variables in addition to this process's own.
        ranks: Processes; several are started by torchrun.
    """

    command: Sequence[str]
    place: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 1

    def __post_init__(self) -> None:
        self.notes = self.place / "notes"
        self.notes.mkdir(parents=True, exist_ok=True)
        self.output = self.place / "said.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment, PLACE: str(self.notes.resolve())}
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 (our own command)
                [sys.executable, *(launch if self.ranks > 1 else []), *self.command],
                cwd=self.place,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.begun = time.monotonic()

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self.output.read_text("utf-8", errors="replace")

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait(self, timeout: float = 900.0) -> int:
        """Wait for its end and return the exit code; a run that hangs is killed, and the code is -9."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        """SIGKILL to every process of the run, its workers too; torchrun's ranks have sessions of their own."""
        for pid in (self.process.pid, *(member.pid for member in _descendants(self.process.pid))):
            _send(pid, signal.SIGKILL)
        self.process.wait()

    def pid_of(self, rank: int) -> int | None:
        """The process of a rank; None while it is not there."""
        if self.ranks == 1:
            return self.process.pid
        for member in _descendants(self.process.pid):
            with contextlib.suppress(psutil.Error):
                if member.environ().get("RANK") == str(rank):
                    return int(member.pid)
        return None

    def send(self, number: signal.Signals, *, rank: int = 0) -> bool:
        """Send a signal to one rank; returns whether it was there."""
        pid = self.pid_of(rank)
        return pid is not None and _send(pid, number)

    def listens(self, *, rank: int = 0) -> bool:
        """Whether a rank understands SIGTERM by now."""
        pid = self.pid_of(rank)
        return pid is not None and _catches(pid, signal.SIGTERM)

    def stack(self) -> str:
        """Where the main thread of rank 0 is just now; "" if it cannot say, as before its first imports."""
        pid = self.pid_of(0)
        path = self.notes / f"stack.{pid}"
        if pid is None or not path.exists():
            return ""
        before = path.stat().st_size
        if not _send(pid, signal.SIGUSR1):
            return ""
        deadline, text = time.monotonic() + 1.0, ""
        while time.monotonic() < deadline and not text.rstrip().endswith(END):
            with path.open("rb") as file:
                file.seek(before)
                text = file.read().decode("utf-8", errors="replace")
            time.sleep(0.0005)
        return text

    def phase(self) -> str:
        """What it is doing, of `PHASES`."""
        if self.half_written():
            return "half-written checkpoint"
        records = [*self.place.glob("*/run.json"), *self.place.glob("*/*/*/run.json")]
        later = any('"status": "finished"' in _text(path) for path in records)
        return phase_of(self.stack(), later=later)

    def half_written(self) -> bool:
        """Whether a checkpoint has been begun and not been finished."""
        return any(any(self.place.glob(f"run/{way}checkpoints/.step_*.partial")) for way in ("", "*/*/"))

    def until(self, condition: Callable[[], bool], *, timeout: float = 300.0, poll: float = _POLL) -> bool:
        """Wait for a condition while the run goes on; returns whether it came."""
        deadline = time.monotonic() + timeout
        while self.runs() and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(poll)
        return False

    def wait_until(self, instant: float) -> None:
        """Sleep until an instant of the monotonic clock, or the end of the run."""
        self.until(lambda: time.monotonic() >= instant)

    def workers(self) -> list[int]:
        """Processes that read data for rank 0: forks of it."""
        with contextlib.suppress(psutil.Error):
            main = psutil.Process(self.pid_of(0))
            return [member.pid for member in main.children() if member.cmdline() == main.cmdline()]
        return []


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, or ignores it (Linux tells)."""
    masks = re.findall(r"Sig(?:Cgt|Ign):\s*(\w+)", _text(Path(f"/proc/{pid}/status")))
    return any(int(mask, 16) & (1 << (number - 1)) for mask in masks)


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""

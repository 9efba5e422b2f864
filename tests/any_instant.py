"""Signals at any instant of a script's life, from its first line to its end."""

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TERM = 1 << (signal.SIGTERM - 1)
_NUMBERS = (signal.SIGTERM, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class Script:
    """A Python script that goes on when it is started again.

    Attributes:
        command: Its path and arguments.
        place: Where it runs.
    """

    command: Sequence[str | Path]
    place: Path

    def start(self) -> subprocess.Popen[str]:
        """Start it, and return when it has begun to listen to signals."""
        process = subprocess.Popen(
            [sys.executable, *map(str, self.command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.place,
        )
        while not _listens(process) and process.poll() is None:
            time.sleep(0.001)
        return process

    def left_alone(self) -> float:
        """Run it to its end; returns the seconds from its first line on."""
        process = self.start()
        begun = time.monotonic()
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return time.monotonic() - begun

    def signalled(self, rng: random.Random, *, within: float, times: int) -> int:
        """Run it, send it `times` signals at random instants, all but the first within a second; returns the exit code.

        Nothing but 75 and 0 may come out, and no traceback.
        """
        first, number = rng.uniform(0, within), rng.choice(_NUMBERS)
        instants = [first, *sorted(first + rng.uniform(0, 1) for _ in range(times - 1))]
        process = self.start()
        begun = time.monotonic()
        for instant in instants:
            time.sleep(max(0.0, begun + instant - time.monotonic()))
            if process.poll() is None:
                process.send_signal(number)
        said, _ = process.communicate()
        what = f"exit code {process.returncode} after {number.name} at {instants}:\n{said}"
        assert process.returncode in (0, 75), what
        assert "Traceback" not in said, what
        assert "Exception ignored" not in said, what
        return process.returncode


def _listens(process: subprocess.Popen[str]) -> bool:
    """Whether SIGTERM no longer kills the process at once (Linux tells)."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    except OSError:
        return False
    return any(int(mask, 16) & _TERM for mask in re.findall(r"Sig(?:Cgt|Ign):\s*(\w+)", status))

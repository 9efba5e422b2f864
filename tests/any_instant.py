"""Signals at any instant of a script's life, from its first line to its end."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
_TERM = 1 << (signal.SIGTERM - 1)


def caught(process: subprocess.Popen[str]) -> bool:
    """Whether SIGTERM no longer kills the process: its first line has run (Linux tells)."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    except OSError:
        return False
    masks = re.findall(r"Sig(?:Cgt|Ign):\s*(\w+)", status)
    return any(int(mask, 16) & _TERM for mask in masks)


def launch(command: Sequence[str | Path]) -> subprocess.Popen[str]:
    """Start Python with `command`, and return when it has begun to listen."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    while not caught(process) and process.poll() is None:
        time.sleep(0.001)
    return process


def seconds_of(command: Sequence[str | Path]) -> float:
    """How long the command takes when it is left alone."""
    process = launch(command)
    begun = time.monotonic()
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return time.monotonic() - begun


def signalled(command: Sequence[str | Path], *, at: Sequence[float], number: signal.Signals) -> tuple[int, str]:
    """Run the command, send the signal so many seconds after its first line each, and return code and output."""
    process = launch(command)
    begun = time.monotonic()
    for instant in at:
        time.sleep(max(0.0, begun + instant - time.monotonic()))
        if process.poll() is None:
            process.send_signal(number)
    said, _ = process.communicate(timeout=240)
    return process.returncode, said


def hammered(
    command: Sequence[str | Path], *, seconds: float, count: int, times: int, rng: random.Random
) -> Counter[int]:
    """Signal `count` processes of the command at random instants, `times` times each; returns their exit codes.

    Args:
        command: Goes on when it is given again, as with `--output_dir`.
        seconds: How long it takes from start to end.
        count: Processes.
        times: Signals to each, the later ones within a second.
        rng: Draws the instants.
    """
    codes = Counter[int]()
    for _ in range(count):
        first = rng.uniform(0, seconds)
        at = [first, *sorted(first + rng.uniform(0, 1) for _ in range(times - 1))]
        number = rng.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
        code, said = signalled(command, at=at, number=number)
        codes[code] += 1
        assert code in (0, 75), f"exit code {code} after {number.name} at {at}:\n{said}"
        assert "Traceback" not in said, f"{number.name} at {at}:\n{said}"
        assert "Exception ignored" not in said, f"{number.name} at {at}:\n{said}"
    return codes

"""One process at a time holds a lock, and its death frees it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest

from mlcore.base.locks import hold, is_held

HOLDER = """
import sys
from pathlib import Path
from mlcore.base.locks import hold
lock = hold(Path(sys.argv[1]))
print("held" if lock else "kept out", flush=True)
sys.stdin.readline()
"""


@contextmanager
def another_process(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that tries to take the lock, and what it said; it lives until the block ends."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.communicate()


def test_a_second_process_is_kept_out_until_the_first_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    lock = hold(path)
    assert lock is not None
    with another_process(path) as (_, said):
        assert said == "kept out"
    assert is_held(path)
    lock.release()
    assert not is_held(path)
    with another_process(path) as (_, said):
        assert said == "held"
        assert hold(path) is None
        assert is_held(path)
    assert not is_held(path)
    assert path.is_file()


def test_a_killed_holder_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with another_process(path) as (process, said):
        assert said == "held"
        process.send_signal(signal.SIGKILL)
    lock = hold(path)
    assert lock is not None
    lock.release()


FORKING = """
import os, sys, time
from pathlib import Path
from mlcore.base.locks import hold
lock = hold(Path(sys.argv[1]))
here, there = os.pipe()
child = os.fork()
if child == 0:
    os.write(there, b".")  # what a fork lets go of, it has let go of now
    time.sleep(600)
os.read(here, 1)
print(child, flush=True)
time.sleep(600)
"""


def test_a_fork_does_not_keep_it(tmp_path: Path) -> None:
    """A loader's worker may outlive the process that trained."""
    path = tmp_path / "run.lock"
    process = subprocess.Popen([sys.executable, "-c", FORKING, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert is_held(path)
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        lock = hold(path)
        assert lock is not None
        lock.release()
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


def test_looking_at_a_lock_makes_no_file_and_takes_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "run.lock")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.lock").touch()
    assert not is_held(tmp_path / "run.lock")
    lock = hold(tmp_path / "run.lock")
    assert lock is not None
    lock.release()


def test_a_file_system_without_locks_is_told_and_nobody_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_lock: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    lock = hold(tmp_path / "run.lock")
    assert lock is not None
    assert "run.lock: cannot be locked (no locks available)" in caplog.text
    (tmp_path / "run.lock").touch()
    assert not is_held(tmp_path / "run.lock")

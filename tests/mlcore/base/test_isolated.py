"""What goes wrong in the other process is one error here, and the next call is answered as if nothing had been."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.base.isolated import isolated

ROOM = 2**28


def added(first: int, second: int) -> int:
    print("what a reader prints is no answer")
    return first + second


def filled(size: int) -> object:
    return np.ones(size, np.uint8)


def ended(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def mistaken(kind: type[Exception]) -> None:
    raise kind("a.png: no such thing")


def process() -> int:
    return os.getpid()


def test_results_are_computed_elsewhere() -> None:
    assert isolated(added, 1, 2, name="a", memory=ROOM) == 3
    assert isolated(process, name="a", memory=ROOM) == isolated(process, name="a", memory=ROOM) != os.getpid()
    array = isolated(filled, 10_000_000, name="a", memory=ROOM)
    assert array.sum() == 10_000_000
    assert array.flags.writeable


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux keeps to it")
def test_more_memory_than_allowed_is_refused() -> None:
    with pytest.raises(UserError, match=r"^a\.png: refused, because .* takes more than 0\.25 GiB of memory; lower it$"):
        isolated(filled, 2**30, name="a.png", memory=ROOM, hint="; lower it")
    assert isolated(filled, 10, name="a.png", memory=ROOM).sum() == 10


@pytest.mark.parametrize(
    ("number", "message"), [(signal.SIGSEGV, "crashed .SIGSEGV."), (signal.SIGXCPU, "more than 20 s of computing")]
)
def test_a_reader_that_is_ended_ends_nothing_else(number: signal.Signals, message: str) -> None:
    with pytest.raises(UserError, match=rf"^a\.png: .*{message}"):
        isolated(ended, number, name="a.png", memory=ROOM)
    assert isolated(added, 1, 2, name="a", memory=ROOM) == 3


def test_errors_come_through() -> None:
    with pytest.raises(UserError, match=r"^a\.png: no such thing$"):
        isolated(mistaken, UserError, name="b", memory=ROOM)
    with pytest.raises(ValueError, match=r"^a\.png: no such thing$"):
        isolated(mistaken, ZeroDivisionError, name="b", memory=ROOM)


def test_a_forked_process_has_one_of_its_own() -> None:
    ours = isolated(process, name="a", memory=ROOM)
    child = os.fork()
    if child == 0:
        os._exit(int(isolated(process, name="a", memory=ROOM) == ours))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert isolated(process, name="a", memory=ROOM) == ours

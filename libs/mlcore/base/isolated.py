"""Calls a reader in a process of its own, which may take so much memory and computing time and no more.

For formats whose headers do not tell what reading takes, and for readers that a file can crash: that process ends, ours
goes on. It is kept for the next call; every process has its own. It is a guard against bombs, not a jail for programs.
"""

import atexit
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlcore.base.env import child_environment
from mlcore.base.errors import UserError

__all__ = ["isolated"]

_COMMAND = (sys.executable, "-P", "-c", "from mlcore.base.isolated import _serve; _serve()")
_SECONDS = 20
_PIPE = 2**20  # bytes of an answer that the other process is ahead of us
_STATUS = Path("/proc/self/status")

_lock = threading.Lock()
_helper: subprocess.Popen[bytes] | None = None


def isolated(function: Callable[..., Any], *args: Any, name: Path | str, memory: int, hint: str = "") -> Any:
    """The result of `function(*args)`, computed in the other process.

    Args:
        function: One at the top of a module.
        args: What can be pickled, as the result.
        name: The file, as messages call it.
        memory: Bytes that the call may take there; only Linux keeps to it.
        hint: What to do where it takes more.

    Raises:
        UserError: The call raised one, took more than `memory` or 20 seconds of computing, or crashed.
    """
    allowed = f"{memory / 2**30:.2g} GiB of memory{hint}"
    with _lock:
        try:
            helper = _started()
            assert helper.stdin is not None and helper.stdout is not None  # noqa: S101, PT018 - both are pipes
            pickle.dump((function, args, memory), helper.stdin)
            helper.stdin.flush()
            result, problem = pickle.load(helper.stdout)  # noqa: S301 - of our own process
        except (EOFError, OSError):
            raise UserError(f"{name}: {_why(_stop(), allowed)}") from None
        except BaseException:  # an answer that nobody waits for must not be the next call's
            _stop(patience=0)
            raise
    if isinstance(problem, MemoryError):
        raise UserError(f"{name}: refused, because reading it takes more than {allowed}")
    if problem is not None:
        raise problem
    return result


def _started() -> subprocess.Popen[bytes]:
    global _helper
    if _helper is None:
        kept = {**child_environment(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        # In a session of its own: Ctrl-C is for us to handle.
        _helper = subprocess.Popen(  # noqa: S603 (our own command)
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept, start_new_session=True
        )
        with suppress(ImportError, OSError, AttributeError):  # Linux; each switch between us may take long
            import fcntl

            fcntl.fcntl(_helper.stdout, fcntl.F_SETPIPE_SZ, _PIPE)  # type: ignore[arg-type]
    return _helper


def _stop(patience: float = 2.0) -> int:
    """End the process; its exit code, negative for a signal, if it ends by itself within `patience` seconds."""
    global _helper
    helper, _helper = _helper, None
    if helper is None:
        return 0
    with suppress(OSError), helper:  # waits, too; the pipe may be broken
        helper.stdin.close()  # type: ignore[union-attr]
        with suppress(subprocess.TimeoutExpired):
            return helper.wait(patience)
        helper.kill()
    return helper.wait()


def _why(code: int, allowed: str) -> str:
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if reason == "SIGXCPU":
        return f"refused, because reading it takes more than {_SECONDS} s of computing"
    return f"the process that read it crashed ({reason}): it is damaged, or takes more than {allowed}"


def _forget() -> None:
    """In a process that was forked: the other process belongs to the one it was forked from."""
    global _lock, _helper
    _lock, _helper = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_stop)


def _serve() -> None:
    """The other process: answers calls until nobody can call any more."""
    calls: Any = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a reader prints is no answer
    while calls.peek(1):
        function, args, memory = pickle.load(calls)  # noqa: S301 - of our own process
        answer: tuple[Any, Exception | None]
        try:
            _limit(memory)
            answer = function(*args), None
        except (UserError, MemoryError, OSError) as error:
            answer = None, MemoryError() if isinstance(error.__cause__, MemoryError) else error
        except Exception as error:  # noqa: BLE001 - readers fail in any way they like, some with what cannot be pickled
            answer = None, ValueError(str(error) or type(error).__name__)
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _limit(memory: int) -> None:
    """From now on: so many bytes more, and so much time. Windows has no such limits."""
    if sys.platform == "win32":
        return
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: math.ceil(time.process_time()) + _SECONDS}
    if _STATUS.exists():
        kib = next(line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmData"))
        limits[resource.RLIMIT_DATA] = int(kib) * 1024 + memory
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))

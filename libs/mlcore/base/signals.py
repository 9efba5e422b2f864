"""Stopping a run from outside without losing work: SIGTERM and SIGINT, from the first line of a script to its last.

A script begins with `listen()` and ends with `conclude()`. Before its work begins there is nothing to keep, and a
signal ends the process at once. Then a signal sets a flag: the training loop reads it at the end of a step, an
evaluation between two batches, and both save. Where there is nothing to save, in a block `interruptible()`, it raises
`Interrupted`. Signals after the first one change nothing, so that impatience costs no work; SIGKILL, too, costs no more
than what came since the last save. The exit code is `EXIT_INTERRUPTED` always, unless the work was done before.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, Literal, Self

from mlcore.base.errors import UserError

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_TIME_IS_UP",
    "Interrupted",
    "check",
    "conclude",
    "deferred",
    "interrupted_by",
    "interruptible",
    "listen",
    "received",
]

EXIT_INTERRUPTED = 75
"""Exit code after SIGTERM or SIGINT: what there was to save is saved, the same command goes on (EX_TEMPFAIL)."""

EXIT_TIME_IS_UP = 76
"""Exit code of a run that its own time limit ended: saved, too, and not finished; the same command goes on."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_Phase = Literal["off", "starting", "deferred", "interruptible"]


class Interrupted(SystemExit):
    """A signal ended what was under way; uncaught, it ends the process with `EXIT_INTERRUPTED` and no traceback."""

    status = EXIT_INTERRUPTED

    def __init__(self) -> None:
        super().__init__(self.status)


class _State:
    """What this process does about signals.

    Attributes:
        phase: What the next signal does; "off": whatever it did before.
        received: Whether one came.
        process: Number of the process that listens; its forks do not.
        scripted: Whether `listen` was called: a script's process, which ends with it.
        before: The handlers that were there.
    """

    def __init__(self) -> None:
        self.phase: _Phase = "off"
        self.received = False
        self.process = os.getpid()
        self.scripted = False
        self.before: dict[int, Any] = {}


_state = _State()


def listen() -> None:
    """Understand signals from now on; the first line of a script, before anything that takes long is imported."""
    if _install():
        _state.scripted, _state.phase = True, "starting"
        _silence_what_is_dropped()


def _silence_what_is_dropped() -> None:
    """Python drops what is raised in a weak reference's callback and prints it: `check` raises it again, unprinted."""
    tell = sys.unraisablehook
    if getattr(tell, "__module__", None) != __name__:
        sys.unraisablehook = lambda dropped: None if isinstance(dropped.exc_value, Interrupted) else tell(dropped)


def conclude() -> None:
    """The exit code of a script that listens is settled: no signal changes it while the interpreter shuts down."""
    if _state.scripted:
        # Python would give other handlers than this one up long before the process ends.
        _set(dict.fromkeys(_SIGNALS, signal.SIG_IGN))


def received() -> bool:
    """Whether a signal came: stop soon."""
    return _state.received


def check() -> None:
    """Stop here if a signal came; for loops that take long and have nothing to save.

    Python drops what is raised in a few places (finalisers, weak references), so that a signal alone may be missed.

    Raises:
        Interrupted: One came, and this is no block that defers it.
    """
    if _state.received and _state.phase == "interruptible":
        raise Interrupted


def interrupted_by(error: BaseException) -> bool:
    """Whether `error` is, or comes of, a signal: that other processes ended of it shows as a failed connection."""
    return isinstance(error, Interrupted) or (_state.received and not isinstance(error, UserError))


class _Block:
    """Says for a block what a signal does; without `listen`, handlers are there for the outermost block only.

    Python handles signals in the main thread, so a block in another one says nothing.
    """

    _phase: _Phase

    def __enter__(self) -> Self:
        self._counts = threading.current_thread() is threading.main_thread()
        if self._counts:
            self._begin()
        return self

    def _begin(self) -> None:
        self._installed = _state.phase == "off" and _install()
        self._before: _Phase = "deferred" if _state.phase == "starting" else _state.phase
        _state.phase = self._phase

    def __exit__(self, *exc: object) -> None:
        if not self._counts:
            return
        _state.phase = self._before
        if self._installed:
            _set(_state.before)


class deferred(_Block):  # noqa: N801 - reads as a function: `with deferred():`
    """A block in which a signal sets the flag and does nothing else."""

    _phase: _Phase = "deferred"


class interruptible(_Block):  # noqa: N801
    """A block inside a deferred one, in which a signal, and one that came before, raises `Interrupted`."""

    _phase: _Phase = "interruptible"

    def _begin(self) -> None:
        super()._begin()
        if _state.received:
            _state.phase = self._before
            raise Interrupted


def _install() -> bool:
    """Take the signals over; Python allows that in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        return False
    before: dict[int, Any] = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}
    _set(dict.fromkeys(_SIGNALS, _handle))
    _state.before = before
    return True


def _set(handlers: Mapping[int, Any]) -> None:
    """Set the handlers and begin anew."""
    global _state
    _state = _State()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _handle(number: int, _frame: FrameType | None) -> None:
    if os.getpid() != _state.process:
        return  # a fork, such as a worker that has just begun: its parent decides
    first, _state.received = not _state.received, True
    if _state.phase == "starting":
        with contextlib.suppress(Exception):  # it may be printing just now
            sys.stdout.flush()
            os.write(2, b"interrupted before the work began: the same command does all of it\n")
        os._exit(EXIT_INTERRUPTED)  # a library that is half imported could not end in order
    if first and _state.phase == "interruptible":
        raise Interrupted  # once: what cleans up after it is not interrupted
    if first:
        import logging  # loaded long since; this module is a script's first import, and is to be a quick one

        name = signal.Signals(number).name
        logging.getLogger(__name__).info("%s received: stopping as soon as everything is saved", name)

"""The terminal, logging to it and to a file, and how long things will still take."""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mlcore.base.secrets import shown
from mlcore.base.signals import check

_PROGRESS_EVERY_S = 5.0

_log = logging.getLogger(__name__)

Item = TypeVar("Item")


class _Terminal:
    """A stream that shows no secret and no control character, whoever writes to it: prints, warnings, tracebacks.

    A live line stands at the end until anything else is written, which takes its place.
    """

    _live: ClassVar[int] = 0  # characters of the live line; both streams mostly share a terminal

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` as it may be shown; a bar of progress may begin its line again."""
        start = "\r" * text.startswith("\r")
        wiped = f"\r{' ' * _Terminal._live}\r" if _Terminal._live and text else ""
        _Terminal._live = 0
        self._stream.write(wiped + start + shown(text[len(start) :]))
        return len(text)

    def live(self, line: str) -> None:
        """Show `line` in place of the live line before it."""
        self.write(line)
        self._stream.flush()
        _Terminal._live = len(line)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write all lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_terminal() -> None:
    """From now on nothing that Python writes to the terminal shows a secret or a control character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Terminal):
            setattr(sys, name, _Terminal(stream))


def setup_logging(
    *, log_file: Path | None = None, is_main: bool = True, verbose: bool = False, package: str = "quartet"
) -> None:
    """Send the log of core and app to the terminal and, where given, to `log_file` (appended); main rank only.

    What is logged at the level DEBUG is for the file alone: the terminal has it in another form, or needs it not.

    Args:
        log_file: The file.
        is_main: Whether this is the main rank.
        verbose: Show on the terminal, too, what is for the file.
        package: The top-level package of the app, whose loggers are meant.
    """
    logging.raiseExceptions = False  # a full disk is reported by whoever writes a file, not by a traceback per line
    for name in {"mlcore", package}:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        if not is_main:
            logger.addHandler(logging.NullHandler())
            continue
        live = isinstance(sys.stdout, _Terminal) and sys.stdout.isatty()
        terminal = _LiveHandler(sys.stdout) if live else logging.StreamHandler(sys.stdout)
        terminal.setLevel(logging.DEBUG if verbose else logging.INFO)
        handlers: list[logging.Handler] = [terminal]
        if log_file is not None:
            handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
        for handler in handlers:
            handler.setFormatter(_Shown("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
            logger.addHandler(handler)


class _Shown(logging.Formatter):
    """No secret and no control character reaches a terminal or a file."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class _LiveHandler(logging.StreamHandler[Any]):
    """Shows rows of figures (records with `parts`) in one line of the terminal each, as many parts as it has room for.

    A row that is `live` takes the place of the one before it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        parts = getattr(record, "parts", ())
        if not parts:
            super().emit(record)
            return
        room = shutil.get_terminal_size().columns - 1
        line = time.strftime("%H:%M:%S", time.localtime(record.created))
        for part in parts:
            line += f"  {part}" if len(line) + 2 + len(part) <= room else ""
        self.stream.live(line[:room]) if record.live else self.stream.write(f"{line}\n")  # type: ignore[attr-defined]


def row(parts: Sequence[str], *, live: bool) -> dict[str, Any]:
    """What a logger takes as `extra` of a row of figures: a terminal shows these, a pipe and a file the message.

    Args:
        parts: What there is to show, the most important first; what has no room in the line is left out.
        live: Whether the next row takes its place.
    """
    return {"parts": parts, "live": live}


class Pace:
    """Rate and remaining time of a loop, from the steps of this process only.

    A resumed run starts counting at the step it resumes from, so its ETA is right from the first figure on.

    Args:
        total: Steps at which the loop is done.
        done: Steps that were done before this process started; a step may be done in part.
        clock: Seconds, monotonic.
    """

    def __init__(self, total: int, *, done: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._start = self._done = done
        self._clock = clock
        self._begun = clock()

    def update(self, done: float) -> None:
        """Tell how many steps are done in all."""
        self._done = done

    @property
    def elapsed_s(self) -> float:
        """Seconds since this process began counting."""
        return self._clock() - self._begun

    @property
    def per_second(self) -> float:
        """Steps of this process per second; 0 before the first."""
        return (self._done - self._start) / max(self.elapsed_s, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds still to go, or None before the first step of this process."""
        if self._done <= self._start:
            return None
        return max(0, self._total - self._done) / self.per_second


def format_duration(seconds: float | None) -> str:
    """Seconds as h:mm:ss, or "?" for None."""
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"


def with_progress(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """The items as they come, and every few seconds "120 of 2000 `what`, 0:01:10 left" in the log.

    Raises:
        Interrupted: A signal came.
    """
    pace, said = Pace(total), time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        check()
        pace.update(done)
        if time.monotonic() - said > _PROGRESS_EVERY_S:
            said = time.monotonic()
            words = f"{done} of {total} {what}, {format_duration(pace.eta_s)} left"
            _log.info("%s", words, extra=row([words], live=True))

"""Fuzzing of parsers: each gives a value or one documented error, whatever it reads.

A parser is one entry in the table of a file `test_*.py` here: what writes a whole valid file, and what reads it. Its
cases are that file, damaged (`mutations.py`). Allowed is a value, or one `UserError` that names the file; not allowed
are any other exception, a warning, more than 5 s of processor time, more than 1 GiB of memory, a program or a
connection started, and a file written, moved or removed.

`make test` looks at the same 300 cases each time; `make fuzz` at 20,000 others (`FUZZ_CASES`).
"""

import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlcore.base.errors import UserError
from tests.fuzz.mutations import DAMAGE, Damage, damaged

__all__ = ["Parser", "Record", "checks_of", "explore", "judge"]

Record = Callable[[str, object], None]
"""Keeps the counts of a test for the table of `make fuzz`."""

_CASES = int(os.environ.get("FUZZ_CASES", "300"))
_SECONDS = 5  # of the processor
_MEMORY = 2**30  # bytes above those at the start of a case
_LONGEST_LINE, _MOST_LINES = 1000, 12
# What `mlcore` lets pass without a word, too; pytest's own filters replace those of modules.
_REMARKS = (("Reading `.npy` or `.npz` file required", ""), ("", r"PIL\."))
_FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "urllib.Request", "ctypes.dlopen", "os.remove", "os.rmdir", "os.rename"),
    *("os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"),
}


@dataclass(frozen=True, kw_only=True)
class Parser:
    """A parser.

    Attributes:
        name: What it reads.
        write: Writes a whole valid file, or a few, into the empty folder that it gets.
        read: Reads what is in such a folder.
        edited: Which of the files are damaged, by pattern.
        words: Words of the format, for the edits.
        found: Contents of the edited file that went wrong once, by what went wrong.
        share: Of the cases, where reading takes long.
        writes: Whether it may write and remove files.
        lines: Most lines of an error.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    edited: str = "*"
    words: Sequence[bytes] = ()
    found: Mapping[str, bytes] = field(default_factory=dict)
    share: float = 1
    writes: bool = False
    lines: int = 1

    def __str__(self) -> str:
        return self.name


class _Harm(BaseException):
    """What a case must not do; no `except Exception` of a parser hides it."""


def fuzz(parser: Parser, folder: Path, record: Record) -> None:
    """Look at the cases of a parser."""
    whole, case = folder / "whole", folder / "case"
    whole.mkdir()
    parser.write(whole)
    shutil.copytree(whole, case)
    assert judge(lambda: parser.read(case), names=[str(case)], writes=parser.writes) == "value", "no valid file"
    files = {
        path.relative_to(whole): path.read_bytes() for path in sorted(whole.rglob(parser.edited)) if path.is_file()
    }
    names = list(files)

    def check(damage: Damage) -> str:
        name = names[damage.place % len(names)]
        content = damaged(files[name], damage.edits, words=parser.words, inside=damage.inside)
        with _content(case / name, content, whole=files[name]):
            return judge(
                lambda: parser.read(case),
                names=[case.name, name.name],
                writes=parser.writes,
                lines=parser.lines,
            )

    explore(DAMAGE, check, share=parser.share, record=record)


def checks_of(
    parsers: Sequence[Parser], *, found: Sequence[str] = ("value", "refused")
) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two tests of a table of parsers: of damaged files, and of all inputs that went wrong once.

    Args:
        parsers: The table.
        found: What may become of the latter.
    """
    inputs = [
        pytest.param(parser, parser.found[key], id=f"{parser}: {key}") for parser in parsers for key in parser.found
    ]

    @pytest.mark.parametrize("parser", parsers, ids=str)
    def damaged_file(parser: Parser, tmp_path: Path, record_property: Record) -> None:
        fuzz(parser, tmp_path, record_property)

    @pytest.mark.parametrize(("parser", "content"), inputs)
    def found_input(parser: Parser, content: bytes, tmp_path: Path) -> None:
        assert refused(parser, content, tmp_path) in found

    return damaged_file, found_input


def refused(parser: Parser, content: bytes, folder: Path) -> str:
    """Read a valid set of files in which one has other content; whether that was a value or an error."""
    parser.write(folder)
    path = next(path for path in sorted(folder.rglob(parser.edited)) if path.is_file())
    path.write_bytes(content)
    return judge(lambda: parser.read(folder), names=[path.name], writes=parser.writes, lines=parser.lines)


def explore(
    strategy: st.SearchStrategy[Any],
    check: Callable[[Any], str],
    *,
    share: float = 1,
    record: Record,
) -> None:
    """Run `check`, which says how a case ended, on cases of a strategy; `make fuzz` shows the counts."""
    outcomes: Counter[str] = Counter()
    started = time.process_time()
    known = "FUZZ_CASES" not in os.environ

    @settings(
        max_examples=max(1, round(_CASES * share)),
        derandomize=known,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=not known,
    )
    @given(strategy)
    def run(case: Any) -> None:
        outcomes["cases"] += 1
        outcomes[check(case)] += 1

    try:
        with _memory_limit():
            run()
    finally:
        failures = outcomes["cases"] - outcomes["value"] - outcomes["refused"]
        record("fuzz", {"seconds": time.process_time() - started, "failure": failures, **outcomes})


def judge(
    read: Callable[[], object], *, names: Sequence[str], writes: bool = False, lines: int = 1, exits: bool = False
) -> str:
    """Whether reading gives a "value" or is "refused" as it should; anything else is raised.

    Args:
        read: Reads one case.
        names: What an error names at least one of.
        writes: Whether files may be written and removed.
        lines: Most lines of an error.
        exits: Whether it may exit with 0, as `--help` does.
    """
    try:
        with _watched(writes=writes):
            read()
    except UserError as error:
        _check_text(error, names, lines)
        return "refused"
    except SystemExit as ended:
        if not exits or ended.code:
            raise AssertionError(f"it ends the program with {ended.code}") from ended
    except _Harm as harm:
        raise AssertionError(str(harm)) from harm
    return "value"


def _check_text(error: UserError, names: Sequence[str], most: int) -> None:
    text = str(error)
    lines = text.split("\n")
    assert len(lines) <= most, f"{len(lines)} lines: {text[:500]}"
    assert max(map(len, lines)) <= _LONGEST_LINE, f"{len(text)} characters: {text[:300]}"
    assert any(name in text for name in names), f"which file is meant? {text}"
    reason: BaseException | None = error
    while reason is not None:
        assert not isinstance(reason, MemoryError), f"it asked for all the memory there is: {text}"
        reason = reason.__context__


@contextmanager
def _content(path: Path, content: bytes, *, whole: bytes) -> Iterator[None]:
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(whole)


# ------------------------------------------------------------------------------------------------------ watching a case

_armed: list[bool] = []  # whether a case is running, and may write files


def _audit(event: str, args: tuple[Any, ...]) -> None:
    """Stop what a case must not do before it is done; interpreters do not let a hook go, so there is one for all."""
    if not _armed:
        return
    if event == "open" and not _armed[-1]:
        path, flags = args[0], args[2]
        if not isinstance(path, int) and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            raise _Harm(f"it writes the file {path}")
    elif event == "subprocess.Popen" and any("mlcore.base.isolated" in str(part) for part in args[1]):
        return  # the helper process of `mlcore.base.isolated`, for decoders that may crash
    elif event in _FORBIDDEN and not (_armed[-1] and event.startswith(("os.re", "os.rm", "os.mk", "shutil."))):
        raise _Harm(f"it does {event} {args}")


sys.addaudithook(_audit)


def _too_long(*_: object) -> None:
    raise _Harm(f"more than {_SECONDS} s of processor time")


@contextmanager
def _watched(*, writes: bool) -> Iterator[None]:
    before = signal.signal(signal.SIGPROF, _too_long)
    started = _peak()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for message, module in _REMARKS:
            warnings.filterwarnings("ignore", message=message, module=module)
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        _armed.append(writes)
        try:
            yield
        finally:
            _armed.pop()
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
    assert not told, f"it warns: {told[0].message}"
    assert _peak() - started < _MEMORY, f"it took {(_peak() - started) / 2**20:.0f} MiB of memory"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _memory_limit() -> Iterator[None]:
    """Room for four times what a case may take, lest one that asks for all takes the machine with it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * _MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

"""The repository's scripts, run inside the test's process: starting Python and torch anew takes seconds each time."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a script ended and what it said."""

    code: int
    out: str
    err: str


def run_script(script: str, *arguments: str | Path) -> Ended:
    """Run `script`, such as "apps/perceiver/train.py", until it exits; a traceback fails the test."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = [str(REPOSITORY / script), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        return Ended(int(ended.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = before
    raise AssertionError(f"{script} did not exit")

"""A long run whose memory, handles, threads and objects are to stay as they are."""

import json
import re
import signal
import time
from statistics import median

import psutil

from mlcore.chaos.bench import Bench, Row, Variant, tail
from mlcore.chaos.child import Child

__all__ = ["census", "growth", "soak"]

_EVERY = 20.0  # seconds
_COUNTED = ("memory_kib", "handles", "threads", "objects")
_FLAGS = ("--num_workers", "0", "--log_every", "1000", "--save_every_steps", "5000", "--epochs", "100000000")
_VARIANT = Variant("long", (*_FLAGS, "--eval_every", "5000", "--eval_unit", "steps"))


def soak(bench: Bench, steps: int) -> Row:
    """Train for so many steps, counting every 20 seconds; the last quarter must need no more than the second."""
    row, place, rows = Row(f"soak, {steps:,} steps"), bench.place("soak"), list[dict[str, int]]()
    child = bench.start(place, _VARIANT, "--max_steps", str(steps))
    child.until(lambda: child.phase() == "step")
    while child.runs():
        if (counted := census(child)) is not None:
            rows.append(counted)
            with (place / "census.jsonl").open("a") as file:
                file.write(json.dumps(counted) + "\n")
        child.wait_until(time.monotonic() + _EVERY)
    code = child.wait()
    row.count(f"exit code {code}: {tail(child.said)}" if code else growth(rows))
    early = rows[len(rows) // 4] if rows else {}
    row.evidence = ", ".join(f"{key} {early[key]:,} to {rows[-1][key]:,}" for key in _COUNTED if early)
    return row


def census(child: Child) -> dict[str, int] | None:
    """What the process has just now: step, resident memory (KiB), open files, threads, Python objects."""
    counts = child.notes / f"objects.{child.process.pid}"
    before = counts.read_text() if counts.exists() else ""
    child.send(signal.SIGUSR2)
    if not child.until(lambda: counts.exists() and counts.read_text().endswith("\n") and counts.read_text() != before):
        return None
    try:
        process = psutil.Process(child.process.pid)
        figures = process.memory_info().rss // 1024, process.num_fds(), process.num_threads()
        table = (child.place / "run" / "metrics.csv").read_text()
    except (psutil.Error, OSError):  # it has ended
        return None
    step = re.match(r"\d+", table.rstrip().rpartition("\n")[2])
    found = dict(zip(_COUNTED, (*figures, int(counts.read_text().split()[-1])), strict=True))
    return {"step": 0 if step is None else int(step[0]), **found}


def growth(rows: list[dict[str, int]], *, share: float = 0.01) -> str | None:
    """What the last quarter has more of than the second quarter, in the median, by more than a share; None for nothing.

    Args:
        rows: Counts in the order in which they were taken; one that fell into a save or an evaluation may be higher.
        share: Of the median of the second quarter; caches, of which there are some, are full by then.
    """
    quarter = len(rows) // 4
    if not quarter:
        return f"only {len(rows)} counts were taken: the run was too short"
    for key in _COUNTED:
        early, late = (median(row[key] for row in part) for part in (rows[quarter : 2 * quarter], rows[-quarter:]))
        if late > early * (1 + share):
            return f"{key} grew from {early:,.0f} to {late:,.0f}"
    return None

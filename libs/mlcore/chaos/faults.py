"""Faults of disks, processes, figures, clocks and places; the run then goes on and is compared."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from mlcore.chaos.bench import PLAIN, RANKS, WORKERS, Bench, NotTried, Whole, checkpoints, unwanted

__all__ = ["clock", "disk_full", "moved", "not_finite", "read_only", "worker_killed"]

_DAY = 86_400.0

Seen = tuple[str | None, str]


@contextlib.contextmanager
def _small_disk(place: Path, whole: Whole) -> Iterator[Path | None]:
    """A file system in `place` with room for what a run leaves, or None where mounting is not allowed."""
    left = sum(path.stat().st_size for path in whole.place.rglob("*") if path.is_file())
    disk = place / "disk"
    disk.mkdir()
    if not _mount("-t", "tmpfs", "-o", f"size={3 * left + (64 << 20)}", "none", str(disk)):
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False, capture_output=True)  # noqa: S603, S607


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0  # noqa: S603, S607


def disk_full(bench: Bench, _number: int) -> Seen:
    """The disk fills up while a run trains: it ends with 2 and says so, nothing whole is lost, and it goes on."""
    whole, place = bench.whole(PLAIN), bench.place("full")
    with _small_disk(place, whole) as disk:
        folder = (disk or place) / "run"
        where = ("--resume", "auto", "--output_dir", str(folder.relative_to(place)))
        child = bench.start(place, PLAIN, *where)
        child.until(lambda: bool(checkpoints(place)))
        filler = place / "disk" / "filler"
        if disk is not None:
            _fill(filler)
        elif child.runs():  # no file as large as half a checkpoint any more
            size = checkpoints(place)[-1].stat().st_size // 2
            resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (size, size))
        problem = unwanted(child, 0, 2, words=("no space left", "too large"))
        seen = f"{'files limited' if disk is None else 'tmpfs filled up'}: exit code {child.process.returncode}"
        filler.unlink(missing_ok=True)
        return problem or bench.finished(place, PLAIN, *where, folder=folder), seen


def _fill(path: Path) -> None:
    """Write until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


def read_only(bench: Bench, _number: int) -> Seen:
    """The disk of a killed run can only be read when it is to go on: exit code 2; later it goes on."""
    whole, place = bench.whole(PLAIN), bench.place("read_only")
    with _small_disk(place, whole) as disk:
        if disk is None:
            raise NotTried("a file system cannot be mounted here")
        where = ("--resume", "auto", "--output_dir", "disk/run")
        bench.kill_in_training(place, PLAIN, *where)
        _mount("-o", "remount,ro", str(disk))
        child = bench.start(place, PLAIN, *where)
        problem = unwanted(child, 2, words=("read-only", "not writable"))
        _mount("-o", "remount,rw", str(disk))
        seen = f"exit code {child.process.returncode}, then continued"
        return problem or bench.finished(place, PLAIN, *where, folder=disk / "run"), seen


def worker_killed(bench: Bench, _number: int) -> Seen:
    """A process that reads data is killed: the run ends with 2, says so and keeps what was saved; then it goes on."""
    whole, place = bench.whole(WORKERS), bench.place("worker")
    child = bench.start(place, WORKERS)
    child.until(lambda: bool(child.workers()) and child.phase() == "step")
    child.wait_until(time.monotonic() + bench.rng.uniform(0.0, 0.3))
    for worker in child.workers()[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    problem = unwanted(child, 0, 2, words=("reads data has died",))
    if child.process.returncode == 0:
        return problem or bench.judge(child, whole), "over before"
    return problem or bench.finished(place, WORKERS), f"exit code {child.process.returncode}, then continued"


def not_finite(bench: Bench, number: int) -> Seen:
    """A loss, or a gradient, is not finite on one of two ranks: one window is left out on both, killed or not."""
    kind = ("samples", "gradient")[number % 2]
    faults = {"kind": kind, "step": 1, "rank": 1}  # the second window: every rehearsal has one
    whole, place = bench.whole(RANKS, faults=faults), bench.place("not_finite")
    if not any("skipped_steps']" in name and value == 1 for name, value in whole.items.items()):
        return f"{whole.place.name}: the window was not left out", kind
    bench.kill_in_training(place, RANKS, faults=faults)
    return bench.finished(place, RANKS, faults=faults, whole=whole), f"{kind}: one window skipped by both ranks"


def clock(bench: Bench, _number: int) -> Seen:
    """The wall clock goes back by six days between kill and continuation, and by an hour while training."""
    bench.whole(PLAIN)
    place = bench.place("clock")
    bench.kill_in_training(place, PLAIN, faults={"clock": 3 * _DAY, "kind": "clock", "step": 2})
    back = {"clock": -3 * _DAY, "kind": "clock", "step": 4}
    return bench.finished(place, PLAIN, faults=back), "by six days in between, by an hour at a step"


def moved(bench: Bench, number: int) -> Seen:
    """The run folder is moved between kill and continuation."""
    bench.whole(PLAIN)
    place = bench.place("moved")
    bench.kill_in_training(place, PLAIN)
    (place / "elsewhere").mkdir()
    folder = (place / "run").rename(place / "elsewhere" / "run")
    if number % 2:
        where = ("--resume", "auto", "--output_dir", "elsewhere/run")
        return bench.finished(place, PLAIN, *where, folder=folder), "found by --output_dir"
    return bench.finished(place, PLAIN, "--resume", "elsewhere/run", folder=folder), "found by --resume"

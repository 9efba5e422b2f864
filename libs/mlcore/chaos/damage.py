"""Checkpoints cut short and with flipped bits: what is damaged must never be loaded as if it were whole."""

import logging
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from mlcore.chaos.bench import PLAIN, Bench, Row, checkpoints, counts
from mlcore.chaos.outcome import difference, flat
from mlcore.training.checkpoint import CheckpointStore, load_checkpoint

__all__ = ["damage", "damaged"]

_TENTHS = 10
_FLIPS = 20  # in each tenth


def damaged(data: bytes, rng: random.Random, *, flips: int = _FLIPS) -> Iterator[tuple[str, bytes]]:
    """Copies of `data`: cut off at every tenth, and with one to eight bits flipped at random places of every tenth.

    Yields:
        What was done, and the damaged bytes, which always differ from `data`.
    """
    edges = [len(data) * part // _TENTHS for part in range(_TENTHS + 1)]
    for part, (begin, end) in enumerate(pairwise(edges), 1):
        yield f"cut off in tenth {part}", data[: rng.randrange(begin, end)]
        for _ in range(flips):
            copy = bytearray(data)
            for place in rng.sample(range(begin, end), k=rng.choice((1, 1, 2, 8))):
                copy[place] ^= 1 << rng.randrange(8)
            yield f"bits flipped in tenth {part}", bytes(copy)


def damage(bench: Bench, tries: int) -> Row:
    """Damage the newest checkpoint of a run in 210 ways, read it each time, and go on with `tries` of them."""
    row, seen, place = Row("damaged checkpoint"), Counter[str](), bench.place("damaged")
    while len(checkpoints(place)) < 2 or len(_newest(place)) < 2:
        bench.kill_in_training(place, PLAIN)
    newest, before = _newest(place)[:2]
    data, kept = newest.read_bytes(), {path: path.read_bytes() for path in newest.parent.glob("*.pth")}
    expected, intact = flat(load_checkpoint(before), name=""), flat(load_checkpoint(newest), name="")
    log = logging.getLogger("mlcore.training.checkpoint")
    log.disabled = True  # each damaged file is reported, which is as it should be
    for what, spoilt in damaged(data, bench.rng):
        newest.write_bytes(spoilt)  # in place, so that the names latest and perhaps best are damaged, too
        taken, problem = _taken(newest, intact=intact, expected=expected)
        seen[taken] += 1
        row.count(f"{what}: {problem}" if problem else None)
    log.disabled = False
    newest.write_bytes(data)
    lost = [path.name for path, content in kept.items() if path.read_bytes() != content]
    row.problems += [f"{name} is not what it was" for name in lost]
    for what, spoilt in bench.rng.sample(list(damaged(data, bench.rng, flips=1)), k=tries):
        copy = bench.place("damaged_run")
        shutil.copytree(place, copy, dirs_exist_ok=True)
        for path in kept:
            if path.samefile(newest):
                (copy / path.relative_to(place)).write_bytes(spoilt)
        problem = bench.finished(copy, PLAIN)
        row.count(None if problem is None else f"{what}, {problem}")
        seen["runs that went on to the same end"] += problem is None
    row.evidence = counts(seen)
    shutil.rmtree(place)
    return row


def _newest(place: Path) -> list[Path]:
    """The files of steps of the run that was at work last, newest first."""
    folder = max(checkpoints(place), key=lambda path: path.stat().st_mtime_ns).parent
    return CheckpointStore(folder, asynchronous=False).step_files()


def _taken(newest: Path, *, intact: dict[str, object], expected: dict[str, object]) -> tuple[str, str | None]:
    """Which file is taken to go on from, and what is wrong with that."""
    found = CheckpointStore(newest.parent, asynchronous=False).newest_good()
    if found is None:
        return "nothing", "nothing was found"
    path, state = found
    if path == newest:
        wrong = difference(intact, flat(state, name=""))
        return "bits that mean nothing", wrong and f"loaded wrong, {wrong}"
    wrong = difference(expected, flat(state, name=""))
    return "refused, the one before it taken", wrong and f"{path.name} was taken, not the newest whole one: {wrong}"

"""Runs ended at any instant: SIGKILL, SIGTERM and Ctrl-C, of all of a run's processes or of one."""

import signal
import time
from collections import Counter

from mlcore.chaos.bench import PLAIN, RANKS, VARIANTS, WORKERS, Bench, Row, Whole, counts, tail, unwanted
from mlcore.chaos.child import PHASES, Child

__all__ = ["kill", "signalled", "sigterm_to_one_rank"]

_CHAIN = 6  # kills of one run before it is left to finish
_NUMBERS = (signal.SIGTERM, signal.SIGTERM, signal.SIGINT)


def kill(bench: Bench, kills: int) -> Row:
    """SIGKILL at instants of every phase, again and again, of each variant; then the run has to be the whole one.

    Every second instant is uniform over the run's length, the others are in the phases that were hit least.
    """
    row, chain = Row("SIGKILL"), 0
    hit, missed, ways = Counter[str](), Counter[str](), Counter[str]()
    while hit.total() < kills:
        variant = VARIANTS[chain % len(VARIANTS)]
        whole, place, chain = bench.whole(variant), bench.place("killed"), chain + 1
        phases = [phase for phase in PHASES if phase != "fold switch" or _is_group(whole)]
        number, child = 0, bench.start(place, variant)
        while number < _CHAIN and hit.total() < kills:
            rarest = min(phases, key=lambda phase: (hit[phase] + missed[phase], bench.rng.random()))
            target = rarest if bench.rng.random() < 0.5 else None
            struck = _strike(bench, child, whole, target)
            if struck is None:
                missed[target or ""] += 1
                break  # it was over before
            hit[struck], number = hit[struck] + 1, number + 1
            bench.say(f"kill {hit.total()} of {kills}: {variant.name}, {struck}")
            child = bench.start(place, variant)
            if struck == "final evaluation" and bench.rng.random() < 0.5:
                break  # nothing else is left to be killed
        problem = bench.judge(child, whole)
        bench.say(f"continued after {number}: {problem or 'identical'}")
        row.count(problem, tries=number)
        ways[variant.name] += number
    row.evidence = f"phases: {counts(hit)}; ways: {counts(ways)}"
    return row


def _is_group(whole: Whole) -> bool:
    return any((whole.place / "run").glob("*/*/run.json"))


def _strike(bench: Bench, child: Child, whole: Whole, target: str | None) -> str | None:
    """Kill a run in a phase, or at any instant where `target` is None; returns the phase that it was in then."""
    rng = bench.rng
    early = {"imports": whole.seconds / 3, "cache write": 0.0, "fold switch": 0.0, "final evaluation": 0.0}
    span = whole.seconds if target is None else early.get(target, whole.seconds * 0.8)
    child.wait_until(child.begun + rng.uniform(0.0, span))
    if target == "half-written checkpoint":
        child.until(child.half_written, poll=0.001)
    elif target is not None:
        child.until(lambda: child.phase() == target)
        delay = 0.05 if target in ("step", "epoch boundary") else 0.4
        child.wait_until(time.monotonic() + rng.uniform(0.0, delay))
    if not child.runs():
        return None
    phase = child.phase()
    if child.ranks > 1 and rng.random() < 0.5:
        child.send(signal.SIGKILL, rank=rng.randrange(child.ranks))  # torchrun ends the others
        child.wait(120.0)
    child.kill()
    if child.process.returncode == 0:
        return None
    return "half-written checkpoint" if child.half_written() else phase


def signalled(bench: Bench, number: int) -> tuple[str | None, str]:
    """SIGTERM or Ctrl-C at any instant, once or twice: saved (75) or done (0), no traceback, and the run goes on."""
    variant, place = (PLAIN, WORKERS)[number % 2], bench.place("signalled")
    whole, child = bench.whole(variant), bench.start(place, variant)
    kind, times = bench.rng.choice(_NUMBERS), bench.rng.choice((1, 2))
    child.until(child.listens)
    for instant in sorted(child.begun + bench.rng.uniform(0.2, whole.seconds) for _ in range(times)):
        child.wait_until(instant)
        if child.runs():
            child.send(kind)
    problem = unwanted(child, 0, 75)
    seen = f"exit code {child.process.returncode}"
    if child.process.returncode == 0:
        return problem or bench.judge(child, whole), seen
    return problem or bench.finished(place, variant), seen


def sigterm_to_one_rank(bench: Bench, _number: int) -> tuple[str | None, str]:
    """SIGTERM to the second of two ranks: both save together, and the run goes on."""
    whole, place = bench.whole(RANKS), bench.place("one_rank")
    child = bench.start(place, RANKS)
    child.until(lambda: child.listens(rank=1))
    child.wait_until(child.begun + bench.rng.uniform(0.0, whole.seconds))
    child.send(signal.SIGTERM, rank=1)
    if child.wait() == 0:
        return bench.judge(child, whole), "too late"
    said = child.said
    if "another process of this run has ended" in said and "Traceback (most recent call last):\n[rank" not in said:
        return bench.finished(place, RANKS), "before the work began: one with 75, the other told so"
    if "exitcode  : 75" not in said or "exitcode  : 1 " in said:  # as torchrun tells of its ranks
        return f"{place.name}: {tail(child.said)}", "not saved"
    return bench.finished(place, RANKS), "both ended with 75"

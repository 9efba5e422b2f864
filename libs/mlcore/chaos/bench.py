"""Where faults are tried: undisturbed runs to compare with, places for disturbed ones, and the verdict."""

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.chaos.child import Child
from mlcore.chaos.inside import FAULTS
from mlcore.chaos.outcome import difference, outcome, windows, windows_difference

__all__ = ["VARIANTS", "Bench", "NotTried", "Row", "Variant", "Whole", "checkpoints", "counts", "tail", "tried"]

_SHARED = (
    *("--device", "cpu", "--num_threads", "1", "--no_tensorboard", "--log_every", "2", "--save_every_steps", "3"),
)


@dataclass(frozen=True)
class Variant:
    """A way to train that a fault is to meet.

    Attributes:
        name: For people.
        flags: For every app's command line.
        ranks: Processes.
    """

    name: str
    flags: tuple[str, ...] = ()
    ranks: int = 1


_EMA = ("--ema_decay", "0.9")
PLAIN = Variant("0 workers", ("--num_workers", "0"))
WORKERS = Variant("2 workers, accumulation, EMA", ("--num_workers", "2", "--gradient_accumulation_steps", "3", *_EMA))
RANKS = Variant("2 ranks, accumulation", ("--num_workers", "0", "--gradient_accumulation_steps", "2"), ranks=2)
VARIANTS = (
    PLAIN,
    WORKERS,
    Variant("bf16, EMA, 1 worker", ("--num_workers", "1", "--precision", "bf16", *_EMA)),
    RANKS,
)


class NotTried(Exception):  # noqa: N818 - no error
    """A fault that cannot be made here, and why."""


@dataclass
class Row:
    """What became of one fault.

    Attributes:
        fault: Its name.
        tries: How often it was tried.
        passed: How often all was as it should be.
        evidence: What was seen, in counts.
        problems: What was not as it should be, with the first differing item.
        why_not: Why it was not tried; "" where it was.
    """

    fault: str
    tries: int = 0
    passed: int = 0
    evidence: str = ""
    problems: list[str] = field(default_factory=list)
    why_not: str = ""

    def count(self, problem: str | None, *, tries: int = 1) -> None:
        """Note the verdict on `tries` tries."""
        self.tries += tries
        if problem is None:
            self.passed += tries
        else:
            self.problems.append(problem)

    @property
    def outcome(self) -> str:
        """The verdict, for the table."""
        return "not tried" if self.why_not else f"{self.passed} of {self.tries} as they should be"

    @property
    def failed(self) -> bool:
        """Whether something was not as it should be."""
        return bool(self.problems) or self.passed < self.tries


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed.

    Attributes:
        place: Where it is.
        items: Its outcome.
        windows: What its windows held.
        seconds: How long it took.
    """

    place: Path
    items: Mapping[str, Any]
    windows: Mapping[str, set[str]]
    seconds: float


@dataclass
class Bench:
    """Runs of one app, in a folder.

    Args:
        command: What Python is started with, such as ["-m", "quartet", "train", "perceiver"], and the app's arguments.
        folder: Where everything is done.
        rng: Chooses instants and bits.
        say: Told what is going on, a line at a time.
    """

    command: Sequence[str]
    folder: Path
    rng: random.Random
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._wholes: dict[tuple[Variant, str], Whole] = {}
        self._places: Counter[str] = Counter()

    def place(self, name: str) -> Path:
        """A new folder for a run."""
        self._places[name] += 1
        path = self.folder / f"{name}_{self._places[name]}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def start(
        self,
        place: Path,
        variant: Variant,
        *extra: str,
        environment: Mapping[str, str] | None = None,
        faults: Mapping[str, Any] | None = None,
    ) -> Child:
        """Start a run in `place`, or go on with the one that is there; `extra` are further arguments."""
        known = {**(environment or {}), FAULTS: json.dumps(faults or {})}
        where = () if {"--resume", "--output_dir"} & {*extra} else ("--resume", "auto", "--output_dir", "run")
        command = [*self.command, *_SHARED, *where, *variant.flags, *extra]
        return Child(command, place=place, environment=known, ranks=variant.ranks)

    def whole(self, variant: Variant, *, faults: Mapping[str, Any] | None = None) -> Whole:
        """The undisturbed run of a variant; trained once.

        Raises:
            UserError: It does not end well, so that there is nothing to compare with.
        """
        key = (variant, json.dumps(faults or {}))
        if key not in self._wholes:
            self.say(f"an undisturbed run: {variant.name}")
            place, begun = self.place("whole"), time.monotonic()
            child = self.start(place, variant, faults=faults)
            if code := child.wait():
                raise UserError(f"{place}: the undisturbed run ended with {code}: {tail(child.said)}")
            seconds = time.monotonic() - begun
            self._wholes[key] = Whole(place, outcome(place / "run", place=place), windows(child.notes), seconds)
        return self._wholes[key]

    def finished(
        self,
        place: Path,
        variant: Variant,
        *extra: str,
        folder: Path | None = None,
        faults: Mapping[str, Any] | None = None,
        whole: Whole | None = None,
    ) -> str | None:
        """Let the run in `place` go on to its end; what is wrong with it then, or None.

        Args:
            place: Where it is.
            variant: How it trains.
            extra: Further arguments.
            folder: The run folder, where it is not `place`/run.
            faults: What the process itself is to do.
            whole: What to compare with; None for the undisturbed run of the variant.
        """
        child = self.start(place, variant, *extra, faults=faults)
        return self.judge(child, whole or self.whole(variant), folder=folder)

    def judge(self, child: Child, whole: Whole, *, folder: Path | None = None) -> str | None:
        """What is wrong with a run once it has ended, the first differing item; where nothing is, its place goes."""
        place = child.place
        if code := child.wait():
            return f"{place.name}: exit code {code}: {tail(child.said)}"
        found = difference(whole.items, outcome(folder or place / "run", place=place))
        found = found or windows_difference(whole.windows, windows(child.notes))
        if found is None:
            shutil.rmtree(place, ignore_errors=True)  # a file system may be mounted in it
        return found and f"{place.name}: {found}"

    def kill_in_training(
        self, place: Path, variant: Variant, *extra: str, faults: Mapping[str, Any] | None = None
    ) -> None:
        """Start a run, or go on with it, and kill it up to half a second after its next checkpoint."""
        before = set(checkpoints(place))
        child = self.start(place, variant, *extra, faults=faults)
        child.until(lambda: bool(set(checkpoints(place)) - before))
        child.wait_until(time.monotonic() + self.rng.uniform(0, 0.5))
        child.kill()


def tried(name: str, fault: Callable[[Bench, int], tuple[str | None, str]], bench: Bench, tries: int) -> Row:
    """Try a fault: `fault` gets the number of the try, and returns what is wrong, or None, and what was seen."""
    row, seen = Row(name), Counter[str]()
    for number in range(tries):
        try:
            problem, what = fault(bench, number)
        except NotTried as reason:
            row.why_not = str(reason)
            break
        row.count(problem)
        seen[what] += 1
        bench.say(f"{name}: {what}: {problem or 'as it should be'}")
    row.evidence = counts(seen)
    return row


def counts(counter: Counter[str]) -> str:
    """Names and how often each was seen, in a line."""
    return ", ".join(f"{name} ({number})" for name, number in counter.most_common())


def checkpoints(place: Path) -> list[Path]:
    """The files of single steps in a place, of all its runs, of which folders come and go meanwhile."""
    folders = [Path(folder) for folder, _, _ in os.walk(place) if Path(folder).name == "checkpoints"]
    return sorted(path for folder in folders for path in folder.glob("step_*.pth"))


def tail(said: str, lines: int = 4) -> str:
    """The last lines of what a run printed, on one line."""
    return " | ".join(line.strip() for line in said.splitlines()[-lines:])[-400:]


def unwanted(child: Child, *codes: int, words: Sequence[str] = ("",)) -> str | None:
    """A complaint unless a run ends with one of these codes, says one of these words, and shows no insides."""
    code, said = child.wait(), child.said
    shown = next((word for word in ("Traceback", "Exception ignored", "Fatal Python") if word in said), None)
    if shown is not None:
        return f"{child.place.name}: '{shown}' printed: {tail(said)}"
    if code in codes and (code == 0 or any(word in said.lower() for word in words)):
        return None
    return f"{child.place.name}: exit code {code}, expected one of {codes} and one of {words}: {tail(said)}"

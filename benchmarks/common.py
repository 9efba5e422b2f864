"""What the benchmarks share: peers that may be missing, alternating runs, reports.

A benchmark is a module with a function `measure(Options) -> Report` that runs alone: `python -m benchmarks.<name>`.
"""

import argparse
import gc
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOT_INSTALLED = "not installed"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark can be told.

    Attributes:
        quick: Few repetitions: shows that the benchmark works; its figures mean little.
        data_dir: Folder with `JapaneseVowels/` and `cifar10.tar`.
    """

    quick: bool = False
    data_dir: Path = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Goal:
    """A promise and what was measured.

    Attributes:
        text: The promise.
        measured: The figure, in words.
        reached: Whether it holds; None where it could not be measured.
    """

    text: str
    measured: str
    reached: bool | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of one benchmark.

    Attributes:
        title: Heading.
        method: What is compared and how, for readers who doubt it.
        header: Column titles.
        rows: One list of cells for each line of the table.
        goals: What was promised.
        notes: What else a reader must know.
        raw: The figures behind the table, for the JSON file.
        skipped: Why nothing was measured, or None.
    """

    title: str
    method: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    def markdown(self) -> str:
        """The report as a section of a Markdown file, without its heading."""
        lines = [self.method, ""]
        if self.skipped is not None:
            lines += [f"Skipped: {self.skipped}", ""]
        for goal in self.goals:
            outcome = {True: "reached", False: "**missed**", None: "not measured"}[goal.reached]
            lines.append(f"- Goal: {goal.text}. Measured: {goal.measured}; {outcome}.")
        if self.goals:
            lines.append("")
        if self.rows:
            table = [list(self.header), ["---"] * len(self.header), *map(list, self.rows)]
            lines += ["| " + " | ".join(cells) + " |" for cells in table] + [""]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"


# --------------------------------------------------------------------------------------------------------- measuring


def peer(name: str) -> Any:
    """The module `name` of another project, or None where it is not installed."""
    try:
        module: ModuleType = importlib.import_module(name)
    except ImportError:
        return None
    return module


def alternate(sides: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Call every side once a round, so that whatever else the machine does hits all of them alike.

    Args:
        sides: Each returns its own figure (seconds, say).
        rounds: Rounds; the order of sides is reversed from one to the next.

    Returns:
        One figure per round for each side.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            gc.collect()
            figures[name].append(sides[name]())
    return figures


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def ratio(figures: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of the ratios of each round."""
    ratios = [a / b for a, b in zip(figures, base, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def ratio_text(figures: Sequence[float], base: Sequence[float]) -> str:
    """`1.03 (1.01..1.06)`: median, smallest and largest ratio."""
    middle, low, high = ratio(figures, base)
    return f"{middle:.2f} ({low:.2f}..{high:.2f})"


def median_text(figures: Sequence[float], *, scale: float = 1.0, digits: int = 1) -> str:
    """`12.3 (11.9..14.0)`: median, smallest and largest, times `scale`."""
    middle, low, high = (scale * value for value in (statistics.median(figures), min(figures), max(figures)))
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def environment() -> dict[str, str]:
    """The machine and the versions, with the load at this moment."""
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 2**30
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# -------------------------------------------------------------------------------------------------------- running one


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that a single benchmark and `run.py` share."""
    parser.add_argument("--quick", action="store_true", help="few repetitions; the figures mean little")
    parser.add_argument("--data_dir", type=Path, default=Options.data_dir, help="data sets (default: %(default)s)")


def run_alone(measure: Callable[[Options], Report]) -> None:
    """The command line of a benchmark's own module: measure, print, and where asked write JSON."""
    parser = argparse.ArgumentParser(description=(sys.modules[measure.__module__].__doc__ or "").split("\n")[0])
    add_common_arguments(parser)
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    arguments = parser.parse_args()
    before = environment()
    report = measure(Options(quick=arguments.quick, data_dir=arguments.data_dir))
    print(f"\n{report.title}\n\n{report.markdown()}")
    if arguments.json is not None:
        content = {**asdict(report), "markdown": report.markdown(), "environment": before}
        arguments.json.write_text(json.dumps(content, indent=2), encoding="utf-8")

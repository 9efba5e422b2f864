"""Runs side by side: metrics of the best checkpoint, the settings that differ, and what it cost.

Runs that did not finish or cannot be read are listed with the reason, never dropped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlcore.base.console import format_duration
from mlcore.base.errors import UserError, nearest
from mlcore.base.files import csv_text, ensure_folder, write_text
from mlcore.base.secrets import shown
from mlcore.compare.paired import difference
from mlcore.compare.reading import SPLITS, Run, find_runs
from mlcore.config.sections import EarlyStoppingConfig
from mlcore.metrics.ranking import Interval
from mlcore.report.plots.runs import Bar, plot_runs

__all__ = ["Comparison", "compare_runs", "write_comparison"]

_COUNTS = {"n"}  # among the metrics, but no measure of quality


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs in order.

    Attributes:
        metric: The one they are sorted by, such as "val/auroc".
        mode: Whether a larger or a smaller value is better.
        ranked: Done runs, best first; those without the metric last. Ties in the order of their folders.
        others: Runs that are not done, in the order of their folders.
        varied: Names of the settings that differ between any two runs that have them.
        root: The common parent of all folders.
    """

    metric: str
    mode: Literal["min", "max"]
    ranked: Sequence[Run]
    others: Sequence[Run]
    varied: Sequence[str]
    root: Path

    def name(self, run: Run) -> str:
        """A run's folder, as seen from the common parent."""
        return run.folder.name if run.folder == self.root else str(run.folder.relative_to(self.root))


def compare_runs(
    paths: Sequence[Path], *, metric: str | None = None, mode: Literal["min", "max"] | None = None
) -> Comparison:
    """Read all runs at and below `paths` and put them in order.

    Args:
        paths: Run folders, sweep folders, or folders of such.
        metric: To sort by: "val/auroc", "val_auroc", or "auroc" (of the validation data); None: the one that the runs
            chose their best checkpoints by.
        mode: Whether a larger or a smaller value is better; None: as in training, or as the metric's name suggests.

    Raises:
        UserError: no run there, none has the metric (the nearest name is told), or without `metric` the runs
            chose their best checkpoints by different ones.
    """
    runs = find_runs(paths)
    ranked, others = [run for run in runs if not run.trouble], [run for run in runs if run.trouble]
    chosen = _choose_metric(ranked, metric)
    order = mode or _mode(chosen, ranked)
    ranked.sort(key=lambda run: _rank(run.metrics.get(chosen, math.nan), order))
    return Comparison(
        metric=chosen,
        mode=order,
        ranked=ranked,
        others=others,
        varied=_varied(runs),
        root=Path(os.path.commonpath([run.folder for run in runs])),
    )


def write_comparison(comparison: Comparison, folder: Path) -> str:
    """Write comparison.md, comparison.csv and, with anything to show, comparison.png into `folder`.

    Returns:
        The Markdown of the main table and of the runs that are not done, for the terminal.

    Raises:
        UserError: a file cannot be written.
    """
    ensure_folder(folder)
    short = _main_table(comparison)
    picture = _draw(comparison, folder / "comparison.png")
    parts = [f"# Comparison of {len(comparison.ranked) + len(comparison.others)} runs", short]
    parts += [f"![{comparison.metric} by run]({picture.name})"] if picture else []
    if comparison.ranked:
        parts += ["## All metrics of the best checkpoints", _metric_table(comparison)]
    write_text(folder / "comparison.csv", _csv(comparison))
    write_text(folder / "comparison.md", "\n\n".join(parts) + "\n")
    return short


# --------------------------------------------------------------------------------------------------------- choosing


def _choose_metric(runs: Sequence[Run], asked: str | None) -> str:
    if asked is None:
        monitored = list(dict.fromkeys(run.monitored for run in runs))
        if len(monitored) > 1:
            raise UserError(
                f"the runs chose their best checkpoints by different metrics ({', '.join(monitored)}); choose one with "
                "--metric"
            )
        return monitored[0] if monitored else ""
    known = {name for run in runs for name in run.metrics if name.partition("/")[2] not in _COUNTS}
    split, _, rest = asked.partition("_")
    name = asked if "/" in asked else f"{split}/{rest}" if split in SPLITS and rest else f"val/{asked}"
    if runs and name not in known:
        raise UserError(f"--metric {asked}: no run has it{nearest(name, known)}; there are {', '.join(sorted(known))}")
    return name


def _mode(metric: str, runs: Sequence[Run]) -> Literal["min", "max"]:
    """As a run that chose its best checkpoint by the metric (of either split) has it, or as its name suggests."""
    base = metric.partition("/")[2]
    known = [run.mode for run in runs if run.monitored.partition("/")[2] == base]
    if known or not base:
        return known[0] if known else "max"
    return EarlyStoppingConfig(metric=base).resolved_mode


def _rank(value: float, mode: str) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(value) else (False, value if mode == "min" else -value)


def _varied(runs: Iterable[Run]) -> list[str]:
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, set()).add(value)
    return [name for name, different in values.items() if len(different) > 1]


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest end of each dotted name that no other one shares: "lr" for "train.lr"."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        short[name] = next(
            end for end in ends if not any(other != name and f".{other}".endswith(f".{end}") for other in names)
        )
    return short


# ---------------------------------------------------------------------------------------------------------- writing


def _main_table(comparison: Comparison) -> str:
    """Metric, settings that differ, cost; below it the runs that are not done."""
    base = comparison.metric.partition("/")[2]
    metrics = list(dict.fromkeys([comparison.metric, *(f"{split}/{base}" for split in SPLITS)]))
    metrics = [name for name in metrics if any(name in run.metrics for run in comparison.ranked)]
    short = _short_names(comparison.varied)
    differences = [_difference(run, comparison) for run in comparison.ranked]
    paired = ["less #1, paired"] if any(differences) else []
    columns = ["#", "run", *metrics, *paired, *short.values(), "training time", "steps", "memory GiB", "status"]
    rows = [
        [
            str(place),
            comparison.name(run),
            *(_with_interval(run, name) for name in metrics),
            *([differences[place - 1]] if any(differences) else []),
            *(run.settings.get(name, "–") for name in short),
            format_duration(run.cost["seconds"]),
            f"{run.cost['steps']:.0f}",
            f"{run.cost['peak_memory_gib']:.2f}" if "peak_memory_gib" in run.cost else "–",
            run.status,
        ]
        for place, run in enumerate(comparison.ranked, 1)
    ]
    order = "highest" if comparison.mode == "max" else "lowest"
    parts = [f"Sorted by {comparison.metric}, {order} first.", _table(columns, rows)] if rows else []
    if comparison.others:
        told = [
            [comparison.name(run), run.status, run.trouble, *(run.settings.get(name, "–") for name in short)]
            for run in comparison.others
        ]
        parts += [f"Not in the comparison: {len(told)}", _table(["run", "status", "why", *short.values()], told)]
    return "\n\n".join(parts)


def _difference(run: Run, comparison: Comparison) -> str:
    """The metric less that of the first run, where both held out the same samples."""
    split, _, name = comparison.metric.partition("/")
    found = None
    if split == "out_of_fold":
        found = difference(run.folder, comparison.ranked[0].folder, metric=name)
    if found is None:
        return ""
    noise = "" if found.sure else ", within noise"
    return f"{found.value:+.4f} ({found.interval.low:+.4f}, {found.interval.high:+.4f}){noise}"


def _metric_table(comparison: Comparison) -> str:
    names = list(dict.fromkeys(name for run in comparison.ranked for name in run.metrics))
    columns = ["metric", *(f"#{place}" for place, _ in enumerate(comparison.ranked, 1))]
    return _table(columns, [[name, *(_cell(run, name) for run in comparison.ranked)] for name in names])


def _cell(run: Run, name: str) -> str:
    value = run.metrics.get(name, math.nan)
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if name.partition("/")[2] in _COUNTS else f"{value:.4f}"


def _with_interval(run: Run, name: str) -> str:
    if name not in run.intervals or name not in run.metrics:
        return _cell(run, name)
    return f"{_cell(run, name)} ({run.intervals[name].low:.4f}, {run.intervals[name].high:.4f})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown with columns flush, to be read in a terminal as well."""
    cells = [[_literal(cell) for cell in line] for line in (columns, *rows)]
    widths = [max(3, *(len(line[place]) for line in cells)) for place in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _literal(text: str) -> str:
    """One line that does not end a cell or become a tag; names keep their underscores, which harm nothing in a word."""
    line = " ".join(shown(text).split())
    for character in "\\`*[]<|":
        line = line.replace(character, f"\\{character}")
    return line


def _csv(comparison: Comparison) -> str:
    runs = [*comparison.ranked, *comparison.others]
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    ends = [name for name in metrics if any(name in run.intervals for run in runs)]
    costs = list(dict.fromkeys(name for run in runs for name in run.cost))
    bounds = [f"{name}_{end}" for name in ends for end in Interval._fields]
    rows = [["run", "status", "why", *metrics, *bounds, *comparison.varied, *costs]]
    for run in runs:
        known: list[float] = [run.metrics.get(name, math.nan) for name in metrics]
        known += [value for name in ends for value in run.intervals.get(name, Interval(math.nan, math.nan))]
        figures = ["" if math.isnan(value) else repr(value) for value in known]
        settings = [run.settings.get(name, "") for name in comparison.varied]
        spent = [f"{run.cost[name]:.10g}" if name in run.cost else "" for name in costs]
        rows.append([comparison.name(run), run.status, run.trouble, *figures, *settings, *spent])
    return csv_text(rows)


def _draw(comparison: Comparison, path: Path) -> Path | None:
    short = _short_names(comparison.varied)
    runs = comparison.ranked
    labels = [[f"{short[name]}={run.settings[name]}" for name in short if name in run.settings] for run in runs]
    bars = [
        Bar(
            label=label if label and labels.count(label) == 1 else [*label, comparison.name(run)],
            value=run.metrics[comparison.metric],
            name=f"#{place}",
            interval=run.intervals.get(comparison.metric),
        )
        for place, (run, label) in enumerate(zip(runs, labels, strict=True), 1)
        if not math.isnan(run.metrics.get(comparison.metric, math.nan))
    ]
    return plot_runs(bars, metric=comparison.metric, path=path) if bars else None

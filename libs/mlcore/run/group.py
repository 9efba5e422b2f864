"""Runs made of runs: the folds of a cross-validation, seeds, ablations.

A group is a function of the configuration: which runs there are, and what they are together. Each is a run like any
other, in a folder inside the group's; the same command goes on with those that are not finished.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from mlcore.config.validation import ConfigT
from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.runs import Bar, plot_runs
from mlcore.run.final_evaluation import Pages, Results

__all__ = ["ITSELF", "RunGroup", "ablations"]

ITSELF = "."
"""Key of the run that lies in the group's own folder."""


@dataclass(frozen=True, kw_only=True)
class RunGroup(Generic[ConfigT]):
    """Runs that are made for one result.

    Attributes:
        what: What one of them is, for the log: "fold", "variant".
        configs: Configuration of each run, by its folder inside the group's (`ITSELF`: that one), in training order.
        aggregate: Says what the runs are together, once all of them are finished; called on the main rank with the
            group's folder, the figures of each other run by the name of its folder, and the pages of the run `ITSELF`
            (None where there is none). It writes its own files and returns what summary and report say.
        jobs: Runs that may be trained at the same time.
        last: Further runs that depend on what the others, all finished, left in the group's folder; on every rank.
    """

    what: str
    configs: Mapping[str, ConfigT]
    aggregate: Callable[[Path, Mapping[str, Results], Pages | None], Pages]
    jobs: int = 1
    last: Callable[[Path], Mapping[str, ConfigT]] | None = None


def ablations(config: ConfigT, variants: Mapping[str, ConfigT]) -> RunGroup[ConfigT] | None:
    """A run and variants of it, each in `variants/<name>`; the run's report compares them. None without variants."""
    if not variants:
        return None
    others = {f"variants/{name}": without_baselines(variant) for name, variant in variants.items()}
    configs = {ITSELF: config, **others}
    return RunGroup(what="variant", configs=configs, aggregate=_compared)


def without_baselines(config: ConfigT) -> ConfigT:
    """The configuration of a run beside another one on the same data, which has the plain models."""
    settings: Any = config
    changed: ConfigT = settings.model_copy(update={"run": settings.run.model_copy(update={"baseline": "none"})})
    return changed


def _compared(folder: Path, results: Mapping[str, Results], pages: Pages | None) -> Pages:
    """The run's own pages with its variants beside it, by the metric that chose the best checkpoints."""
    assert pages is not None  # noqa: S101 - a run with variants is in the group
    curves, *others = pages.report.sections
    sections = [curves, *_comparison(folder, results, pages.summary), *others]
    return Pages(summary={**pages.summary, "variants": results}, report=replace(pages.report, sections=sections))


def _comparison(folder: Path, variants: Mapping[str, Results], summary: Mapping[str, Any]) -> list[Section]:
    metric, mode = summary["monitor"]["metric"], summary["monitor"]["mode"]
    runs: dict[str, Results] = {"this run": summary["results_of_best_checkpoint"], **variants}
    splits = list(runs["this run"])
    rows = [[name, *(results[split].get(metric) for split in splits)] for name, results in runs.items()]
    columns = ["variant", *(f"{split} {metric}" for split in splits)]
    sections: list[Section] = [Table("Compared with its variants", columns, rows, note="the same settings otherwise")]
    shown = splits[-1]  # the test, where there is one
    bars = [
        Bar(label=(), value=value, name=name)
        for name, results in runs.items()
        if (value := results[shown].get(metric)) is not None and math.isfinite(value)
    ]
    if bars:
        bars.sort(key=lambda bar: bar.value, reverse=mode == "max")
        path = plot_runs(bars, metric=f"{shown} {metric}", path=folder / "variants.png")
        sections.append(Picture("Compared with its variants", path, wide=True))
    return sections

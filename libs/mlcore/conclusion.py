"""The end of a run: the best checkpoint is judged on validation and test data, and summary and report are written."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mlcore.assemble import CoreConfig, Problem, evaluation_loader
from mlcore.checkpoint import CheckpointStore, inference_weights, load_checkpoint, load_model_weights
from mlcore.console import format_duration
from mlcore.diagnose import peak_memory_bytes
from mlcore.distributed import barrier
from mlcore.evaluator import Evaluator
from mlcore.files import write_json
from mlcore.mirror import Copied
from mlcore.plots.curves import plot_panels
from mlcore.plots.runs import Bar, plot_runs
from mlcore.progress import Monitor, Outcome
from mlcore.report import Headline, Picture, RunReport, Section, Table, describe_environment, write_report
from mlcore.task import check_facts
from mlcore.trackers.table import read_history
from mlcore.trainer import Trainer

_log = logging.getLogger(__name__)

_SUMMARY = "summary.json"

Results = Mapping[str, Mapping[str, float]]
"""Figures by split ("val", "test") and name."""


@dataclass(frozen=True)
class Verdict:
    """What the best checkpoint reached.

    Attributes:
        results: Its figures.
        sections: The app's tables and pictures of its predictions.
    """

    results: Results
    sections: Sequence[Section]


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """All that summary and report say of a run.

    Attributes:
        title: For people.
        outcome: How training ended.
        verdict: What the best checkpoint reached.
        variants: What the variants trained for comparison reached, by name.
        monitor: The metric that chose the best checkpoint.
        config: The resolved configuration, nested.
        demo: Whether it was the demo.
        copied: Where its copy in a bucket is and what that lacks; None for no copy.
    """

    title: str
    outcome: Outcome
    verdict: Verdict
    variants: Mapping[str, Results]
    monitor: Monitor
    config: Mapping[str, Any]
    demo: bool
    copied: Copied | None


@dataclass(frozen=True, kw_only=True)
class Pages:
    """What is written of a run for programs (`summary.json`) and for people (`report.html`, `summary.md`).

    Attributes:
        summary: Plain values.
        report: The same and more, in words, tables and pictures.
    """

    summary: Mapping[str, Any]
    report: RunReport


def judge(trainer: Trainer, problem: Problem, *, config: CoreConfig, folder: Path, checkpoints: Path) -> Verdict:
    """Load the best checkpoint into the task's model and evaluate it; every rank must call it.

    Args:
        trainer: The finished trainer.
        problem: Its problem.
        config: The shared sections.
        folder: Where the app's pictures go.
        checkpoints: Where the best checkpoint is, or, where no evaluation was better than another, the newest one.

    Raises:
        CheckpointError: It belongs to other classes or encoders.
    """
    world = trainer.engine.world
    barrier()
    best = best_checkpoint(checkpoints)
    if best is not None:
        state = load_checkpoint(best)
        check_facts(problem.task, state, keys=problem.identity, source=best)
        load_model_weights(problem.task.model, inference_weights(state, source=best), source=best)
    results: dict[str, dict[str, float]] = {}
    sections: list[Section] = []
    for name, data in (("train", problem.train_again), ("val", problem.validation), ("test", problem.test)):
        if data is None:
            continue
        evaluator = Evaluator(problem.task, evaluation_loader(config, data, world=world), world=world)
        results[name], predictions = evaluator.run(problem.task.model, engine=trainer.engine)
        if problem.analyse is not None and world.is_main:
            sections += problem.analyse(predictions, folder, f"{name}_" if name != "val" else "")
    return Verdict(results, sections)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run is judged by: the best, or the newest where the monitored metric was never defined."""
    names = (CheckpointStore.BEST, CheckpointStore.LATEST)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def write_conclusion(end: Conclusion, problem: Problem, *, folder: Path, device: torch.device) -> Pages:
    """Write `summary.json`, the app's own files and the report into the run folder."""
    now, monitor, results = end.outcome.progress, end.monitor, end.verdict.results
    summary = {
        "status": end.outcome.status,
        "best_step": now.best_step,
        "monitor": {"metric": monitor.metric, "mode": monitor.mode, "best": now.best},
        "results_of_best_checkpoint": results,
        "variants": end.variants,
        "progress": asdict(now),
        "skipped_steps": end.outcome.skipped,
        "demo": end.demo,
    }
    written = _write_summary(summary, folder=folder, copied=end.copied)
    if problem.finish is not None:
        problem.finish(folder, written)
    report = RunReport(
        title=end.title,
        subtitle=f"{end.outcome.status} after {now.epoch} epochs; best at step {now.best_step} of {now.step}",
        headlines=_headlines(results, monitor.metric),
        warnings=[*_demo_warning(end), *problem.notes, *_skip_warning(end.outcome)],
        sections=[
            *_curves(folder, monitor.metric),
            *_comparison(end, folder),
            _result_table(results),
            *end.verdict.sections,
            *(() if problem.overview is None else problem.overview(folder)),
        ],
        config=end.config,
        environment={
            **describe_environment(device),
            "training time": format_duration(now.seconds),
            "peak memory": f"{peak_memory_bytes(device) / 2**30:.2f} GiB",
        },
    )
    for name, values in results.items():
        _log.info("best checkpoint  %s  %s", name, "  ".join(f"{key} {value:.4g}" for key, value in values.items()))
    pages = Pages(summary=summary, report=report)
    _log.info("report: %s", write_pages(pages, folder=folder, copied=end.copied))
    return pages


def write_pages(pages: Pages, *, folder: Path, copied: Copied | None) -> Path:
    """Write `summary.json`, `summary.md` and `report.html` into the run folder, with what a copy in a bucket lacks.

    Args:
        pages: What they say.
        folder: The run's.
        copied: Where the copy is and what it lacks; None for no copy.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: As `write_report`.
    """
    _write_summary(pages.summary, folder=folder, copied=copied)
    report = pages.report
    if copied is not None:
        complaint = copied.complaint(folder)
        report = replace(
            report,
            warnings=[*report.warnings, *([complaint] if complaint else [])],
            environment={**report.environment, "copy": copied.to},
        )
    return write_report(folder, report=report)


def _write_summary(summary: Mapping[str, Any], *, folder: Path, copied: Copied | None) -> dict[str, Any]:
    where = None if copied is None else {"to": copied.to, "missing": dict(copied.missing)}
    written = {**summary, "copied": where}
    write_json(folder / _SUMMARY, written)
    return written


def read_results(folder: Path) -> Results:
    """The figures that a finished run left; none where it left no summary (on ranks that do not write)."""
    path = folder / _SUMMARY
    if not path.is_file():
        return {}
    results: Results = json.loads(path.read_text(encoding="utf-8"))["results_of_best_checkpoint"]
    return results


def _curves(folder: Path, metric: str) -> list[Section]:
    rows = read_history(folder)
    judged = metric.replace("_", " ")
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for panel, names in (
        ("loss", ("train/loss", "val/loss")),
        ("accuracy", ("train/accuracy", "val/accuracy")),
        (judged, (f"train/{metric}", f"val/{metric}")),
        ("learning rate", ("train/lr",)),
        ("gradient norm", ("train/grad_norm",)),
    ):
        for name in names:
            points = [(float(step), values[name]) for step, values in rows if name in values]
            if points:
                steps, values = zip(*points, strict=True)
                panels.setdefault(panel, {})[name] = (list(steps), list(values))
    if not panels:
        return []
    return [Picture("Training", plot_panels(panels, path=folder / "curves.png"), wide=True)]


def _comparison(end: Conclusion, folder: Path) -> list[Section]:
    """The run beside its variants, by the metric that chose the best checkpoints."""
    if not end.variants:
        return []
    metric, splits = end.monitor.metric, list(end.verdict.results)
    runs = {"this run": end.verdict.results, **end.variants}
    rows = [[name, *(results[split].get(metric) for split in splits)] for name, results in runs.items()]
    columns = ["variant", *(f"{split} {metric}" for split in splits)]
    sections: list[Section] = [Table("Compared with its variants", columns, rows, note="the same settings otherwise")]
    judged = splits[-1]  # the test, where there is one
    bars = [
        Bar(label=(), value=value, name=name)
        for name, results in runs.items()
        if (value := results[judged].get(metric)) is not None and math.isfinite(value)
    ]
    if bars:
        bars.sort(key=lambda bar: bar.value, reverse=end.monitor.mode == "max")
        path = plot_runs(bars, metric=f"{judged} {metric}", path=folder / "variants.png")
        sections.append(Picture("Compared with its variants", path, wide=True))
    return sections


def _headlines(results: Results, metric: str) -> list[Headline]:
    return [
        Headline(
            f"{'test' if name == 'test' else 'validation'} {metric}", values[metric], f"{int(values['n'])} samples"
        )
        for name, values in results.items()
        if metric in values and name != "train"
    ]


def _result_table(results: Results) -> Table:
    names = list(results)
    keys = list(dict.fromkeys(key for values in results.values() for key in values))
    rows: list[list[object]] = [[key, *(results[name].get(key) for name in names)] for key in keys if key != "n"]
    rows.append(["samples", *(int(results[name]["n"]) for name in names)])
    return Table("Results of the best checkpoint", ["metric", *names], rows)


def _demo_warning(end: Conclusion) -> list[str]:
    if not end.demo:
        return []
    return ["This is the demo: training and evaluation used generated data, so the figures say nothing of real data."]


def _skip_warning(outcome: Outcome) -> list[str]:
    if not outcome.skipped:
        return []
    return [f"{outcome.skipped} training steps were skipped because the loss or a gradient was not finite."]

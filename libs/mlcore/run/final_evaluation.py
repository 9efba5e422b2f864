"""The end of a run: the best checkpoint is evaluated on held-out data, and summary and report are written."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlcore.base.console import format_duration, row
from mlcore.base.distributed import World, barrier, broadcast_object
from mlcore.base.files import write_json
from mlcore.base.reading import reading
from mlcore.metrics.ranking import Interval
from mlcore.report.page import Headline, Picture, RunReport, Section, Table, describe_environment, write_report
from mlcore.report.plots.curves import plot_panels
from mlcore.run.baseline import Judged, as_values, baseline_table, doubts, judge
from mlcore.run.build import CoreConfig, EvaluationSetup, TrainingSetup, evaluation_loader
from mlcore.run.copy import Copied
from mlcore.run.step_times import step_time_sections
from mlcore.trackers.table import read_history
from mlcore.training.checkpoint import (
    CheckpointError,
    CheckpointStore,
    inference_weights,
    load_checkpoint,
    load_model_weights,
)
from mlcore.training.diagnose import peak_memory_bytes
from mlcore.training.engine import Engine
from mlcore.training.evaluator import Evaluator, Predictions
from mlcore.training.progress import Monitor, Outcome
from mlcore.training.task import check_metadata
from mlcore.training.trainer import Trainer

_log = logging.getLogger(__name__)

_SUMMARY = "summary.json"

Results = Mapping[str, Mapping[str, float]]
"""Figures by split ("val", "test") and name."""


@dataclass(frozen=True)
class Evaluation:
    """What the best checkpoint reached.

    Attributes:
        results: Its figures.
        sections: The app's tables and pictures of its predictions.
        intervals: The 95 % interval of the monitored figure on each split, where there is one.
        complaint: Why it is not the best checkpoint that was evaluated; empty if it was.
        step: Training step of what was evaluated; None: of the progress.
        rows: The predictions themselves, by split, on the main rank.
        baselines: What plain models reached on the same splits.
        departure: How far the outputs of a batch are from float32 (`Evaluator.departure`); None: they are in float32.
    """

    results: Results
    sections: Sequence[Section]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    complaint: str = ""
    step: int | None = None
    rows: Mapping[str, Predictions] = field(default_factory=dict)
    baselines: Sequence[Judged] = ()
    departure: float | None = None

    def told_departure(self) -> dict[str, str]:
        """The same in words, as a line of what a result depends on; nothing for float32."""
        if self.departure is None:
            return {}
        return {"arithmetic": f"outputs of a batch differ from float32 by at most {self.departure:.1e} of the largest"}


@dataclass(frozen=True, kw_only=True)
class Pages:
    """What is written of a run for programs (`summary.json`) and for people (`report.html`, `summary.md`).

    Attributes:
        summary: Plain values.
        report: The same and more, in words, tables and pictures.
    """

    summary: Mapping[str, Any]
    report: RunReport


def evaluate_best(
    trainer: Trainer, setup: TrainingSetup, *, config: CoreConfig, folder: Path, checkpoints: Path
) -> Evaluation:
    """Load the best checkpoint into the task's model and evaluate it; every rank must call it.

    Args:
        trainer: The finished trainer.
        setup: What it trained.
        config: The shared sections.
        folder: Where the app's pictures go.
        checkpoints: Where the best checkpoint is, or, where no evaluation was better than another, the newest one.

    Raises:
        CheckpointError: It belongs to other classes or encoders.
    """
    world = trainer.engine.world
    barrier()
    complaint: str = broadcast_object(_set_damaged_aside(checkpoints) if world.is_main else "")
    best, step = best_checkpoint(checkpoints), None
    if best is not None:
        state = load_checkpoint(best)
        step = int(state["progress"]["step"])
        check_metadata(setup.task, state, source=best)
        load_model_weights(setup.task.model, inference_weights(state, source=best), source=best)
    engine, metric = trainer.engine, trainer.monitor.metric
    found = evaluate_splits(setup, metric, config=config, folder=folder, world=world, engine=engine)
    judged: Sequence[Judged] = ()
    if world.is_main and config.run.baseline == "auto":
        judged = judge(setup.baselines, setup.task, found.rows, metric=metric, held_out=setup.held_out)
    return replace(found, complaint=complaint, step=step, baselines=judged)


def evaluate_splits(
    setup: EvaluationSetup,
    metric: str,
    *,
    config: CoreConfig,
    folder: Path,
    world: World,
    engine: Engine | None = None,
) -> Evaluation:
    """Evaluate a model as it is on every split; every rank must call it.

    Args:
        setup: Model and data.
        metric: The monitored figure, of which there is an interval.
        config: The shared sections.
        folder: Where the app's pictures go.
        world: Ranks and device.
        engine: Gives the arithmetic; None: the one in force.
    """
    model = setup.task.model
    if setup.choose is not None and "val" in setup.evaluation:
        loader = evaluation_loader(config, setup.evaluation["val"], world=world)
        setup.choose(lambda task: Evaluator(task, loader, world=world).predict(model, engine=engine))
    results: dict[str, dict[str, float]] = {}
    sections: list[Section] = []
    intervals: dict[str, Interval] = {}
    rows: dict[str, Predictions] = {}
    departure: float | None = None
    for name, data in setup.evaluation.items():
        evaluator = Evaluator(setup.task, evaluation_loader(config, data, world=world), world=world)
        results[name], predictions = evaluator.run(model, engine=engine)
        if departure is None:
            departure = evaluator.departure(model, engine=engine)
        if world.is_main:
            rows[name] = predictions
        if setup.interval is not None and world.is_main:
            intervals[name] = setup.interval(name, predictions, metric)
        if setup.analyse is not None and world.is_main:
            sections += setup.analyse(predictions, folder, f"{name}_" if name != "val" else "")
    known = {name: interval for name, interval in intervals.items() if math.isfinite(interval.low)}
    return Evaluation(results, sections, known, rows=rows, departure=departure)


def _set_damaged_aside(folder: Path) -> str:
    """Let the newest whole checkpoint stand for the run where the best is damaged; returns what is to be said of it."""
    best, store = best_checkpoint(folder), CheckpointStore(folder, asynchronous=False)
    if best is None:
        return ""
    try:
        load_checkpoint(best)
    except CheckpointError as error:
        damage = str(error)
    else:
        return ""
    found = store.newest_good()
    assert found is not None  # noqa: S101 - it raises where there are files and none is whole
    path, state = found
    aside = best.with_name(f"{best.name}.damaged")
    best.replace(aside)
    step = int(state["progress"]["step"])
    store.take_over(path, step=step, is_best=False)
    complaint = (
        f"{damage}. It is set aside as {aside.name}; the newest whole checkpoint, of step {step}, stands for the run."
    )
    _log.warning("%s", complaint)
    return complaint


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that stands for a run: the best, or the newest where the monitored metric was never defined."""
    names = (CheckpointStore.BEST, CheckpointStore.LATEST)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def pages_of_run(
    outcome: Outcome,
    evaluation: Evaluation,
    setup: TrainingSetup,
    *,
    title: str,
    monitor: Monitor,
    config: Mapping[str, Any],
    demo: bool,
    folder: Path,
) -> Pages:
    """What summary and report say of a run.

    Args:
        outcome: How training ended.
        evaluation: What the best checkpoint reached.
        setup: What was trained.
        title: For people.
        monitor: The metric that chose the best checkpoint.
        config: The resolved configuration, nested.
        demo: Whether it was the demo.
        folder: The run's, where pictures go and the history of its figures is.
    """
    now, results = outcome.progress, evaluation.results
    device = next(setup.task.model.parameters()).device
    is_best = now.best_step >= 0 and evaluation.step in (None, now.best_step) and not evaluation.complaint
    which, at = (
        ("best", now.best_step) if is_best else ("last", now.step if evaluation.step is None else evaluation.step)
    )
    report = RunReport(
        title=title,
        subtitle=f"{outcome.status} after {now.epoch} epochs; {which} weights at step {at} of {now.step}",
        headlines=headlines(evaluation, monitor.metric),
        warnings=[
            *([evaluation.complaint] if evaluation.complaint else []),
            *_warnings(setup, outcome, demo=demo),
            *doubts(evaluation.baselines, metric=monitor.metric, mode=monitor.mode),
        ],
        sections=[
            *_curves(folder, monitor.metric),
            result_table(results, which=which),
            *baseline_table(evaluation.baselines, results, metric=monitor.metric),
            *evaluation.sections,
            *step_time_sections(folder),
            *(() if setup.overview is None else setup.overview(folder)),
        ],
        config=config,
        environment={
            **describe_environment(device),
            **evaluation.told_departure(),
            "training time": format_duration(now.seconds),
            "peak memory": f"{peak_memory_bytes(device) / 2**30:.2f} GiB",
        },
    )
    _say(evaluation, which=which, metric=monitor.metric)
    samples = {"train": len(setup.train.dataset), **{name: int(values["n"]) for name, values in results.items()}}
    summary = _summary(outcome, evaluation, monitor=monitor, demo=demo)
    more = {} if setup.figures is None else setup.figures()
    return Pages(summary={**summary, "samples": samples, **more}, report=report)


def _say(evaluation: Evaluation, *, which: str, metric: str) -> None:
    for name, values in evaluation.results.items():
        parts = [f"{which} checkpoint", name, *(f"{key} {value:.4g}" for key, value in values.items())]
        _log.info("%s", "  ".join(parts), extra=row(parts, live=False))
    for line in evaluation.told_departure().values():
        _log.info("%s", line)
    for one in evaluation.baselines:
        reached = (f"{name} {metric} {of[metric]:.4g}" for name, of in one.results.items())
        _log.info("baseline  %s  %s", one.name, "  ".join(reached))


def _summary(outcome: Outcome, evaluation: Evaluation, *, monitor: Monitor, demo: bool) -> dict[str, Any]:
    now = outcome.progress
    return {
        "status": outcome.status,
        "best_step": now.best_step,
        "monitor": {"metric": monitor.metric, "mode": monitor.mode, "best": now.best},
        "results_of_best_checkpoint": evaluation.results,
        "intervals_of_best_checkpoint": plain_intervals(evaluation, monitor.metric),
        "baselines": as_values(evaluation.baselines, metric=monitor.metric),
        "difference_from_float32": evaluation.departure,
        "variants": {},
        "progress": asdict(now),
        "skipped_steps": outcome.skipped,
        "demo": demo,
    }


def plain_intervals(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    """The 95 % intervals by split and figure, as JSON has them."""
    return {name: {metric: {"low": low, "high": high}} for name, (low, high) in evaluation.intervals.items()}


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
    where = None if copied is None else {"to": copied.to, "missing": dict(copied.missing)}
    write_json(folder / _SUMMARY, {**pages.summary, "copied": where})
    report = pages.report
    if copied is not None:
        complaint = copied.complaint(folder)
        report = replace(
            report,
            warnings=[*report.warnings, *([complaint] if complaint else [])],
            environment={**report.environment, "copy": copied.to},
        )
    return write_report(folder, report=report)


def read_results(folder: Path) -> Results:
    """The figures that a finished run left; none where it left no summary (on ranks that do not write)."""
    path = folder / _SUMMARY
    if not path.is_file():
        return {}
    with reading(path, "the summary of a run"):
        results: Results = json.loads(path.read_text(encoding="utf-8"))["results_of_best_checkpoint"]
        return {split: dict(figures) for split, figures in results.items()}


def _curves(folder: Path, metric: str) -> list[Section]:
    rows = read_history(folder)
    monitored = metric.replace("_", " ")
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for panel, names in (
        ("loss", ("train/loss", "val/loss")),
        ("accuracy", ("train/accuracy", "val/accuracy")),
        (monitored, (f"train/{metric}", f"val/{metric}")),
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


def headlines(evaluation: Evaluation, metric: str) -> list[Headline]:
    """The monitored figure of each split that was not trained on, with its interval."""
    found = []
    for name, values in evaluation.results.items():
        if metric in values and name != "train":
            hint = f"{int(values['n'])} samples"
            if (interval := evaluation.intervals.get(name)) is not None:
                hint = f"95 % interval {interval.low:.4f} to {interval.high:.4f}, {hint}"
            found.append(Headline(f"{'test' if name == 'test' else 'validation'} {metric}", values[metric], hint))
    return found


def result_table(results: Results, *, which: str) -> Table:
    """All figures of all splits."""
    names = list(results)
    keys = list(dict.fromkeys(key for values in results.values() for key in values))
    rows: list[list[object]] = [[key, *(results[name].get(key) for name in names)] for key in keys if key != "n"]
    rows.append(["samples", *(int(results[name]["n"]) for name in names)])
    return Table(f"Results of the {which} checkpoint", ["metric", *names], rows)


def _warnings(setup: TrainingSetup, outcome: Outcome, *, demo: bool) -> list[str]:
    said = "This is the demo: training and evaluation used generated data, so the figures say nothing of real data."
    lost = f"{outcome.skipped} training steps were skipped because the loss or a gradient was not finite."
    return [*([said] if demo else []), *setup.warnings, *([lost] if outcome.skipped else [])]

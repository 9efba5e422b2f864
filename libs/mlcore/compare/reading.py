"""Run folders of any app, read for a comparison.

A run folder holds run.json (status, configuration), summary.json (metrics of the best checkpoint, intervals),
metrics.jsonl (memory) and, of some apps, results.json (more intervals); a sweep folder holds sweep.json (its jobs).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.base.secrets import mask_secrets
from mlcore.config.names import flatten
from mlcore.config.text import dump_value, read_document
from mlcore.metrics.ranking import Interval
from mlcore.run.folder import is_locked
from mlcore.trackers.table import read_history

__all__ = ["SPLITS", "Run", "find_runs"]

SPLITS = ("out_of_fold", "val", "test")

_RUN_FILES = ("run.json", "summary.json")
_NO_RUNS_IN = {"checkpoints", "tensorboard", "thumbnails", "wandb"}
# These say where things go, not what is computed or what it costs.
_LEFT_OUT = {"run.output_dir", "run.resume", "run.name"}
_SECTIONS_LEFT_OUT = {"tracking", "checkpoint"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, as far as its folder tells.

    Attributes:
        folder: The run folder; of a sweep's job that never started the one it would have.
        status: As run.json has it, or "missing", "broken", "pending", "killed".
        trouble: Why there are no figures; empty for a run that is done.
        settings: The resolved configuration, flat ("train.lr"), as YAML text; secrets masked.
        metrics: Of the best checkpoint, as "val/auroc"; undefined ones are NaN.
        intervals: Confidence intervals of some of them.
        monitored: The metric that chose the best checkpoint, such as "val/auroc"; empty if unknown.
        mode: Whether a larger or a smaller value of it is better.
        cost: "seconds" of training, "steps" and, where known, "peak_memory_gib".
    """

    folder: Path
    status: str
    trouble: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    monitored: str = ""
    mode: Literal["min", "max"] = "max"
    cost: Mapping[str, float] = field(default_factory=dict)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run at and below `paths`, each once, sorted by folder, with a sweep's jobs that never started.

    Raises:
        UserError: a path does not exist, or there is no run at all.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give run folders, sweep folders, or folders of such")
        for top, folders, files in os.walk(path.resolve()):
            folders[:] = sorted(name for name in folders if name not in _NO_RUNS_IN and not name.startswith("."))
            folder = Path(top)
            if any(name in files for name in _RUN_FILES):
                found[folder] = run = _read_run(folder)
                if run.monitored.startswith("out_of_fold/"):
                    folders.clear()  # its figures are those of the runs in there
            if "sweep.json" in files:
                for run in _unstarted(folder):
                    found.setdefault(run.folder, run)
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no run in there (no folder with a run.json)")
    return [found[folder] for folder in sorted(found)]


def _read_run(folder: Path) -> Run:
    try:
        with reading("run.json", "the record of a run"):
            status, settings, trouble = _read_record(folder)
    except UserError as error:
        missing = not (folder / "run.json").exists()
        return Run(
            folder=folder,
            status="missing" if missing else "broken",
            trouble="there is a summary.json, but no run.json" if missing else str(error),
        )
    if status == "running":
        status = "running" if is_locked(folder) else "killed"
        trouble = "still running" if status == "running" else "killed: nobody works on it; its command continues it"
    if not trouble and not (folder / "summary.json").exists():
        trouble = {"time is up": "its time was up; the same command continues it"}.get(
            status, "no summary.json (a search for a learning rate leaves none)"
        )
    if trouble:
        return Run(folder=folder, status=status, trouble=trouble, settings=settings)
    try:
        with reading("summary.json", "the summary of a run"):
            return _with_results(folder, status, settings)
    except UserError as error:
        return Run(folder=folder, status="broken", trouble=str(error), settings=settings)


def _read_record(folder: Path) -> tuple[str, dict[str, str], str]:
    """Status, settings, and what else is told of a run that did not come to its end."""
    record = read_document(folder / "run.json").values
    status, config = str(record["status"]), record["config"]
    settings = {name: dump_value(value) for name, value in flatten(mask_secrets(config)).items() if _matters(name)}
    trouble = {
        "interrupted": "interrupted; the same command continues it",
        "failed": str(record["reason"]).partition("\n")[0] if "reason" in record else "failed",
    }
    return status, settings, trouble.get(status, "")


def _with_results(folder: Path, status: str, settings: Mapping[str, str]) -> Run:
    summary = read_document(folder / "summary.json").values
    progress, monitor, results = summary["progress"], summary["monitor"], summary["results_of_best_checkpoint"]
    metrics = {
        f"{split}/{name}": math.nan if value is None else float(value)
        for split, values in results.items()
        for name, value in values.items()
    }
    cost = {"seconds": float(progress["seconds"]), "steps": float(progress["step"])}
    if not all(map(math.isfinite, cost.values())):
        raise ValueError(f"progress {progress}")
    return Run(
        folder=folder,
        status=status,
        settings=settings,
        metrics=metrics,
        intervals={**_known(summary), **_intervals(folder / "results.json")},
        monitored=f"{'out_of_fold' if 'out_of_fold' in results else 'val'}/{monitor['metric']}",
        mode="min" if monitor["mode"] == "min" else "max",
        cost=cost | _memory(folder),
    )


def _known(summary: Mapping[str, Any]) -> dict[str, Interval]:
    """Those that the summary has; older ones have none."""
    return {
        f"{split}/{name}": Interval(float(value["low"]), float(value["high"]))
        for split, values in summary.get("intervals_of_best_checkpoint", {}).items()
        for name, value in values.items()
    }


def _intervals(path: Path) -> dict[str, Interval]:
    """From `"test": {"auroc_interval": {"low": 0.9, "high": 0.95}}`; none where the file is missing or another one."""
    with suppress(UserError), reading(path, "results"):
        splits = json.loads(path.read_text(encoding="utf-8"))
        return {
            f"{split}/{name.removesuffix('_interval')}": Interval(float(value["low"]), float(value["high"]))
            for split in SPLITS
            if split in splits
            for name, value in splits[split].items()
            if name.endswith("_interval") and value is not None
        }
    return {}


def _memory(folder: Path) -> dict[str, float]:
    with suppress(UserError):  # the record of the steps may be damaged; the results are not
        peaks = [row["perf/memory_gib"] for _, row in read_history(folder) if "perf/memory_gib" in row]
        return {"peak_memory_gib": max(peaks)} if peaks else {}
    return {}


def _unstarted(sweep: Path) -> list[Run]:
    """Jobs of a sweep that have no run: they failed before it began, or their turn has not come."""
    try:
        with reading("sweep.json", "the record of a sweep"):
            jobs = [_job(sweep, job) for job in read_document(sweep / "sweep.json").values["jobs"]]
            return [job for job in jobs if not any((job.folder / name).exists() for name in _RUN_FILES)]
    except UserError as error:
        return [Run(folder=sweep, status="broken", trouble=str(error))]


def _job(sweep: Path, job: Mapping[str, Any]) -> Run:
    status, code = str(job["status"]), job["exit_code"]
    trouble = f"failed before the run began, exit code {code}" if status == "failed" else "not started yet"
    overrides = dict(pair.split("=", 1) for pair in job["overrides"])
    return Run(folder=sweep / job["folder"], status=status, trouble=trouble, settings=overrides)


def _matters(setting: str) -> bool:
    return setting not in _LEFT_OUT and setting.split(".")[0] not in _SECTIONS_LEFT_OUT

"""Cross-validation, seeds, and a last run on all data: what a `ProtocolConfig` asks for, the same in every app.

The runs are `folds/fold_1` (with several seeds `folds/fold_1_seed_0`), or `seeds/seed_0`, and `refit` (`refit/seed_0`).
What each fold's run says of the samples that it was trained without is the out-of-fold prediction of these; every
sample has exactly one for each seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, csv_text, write_text
from mlcore.base.reading import reading
from mlcore.config.protocol import ProtocolConfig
from mlcore.config.text import read_document
from mlcore.config.validation import ConfigT
from mlcore.metrics.arrays import IntArray
from mlcore.metrics.ranking import Interval, bootstrap_interval
from mlcore.metrics.resampled import resampled
from mlcore.report.page import Headline, Picture, RunReport, Section, Table
from mlcore.report.plots.runs import Bar, plot_runs
from mlcore.run.final_evaluation import Pages, Results
from mlcore.run.group import RunGroup
from mlcore.run.member import read_held_out
from mlcore.run.out_of_fold import OUT_OF_FOLD
from mlcore.training.evaluator import Predictions

__all__ = ["protocol_group"]

_RESAMPLES = 200

Figures = Callable[[Predictions], Mapping[str, float]]
"""From rows of predictions to their figures; what the app's task does."""


def protocol_group(config: ConfigT, *, figures: Figures, title: str) -> RunGroup[ConfigT] | None:
    """The runs that the section `protocol` asks for; None where it is one run.

    Args:
        config: The app's.
        figures: Of predictions, what the app's task gives.
        title: What the report's title begins with.

    Raises:
        UserError: Settings do not fit together.
    """
    settings: Any = config
    protocol: ProtocolConfig = settings.protocol
    if not protocol.asked:
        return None
    if protocol.refit and settings.scheduler.name in ("plateau", "reduce_on_plateau"):
        raise UserError(
            "protocol.refit: a run on all data has nothing for the plateau schedule to watch; take another, such as "
            "scheduler=cosine_warmup"
        )
    seeds = [settings.run.seed + number for number in range(protocol.seeds)]
    names = {seed: f"_seed_{seed}" if len(seeds) > 1 else "" for seed in seeds}
    if protocol.folds:
        configs = {
            f"folds/fold_{fold}{names[seed]}": _member(config, fold=fold, seed=seed)
            for seed in seeds
            for fold in range(1, protocol.folds + 1)
        }
    else:
        configs = {f"seeds/seed_{seed}": _member(config, fold=None, seed=seed) for seed in seeds}
    last = None
    if protocol.refit:
        where = {seed: f"refit/seed_{seed}" if len(seeds) > 1 else "refit" for seed in seeds}
        last = partial(_refits, config, list(configs), where)
    aggregate = partial(_aggregate, list(configs), figures, config, title)
    return RunGroup(what="run", configs=configs, aggregate=aggregate, jobs=protocol.jobs, last=last)


def _member(config: ConfigT, *, fold: int | None, seed: int, **train: Any) -> ConfigT:
    settings: Any = config
    alone = {"fold": fold, "seeds": 1, "refit": False, "jobs": 1}
    changed = {
        "protocol": settings.protocol.model_copy(update=alone),
        "run": settings.run.model_copy(update={"seed": seed, "output_dir": None}),
        **({"train": settings.train.model_copy(update=train)} if train else {}),
    }
    member: ConfigT = settings.model_copy(update=changed)
    return member


def _refits(config: ConfigT, places: Sequence[str], where: Mapping[int, str], folder: Path) -> Mapping[str, ConfigT]:
    """The last runs: on all of the data, for as long as the folds' best checkpoints had been trained."""
    settings: Any = config
    protocol: ProtocolConfig = settings.protocol
    trained_on = (1 - 1 / protocol.folds) * (1 - 1 / protocol.inner if protocol.inner else 1)
    steps = max(1, round(median(_best_step(folder / place) for place in places) / trained_on))
    stopping = settings.train.early_stopping.model_copy(update={"patience": None})
    return {
        place: _member(config, fold=0, seed=seed, max_steps=steps, early_stopping=stopping)
        for seed, place in where.items()
    }


def _best_step(folder: Path) -> int:
    """Steps up to the checkpoint that stands for a run."""
    progress = _summary(folder)["progress"]
    return int(progress["best_step"] if progress["best_step"] >= 0 else progress["step"])


def _summary(folder: Path) -> Mapping[str, Any]:
    path = folder / "summary.json"
    with reading(path, "the summary of a run"):
        return read_document(path).values


def _aggregate(
    places: Sequence[str],
    figures: Figures,
    config: Any,
    title: str,
    folder: Path,
    results: Mapping[str, Results],
    _pages: Pages | None,
) -> Pages:
    """What summary and report say of all the runs; writes the out-of-fold predictions."""
    monitor = _summary(folder / places[0])["monitor"]
    metric, folds = monitor["metric"], config.protocol.folds
    refits = {name: found for name, found in results.items() if name not in {Path(place).name for place in places}}
    members = {name: found for name, found in results.items() if name not in refits}
    reached: dict[str, dict[str, float]] = {}
    intervals: dict[str, Interval] = {}
    if folds:
        seeds = _by_seed(folder, places, folds=folds)
        reached[OUT_OF_FOLD] = _means([{**figures(_rows(found)), "n": len(found["name"])} for found in seeds])
        intervals[OUT_OF_FOLD] = _interval(seeds, figures, metric)
        _write_out_of_fold(folder, seeds)
    for found in (refits, {} if folds else members):
        for split in dict.fromkeys(split for one in found.values() for split in one if split != "train"):
            reached[split] = _means([one[split] for one in found.values() if split in one])
    known = {split: interval for split, interval in intervals.items() if math.isfinite(interval.low)}
    best = next(iter(reached.values())).get(metric, math.nan)
    return Pages(
        summary={
            "status": "finished",
            "monitor": {**monitor, "best": best},
            "results_of_best_checkpoint": reached,
            "intervals_of_best_checkpoint": {
                split: {metric: {"low": low, "high": high}} for split, (low, high) in known.items()
            },
            "runs": results,
            "progress": _progress(folder, places),
        },
        report=RunReport(
            title=f"{title}: {_words(config)}",
            subtitle=(
                "every sample is predicted by runs that were trained without it" if folds else "all figures are means"
            ),
            headlines=_headlines(reached, known, metric, members, folds=folds),
            sections=[*_tables(members, refits, reached, metric), *_picture(members, monitor, folder, folds=folds)],
        ),
    )


def _by_seed(folder: Path, places: Sequence[str], *, folds: int) -> list[dict[str, Any]]:
    """Out-of-fold rows of each seed, by name of the sample; "name", "unit" and "fold" beside the predictions'.

    Raises:
        UserError: A file is missing, or a sample is in two folds, or not in the same with another seed.
    """
    seeds = []
    for first in range(0, len(places), folds):
        parts = [read_held_out(folder / place) for place in places[first : first + folds]]
        for number, part in enumerate(parts, 1):
            part["fold"] = np.full(len(part["name"]), number)
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        order = np.argsort(joined["name"], kind="stable")
        seeds.append({key: value[order] for key, value in joined.items()})
    for found in seeds:
        names = found["name"]
        if len(set(names.tolist())) < len(names) or names.tolist() != seeds[0]["name"].tolist():
            raise UserError(
                f"{folder}: the runs' folds do not make up the data; the data changed while they were trained"
            )
    return seeds


def _rows(found: Mapping[str, Any], chosen: IntArray | None = None) -> dict[str, Tensor]:
    """The predictions alone, as the app's task gave them."""
    rows = {key: value for key, value in found.items() if key not in ("name", "unit", "fold")}
    return {key: torch.from_numpy(value if chosen is None else value[chosen]) for key, value in rows.items()}


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: mean(float(one.get(key, math.nan)) for one in found) for key in found[0]}


def _interval(seeds: Sequence[Mapping[str, Any]], figures: Figures, metric: str) -> Interval:
    """The 95 % interval of a figure's mean over seeds, drawing units whole."""
    quick = [_quick(found, metric) for found in seeds]

    def figure(times: IntArray) -> float:
        if known := [one for one in quick if one is not None]:
            return mean(one(times) for one in known)
        drawn = np.repeat(np.arange(len(times)), times)
        return mean(float(figures(_rows(found, drawn)).get(metric, math.nan)) for found in seeds)

    return bootstrap_interval(figure, units=seeds[0]["unit"], resamples=_RESAMPLES)


def _quick(found: Mapping[str, Any], metric: str) -> Callable[[IntArray], float] | None:
    """The figure of a classifier's rows; None for others, which the app has to make of each draw."""
    scores = found.get("probabilities", found.get("logit"))
    if scores is None or "label" not in found:
        return None
    labels = found["label"].astype(np.int64)
    return resampled(metric, labels=labels, scores=scores, losses=found.get("loss"))


def _write_out_of_fold(folder: Path, seeds: Sequence[Mapping[str, Any]]) -> None:
    """The predictions as `out_of_fold.npz`, rows [seeds, N, ...], and as a table, the mean over seeds."""
    rows = {key: np.stack([found[key] for found in seeds]) for key in seeds[0] if key not in ("name", "unit")}
    with atomic_write(folder / f"{OUT_OF_FOLD}.npz") as file:
        np.savez(file, allow_pickle=False, name=seeds[0]["name"], unit=seeds[0]["unit"], **rows)
    columns: dict[str, Sequence[object]] = {
        "sample": seeds[0]["name"].tolist(),
        "unit": seeds[0]["unit"].tolist(),
        "fold": seeds[0]["fold"].tolist(),
    }
    for key, values in rows.items():
        whole = values.dtype.kind in "iub"
        shown = values[0] if whole else values.mean(axis=0)  # a label is the same with every seed
        if key != "fold" and shown.ndim == 1:
            columns[key] = shown.tolist()
        elif key != "fold" and shown.ndim == 2:
            columns |= {f"{key}_{number}": column.tolist() for number, column in enumerate(shown.T)}
    cells = zip(*([_cell(value) for value in column] for column in columns.values()), strict=True)
    write_text(folder / f"{OUT_OF_FOLD}.csv", csv_text([tuple(columns), *cells]))


def _cell(value: object) -> object:
    return f"{value:.6f}" if isinstance(value, float) else value


# ---------------------------------------------------------------------------------------------------------- the pages


def _words(config: Any) -> str:
    protocol = config.protocol
    parts = [f"{protocol.folds} folds"] if protocol.folds else []
    parts += [f"{protocol.seeds} seeds"] if protocol.seeds > 1 else []
    parts += ["a last run on all data"] if protocol.refit else []
    return ", ".join(parts)


def _headlines(
    reached: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Interval],
    metric: str,
    members: Mapping[str, Results],
    *,
    folds: int,
) -> list[Headline]:
    found = []
    for split, values in reached.items():
        if metric not in values:
            continue
        hints = [f"{int(values['n'])} samples"] if "n" in values else []
        if split in intervals:
            hints.insert(0, f"95 % interval {intervals[split].low:.4f} to {intervals[split].high:.4f}")
        own = [one[split][metric] for one in members.values() if split in one and metric in one[split]]
        if not folds and len(own) > 1:
            hints.append(f"mean of {len(own)} runs, standard deviation {stdev(own):.4f}")
        called = {"val": "validation", OUT_OF_FOLD: "out-of-fold"}.get(split, split)
        found.append(Headline(f"{called} {metric}", values[metric], ", ".join(hints)))
    return found


def _tables(
    members: Mapping[str, Results],
    refits: Mapping[str, Results],
    reached: Mapping[str, Mapping[str, float]],
    metric: str,
) -> list[Section]:
    splits = list(reached)
    keys = list(dict.fromkeys(key for values in reached.values() for key in values))
    keys = [metric, *(key for key in keys if key not in (metric, "n")), "n"]
    rows = [[key, *(reached[split].get(key) for split in splits)] for key in keys]
    together = Table("All runs together", ["metric", *splits], rows, note="means over seeds")
    shown = "test" if OUT_OF_FOLD in reached else "val"
    own = {name: found[shown] for name, found in members.items() if metric in found.get(shown, {})}
    cells: list[list[object]] = [[name, found[metric], found.get("n")] for name, found in own.items()]
    values = [found[metric] for found in own.values()]
    if len(values) > 1:
        cells += [["mean", mean(values), None], ["standard deviation", stdev(values), None]]
    note = "on its own fold, which nothing of it was chosen by" if shown == "test" else ""
    found: list[Section] = [together, Table("Each run", ["run", metric, "samples"], cells, note=note)]
    if refits:
        tests = [[name, one.get("test", {}).get(metric)] for name, one in refits.items()]
        found.append(Table("Trained on all data", ["run", f"test {metric}"], tests, note="nothing chose their weights"))
    return found


def _picture(members: Mapping[str, Results], monitor: Mapping[str, Any], folder: Path, *, folds: int) -> list[Section]:
    metric = monitor["metric"]
    split = "test" if folds else "val"
    found = {name: one[split][metric] for name, one in members.items() if metric in one.get(split, {})}
    bars = [Bar(label=(), value=value, name=name) for name, value in found.items() if math.isfinite(value)]
    if not bars:
        return []
    bars.sort(key=lambda bar: bar.value, reverse=monitor["mode"] == "max")
    path = plot_runs(bars, metric=metric, path=folder / "runs.png")
    return [Picture("Folds" if folds else "Seeds", path, wide=True)]


def _progress(folder: Path, places: Sequence[str]) -> dict[str, float]:
    """Of all runs together."""
    found = [_summary(folder / place)["progress"] for place in places]
    return {key: sum(float(one[key]) for one in found) for key in ("seconds", "step")}

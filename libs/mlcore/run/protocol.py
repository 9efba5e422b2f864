"""Cross-validation, seeds, and a last run on all data: what a `ProtocolConfig` asks for, the same in every app.

The runs are `folds/fold_1` (with several seeds `folds/fold_1_seed_0`), or `seeds/seed_0`, and `refit` (`refit/seed_0`).
What each fold's run says of the samples that it was trained without is the out-of-fold prediction of these; every
sample has exactly one for each seed.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.config.protocol import ProtocolConfig
from mlcore.config.text import read_document
from mlcore.config.validation import ConfigT
from mlcore.metrics.ranking import Interval
from mlcore.metrics.resampled import paired_difference
from mlcore.report.page import Headline, Picture, RunReport, Section, Table
from mlcore.report.plots.runs import Bar, plot_runs
from mlcore.run.baseline import Judged, as_values, baseline_table, doubts
from mlcore.run.decision import read_decision
from mlcore.run.final_evaluation import Pages, Results
from mlcore.run.group import RunGroup, without_baselines
from mlcore.run.label_audit import Look, audit_sections
from mlcore.run.out_of_fold import OUT_OF_FOLD, Figures, by_seed, interval_of, mean_figure, rows_of, write_out_of_fold
from mlcore.run.slices import slice_table

__all__ = ["protocol_group"]


def protocol_group(
    config: ConfigT, *, figures: Figures, title: str, look: Look | None = None
) -> RunGroup[ConfigT] | None:
    """The runs that the section `protocol` asks for; None where it is one run.

    Args:
        config: The app's.
        figures: Of predictions, what the app's task gives.
        title: What the report's title begins with.
        look: Gives the pictures of samples whose labels are doubted; None where they have none.

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
    aggregate = partial(_aggregate, list(configs), config, figures=figures, title=title, look=look)
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
    return member if seed == settings.run.seed else without_baselines(member)  # they are the same with every seed


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
    config: Any,
    folder: Path,
    results: Mapping[str, Results],
    _pages: Pages | None,
    *,
    figures: Figures,
    title: str,
    look: Look | None,
) -> Pages:
    """What summary and report say of all the runs; writes the out-of-fold predictions."""
    monitor = _summary(folder / places[0])["monitor"]
    metric, folds = monitor["metric"], config.protocol.folds
    refits = {name: found for name, found in results.items() if name not in {Path(place).name for place in places}}
    members = {name: found for name, found in results.items() if name not in refits}
    reached: dict[str, dict[str, float]] = {}
    intervals: dict[str, Interval] = {}
    judged: Sequence[Judged] = ()
    found_in_samples: Sequence[Section] = ()
    if folds:
        seeds = by_seed(folder, places, folds=folds)
        reached[OUT_OF_FOLD] = _means([{**figures(rows_of(found)), "n": len(found["name"])} for found in seeds])
        intervals[OUT_OF_FOLD] = interval_of(seeds, figures, metric)
        write_out_of_fold(folder, seeds)
        judged = _baselines(folder, places, seeds, figures, metric)
        found_in_samples = [*slice_table(seeds, metric), *_audit(folder, places, seeds, look)]
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
            "baselines": as_values(judged, metric=metric),
            "runs": results,
            "progress": _progress(folder, places),
        },
        report=RunReport(
            title=f"{title}: {_words(config)}",
            subtitle=(
                "every sample is predicted by runs that were trained without it" if folds else "all figures are means"
            ),
            headlines=_headlines(reached, known, metric, members, folds=folds),
            warnings=doubts(judged, metric=metric, mode=monitor["mode"]),
            sections=[
                *_tables(members, refits, reached, metric),
                *baseline_table(judged, reached, metric=metric),
                *_picture(members, monitor, folder, folds=folds),
                *found_in_samples,
            ],
        ),
    )


def _audit(folder: Path, places: Sequence[str], seeds: Sequence[Mapping[str, Any]], look: Look | None) -> list[Section]:
    decision = read_decision(folder / places[0])
    classes = [] if decision is None else decision.class_names
    return audit_sections(seeds, classes=classes, folder=folder, look=look) if classes else []


def _baselines(
    folder: Path, places: Sequence[str], seeds: Sequence[Mapping[str, Any]], figures: Figures, metric: str
) -> list[Judged]:
    """What the baselines of the folds reached together, those that every fold has."""
    first = places[: len(places) // len(seeds)]  # the runs of one seed
    summaries = [_summary(folder / place).get("baselines", {}) for place in first]
    found = []
    for number, name in enumerate(summaries[0], 1):
        if not all(list(one)[number - 1 : number] == [name] for one in summaries):
            continue
        rows = by_seed(folder, first, folds=len(first), baseline=number)
        network, plain = (mean_figure(of, metric) for of in (seeds, rows))
        difference = (
            None if network is None or plain is None else paired_difference(network, plain, units=seeds[0]["unit"])
        )
        reached = _means([{**figures(rows_of(one)), "n": len(one["name"])} for one in rows])
        found.append(
            Judged(
                name=name,
                results={OUT_OF_FOLD: reached},
                differences={} if difference is None else {OUT_OF_FOLD: difference},
                rows={},
                seconds=sum(float(one[name]["seconds"]) for one in summaries),
            )
        )
    return found


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: mean(float(one.get(key, math.nan)) for one in found) for key in found[0]}


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
    rows: list[list[object]] = [[key, *(reached[split].get(key) for split in splits)] for key in keys[:-1]]
    rows.append(["samples", *(_count(reached[split]) for split in splits)])
    together = Table("All runs together", ["metric", *splits], rows, note="means over seeds")
    shown = "test" if OUT_OF_FOLD in reached else "val"
    own = {name: found[shown] for name, found in members.items() if metric in found.get(shown, {})}
    cells: list[list[object]] = [[name, found[metric], _count(found)] for name, found in own.items()]
    values = [found[metric] for found in own.values()]
    if len(values) > 1:
        cells += [["mean", mean(values), None], ["standard deviation", stdev(values), None]]
    note = "on its own fold, which nothing of it was chosen by" if shown == "test" else ""
    found: list[Section] = [together, Table("Each run", ["run", metric, "samples"], cells, note=note)]
    if refits:
        tests = [[name, one.get("test", {}).get(metric)] for name, one in refits.items()]
        found.append(Table("Trained on all data", ["run", f"test {metric}"], tests, note="nothing chose their weights"))
    return found


def _count(figures: Mapping[str, float]) -> int | None:
    return int(figures["n"]) if "n" in figures else None


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

"""Plain models of the same data beside the network, so that nobody is misled about what the network gains."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlcore.base.errors import UserError
from mlcore.metrics.resampled import Difference, figure_of, paired_difference
from mlcore.report.page import Section, Table
from mlcore.run.splits import Held
from mlcore.training.evaluator import Predictions
from mlcore.training.task import Task

__all__ = ["Baseline", "Judged", "as_values", "baseline_table", "doubts", "judge"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A plain model that takes seconds to minutes.

    Attributes:
        name: For people, such as "TF-IDF and logistic regression".
        predict: Fits it to the training samples, and gives by split the rows that the app's task gives of a network.
    """

    name: str
    predict: Callable[[], Mapping[str, Predictions]]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a baseline reached.

    Attributes:
        name: Its name.
        results: Figures by split.
        differences: By split, the network's monitored figure less the baseline's, by pairs; where it can be told.
        rows: Its predictions by split.
        seconds: What it took.
    """

    name: str
    results: Mapping[str, Mapping[str, float]]
    differences: Mapping[str, Difference]
    rows: Mapping[str, Predictions]
    seconds: float


def judge(
    baselines: Sequence[Baseline],
    task: Task,
    predictions: Mapping[str, Predictions],
    *,
    metric: str,
    held_out: Sequence[Held] = (),
) -> list[Judged]:
    """Fit the baselines and judge them as the network is; one that cannot be had is told of and left out.

    Args:
        baselines: What to compare with.
        task: Gives the figures.
        predictions: The network's, by split.
        metric: The monitored figure.
        held_out: The samples of "test", where they belong together.
    """
    found: list[Judged] = []
    for baseline in baselines if set(predictions) - {"train"} else ():
        _log.info("baseline: %s", baseline.name)
        begun = time.monotonic()
        try:
            rows = {name: row for name, row in baseline.predict().items() if name in predictions}
            results = {name: {**task.metrics(row), "n": len(row["loss"])} for name, row in rows.items()}
        except Exception as error:  # noqa: BLE001 - a run does not fail for what it is compared with
            _log.warning("the baseline could not be had: %s", error)
            _log.debug("", exc_info=not isinstance(error, UserError))
            continue
        differences: dict[str, Difference] = {}
        for name, row in rows.items():
            units = [one.unit for one in held_out] if name == "test" and held_out else range(len(row["loss"]))
            pair = [figure_of(metric, {key: value.numpy() for key, value in of.items()})
                    for of in (predictions[name], row)]  # fmt: skip
            if pair[0] is not None and pair[1] is not None:
                difference = paired_difference(pair[0], pair[1], units=units)
                differences |= {} if difference is None else {name: difference}
        seconds = time.monotonic() - begun
        found.append(Judged(name=baseline.name, results=results, differences=differences, rows=rows, seconds=seconds))
    return found


def baseline_table(
    judged: Sequence[Judged], results: Mapping[str, Mapping[str, float]], *, metric: str
) -> list[Section]:
    """The baselines beside the network; nothing where there are none."""
    rows: list[list[object]] = []
    for split, values in results.items():
        those = [one for one in judged if metric in one.results.get(split, {})]
        if those and metric in values:
            rows.append([split, "the network", values[metric], None, "", None])
            rows += [[split, one.name, one.results[split][metric], *_difference(one, split)] for one in those]
    note = "Fitted to the same training samples. The interval is of the difference, by pairs."
    columns = ["", "model", metric, "network less it", "95 % interval", "seconds"]
    return [Table("Beside a baseline", columns, rows, note=note)] if rows else []


def _difference(one: Judged, split: str) -> list[object]:
    difference = one.differences.get(split)
    if difference is None:
        return [None, "", one.seconds]
    return [difference.value, _words(difference), one.seconds]


def _words(difference: Difference) -> str:
    low, high = difference.interval
    return f"{low:+.4f} to {high:+.4f}" if math.isfinite(low) else ""


def doubts(judged: Sequence[Judged], *, metric: str, mode: str) -> list[str]:
    """For the report's head: baselines that are surely better than the network."""
    sign = 1 if mode == "max" else -1
    return [
        f"{one.name} is better than the network on {split}: {metric} {one.results[split][metric]:.4f}, the network's "
        f"less it {difference.value:+.4f} (95 % interval {_words(difference)})."
        for one in judged
        for split, difference in one.differences.items()
        if difference.sure and difference.value * sign < 0
    ]


def as_values(judged: Sequence[Judged], *, metric: str) -> dict[str, Any]:
    """The same for `summary.json`."""
    return {
        one.name: {
            "results": one.results,
            "network_less_it": {
                split: {metric: {"value": found.value, "low": found.interval.low, "high": found.interval.high}}
                for split, found in one.differences.items()
            },
            "seconds": round(one.seconds, 1),
        }
        for one in judged
    }

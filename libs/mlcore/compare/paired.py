"""Differences of cross-validations that held out the same samples: by pairs, so that what both find hard cancels."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from mlcore.metrics.arrays import IntArray
from mlcore.metrics.ranking import Interval, bootstrap_interval
from mlcore.metrics.resampled import resampled
from mlcore.run.out_of_fold import read_out_of_fold

__all__ = ["Difference", "difference"]

Rows = Mapping[str, Any]
"""What a cross-validation kept: "name" and "unit" [N], predictions [seeds, N, ...]."""


class Difference(NamedTuple):
    """Of a figure of one run from that of another one, on the same samples.

    Attributes:
        value: The difference.
        interval: Its 95 % interval; what belongs together is drawn together.
    """

    value: float
    interval: Interval

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero; without one, as where all is the same, nothing is sure."""
        return self.interval.low > 0 or self.interval.high < 0


def difference(folder: Path, other: Path, *, metric: str) -> Difference | None:
    """How a figure of one cross-validation differs from another's; None where it cannot be told by pairs.

    Args:
        folder: Of the one; its figure less the other's.
        other: Of the other one, with the same samples.
        metric: "accuracy", "macro_f1", "auroc" (of two classes) or "loss".

    Raises:
        UserError: A file of predictions is damaged.
    """
    if folder == other:
        return None
    one, two = read_out_of_fold(folder), read_out_of_fold(other)
    if (
        one is None
        or two is None
        or one["name"].tolist() != two["name"].tolist()
        or not np.array_equal(one["label"][0], two["label"][0])
    ):
        return None
    figures = [_figure(rows, metric) for rows in (one, two)]
    first, second = figures
    if first is None or second is None:
        return None

    def of(times: IntArray) -> float:
        return first(times) - second(times)

    value = of(np.ones(len(one["name"]), dtype=np.int64))
    return Difference(value, bootstrap_interval(of, units=one["unit"])) if math.isfinite(value) else None


def _figure(rows: Rows, metric: str) -> Callable[[IntArray], float] | None:
    """The figure's mean over seeds; None for a figure that is not known here."""
    scores, losses = rows.get("probabilities", rows.get("logit")), rows.get("loss")
    if scores is None:
        return None
    known = [
        resampled(metric, labels=label, scores=scores[seed], losses=None if losses is None else losses[seed])
        for seed, label in enumerate(rows["label"])
    ]
    found = [one for one in known if one is not None]
    return (lambda times: mean(one(times) for one in found)) if found else None

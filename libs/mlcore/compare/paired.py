"""Differences of cross-validations that held out the same samples: by pairs, so that what both find hard cancels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.metrics.resampled import Difference, paired_difference
from mlcore.run.out_of_fold import mean_figure, read_out_of_fold

__all__ = ["difference"]


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
    first, second = (mean_figure(_of_seeds(rows), metric) for rows in (one, two))
    return None if first is None or second is None else paired_difference(first, second, units=one["unit"])


def _of_seeds(rows: Mapping[str, NDArray[Any]]) -> list[Mapping[str, NDArray[Any]]]:
    names = [name for name in ("label", "probabilities", "logit", "loss") if name in rows]
    return [{name: rows[name][seed] for name in names} for seed in range(len(rows["label"]))]

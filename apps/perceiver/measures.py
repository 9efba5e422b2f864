"""Figures, intervals, tables and pictures of tasks other than classification, from the rows of an evaluation.

Rows tell by themselves what they are of: with "probabilities" of labels, with whole numbers as "target" of classes of
positions, else of numbers.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.metrics.arrays import FloatArray, IntArray
from mlcore.metrics.ranking import Interval, average_precision, bootstrap_interval
from mlcore.metrics.resampled import resampled_macro_f1
from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.classes import plot_class_bars
from mlcore.report.plots.curves import Series, plot_panels
from mlcore.training.evaluator import Predictions
from quartet.apps.perceiver.outputs import Outputs
from quartet.apps.perceiver.parity import plot_parity

__all__ = ["figures", "intervals", "sections"]

_RESAMPLES = 200
_EXAMPLES, _APART = 4, 0.04


def figures(rows: Predictions, times: IntArray | None = None) -> dict[str, float]:
    """The figures of N samples.

    Args:
        rows: What `OutputTask.evaluation_step` gives.
        times: How often each counts, [N]; None: once. Average precision is then left out.

    Returns:
        "loss", and of labels "macro_f1" (of those that are there or said to be), "exact_match", "average_precision"; of
        classes of positions "step_accuracy" and "macro_f1"; of numbers "r2" (mean over them), "rmse" and "mae". NaN
        where predictions are not finite.
    """
    losses, target = rows["loss"].double().numpy(), rows["target"].numpy()
    weight = np.ones(len(losses), dtype=np.int64) if times is None else times
    found = {"loss": float(np.average(losses, weights=weight))}
    if "probabilities" in rows:
        return found | _of_labels(target, rows["probabilities"].double().numpy(), weight, ranked=times is None)
    predicted, whole = rows["predicted"].numpy(), target.dtype.kind == "i"
    known = target >= 0 if whole else np.isfinite(target).all(axis=-1)
    weight = np.broadcast_to(weight.reshape(-1, *[1] * (known.ndim - 1)), known.shape)[known]
    if whole:
        return found | _of_classes(target[known], predicted[known], weight)
    return found | _of_numbers(target[known], predicted[known], weight)


def _of_classes(target: IntArray, predicted: IntArray, weight: IntArray) -> dict[str, float]:
    classes = int(max(target.max(), predicted.max())) + 1
    return {
        "step_accuracy": float(np.average(target == predicted, weights=weight)),
        "macro_f1": resampled_macro_f1(target, predicted, times=weight, classes=classes),
    }


def _of_numbers(target: FloatArray, predicted: FloatArray, weight: IntArray) -> dict[str, float]:
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error  # takes a second to import

    if np.count_nonzero(weight) < 2 or not np.isfinite(predicted).all():  # R2 is of two at least
        return dict.fromkeys(("r2", "rmse", "mae"), float("nan"))
    named = {"r2": r2_score, "rmse": root_mean_squared_error, "mae": mean_absolute_error}
    return {name: float(figure(target, predicted, sample_weight=weight)) for name, figure in named.items()}


def _of_labels(target: FloatArray, chances: FloatArray, weight: IntArray, *, ranked: bool) -> dict[str, float]:
    said, there = chances >= 0.5, target == 1
    right, total = (weight @ values for values in (said & there, said.astype(int) + there))
    found = {
        "macro_f1": float((2 * right[total > 0] / total[total > 0]).mean()) if (total > 0).any() else float("nan"),
        "exact_match": float(np.average((said == there).all(axis=1), weights=weight)),
    }
    if ranked:
        values = [average_precision(there[:, k], scores=chances[:, k]).value for k in range(there.shape[1])]
        known = [value for value in values if np.isfinite(value)]
        found["average_precision"] = float(np.mean(known)) if known else float("nan")
    return found


def intervals(rows: Predictions) -> dict[str, Interval]:
    """The 95 % bootstrap intervals of all figures but average precision, over samples, from the same draws."""
    drawn: list[dict[str, float]] = []

    def draw(times: IntArray) -> float:
        drawn.append(figures(rows, times))
        return drawn[-1]["loss"]

    bootstrap_interval(draw, units=range(len(rows["loss"])), resamples=_RESAMPLES)
    found = {name: np.array([one[name] for one in drawn]) for name in drawn[0]}
    nothing = Interval(float("nan"), float("nan"))
    return {
        name: Interval(*np.quantile(values, [0.025, 0.975]).tolist())
        if np.isfinite(values).all() and np.ptp(values) > 0
        else nothing
        for name, values in found.items()
    }


def sections(
    outputs: Outputs, rows: Predictions, *, sample: Callable[[int], Mapping[str, Any]], folder: Path, prefix: str
) -> list[Section]:
    """Tables and pictures of an evaluation.

    Args:
        outputs: What the model gives.
        rows: Of N samples.
        sample: Gives a sample as the model got it.
        folder: Where pictures go, their names after the prefix; it exists.
        prefix: "" for validation, "test_", "train_".
    """
    title = prefix.strip("_").capitalize() or "Validation"
    ends, found = intervals(rows), figures(rows)
    cells = [[name, value, *ends.get(name, (None, None))] for name, value in found.items()]
    shown: list[Section] = [Table(f"{title}: figures", ("figure", "value", "95 % from", "to"), cells)]
    show = {"multilabel": _of_label_rows, "regression": _of_targets}.get(outputs.kind)
    if show is not None:
        return [*shown, *show(title, outputs, rows, f"{folder}/{prefix}")]
    if outputs.kind == "forecast" and outputs.horizon > 1:
        shown.append(Picture(f"{title}: error by step", _error_by_step(outputs, rows, folder / f"{prefix}steps.png")))
    called = "class" if outputs.classes else outputs.names[0]
    panels = {
        f"sample {number}: {called}": _lines(outputs, rows, number, sample(number))
        for number in range(min(_EXAMPLES, len(rows["loss"])))
    }
    path = plot_panels(panels, path=folder / f"{prefix}sequences.png", x_label="position")
    numbered = ", ".join(f"{place} {name}" for place, name in enumerate(outputs.names))
    note = f"What is predicted is drawn a little higher. {numbered}" if outputs.classes else ""
    return [*shown, Picture(f"{title}: sequences", path, note=note, wide=True)]


def _of_targets(title: str, outputs: Outputs, rows: Predictions, start: str) -> list[Section]:
    target, predicted = rows["target"].numpy(), rows["predicted"].numpy()
    path = plot_parity(target, predicted, names=outputs.names, path=Path(f"{start}parity.png"))
    once = np.ones(len(target), dtype=np.int64)
    cells = [[name, *_of_numbers(target[:, k], predicted[:, k], once).values()] for k, name in enumerate(outputs.names)]
    table = Table(f"{title}: targets", ("", "R2", "RMSE", "MAE"), cells)
    return [Picture(f"{title}: predicted and true", path), table]


def _error_by_step(outputs: Outputs, rows: Predictions, path: Path) -> Path:
    off = rows["predicted"].numpy() - rows["target"].numpy()  # [N, horizon, numbers]
    steps = np.arange(1, outputs.horizon + 1).tolist()
    lines = {
        str(name): (steps, np.sqrt(np.ma.masked_invalid(off[..., k] ** 2).mean(axis=0).filled(np.nan)).tolist())
        for k, name in enumerate(outputs.names[:_EXAMPLES])
    }
    return plot_panels({"error by step (RMSE)": lines}, path=path, x_label="step")


def _of_label_rows(title: str, outputs: Outputs, rows: Predictions, start: str) -> list[Section]:
    said, there = rows["probabilities"].numpy() >= 0.5, rows["target"].numpy() == 1
    right, cells = (said & there).sum(axis=0), []
    for k, name in enumerate(outputs.names):
        positives, claimed = int(there[:, k].sum()), int(said[:, k].sum())
        counts = claimed, positives, (claimed + positives) / 2
        cells.append([name, positives, claimed, *(right[k] / count if count else np.nan for count in counts)])
    named = ("precision", "recall", "F1")
    bars = {figure: [float(row[3 + place]) for row in cells] for place, figure in enumerate(named)}
    path = plot_class_bars(bars, class_names=outputs.names, path=Path(f"{start}labels.png"))
    columns = ("label", "samples", "predicted", *named)
    table = Table(f"{title}: labels", columns, cells, note="at a probability of 0.5")
    return [Picture(f"{title}: figures of labels", path, wide=True), table]


def _lines(outputs: Outputs, rows: Predictions, number: int, sample: Mapping[str, Any]) -> dict[str, Series]:
    """What is seen, true and predicted of a sample's first number, or the classes of its positions."""
    target, predicted = (_first(rows[key][number].numpy()) for key in ("target", "predicted"))
    lines: dict[str, Series] = {}
    start = 0
    if outputs.kind != "per_step":
        series, mask = np.asarray(sample["input"]), np.asarray(sample["mask"])
        values = np.where(mask, series[:, outputs.channels[0]], np.nan)
        lines["seen"] = (np.arange(len(values)).tolist(), values.tolist())
        start = len(values) - outputs.horizon if outputs.kind == "forecast" else 0
    if outputs.classes:
        predicted = predicted + _APART  # both lines are seen where they agree
    last = int(np.flatnonzero(np.isfinite(target))[-1]) + 1 if np.isfinite(target).any() else 1
    places = np.arange(start, start + last).tolist()
    return {**lines, "true": (places, target[:last].tolist()), "predicted": (places, predicted[:last].tolist())}


def _first(values: NDArray[Any]) -> FloatArray:
    return np.where(values >= 0, values, np.nan) if values.ndim == 1 else values[:, 0]

"""What each further member costs and earns: score against pages per second, as a table and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_text
from mlcore.metrics.arrays import Array, FloatArray, as_floats, as_labels
from mlcore.report.plots.style import INK, PALETTE, TRAIN, displayable, note, picture
from quartet.apps.doc_ensemble.ensemble.combine import Average, combine
from quartet.apps.doc_ensemble.ensemble.selection import fast_macro_f1

__all__ = ["CostPoint", "cost_curve", "plot_cost_curve", "single_points", "write_cost_curve"]

_COLUMNS = ("step", "added", "members", "images_per_second", "accuracy", "macro_f1")


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """An ensemble, or one member alone.

    Attributes:
        step: How many additions it is made of; 1 for a member alone.
        added: Name of the member added last.
        members: How many different ones it has; only these cost time.
        images_per_second: Pages predicted per second, reading them included.
        accuracy: 0..1.
        macro_f1: 0..1.
    """

    step: int
    added: str
    members: int
    images_per_second: float
    accuracy: float
    macro_f1: float


def cost_curve(
    probabilities: Array,
    labels: Array,
    *,
    order: Sequence[int],
    names: Sequence[str],
    member_seconds: Sequence[float] | FloatArray,
    reading_seconds: float = 0.0,
    average: Average = "probabilities",
) -> tuple[CostPoint, ...]:
    """Score and speed of the first 1, 2, ... additions of a selection.

    A page costs its reading once and each different member's time, one after another; a member added again is only
    weighed anew.

    Args:
        probabilities: [K, N, C]; best of pages on which nothing was selected.
        labels: [N] class indices.
        order: Members in the order of addition; `Selection.order`.
        names: [K].
        member_seconds: [K] seconds per page, all views together; `PagePredictions.member_seconds`.
        reading_seconds: Seconds per page for reading and preparing it; `PagePredictions.reading_seconds`.
        average: What is averaged, as in `combine`.

    Raises:
        UserError: No additions, or lengths that do not fit.
    """
    chances = as_floats(probabilities, name="probabilities")
    truth = as_labels(labels, classes=chances.shape[-1])
    if not order or not len(names) == len(member_seconds) == len(chances) or len(truth) != chances.shape[1]:
        raise UserError(
            f"a cost curve needs additions ({len(order)}), a name ({len(names)}) and a time ({len(member_seconds)}) "
            f"for each of {len(chances)} members, and a label ({len(truth)}) for each of {chances.shape[1]} pages"
        )
    points = []
    for step in range(1, len(order) + 1):
        counts = np.bincount(order[:step], minlength=len(chances)).astype(np.float64)
        mixed = combine(chances, method="weighted", weights=counts / counts.sum(), average=average)
        predicted, used = mixed.argmax(axis=1), np.flatnonzero(counts)
        points.append(
            CostPoint(
                step=step,
                added=names[order[step - 1]],
                members=len(used),
                images_per_second=1 / max(reading_seconds + float(np.asarray(member_seconds)[used].sum()), 1e-12),
                accuracy=float((predicted == truth).mean()),
                macro_f1=fast_macro_f1(predicted, truth, classes=chances.shape[2]),
            )
        )
    return tuple(points)


def single_points(
    probabilities: Array,
    labels: Array,
    *,
    names: Sequence[str],
    member_seconds: Sequence[float] | FloatArray,
    reading_seconds: float = 0.0,
) -> tuple[CostPoint, ...]:
    """Each member alone; arguments as in `cost_curve`."""
    return tuple(
        cost_curve(
            probabilities,
            labels,
            order=[member],
            names=names,
            member_seconds=member_seconds,
            reading_seconds=reading_seconds,
        )[0]
        for member in range(len(names))
    )


def write_cost_curve(points: Sequence[CostPoint], path: Path) -> None:
    """Write the table, all or nothing.

    Raises:
        UserError: The file cannot be written.
    """
    table: list[Sequence[object]] = [_COLUMNS]
    for point in points:
        speed, scores = f"{point.images_per_second:.3f}", (f"{point.accuracy:.6f}", f"{point.macro_f1:.6f}")
        table.append([point.step, point.added, point.members, speed, *scores])
    write_text(path, csv_text(table))


def plot_cost_curve(points: Sequence[CostPoint], *, path: Path, singles: Sequence[CostPoint] = ()) -> Path:
    """Draw accuracy and macro F1 over pages per second: the ensemble as it grows, and the members alone.

    Args:
        points: `cost_curve`.
        path: The PNG to write.
        singles: `single_points`.

    Returns:
        `path`.

    Raises:
        UserError: No points, or the file cannot be written.
    """
    if not points:
        raise UserError("no points of a cost curve to plot")
    names = displayable([point.added for point in singles])
    with picture(path, width=10.0, height=4.4) as figure:
        left, right = figure.subplots(1, 2)
        _draw(left, points, singles, field="accuracy", labels=names.labels)
        _draw(right, points, singles, field="macro_f1", labels=names.labels)
        left.set_title("Accuracy")
        right.set_title("Macro F1")
        entries = right.get_legend_handles_labels()
        figure.legend(*entries, loc="outside right upper", prop={"family": list(names.fonts), "size": 9})
        note(left, names.note and "Numbers are members, from 0: no installed font has their names' glyphs.")
    return path


def _draw(
    axes: Axes, points: Sequence[CostPoint], singles: Sequence[CostPoint], *, field: str, labels: Sequence[str]
) -> None:
    grown = {point.members: (point.images_per_second, getattr(point, field)) for point in points}  # the last of a cost
    speeds, scores = zip(*grown.values(), strict=True)
    axes.plot(speeds, scores, color=TRAIN, marker="o", markersize=6, label="ensemble of 1, 2, ... members", zorder=3)
    for size, spot in grown.items():
        axes.annotate(str(size), spot, (0, 8), textcoords="offset points", ha="center", fontsize=8.5, color=INK)
    for place, (label, point) in enumerate(zip(labels, singles, strict=True), start=1):
        axes.scatter(
            point.images_per_second,
            getattr(point, field),
            marker="D",
            s=30,
            color=PALETTE[place % len(PALETTE)],
            label=label,
            zorder=2,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("pages per second")
    axes.margins(0.12)

"""From the figures of single cases to files and sections of a report: CSV, volumes, Dice, worst cases, ROC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_text
from mlcore.metrics.arrays import IntArray
from mlcore.metrics.operating_points import Rate
from mlcore.metrics.ranking import auroc, auroc_interval
from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.style import BAD, DASHED, GOOD, INK, MUTED, TRAIN, VAL, note, picture
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS, SIZES_ML, CaseMetrics
from quartet.apps.sam_med3d_ich.data.words import counted
from quartet.apps.sam_med3d_ich.legends import legend_below

__all__ = [
    "COLUMNS",
    "CaseRow",
    "case_sections",
    "plot_dice",
    "plot_roc",
    "plot_volumes",
    "size_sections",
    "write_cases",
]

COLUMNS = ("name", *FIELDS, "ich", "ich_score")
"""Columns of the CSV."""

_COUNTS = frozenset({"lesions", "found", "false_positives", "ich"})  # written without a decimal point
_SHOWN = 10  # worst cases in the report
_WORST = ("case", "Dice", "HD95 mm", "true mL", "predicted mL", "lesions", "found", "false positives", "ICH score")


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case of an evaluation.

    Attributes:
        name: the case.
        metrics: its figures.
        ich: label, 0 or 1.
        score: image-level score of a bleed, 0..1.
    """

    name: str
    metrics: CaseMetrics
    ich: int
    score: float


def case_sections(
    rows: Sequence[CaseRow], *, folder: Path, prefix: str = "", overlays: Sequence[Picture] = ()
) -> list[Section]:
    """Draw and tabulate the cases of an evaluation.

    Writes `{prefix}cases.csv` and `{prefix}volumes.png`; where a case has a bleed `{prefix}dice.png`; where both
    classes are labelled and all scores are finite `{prefix}roc.png`.

    Args:
        rows: The cases, in the order of the data.
        folder: Where the files go; it exists.
        prefix: Start of every file's name, such as "val_".
        overlays: Pictures of cases (`plot_overlay`), best first.

    Returns:
        Report sections: overlays first, then figures over all cases, then the worst cases.

    Raises:
        UserError: no cases, or a file cannot be written.
    """
    if not rows:
        raise UserError("there are no cases to report; check the data set and its filters")
    write_cases(rows, path=folder / f"{prefix}cases.csv")
    title = prefix.strip("_").capitalize() or "Validation"
    sections: list[Section] = [
        *overlays,
        Picture(f"{title}: volumes", plot_volumes(rows, path=folder / f"{prefix}volumes.png"), wide=True),
    ]
    if any(row.metrics.lesions for row in rows):
        sections.append(Picture(f"{title}: Dice", plot_dice(rows, path=folder / f"{prefix}dice.png"), wide=True))
    if len({row.ich for row in rows}) == 2 and all(math.isfinite(row.score) for row in rows):
        sections.append(Picture(f"{title}: bleed or no bleed", plot_roc(rows, path=folder / f"{prefix}roc.png")))
    return [*sections, _worst(rows, title=title, file=f"{prefix}cases.csv")]


def size_sections(sizes: IntArray, *, title: str) -> list[Section]:
    """How many lesions are found, by their size; nothing where there is none.

    Args:
        sizes: `lesions_by_size` of all cases together, [2, 5].
        title: What the section's title begins with.
    """
    edges = [f"{edge:g}" for edge in SIZES_ML]
    names = [f"below {edges[0]} mL", *(f"{a} to {b} mL" for a, b in pairwise(edges)), f"from {edges[-1]} mL on"]
    rows: list[list[object]] = []
    for name, there, found in zip(names, *sizes.tolist(), strict=True):
        rate = Rate(found, there)
        interval = f"{rate.interval.low:.3f} to {rate.interval.high:.3f}" if there else ""
        rows.append([name, there, found, rate.value if there else None, interval])
    columns = ["size", "lesions", "found", "recall", "95 % interval"]
    note = "A lesion is found where the mask overlaps it, by however little."
    return [Table(f"{title}: lesions by size", columns, rows, note=note)] if sizes.any() else []


def write_cases(rows: Sequence[CaseRow], *, path: Path) -> None:
    """Write one line per case under `COLUMNS`; an undefined value (NaN) is an empty cell, floats keep every digit.

    Raises:
        UserError: the file cannot be written.
    """
    table: list[Sequence[object]] = [COLUMNS]
    for row in rows:
        values = [*row.metrics.to_row(), float(row.ich), float(row.score)]
        named = zip(COLUMNS[1:], values, strict=True)
        table.append([row.name, *("" if math.isnan(v) else int(v) if k in _COUNTS else v for k, v in named)])
    write_text(path, csv_text(table))


def plot_volumes(rows: Sequence[CaseRow], *, path: Path) -> Path:
    """Draw predicted over true volume with the line of equality, and their agreement (Bland & Altman 1986).

    Args:
        rows: at least one case.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: the file cannot be written.
    """
    true, predicted = _column(rows, "volume_ml"), _column(rows, "predicted_ml")
    lesion = _column(rows, "lesions") > 0
    with picture(path, width=10.4, height=4.6) as figure:
        left, right = figure.subplots(1, 2)
        top = 1.06 * (max(float(true.max()), float(predicted.max())) or 1.0)
        low = -0.03 * top
        left.plot([0, top], [0, top], color=INK, linewidth=1.0, linestyle=DASHED, label="equal")
        _scatter(left, true, predicted, lesion)
        left.set(xlim=(low, top), ylim=(low, top), aspect="equal", xlabel="true volume, mL", ylabel="predicted, mL")
        left.set_title("Predicted and true volume")
        legend_below(left)
        _bland_altman(right, true, predicted, lesion)
    return path


def plot_dice(rows: Sequence[CaseRow], *, path: Path) -> Path:
    """Draw how Dice is distributed over the cases with a bleed, and how it depends on the bleed's size.

    Args:
        rows: cases; those without a bleed are only counted.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: no case has a bleed, or the file cannot be written.
    """
    dice, true = _column(rows, "dice"), _column(rows, "volume_ml")
    lesion = _column(rows, "lesions") > 0
    if not lesion.any():
        raise UserError("no case has a bleed: there is no Dice to draw")
    silent = int((_column(rows, "predicted_ml")[~lesion] == 0).sum())
    with picture(path, width=10.4, height=4.2) as figure:
        left, right = figure.subplots(1, 2)
        _histogram(left, dice[lesion])
        _dice_by_volume(right, true[lesion], dice[lesion], _column(rows, "found")[lesion] > 0)
        note(left, f"Cases without a bleed: {int((~lesion).sum())}, nothing predicted in {silent}.")
    return path


def plot_roc(rows: Sequence[CaseRow], *, path: Path) -> Path:
    """Draw the ROC curve of the image-level score.

    Args:
        rows: cases of both classes.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: only one class is labelled, a score is NaN, or the file cannot be written.
    """
    from sklearn.metrics import roc_curve

    labels, scores = np.array([row.ich for row in rows]), np.array([row.score for row in rows], dtype=np.float64)
    area = auroc(labels, scores=scores)
    if math.isnan(area.value):
        raise UserError(area.reason)
    low, high = auroc_interval(labels, scores=scores)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    with picture(path, width=5.4, height=5.4) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=DASHED, label="chance")
        axes.plot(false, true, color=TRAIN, label="image-level score")
        axes.fill_between(false, true, color=TRAIN, alpha=0.08, linewidth=0)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xlabel("false alarms: share of the cases without a bleed")
        axes.set_ylabel("sensitivity: share of the cases with a bleed")
        axes.set_title(f"AUROC {area.value:.3f}")
        many = f"{int(labels.sum())} with, {int((1 - labels).sum())} without a bleed"
        axes.legend(loc="lower right", title=f"{many}\n95 % interval {low:.3f} to {high:.3f}", title_fontsize=8.5)
    return path


def _worst(rows: Sequence[CaseRow], *, title: str, file: str) -> Table:
    """The lowest Dice first, of equal ones (missed bleeds, false alarms) the larger error; no perfect cases."""
    imperfect = [row for row in rows if row.metrics.dice < 1]  # NaN, nothing there and nothing found, is not
    worst = sorted(imperfect, key=lambda r: (r.metrics.dice, -abs(r.metrics.volume_error_ml), r.name))[:_SHOWN]
    cells = [
        [
            row.name,
            row.metrics.dice,
            row.metrics.hd95_mm,
            row.metrics.volume_ml,
            row.metrics.predicted_ml,
            int(row.metrics.lesions),
            int(row.metrics.found),
            int(row.metrics.false_positives),
            row.score,
        ]
        for row in worst
    ]
    words = (
        f"{counted(len(rows), 'case')} in {file}; of equal Dice the larger volume error comes first; "
        "both masks empty: Dice and HD95 undefined; one empty: Dice 0, HD95 undefined"
    )
    return Table(f"{title}: worst cases", _WORST, cells, note=words)


# -------------------------------------------------------------------------------------------------------------- drawing


def _column(rows: Sequence[CaseRow], field: str) -> NDArray[np.float64]:
    return np.array([getattr(row.metrics, field) for row in rows], dtype=np.float64)


def _scatter(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], lesion: NDArray[np.bool_]) -> None:
    for chosen, color, words in ((lesion, TRAIN, "bleed"), (~lesion, VAL, "no bleed")):
        if chosen.any():
            label = f"{words} (n = {int(chosen.sum())})"
            axes.scatter(x[chosen], y[chosen], s=26, color=color, alpha=0.65, linewidths=0, label=label, zorder=3)


def _bland_altman(
    axes: Axes, true: NDArray[np.float64], predicted: NDArray[np.float64], lesion: NDArray[np.bool_]
) -> None:
    """Difference over mean of all cases; where some have a bleed, mean and 95 % limits are those of them alone."""
    difference, mean = predicted - true, (predicted + true) / 2
    compared = difference[lesion] if lesion.any() else difference  # heads rightly left alone would narrow the limits
    whose = "bleed: " if lesion.any() else ""
    bias, spread = float(compared.mean()), 1.96 * float(compared.std(ddof=1)) if len(compared) > 1 else 0.0
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axhline(bias, color=INK, linewidth=1.2, label=f"{whose}mean {_signed(bias)} mL")
    if spread > 0:
        label = f"{whose}95 % limits {_signed(bias - spread)} to {_signed(bias + spread)} mL"
        for place, words in ((bias - spread, label), (bias + spread, None)):
            axes.axhline(place, color=INK, linewidth=1.0, linestyle=DASHED, label=words)
    legend_below(axes)
    _scatter(axes, mean, difference, lesion)
    reach = 1.1 * (max(abs(bias) + spread, float(np.abs(difference).max())) or 1.0)
    axes.set(ylim=(-reach, reach), xlabel="mean of both volumes, mL", ylabel="predicted − true, mL")
    axes.set_title("Agreement (Bland–Altman)")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _histogram(axes: Axes, dice: NDArray[np.float64]) -> None:
    edges = np.linspace(0, 1, 21)
    count, _ = np.histogram(dice, edges)
    top = int(count.max())
    axes.bar((edges[:-1] + edges[1:]) / 2, count, 0.046, color=TRAIN, alpha=0.8)
    axes.scatter(dice, np.full(len(dice), -0.05 * top), marker="|", s=60, color=TRAIN, linewidths=1.0)  # each case
    for value, words, line in ((float(dice.mean()), "mean", "-"), (float(np.median(dice)), "median", DASHED)):
        axes.axvline(value, color=INK, linewidth=1.2, linestyle=line, label=f"{words} {value:.3f}")
    axes.set(xlabel="Dice", ylabel="cases", xlim=(-0.02, 1.02), ylim=(-0.1 * top, 1.25 * top))
    axes.set_title(f"Dice of cases with a bleed (n = {len(dice)})")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper left", ncols=2)


def _dice_by_volume(axes: Axes, true: NDArray[np.float64], dice: NDArray[np.float64], found: NDArray[np.bool_]) -> None:
    for chosen, color, words in ((found, GOOD, "a lesion found"), (~found, BAD, "missed altogether")):
        if chosen.any():
            label = f"{words} (n = {int(chosen.sum())})"
            axes.scatter(true[chosen], dice[chosen], s=26, color=color, alpha=0.7, linewidths=0, label=label)
    axes.set_xscale("log")
    axes.set(xlim=(float(true.min()) / 1.6, float(true.max()) * 1.6), xlabel="true volume, mL", ylabel="Dice")
    decades = math.log10(float(true.max()) / float(true.min()))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.04, 1.2)  # room for the legend
    axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_title("Dice and size of the bleed")
    axes.legend(loc="upper left", ncols=2, handletextpad=0.3)

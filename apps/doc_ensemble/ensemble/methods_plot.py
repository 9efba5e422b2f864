"""The picture and the table of all methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_text
from mlcore.report.plots.style import INK, MUTED, PALETTE, TRAIN, displayable, note, picture
from quartet.apps.doc_ensemble.ensemble.methods import Outcome, best_member

__all__ = ["COLUMNS", "method_rows", "plot_methods", "write_methods"]

COLUMNS = ("method", "tta", "pages", "accuracy", "macro_f1", "log_loss", "gain_accuracy", "gain_macro_f1")
_MOST = 40  # lines of the picture
_MEMBER = PALETTE[7]
_DASHES = (0, (4, 3))


def method_rows(outcomes: Sequence[Outcome], split: str) -> list[list[object]]:
    """A line for each method under `COLUMNS`.

    Gains are over the member that is best on the validation pages, by its figures of the pages of `split` without
    views.
    """
    best = _reference(outcomes, split)
    return [
        [
            outcome.method.name,
            "yes" if outcome.tta else "no",
            outcome.evaluated_on,
            outcome.accuracy,
            outcome.macro_f1,
            outcome.log_loss,
            outcome.accuracy - best.accuracy,
            outcome.macro_f1 - best.macro_f1,
        ]
        for outcome in outcomes
        if outcome.split == split
    ]


def write_methods(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the lines of all splits, the test first.

    Raises:
        UserError: The file cannot be written.
    """
    table: list[Sequence[object]] = [("kind", *COLUMNS)]
    kinds = {outcome.method.name: outcome.method.kind for outcome in outcomes}
    for split in sorted({outcome.split for outcome in outcomes}):  # test, val
        for row in method_rows(outcomes, split):
            cells = [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row]
            table.append([kinds[str(row[0])], *cells])
    write_text(path, csv_text(table))


def plot_methods(outcomes: Sequence[Outcome], *, split: str, path: Path) -> Path:
    """Draw the macro F1 of all methods on the pages of `split`: members, then ensembles, with and without views.

    Figures are those with views, where there are any. The line is the member that is best on the validation pages. Of
    more than 40 methods the first 40 are drawn.

    Returns:
        `path`.

    Raises:
        UserError: There are none, or the file cannot be written.
    """
    chosen = [outcome for outcome in outcomes if outcome.split == split]
    if not chosen:
        raise UserError("no methods to plot")
    members = list(dict.fromkeys(o.method.name for o in chosen if o.method.kind == "member"))
    others = list(dict.fromkeys(o.method.name for o in chosen if o.method.kind != "member"))
    order = [*members, *others][:_MOST]
    names = displayable(members)
    labels = [f"member {label}" if names.note else label for label in names.labels] + others
    best = _reference(outcomes, split)
    with picture(path, width=8.6, height=1.4 + 0.3 * len(order)) as figure:
        axes = figure.add_subplot()
        for place, name in enumerate(order):
            points = {o.tta: o.macro_f1 for o in chosen if o.method.name == name}
            _draw(axes, place, points, colour=_MEMBER if name in members else TRAIN)
        axes.axvline(best.macro_f1, color=INK, linewidth=1.1, linestyle=_DASHES, zorder=1)
        axes.set_yticks(range(len(order)), labels[:_MOST], fontsize=8.5, color=INK, fontfamily=list(names.fonts))
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("macro F1")
        figure.legend(handles=_legend(with_views=any(o.tta for o in chosen)), loc="outside upper right", ncols=4)
        missing = " Members are numbered, from 0: no installed font has their names' glyphs." if names.note else ""
        note(axes, f"The axis does not begin at zero.{missing}")
    return path


def _draw(axes: Axes, place: int, points: Mapping[bool, float], *, colour: str) -> None:
    """One line: a hollow dot without views and a full one with them, or a single full one."""
    if len(points) == 2:
        axes.plot(list(points.values()), [place, place], color=colour, linewidth=1.2, alpha=0.6, zorder=2)
    for tta, value in points.items():
        face = colour if tta or len(points) == 1 else "white"
        axes.scatter(value, place, s=46, facecolor=face, edgecolor=colour, linewidth=1.4, zorder=3)
    shown = points[max(points)]
    step, side = (9, "left") if shown >= max(points.values()) else (-9, "right")  # away from the other dot
    label = f"{shown:.4f}"
    axes.annotate(
        label, (shown, place), (step, 0), textcoords="offset points", ha=side, va="center", fontsize=8.5, color=MUTED
    )


def _legend(*, with_views: bool) -> list[Line2D]:
    def dot(colour: str, label: str, *, filled: bool = True) -> Line2D:
        face = colour if filled else "white"
        return Line2D([], [], marker="o", linestyle="", color=colour, markerfacecolor=face, label=label)

    found = [dot(_MEMBER, "member"), dot(TRAIN, "ensemble")]
    if with_views:
        found.append(dot(INK, "without TTA", filled=False))
    return [*found, Line2D([], [], color=INK, linewidth=1.1, linestyle=_DASHES, label="best member")]


def _reference(outcomes: Sequence[Outcome], split: str) -> Outcome:
    best = best_member(outcomes)
    return next(o for o in outcomes if o.method.name == best and o.split == split and not o.tta)

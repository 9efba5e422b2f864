"""The picture of the gap between training and validation pages, class by class."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.classification import ClassificationReport
from mlcore.report.plots.classes import label_rows, row_height
from mlcore.report.plots.style import MUTED, TRAIN, VAL, displayable, note, picture

__all__ = ["plot_train_val_comparison"]


def plot_train_val_comparison(train: ClassificationReport, val: ClassificationReport, *, path: Path) -> Path:
    """Draw the F1 of all classes together and of each: a dot for each set of pages, joined.

    Args:
        train: Of training pages, without augmentation.
        val: Of validation pages, the same classes.
        path: The PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: The classes differ, or the file cannot be written.
    """
    classes = [row.name for row in val.rows]
    if [row.name for row in train.rows] != classes:
        raise UserError("training and validation have different classes; evaluate one model on both")
    names = displayable(classes)
    names = replace(names, labels=("all classes (macro)", *names.labels))  # no class, so that it takes no number
    left, right = (np.array([part.scores.macro[2], *(row.f1 for row in part.rows)]) for part in (train, val))
    places, ends = np.arange(len(left)), np.fmax(left, right)
    with picture(path, width=7.2, height=1.2 + row_height(len(left)) * len(left)) as figure:
        axes = figure.add_subplot()
        axes.hlines(places, np.fmin(left, right), ends, color="#c3cbd3", linewidth=2.5, zorder=1)
        axes.scatter(left, places, s=36, color=TRAIN, label="train", zorder=2)
        axes.scatter(right, places, s=36, color=VAL, label="val", zorder=3)
        look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": MUTED, "va": "center"}
        for place, gap, end in zip(places, right - left, ends, strict=True):
            if np.isfinite(gap):
                axes.annotate(f"{gap:+.3f}".replace("-", "−"), (end, place), (9, 0), **look)
        label_rows(axes, names, order=places)
        axes.margins(x=0.14)
        axes.set_xlabel("F1")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.3, handletextpad=0.2)
        note(axes, names.note)
    return path

"""Predicted numbers over true ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlcore.metrics.arrays import FloatArray
from mlcore.report.plots.style import DASHED, MUTED, TRAIN, displayable, picture

__all__ = ["plot_parity"]

_MOST = 6  # panels


def plot_parity(target: FloatArray, predicted: FloatArray, *, names: Sequence[str], path: Path) -> Path:
    """Draw a dot for each sample, true value across and predicted value up, and the line on which both are the same.

    Args:
        target: ``[N, T]``.
        predicted: ``[N, T]``; what is not finite is left out.
        names: T; of more than six the first are drawn.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: the file cannot be written.
    """
    shown = displayable(list(map(str, names[:_MOST])))
    columns = min(3, len(shown.labels))
    rows = -(-len(shown.labels) // columns)
    with picture(path, width=4.2 * columns, height=4.0 * rows) as figure:
        for place, label in enumerate(shown.labels):
            pair = np.stack([target[:, place], predicted[:, place]])
            pair = pair[:, np.isfinite(pair).all(axis=0)]
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.scatter(
                pair[0], pair[1], s=9, color=TRAIN, alpha=max(0.15, min(0.8, 60 / max(pair.shape[1], 1))), linewidths=0
            )
            if pair.size:
                axes.axline((float(pair[0].mean()),) * 2, slope=1, color=MUTED, linestyle=DASHED, linewidth=1.2)
            axes.set_title(label, fontfamily=shown.fonts)
            axes.set_xlabel("true")
            axes.set_ylabel("predicted")
    return path

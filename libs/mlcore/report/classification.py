"""Pictures and tables of a classifier's predictions, the same for every app that classifies."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor

from mlcore.base.files import csv_text, write_text
from mlcore.metrics.calibration import reliability_bins
from mlcore.metrics.classification import ClassificationReport, classification_report
from mlcore.report.page import Picture, Section, Table, Text
from mlcore.report.plots.classes import plot_class_bars, plot_confusion_matrix
from mlcore.report.plots.confidence import plot_accuracy_by_confidence, plot_confidence_histogram, plot_reliability

_COLUMNS = ("index", "class", "samples", "predicted", "precision", "recall", "F1", "loss")


def measure(predictions: Mapping[str, Tensor], *, class_names: Sequence[str]) -> ClassificationReport:
    """Figures of an evaluation.

    Args:
        predictions: "label" int64 [N], "probabilities" float [N, C], "loss" float [N].
        class_names: C names.
    """
    return classification_report(
        predictions["label"].numpy(),
        probabilities=predictions["probabilities"].numpy(),
        losses=predictions["loss"].numpy(),
        class_names=class_names,
    )


def classification_sections(
    predictions: Mapping[str, Tensor], *, class_names: Sequence[str], folder: Path, prefix: str = ""
) -> list[Section]:
    """Draw and tabulate an evaluation.

    Writes `{prefix}confusion_matrix.png`, `{prefix}class_performance.png`, `{prefix}reliability.png`,
    `{prefix}confidence_histogram.png`, `{prefix}confidence_analysis.png` and `{prefix}class_metrics.csv`.

    Args:
        predictions: As in `measure`.
        class_names: C names.
        folder: Where the files go; it exists.
        prefix: Start of every file's name, such as "test_".

    Returns:
        Report sections that show them.
    """
    result = measure(predictions, class_names=class_names)
    title = prefix.strip("_").capitalize() or "Evaluation"
    rows = [list(asdict(row).values()) for row in result.rows]
    cells = [["" if isinstance(v, float) and np.isnan(v) else v for v in row] for row in rows]
    write_text(folder / f"{prefix}class_metrics.csv", csv_text([_COLUMNS, *cells]))
    sections: list[Section] = [
        *_pictures(predictions, result, class_names=class_names, folder=folder, prefix=prefix),
        Table(f"{title}: per class", _COLUMNS, rows, note=f"{result.samples} samples"),
    ]
    if result.notes:
        sections.append(Text(f"{title}: undefined figures", "\n".join(result.notes)))
    return sections


def _pictures(
    predictions: Mapping[str, Tensor],
    result: ClassificationReport,
    *,
    class_names: Sequence[str],
    folder: Path,
    prefix: str,
) -> list[Section]:
    labels, probabilities = predictions["label"].numpy(), predictions["probabilities"].numpy()
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = reliability_bins(labels, probabilities=probabilities)
    bars = {
        "recall": [row.recall for row in result.rows],
        "F1": [row.f1 for row in result.rows],
        "loss": [row.loss for row in result.rows],
    }
    return [
        Picture(
            "Confusion matrix",
            plot_confusion_matrix(
                result.confusion, class_names=class_names, path=folder / f"{prefix}confusion_matrix.png"
            ),
        ),
        Picture(
            "Reliability",
            plot_reliability(bins, path=folder / f"{prefix}reliability.png"),
            note=f"expected calibration error {result.ece:.4f}",
        ),
        Picture(
            "Confidence",
            plot_confidence_histogram(confidence, right=right, path=folder / f"{prefix}confidence_histogram.png"),
        ),
        Picture(
            "Accuracy by confidence",
            plot_accuracy_by_confidence(confidence, right=right, path=folder / f"{prefix}confidence_analysis.png"),
        ),
        Picture(
            "Per class",
            plot_class_bars(bars, class_names=class_names, path=folder / f"{prefix}class_performance.png"),
            wide=True,
        ),
    ]

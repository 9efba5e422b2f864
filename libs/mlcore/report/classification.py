"""Pictures and tables of a classifier's predictions, the same for every app that classifies."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor

from mlcore.base.files import csv_text, write_text
from mlcore.metrics.calibration import reliability_bins
from mlcore.metrics.classification import ClassificationReport, classification_report
from mlcore.metrics.ranking import Interval, bootstrap_interval
from mlcore.metrics.resampled import resampled
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


def figures(predictions: Mapping[str, Tensor]) -> dict[str, float]:
    """The figures of `measure` by name."""
    return measure(predictions, class_names=[str(k) for k in range(predictions["probabilities"].shape[1])]).scalars()


def measure_interval(predictions: Mapping[str, Tensor], metric: str, units: Sequence[object] = ()) -> Interval:
    """The 95 % bootstrap interval of a figure of `measure` that the confusion matrix gives, or of the loss; else NaN.

    Args:
        predictions: As in `measure`.
        metric: Its name.
        units: N, what each sample belongs to (see `bootstrap_interval`); none for samples that have nothing in common.
    """
    label, chances, loss = (predictions[name].numpy() for name in ("label", "probabilities", "loss"))
    figure = None if metric == "auroc" else resampled(metric, labels=label, scores=chances, losses=loss)
    if figure is None:
        return Interval(float("nan"), float("nan"))
    return bootstrap_interval(figure, units=units or range(len(label)))


def classification_sections(
    predictions: Mapping[str, Tensor], *, class_names: Sequence[str], folder: Path, prefix: str = "", title: str = ""
) -> list[Section]:
    """Draw and tabulate an evaluation.

    Writes `{prefix}confusion_matrix.png`, `{prefix}class_performance.png`, `{prefix}reliability.png`,
    `{prefix}confidence_histogram.png`, `{prefix}confidence_analysis.png` and `{prefix}class_metrics.csv`.

    Args:
        predictions: As in `measure`.
        class_names: C names.
        folder: Where the files go; it exists.
        prefix: Start of every file's name, such as "test_".
        title: What all titles begin with; otherwise by the prefix, where "" is validation.

    Returns:
        Report sections that show them.
    """
    result = measure(predictions, class_names=class_names)
    title = title or prefix.strip("_").capitalize() or "Validation"
    rows = [list(asdict(row).values()) for row in result.rows]
    cells = [["" if isinstance(v, float) and np.isnan(v) else v for v in row] for row in rows]
    write_text(folder / f"{prefix}class_metrics.csv", csv_text([_COLUMNS, *cells]))
    sections: list[Section] = [
        *_pictures(predictions, result, title=title, class_names=class_names, folder=folder, prefix=prefix),
        Table(f"{title}: classes", _COLUMNS, rows, note=f"{result.samples} samples"),
    ]
    if result.notes:
        sections.append(Text(f"{title}: undefined figures", "\n".join(result.notes)))
    return sections


def _pictures(
    predictions: Mapping[str, Tensor],
    result: ClassificationReport,
    *,
    title: str,
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
            f"{title}: confusion matrix",
            plot_confusion_matrix(
                result.confusion, class_names=class_names, path=folder / f"{prefix}confusion_matrix.png"
            ),
        ),
        Picture(
            f"{title}: reliability",
            plot_reliability(bins, path=folder / f"{prefix}reliability.png"),
        ),
        Picture(
            f"{title}: confidence",
            plot_confidence_histogram(confidence, right=right, path=folder / f"{prefix}confidence_histogram.png"),
        ),
        Picture(
            f"{title}: keeping only confident predictions",
            plot_accuracy_by_confidence(confidence, right=right, path=folder / f"{prefix}confidence_analysis.png"),
        ),
        Picture(
            f"{title}: classes",
            plot_class_bars(bars, class_names=class_names, path=folder / f"{prefix}class_performance.png"),
            wide=True,
        ),
    ]

"""How a classifier does on each class: figures, the printed summary, and the promised files.

    report = evaluate_class_performance(model, val_loader, class_names=names, device="cuda")
    print(format_class_summary(report))
    write_class_files(report, folder=Path("outputs"))

A class's accuracy is the share of its own pages that are recognised (its recall).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import numpy as np
import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_text
from mlcore.metrics.arrays import Array, as_floats, as_labels
from mlcore.metrics.classification import ClassificationReport, ClassRow, classification_report
from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.classes import plot_class_bars, plot_confusion_matrix
from mlcore.training import losses
from quartet.apps.doc_ensemble.temperature import softmax
from quartet.apps.doc_ensemble.train_val_plot import plot_train_val_comparison

__all__ = [
    "class_report",
    "evaluate_class_performance",
    "evaluate_single_class_performance",
    "format_class_summary",
    "predict_logits",
    "write_class_files",
]

Batches = Iterable[Mapping[str, Tensor] | Sequence[Tensor]]
"""Batches with "pixels" float [B, C, H, W] and "label" int64 [B], or pairs of these."""

_CSV_COLUMNS = ("index", "class", "accuracy", "precision", "f1", "loss", "support", "predicted")
_RULE = 60  # characters
_NAME = 15  # columns for class names, more if one needs them


# ------------------------------------------------------------------------------------------------------------- figures


def predict_logits(model: nn.Module, dataloader: Batches, *, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Run a model over all batches, in evaluation mode and without gradients.

    Args:
        model: From pixels [B, C, H, W] to logits [B, classes]; moved to `device` and left in the mode it came in.
        dataloader: See `Batches`.
        device: "cpu", "cuda", ...

    Returns:
        Logits float32 [N, classes] and labels int64 [N], on the host.

    Raises:
        UserError: There is no batch, or one holds neither of the two.
    """
    was_training, model = model.training, model.to(device).eval()
    rows = []
    try:
        with torch.inference_mode():
            for batch in dataloader:
                pixels, label = _pixels_and_label(batch)
                rows.append((model(pixels.to(device)).float().cpu(), label.cpu()))
    finally:
        model.train(was_training)
    if not rows:
        raise UserError("the data loader gave no batch: there is nothing to measure; check the data set")
    return torch.cat([logits for logits, _ in rows]), torch.cat([label for _, label in rows])


def class_report(
    logits: Array, *, labels: Array, class_names: Sequence[str], with_loss: bool = True
) -> ClassificationReport:
    """Figures of logits ``[N, C]`` and labels ``[N]``; the loss is plain cross entropy, NaN where it is not wanted.

    Raises:
        UserError: empty, shapes that do not fit, a label out of range, or a logit that is not finite.
    """
    probabilities = softmax(logits)
    values = torch.as_tensor(as_floats(logits, name="logits"))
    truth = as_labels(labels, classes=values.shape[1])
    with_loss = with_loss and len(truth) == len(values)
    return classification_report(
        truth,
        probabilities=probabilities,
        losses=losses.cross_entropy(values, torch.from_numpy(truth)) if with_loss else None,
        class_names=class_names,
    )


def evaluate_class_performance(
    model: nn.Module, dataloader: Batches, *, class_names: Sequence[str], device: str | torch.device = "cpu"
) -> ClassificationReport:
    """`predict_logits`, then `class_report`."""
    logits, labels = predict_logits(model, dataloader, device=device)
    return class_report(logits, labels=labels, class_names=class_names)


def evaluate_single_class_performance(
    model: nn.Module, dataloader: Batches, target_class: int, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Figures of one class.

    The model predicts all batches: how often other pages are taken for this class is part of its precision and F1.

    Args:
        model: From pixels to logits [B, classes].
        dataloader: See `Batches`.
        target_class: Its index.
        device: Where to compute.

    Returns:
        "accuracy" (share of its pages that are recognised), "precision", "f1", "loss" (mean cross entropy of its
        pages), "support" (its pages), "predicted" (pages taken for it). NaN where the class has no page, and for
        precision and F1 where it is not predicted either.

    Raises:
        UserError: The model has no such class, or there is no batch.
    """
    logits, labels = predict_logits(model, dataloader, device=device)
    classes = logits.shape[1]
    if not 0 <= target_class < classes:
        raise UserError(f"target_class is {target_class}, expected one of the model's classes, 0..{classes - 1}")
    report = class_report(logits, labels=labels, class_names=[str(index) for index in range(classes)])
    figures = _figures(report.rows[target_class])
    return {name: float(value) for name, value in figures.items() if not isinstance(value, str) and name != "index"}


def format_class_summary(report: ClassificationReport) -> str:
    """The summary for the terminal: overall figures, and one line per class; a dash where a figure is undefined."""
    longest = max(_columns(row.name) for row in report.rows)
    name = max(_NAME, longest + 1)
    lines = [
        "=" * _RULE,
        "클래스별 성능 요약",
        "=" * _RULE,
        f"전체 정확도: {report.accuracy:.4f}",
        f"전체 F1 점수 (Macro): {report.scores.macro[2]:.4f}",
        "",
        "클래스" + " " * (10 + name - _NAME) + "정확도     F1 점수   손실      샘플 수  ",
        "-" * _RULE,
    ]
    for row in report.rows:
        padded = row.name + " " * (name - _columns(row.name))
        lines.append(f"{padded}{_four(row.recall):<11}{_four(row.f1):<11}{_four(row.loss):<10}{row.support:<9}")
    return "\n".join(lines)


def _pixels_and_label(batch: Mapping[str, Tensor] | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    try:
        pixels, label = (batch["pixels"], batch["label"]) if isinstance(batch, Mapping) else batch[:2]
    except (KeyError, ValueError, TypeError):
        raise UserError('a batch holds no pages and labels; expected {"pixels": ..., "label": ...} or a pair') from None
    return pixels, label


def _figures(row: ClassRow) -> dict[str, Any]:
    values = (row.index, row.name, row.recall, row.precision, row.f1, row.loss, row.support, row.predicted)
    return dict(zip(_CSV_COLUMNS, values, strict=True))


def _four(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


def _columns(text: str) -> int:
    """Columns of a terminal: Korean and Chinese characters take two."""
    return sum(2 if east_asian_width(character) in "FW" else 1 for character in text)


# --------------------------------------------------------------------------------------------------------------- files


def write_class_files(
    report: ClassificationReport, *, folder: Path, train: ClassificationReport | None = None, prefix: str = "val_"
) -> list[Section]:
    """Write the files of an evaluation and show them in sections of a report.

    `{prefix}class_metrics.csv` (an empty cell where a figure is undefined), `{prefix}class_performance.png`, the
    confusion matrix, and with `train` the comparison. For validation the last two are called `confusion_matrix.png`
    and `train_val_comparison.png`; for other prefixes they carry theirs.

    Args:
        report: Of the evaluated pages.
        folder: Where the files go; it exists.
        train: Of training pages, without augmentation, the same classes.
        prefix: Start of the files' names.

    Raises:
        UserError: A file cannot be written, or `train` has other classes.
    """
    title = {"val_": "Validation"}.get(prefix, prefix.strip("_").capitalize())
    other = "" if prefix == "val_" else prefix
    names = [row.name for row in report.rows]
    write_text(folder / f"{prefix}class_metrics.csv", _csv(report))
    bars = {
        "accuracy": [row.recall for row in report.rows],
        "F1": [row.f1 for row in report.rows],
        "loss": [row.loss for row in report.rows],
    }
    if np.isnan(bars["loss"]).all():
        del bars["loss"]
    drawn = plot_class_bars(bars, class_names=names, path=folder / f"{prefix}class_performance.png")
    matrix = plot_confusion_matrix(report.confusion, class_names=names, path=folder / f"{other}confusion_matrix.png")
    rows = [[None if _is_nan(value) else value for value in _figures(row).values()] for row in report.rows]
    sections: list[Section] = [Picture(f"{title}: confusion matrix", matrix)]
    if train is not None:
        compared = plot_train_val_comparison(train, report, path=folder / f"{other}train_val_comparison.png")
        sections.append(Picture("Training against validation", compared, note="F1 of each class"))
    sections += [
        Picture(f"{title}: classes", drawn, wide=True),
        Table(f"{title}: classes", _CSV_COLUMNS, rows, note=f"{report.samples} pages; accuracy is a class's recall"),
    ]
    return sections


def _csv(report: ClassificationReport) -> str:
    rows = [["" if _is_nan(value) else value for value in _figures(row).values()] for row in report.rows]
    return csv_text([_CSV_COLUMNS, *rows])


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and bool(np.isnan(value))

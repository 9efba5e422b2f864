"""What a run leaves besides the shared files: figures of each class, calibration, confused pages, a printed summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mlcore.base.files import csv_text, write_text
from mlcore.metrics.classification import ClassificationReport
from mlcore.report.page import Section
from mlcore.run.deciding import Decider
from mlcore.run.decision import Decision, write_decision
from mlcore.run.scorer import ClassPrediction
from quartet.apps.doc_ensemble.class_analysis import calibration_sections, confused_sections
from quartet.apps.doc_ensemble.class_metrics import class_report, format_class_summary, write_class_files
from quartet.apps.doc_ensemble.config import DocConfig
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.ensemble.folds import write_fold_predictions
from quartet.apps.doc_ensemble.splits import Splits
from quartet.apps.doc_ensemble.temperature import fit_temperature

__all__ = ["Inspector", "write_outputs", "write_tables"]


class Inspector:
    """Pictures and tables of an evaluation; remembers the predictions.

    Args:
        pages: By split.
        classes: Names, in label order.
        decider: Chooses the decision.
        max_pixels: Larger images are not decoded for thumbnails.
    """

    def __init__(
        self, pages: Mapping[str, Sequence[Page]], *, classes: Sequence[str], decider: Decider, max_pixels: int
    ) -> None:
        self.pages = pages
        self._classes = classes
        self.decider = decider
        self.predictions: dict[str, Mapping[str, Tensor]] = {}
        self._max_pixels = max_pixels

    def __call__(self, predictions: Mapping[str, Tensor], folder: Path, prefix: str) -> list[Section]:
        """Sections of the report; `prefix` is "train_" (first, where it comes), "" for validation, "test_" last."""
        split = prefix.removesuffix("_") or "val"
        self.predictions[split] = predictions
        if split == "train":
            return []
        labels, chances = predictions["label"].numpy(), predictions["probabilities"].numpy()
        if split == "val":
            temperature = fit_temperature(predictions["logits"].numpy(), labels=labels)
            self.decider.choose(labels, chances, temperature=temperature)
        report = self._report(split)
        train = self._report("train") if split == "val" and "train" in self.predictions else None
        sections = write_class_files(report, folder=folder, train=train, prefix=f"{split}_")
        sections += confused_sections(
            self.pages[split],
            labels=labels,
            probabilities=chances,
            class_names=self._classes,
            folder=folder,
            max_pixels=self._max_pixels,
            prefix=prefix,
        )
        sections += self.decider.sections(labels, chances, folder=folder, prefix=prefix)
        last = [*self.pages][-1]
        return [*sections, *self._calibration(folder)] if split == last and "val" in self.predictions else sections

    def _calibration(self, folder: Path) -> list[Section]:
        """The temperature that suits the validation pages, and what it does to the test pages, if there are any."""
        logits = {name: (rows["logits"].numpy(), rows["label"].numpy()) for name, rows in self.predictions.items()}
        return calibration_sections(logits["val"][0], labels=logits["val"][1], folder=folder, test=logits.get("test"))

    def summary(self) -> str:
        """Figures of each class for the terminal, on the first pages that were not trained on."""
        return format_class_summary(self._report(next((name for name in self.predictions if name != "train"), "train")))

    def _report(self, split: str) -> ClassificationReport:
        rows = self.predictions[split]
        return class_report(rows["logits"].numpy(), labels=rows["label"].numpy(), class_names=self._classes)


def write_outputs(
    inspector: Inspector, splits: Splits, config: DocConfig, folder: Path, summary: Mapping[str, Any]
) -> None:
    """Write what `write_tables` does, and for a fold keep its part.

    Args:
        inspector: It has seen the best checkpoint's predictions.
        splits: The pages of the run.
        config: The run's.
        folder: The run's.
        summary: Of the run.
    """
    if config.kfold.fold is not None:
        write_fold_predictions(folder, config=config, splits=splits, predictions=inspector.predictions["val"])
    write_tables(inspector, folder, summary)


def write_tables(inspector: Inspector, folder: Path, _summary: Mapping[str, Any]) -> None:
    """Write `decision.json` and `val_predictions.csv` (and `test_`), and print the summary.

    Tables hold what `predict.py` gives: probabilities at the decision's temperature.

    Args:
        inspector: It has seen the predictions.
        folder: Where they go.
    """
    decision = inspector.decider.decision
    write_decision(folder, decision)
    for split, pages in inspector.pages.items():
        if split != "train":
            table = _table(inspector.predictions[split], pages, decision)
            write_text(folder / f"{split}_predictions.csv", csv_text(table))
    print(inspector.summary())


def _table(predictions: Mapping[str, Tensor], pages: Sequence[Page], decision: Decision) -> list[Sequence[object]]:
    classes, labels = decision.class_names, predictions["label"].tolist()
    answers = ClassPrediction.of_batch(predictions["probabilities"].double().numpy(), classes, decision)
    columns = ClassPrediction.columns(classes, decision)
    table: list[Sequence[object]] = [("image", "label", "predicted", *columns[1:])]
    for page, label, answer in zip(pages, labels, answers, strict=True):
        cells = [f"{value:.6f}" if isinstance(value, float) else value for value in answer.row()]
        table.append((page.key, classes[label], *cells))
    return table

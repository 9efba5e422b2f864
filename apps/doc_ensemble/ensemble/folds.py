"""Cross-validation: K models, each trained without one fold of the training pages and evaluated on it.

All of them are one job that goes on where it was stopped. What the models say of their own folds makes the out-of-fold
predictions, which every page has exactly one of, by a model that never saw it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, csv_text, write_text
from mlcore.base.reading import reading
from mlcore.config.text import read_document
from mlcore.data.packed import read_arrays
from mlcore.report.page import Headline, RunReport, Table
from mlcore.run.final_evaluation import Pages, Results
from mlcore.run.group import RunGroup
from quartet.apps.doc_ensemble.class_metrics import class_report, format_class_summary, write_class_files
from quartet.apps.doc_ensemble.config import DocConfig, KFoldConfig
from quartet.apps.doc_ensemble.data.split import fold_numbers
from quartet.apps.doc_ensemble.ensemble.combine import log_probabilities
from quartet.apps.doc_ensemble.ensemble.out_of_fold import FoldPredictions, OutOfFold, gather
from quartet.apps.doc_ensemble.splits import Splits

__all__ = ["OUT_OF_FOLD", "fold_folders", "folds", "one_fold", "write_fold_predictions"]

OUT_OF_FOLD = "out_of_fold.npz"
_PREDICTIONS = "fold_predictions.npz"
_FOLDS = "folds"


def folds(config: DocConfig) -> RunGroup[DocConfig]:
    """A run for each fold of a cross-validation, in `folds/fold_<number>`, and their out-of-fold predictions."""
    settings = config.kfold
    configs = {
        f"{_FOLDS}/fold_{fold}": config.model_copy(update={"kfold": settings.model_copy(update={"fold": fold})})
        for fold in range(1, settings.folds + 1)
    }
    return RunGroup(what="fold", configs=configs, aggregate=partial(_aggregate, config, list(configs)))


def fold_folders(job: Path) -> list[Path]:
    """The run folders of a job's folds, in order; none where `job` is no cross-validation."""
    return sorted((job / _FOLDS).glob("fold_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def one_fold(splits: Splits, settings: KFoldConfig, *, seed: int) -> Splits:
    """The training pages of fold `settings.fold`'s model, and in place of the validation pages those of the fold.

    Raises:
        UserError: A class has fewer pages (or groups) than there are folds.
    """
    assert settings.fold is not None  # noqa: S101 - the caller has looked
    numbers = fold_numbers(splits.train, folds=settings.folds, seed=seed, classes=splits.classes)
    mine = numbers == settings.fold - 1
    return Splits(
        classes=splits.classes,
        train=[page for page, held_out in zip(splits.train, mine, strict=True) if not held_out],
        validation=[page for page, held_out in zip(splits.train, mine, strict=True) if held_out],
        test=None,
        notes=splits.notes,
    )


def write_fold_predictions(
    folder: Path, *, config: DocConfig, splits: Splits, predictions: Mapping[str, Tensor]
) -> None:
    """Keep what a fold's model says of its fold's pages, and which pages it was trained on.

    Args:
        folder: The fold's run folder.
        config: The fold's.
        splits: Its pages.
        predictions: Rows of `DocTask.evaluation_step` on the fold's pages.
    """
    with atomic_write(folder / _PREDICTIONS) as file:
        np.savez(
            file,
            allow_pickle=False,
            member=np.array(config.model.title),
            fold=np.array(config.kfold.fold),
            trained_on=np.array([page.digest for page in splits.train]),
            pages=np.array([page.key for page in splits.validation]),
            digests=np.array([page.digest for page in splits.validation]),
            probabilities=predictions["probabilities"].numpy(),
            labels=predictions["label"].numpy(),
            class_names=np.array(splits.classes),
        )


def _aggregate(
    config: DocConfig, places: Sequence[str], folder: Path, results: Mapping[str, Results], _pages: Pages | None
) -> Pages:
    """Write out-of-fold predictions from what a job's folds left.

    Leaves `out_of_fold.npz`, `folds.csv` (page, class, fold, prediction), and the files of the classes, of all
    out-of-fold predictions together.

    Args:
        config: The job's.
        places: Where the folds' runs are in the job's folder.
        folder: The job's.
        results: Figures of the folds' models on their folds.

    Returns:
        What the job's summary and report say.

    Raises:
        UserError: Folds do not fit together, or a file cannot be written.
    """
    folders = [folder / place for place in places]
    read = [_read_fold(path / _PREDICTIONS) for path in folders]
    class_names = read[0][1]
    together = gather([predicted for predicted, _ in read], class_names=class_names)
    together.save(folder / OUT_OF_FOLD)
    _write_folds(folder / "folds.csv", together)
    logits = log_probabilities(together.probabilities[0])  # a softmax forgets what is added to all logits of a row
    report = class_report(logits, labels=together.labels, class_names=class_names)
    sections = [_fold_table(results), *write_class_files(report, folder=folder, prefix="out_of_fold_")]
    figures: Results = {"out_of_fold": {"n": len(together.pages), **report.scalars()}}
    print(format_class_summary(report))
    return Pages(
        summary={
            "status": "finished",
            "monitor": {"metric": "macro_f1", "mode": "max", "best": report.scalars()["macro_f1"]},
            "results_of_best_checkpoint": figures,
            "progress": _progress(folders),
        },
        report=RunReport(
            title=f"Document classifier: {len(folders)}-fold cross-validation of {config.model.title}",
            subtitle="every page is predicted by the model that was trained without its fold",
            headlines=[Headline("out-of-fold accuracy", report.accuracy, f"{len(together.pages)} pages")],
            sections=sections,
        ),
    )


def _progress(folders: Sequence[Path]) -> dict[str, float]:
    """Of all folds together."""
    totals = {"seconds": 0.0, "step": 0.0}
    for path in (folder / "summary.json" for folder in folders):
        with reading(path, "the summary of a run"):
            progress = read_document(path).values["progress"]
            totals = {key: total + float(progress[key]) for key, total in totals.items()}
    return totals


def _read_fold(path: Path) -> tuple[FoldPredictions, tuple[str, ...]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; remove {path.parent} and start the job again")
    arrays = read_arrays(path)
    with reading(path, f"a fold's predictions; remove {path.parent} and start the job again"):
        predicted = FoldPredictions(
            member=str(arrays["member"]),
            fold=int(arrays["fold"]),
            trained_on=arrays["trained_on"].tolist(),
            pages=arrays["pages"].tolist(),
            digests=arrays["digests"].tolist() if "digests" in arrays else None,
            probabilities=arrays["probabilities"],
            labels=arrays["labels"],
        )
        return predicted, tuple(arrays["class_names"].tolist())


def _write_folds(path: Path, together: OutOfFold) -> None:
    names, predicted = together.class_names, together.probabilities[0].argmax(axis=1)
    pages = zip(together.pages, together.labels, together.folds, predicted, strict=True)
    rows = [(page, names[label], fold, names[guess]) for page, label, fold, guess in pages]
    write_text(path, csv_text([("image", "class", "fold", "predicted"), *rows]))


def _fold_table(results: Mapping[str, Results]) -> Table:
    """Figures of each fold's model on its fold, their mean, and their deviation."""
    shown = ("accuracy", "macro_f1", "loss")
    values = np.array([[figures["val"][name] for name in shown] for figures in results.values()])
    rows: list[list[Any]] = [[fold, *row] for fold, row in zip(results, values.tolist(), strict=True)]
    rows += [["mean", *values.mean(axis=0).tolist()], ["standard deviation", *values.std(axis=0, ddof=1).tolist()]]
    return Table("Folds", ("fold", *shown), rows, note="each evaluated on the pages it was trained without")

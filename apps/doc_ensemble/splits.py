"""The pages of a run, by what they are for."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.data.fingerprints import cache_file
from quartet.apps.doc_ensemble.config import DataConfig, DocConfig
from quartet.apps.doc_ensemble.data.duplicates import check_duplicates
from quartet.apps.doc_ensemble.data.folders import Folders, read_folders
from quartet.apps.doc_ensemble.data.generated import write_generated
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.data.split import hold_out
from quartet.apps.doc_ensemble.data.table import read_table

__all__ = ["Splits", "load_splits"]

_log = logging.getLogger(__name__)

_OUTPUTS = Path("outputs") / "doc_ensemble"


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The pages of a run.

    Attributes:
        classes: Names, in label order.
        train: What is trained on.
        validation: Held out; chooses the best checkpoint.
        test: Looked at once, after training; None for none.
        notes: Warnings for the report.
    """

    classes: tuple[str, ...]
    train: Sequence[Page]
    validation: Sequence[Page]
    test: Sequence[Page] | None
    notes: Sequence[str] = ()

    def named(self) -> dict[str, Sequence[Page]]:
        """The splits there are, by name."""
        parts = {"train": self.train, "val": self.validation, "test": self.test}
        return {name: pages for name, pages in parts.items() if pages is not None}


def load_splits(config: DocConfig, *, classes: Sequence[str] | None = None) -> Splits:
    """The pages that the data section names; those that are not known yet are read, to find equal ones.

    Args:
        config: The run's.
        classes: Names that the classes must have, in this order: those of a trained model.

    Raises:
        UserError: A table or folder is missing or has mistakes, classes do not fit, or pages are in two splits.
    """
    settings = config.data
    found = _tables(settings, classes) if settings.train_csv is not None else _folders(settings, classes)
    train, validation = found.train, found.val
    if validation is None:
        train, validation = hold_out(train, fraction=settings.val_fraction, seed=config.run.seed)
        _log.info("held out for validation: %d of %d pages", len(validation), len(found.train))
    splits = Splits(classes=found.classes, train=train, validation=validation, test=found.test)
    if len(splits.classes) < 2:
        raise UserError(f"there is only one class, {splits.classes[0]}: a classifier needs at least two")
    if settings.source == "generated":
        return splits
    notes = check_duplicates(
        splits.named(),
        allow=settings.allow_duplicates,
        max_pixels=round(settings.max_megapixels * 1e6),
        cache=cache_file(_OUTPUTS / "fingerprints", settings.data_dir or (settings.train_csv or Path()).parent),
    )
    for note in notes:
        _log.warning(note)
    return Splits(classes=found.classes, train=train, validation=validation, test=found.test, notes=notes)


def _tables(settings: DataConfig, classes: Sequence[str] | None) -> Folders:
    assert settings.train_csv is not None  # noqa: S101 - the caller has looked
    if settings.data_dir is not None:
        raise UserError("give data.data_dir or data.train_csv, not both")
    train, names = read_table(settings.train_csv, classes=classes)
    val, test = (
        None if path is None else read_table(path, classes=names)[0] for path in (settings.val_csv, settings.test_csv)
    )
    return Folders(names, train, val, test)


def _folders(settings: DataConfig, classes: Sequence[str] | None) -> Folders:
    if settings.val_csv is not None or settings.test_csv is not None:
        raise UserError("data.val_csv and data.test_csv belong to a data.train_csv, which is not given")
    if settings.source == "generated":
        folder = settings.generated_dir or _OUTPUTS / "generated"
        write_generated(folder, train=settings.num_train, val=settings.num_val, test=settings.num_test, seed=0)
    elif settings.data_dir is None:
        raise UserError("no pages chosen: give --data_dir or --train_csv, or --demo for the demo")
    else:
        folder = settings.data_dir
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (data.data_dir: one with a folder per class)")
    return read_folders(folder, classes=classes)

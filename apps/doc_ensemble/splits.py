"""The pages of a run, by what they are for."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.data.fingerprints import cache_file
from mlcore.data.images import find_images
from mlcore.run.member import member_splits
from mlcore.run.splits import Splits as OfRun
from quartet.apps.doc_ensemble.config import DataConfig, DocConfig
from quartet.apps.doc_ensemble.data.duplicates import check_duplicates, compared
from quartet.apps.doc_ensemble.data.folders import Folders, read_class_folder, read_folders, split_folders
from quartet.apps.doc_ensemble.data.generated import write_generated
from quartet.apps.doc_ensemble.data.pages import PAGE_SUFFIXES, Page
from quartet.apps.doc_ensemble.data.split import hold_out
from quartet.apps.doc_ensemble.data.table import read_table

__all__ = ["OUTPUTS", "Splits", "labelled_pages", "load_splits", "places_of"]

_log = logging.getLogger(__name__)

OUTPUTS = Path("outputs") / "doc_ensemble"


Splits = OfRun[Page]


def load_splits(config: DocConfig, *, classes: Sequence[str] | None = None) -> Splits:
    """The pages that the data section names; those that are not known yet are read, to find equal ones.

    Copies of a page are in one part wherever this function draws the parts.

    Args:
        config: The run's.
        classes: Names that the classes must have, in this order: those of a trained model.

    Raises:
        UserError: A table or folder is missing or has mistakes, classes do not fit, or pages are in two splits.
    """
    settings = config.data
    found = _tables(settings, classes) if settings.train_csv is not None else _folders(settings, classes)
    if len(found.classes) < 2:
        raise UserError(f"there is only one class, {found.classes[0]}: a classifier needs at least two")
    given = {"train": found.train, "val": found.val, "test": found.test}
    parts = {name: pages for name, pages in given.items() if pages is not None}
    pages, copies = compared(
        [page for part in parts.values() for page in part],
        max_pixels=round(settings.max_megapixels * 1e6),
        cache=cache_file(OUTPUTS / "fingerprints", _place(settings)),
    )
    known = iter(pages)
    parts = {name: list(islice(known, len(part))) for name, part in parts.items()}
    if config.protocol.fold is not None:
        pool = [*parts["train"], *parts.get("val", ())]
        found_splits = Splits(classes=found.classes, train=pool, validation=(), test=parts.get("test"))
        parts = {name: [*pages] for name, pages in _member(found_splits, config).named().items()}
    elif "val" not in parts:
        parts["train"], parts["val"] = hold_out(
            parts["train"], fraction=settings.val_fraction, seed=settings.split_seed
        )
        _log.info("held out for validation: %d of %d pages", len(parts["val"]), len(found.train))
    validation = parts.get("val", ())
    splits = Splits(classes=found.classes, train=parts["train"], validation=validation, test=parts.get("test"))
    drawn = settings.source == "generated"  # of very many drawn pages two may look alike
    notes = check_duplicates(splits.named(), copies=copies, allow=settings.allow_duplicates or drawn)
    for note in notes:
        _log.warning(note)
    return replace(splits, notes=notes)


def _member(splits: Splits, config: DocConfig) -> Splits:
    """The pages of a run of the protocol."""
    return member_splits(
        splits,
        config.protocol,
        label=lambda page: -1 if page.label is None else page.label,
        unit=lambda page: page.bundle,
        classes=splits.classes,
        seed=config.data.split_seed,
        what="pages",
    )


def labelled_pages(path: Path, *, base_dir: Path | None, classes: Sequence[str]) -> Sequence[Page]:
    """The pages of a table, or of a folder with a folder per class, for a trained model.

    Raises:
        UserError: It is missing, has mistakes, or has other classes than the model.
    """
    if path.is_dir():
        return read_class_folder(path, classes=classes)[0]
    return read_table(path, base_dir=base_dir, classes=classes)[0]


def places_of(settings: DataConfig) -> dict[str, Sequence[Page | Path]]:
    """The pages of the tables, or the files of the folders, that the data section names, by split.

    Raises:
        UserError: A table or folder is missing or has mistakes.
    """
    if settings.train_csv is not None:
        found = _tables(settings, None)
        return {name: pages for name in ("train", "val", "test") if (pages := getattr(found, name)) is not None}
    folder = _folder(settings)
    parts = {path.name: find_images(path, PAGE_SUFFIXES) for path in split_folders(folder)}
    return {**parts} if parts else {"train": find_images(folder, PAGE_SUFFIXES)}


def _tables(settings: DataConfig, classes: Sequence[str] | None) -> Folders:
    assert settings.train_csv is not None  # noqa: S101 - the caller has looked
    if settings.data_dir is not None:
        raise UserError("give data.data_dir or data.train_csv, not both")
    read = partial(read_table, base_dir=settings.base_dir)
    train, names = read(settings.train_csv, classes=classes)
    val, test = (
        None if path is None else read(path, classes=names)[0] for path in (settings.val_csv, settings.test_csv)
    )
    return Folders(names, train, val, test)


def _folders(settings: DataConfig, classes: Sequence[str] | None) -> Folders:
    return read_folders(_folder(settings), classes=classes)


def _folder(settings: DataConfig) -> Path:
    if settings.val_csv is not None or settings.test_csv is not None:
        raise UserError("data.val_csv and data.test_csv belong to a data.train_csv, which is not given")
    if settings.source == "generated":
        folder = _place(settings)
        write_generated(folder, train=settings.num_train, val=settings.num_val, test=settings.num_test, seed=0)
    elif settings.data_dir is None:
        raise UserError("no pages chosen: give --data_dir or --train_csv, or --demo for the demo")
    else:
        folder = settings.data_dir
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (data.data_dir: one with a folder per class)")
    return folder


def _place(settings: DataConfig) -> Path:
    """The folder of the data set."""
    if settings.source == "generated":
        return settings.generated_dir or OUTPUTS / "generated"
    return settings.data_dir or (settings.train_csv or Path()).parent

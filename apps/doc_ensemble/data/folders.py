"""Pages with labels from folders: one folder per class, alone or below train/, val/ and test/."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.data.images import find_images
from mlcore.data.records import failed
from quartet.apps.doc_ensemble.data.pages import PAGE_SUFFIXES, Page, page_count
from quartet.apps.doc_ensemble.data.table import class_names, label_of, normal

__all__ = ["Folders", "find_pages", "read_class_folder", "read_folders", "split_folders"]

_log = logging.getLogger(__name__)

_VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True)
class Folders:
    """What a data folder holds.

    Attributes:
        classes: Names in the order of class indices.
        train: Training pages; all pages where there is one folder per class and nothing else.
        val: Validation pages; None: some of `train` are to be held out.
        test: Test pages; None: there are none.
    """

    classes: tuple[str, ...]
    train: list[Page]
    val: list[Page] | None
    test: list[Page] | None


def read_folders(folder: Path, *, classes: Sequence[str] | None = None) -> Folders:
    """Read `folder`/train, val and test with a folder per class each, or `folder` with a folder per class.

    Args:
        folder: Where they are.
        classes: Names of the classes in order, as a trained model has them; None: the training folders' names.

    Raises:
        UserError: There are no pages, a class of training has none, a class of another part is unknown, or a TIFF or
            PDF file cannot be read.
    """
    if not split_folders(folder):
        pages, names = read_class_folder(folder, classes=classes)
        return Folders(names, pages, None, None)
    train, names = read_class_folder(folder / "train", classes=classes)
    val = next((folder / name for name in _VALIDATION if (folder / name).is_dir()), None)
    test = folder / "test"
    return Folders(
        names,
        train,
        None if val is None else read_class_folder(val, classes=names)[0],
        read_class_folder(test, classes=names)[0] if test.is_dir() else None,
    )


def split_folders(folder: Path) -> list[Path]:
    """The folders of the splits in `folder`; none where it has one folder per class."""
    there = [folder / name for name in ("train", *_VALIDATION, "test") if (folder / name).is_dir()]
    return there if there and there[0].name == "train" else []


def read_class_folder(folder: Path, *, classes: Sequence[str] | None = None) -> tuple[list[Page], tuple[str, ...]]:
    """Read a folder with a folder per class, in which pages may lie at any depth.

    Args:
        folder: Where the class folders are; hidden ones are left out.
        classes: Names of the classes in order, as training had them; None: the folders' names.

    Returns:
        Pages sorted by class and path, and the class names.

    Raises:
        UserError: As `read_folders`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not folders:
        raise UserError(f"{folder}: no folders in it; expected one for each class, or train/ and val/ with these")
    names = class_names({normal(path.name) for path in folders}) if classes is None else tuple(classes)
    numbers = {normal(name): index for index, name in enumerate(names)}
    problems: list[str] = []
    pages: list[Page] = []
    for path in folders:
        try:
            label = label_of(normal(path.name), numbers)
            found = find_pages(path, label=label)
            if not found and classes is None:
                raise UserError(f"no pages in it (looked for {', '.join(PAGE_SUFFIXES)})")
            pages += found
        except UserError as error:
            problems.append(f"folder {path.name}: {error}")
    if problems:
        raise failed(folder, problems)
    if not pages:
        raise UserError(f"{folder}: no pages in its folders (looked for {', '.join(PAGE_SUFFIXES)})")
    _warn_of_others(folder)
    return sorted(pages, key=lambda page: (page.label, page.path, page.number)), names


def find_pages(folder: Path, *, label: int | None = None) -> list[Page]:
    """All pages in `folder` and below, by file name and number; hidden files and folders are left out.

    Raises:
        UserError: A TIFF or PDF file cannot be read.
    """
    problems: list[str] = []
    pages: list[Page] = []
    for path in find_images(folder, PAGE_SUFFIXES):
        try:
            pages += [Page(path, number, label, str(path)) for number in range(page_count(path))]
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise failed(folder, problems) if len(problems) > 1 else UserError(problems[0])
    return pages


def _warn_of_others(folder: Path) -> None:
    loose = sum(path.suffix.lower() in PAGE_SUFFIXES for path in folder.iterdir() if path.is_file())
    if loose:
        _log.warning("%s: %d pages lie outside of the folders of classes and are not used", folder, loose)

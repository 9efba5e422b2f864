"""Pages with labels from a CSV table: columns image and label, and perhaps group.

    image,label,group
    scans/0001.png,letter,customer 17
    scans/bundle.pdf#3,invoice,customer 18

Relative paths start at the table's folder; "#3" names the third page of a PDF or TIFF file, without it the first is
meant. Labels are names or numbers. Pages of a group stay in the same part of a split. Further columns are ignored.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.data.records import failed, read_records
from quartet.apps.doc_ensemble.data.pages import Page, page_count

__all__ = ["class_names", "label_of", "normal", "read_table"]


def read_table(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    labelled: bool = True,
    unusable: list[tuple[str, str]] | None = None,
) -> tuple[list[Page], tuple[str, ...]]:
    """Read a table.

    Args:
        path: The CSV file, UTF-8 with or without byte order mark.
        classes: Names of the classes in order, as training had them; None: those that are in this table.
        labelled: Without it the label column may be missing and is not looked at; every label is None.
        unusable: Rows that name no page, or one that another row has, are left out and added to it: what is in the
            column image, and the reason with the line. None: such rows are an error.

    Returns:
        Pages in file order, and the class names; a page's label is an index into them.

    Raises:
        UserError: The table cannot be used; all its problems are named together, with their lines.
    """
    problems: list[str] = []
    found: list[tuple[Page, str]] = []
    seen: dict[tuple[Path, int], int] = {}
    for line, values in read_records(path, ("image", "label") if labelled else ("image",), optional=("group",)):
        try:
            page = _page(path.parent, values["image"])
            first = seen.setdefault((page.path, page.number), line)
            if first != line:
                raise UserError(f"the same page as in line {first}: {values['image']}")
            if labelled and not values["label"]:
                raise UserError("the label is empty")
        except UserError as error:
            if unusable is None:
                problems.append(f"line {line}: {error}")
            else:
                unusable.append((values["image"], f"{path}, line {line}: {error}"))
            continue
        page = replace(page, origin=f"{path}, line {line}", group=values.get("group", ""))
        found.append((page, normal(values["label"]) if labelled else ""))
    if not found and not problems and not unusable:
        raise UserError(f"{path}: no rows below the header")
    if not labelled:
        names = tuple(classes or ())
        pages = [page for page, _ in found]
    else:
        names = tuple(classes) if classes is not None else class_names({label for _, label in found})
        pages = _labelled(found, names, problems)
    if problems:
        raise failed(path, problems)
    return pages, names


def class_names(labels: set[str]) -> tuple[str, ...]:
    """Labels in the order of class indices: sorted as text, or by value if all are whole numbers."""
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def label_of(name: str, numbers: Mapping[str, int]) -> int:
    """Index of a class.

    Raises:
        UserError: There is no such class; the message lists those there are.
    """
    if name in numbers:
        return numbers[name]
    shown = ", ".join(list(numbers)[:30]) + (", ..." if len(numbers) > 30 else "")
    like = next((known for known in numbers if known.casefold() == name.casefold()), None)
    hint = f"; did you mean {like!r}?" if like else ""
    raise UserError(f"unknown class {name!r}{hint}; the {len(numbers)} classes of training are {shown}")


def normal(text: str) -> str:
    """Stripped, and composed (NFC): some systems store Hangul and accents decomposed."""
    return unicodedata.normalize("NFC", text.strip())


def _labelled(found: Sequence[tuple[Page, str]], names: Sequence[str], problems: list[str]) -> list[Page]:
    numbers = {normal(name): index for index, name in enumerate(names)}
    pages = []
    for page, label in found:
        try:
            pages.append(replace(page, label=label_of(label, numbers)))
        except UserError as error:
            problems.append(f"{page.origin.rsplit(', ', 1)[1]}: {error}")
    return pages


def _page(folder: Path, text: str) -> Page:
    """The page that a cell names; files whose own names end in "#3" come first."""
    if not text:
        raise UserError("the path of the image is empty")
    name, mark, number = text.rpartition("#")
    path, index = _file(folder, text), 0
    if path is None and mark and number.isdecimal():
        path, index = _file(folder, name), int(number) - 1
    if path is None:
        where = "" if Path(text).is_absolute() else f" (relative paths start at {folder})"
        raise UserError(f"no such file: {text[:200]}{where}")
    count = page_count(path) if index or path.suffix.lower() == ".pdf" else 1
    if not 0 <= index < count:
        raise UserError(f"no page {index + 1} in {name}, which has {count}; pages are counted from 1")
    return Page(path, index)


def _file(folder: Path, text: str) -> Path | None:
    try:
        for form in (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
            path = (folder / form).resolve()
            if path.is_file():
                return path
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, a loop of links: no file in any case
        return None
    return None

"""Pages with labels from a CSV table: columns image and label, and perhaps group and text.

    image,label,group
    scans/0001.png,letter,customer 17
    scans/bundle.pdf#3,invoice,customer 18

Relative paths start at the table's folder (or `base_dir`) and stay in it; "#3" names the third page of a PDF or TIFF
file, without it the first is meant. Labels are names or numbers. Pages of a group stay in the same part of a split. The
text is what is written on the page, for models of it (`model=text`). Further columns are kept where they are short: a
cross-validation says how good it is for each of their values.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.data.places import Places
from mlcore.data.records import failed, further, read_records
from quartet.apps.doc_ensemble.data.pages import Page, page_count

__all__ = ["class_names", "label_of", "normal", "read_table"]

_LONGEST_NUMBER = 9  # digits


def read_table(
    path: Path, *, base_dir: Path | None = None, classes: Sequence[str] | None = None
) -> tuple[list[Page], tuple[str, ...]]:
    """Read a table with labels.

    Args:
        path: The CSV file, UTF-8 with or without byte order mark.
        base_dir: Where paths start and must stay in; see `Places`.
        classes: Names of the classes in order, as training had them; None: those that are in this table.

    Returns:
        Pages in file order, and the class names; a page's label is an index into them.

    Raises:
        UserError: The table cannot be used; all its problems are named together, with their lines.
    """
    problems: list[str] = []
    found: list[tuple[Page, str]] = []
    places = Places(path, base_dir)
    for line, values in read_records(path, ("image", "label"), optional=("group", "text")):
        try:
            page = _page(places, values["image"], line=line)
            if not values["label"]:
                raise UserError("the label is empty")
        except UserError as error:
            problems.append(f"line {line}: {error}")
            continue
        page = replace(page, origin=f"{path}, line {line}", group=values.get("group", ""), text=values.get("text", ""))
        page = replace(page, more=further(values, ("image", "label", "group", "text")))
        found.append((page, normal(values["label"])))
    if not found and not problems:
        raise UserError(f"{path}: no rows below the header")
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


def _page(places: Places, text: str, *, line: int) -> Page:
    """The page that a cell names, unless a line before has it.

    Files whose own names end in "#3" come first.
    """
    name, _, number = text.rpartition("#")
    try:
        path, index = places.find(text), 0
    except UserError:
        if not name or not number.isdecimal() or len(number) > _LONGEST_NUMBER:
            raise
        path, index = places.find(name), int(number) - 1
    count = page_count(path) if index or path.suffix.lower() == ".pdf" else 1
    if not 0 <= index < count:
        raise UserError(f"no page {index + 1} in {name}, which has {count}; pages are counted from 1")
    places.only_once((path, index), line=line, text=text, what="page")
    return Page(path, index)

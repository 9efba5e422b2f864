"""The table of pictures: a CSV file with the columns local_image_path, label and text_info.

    local_image_path,label,text_info
    images/001.jpg,True,"Summer sale: 50 % off"
    images/002.jpg,False,

Labels: true, yes and 1 are ads; false, no and 0 are not (any case; 1.0 and 0.0, too). Further columns are kept where
they are short: a cross-validation says how good it is for each of their values.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.data.places import Places
from mlcore.data.records import failed, further, read_records
from mlcore.data.tables import UTF8

__all__ = ["COLUMNS", "LABELS", "LOOKALIKES", "AdRow", "clean_text", "find_image", "read_table"]

COLUMNS = ("local_image_path", "label", "text_info")
LABELS: Mapping[str, int] = {"true": 1, "yes": 1, "1": 1, "1.0": 1, "false": 0, "no": 0, "0": 0, "0.0": 0}

LOOKALIKES: Mapping[str, str] = dict(
    zip(
        "АВЕКМНОРСТХаеорсухіјѕԁԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧονıɡ",
        "ABEKMHOPCTXaeopcyxijsdqwABEZHIKMNOPTYXovig",
        strict=True,
    )
)
"""Cyrillic, Greek and Latin letters that look like plain Latin ones (from Unicode Technical Standard 39)."""

_HINTS = {"text_info": "leave its values empty where there is no text"}
_KEPT_CONTROLS = "\n\t"
_LATIN_WORD = re.compile(r"\w*[A-Za-z]\w*")


@dataclass(frozen=True)
class AdRow:
    """One row.

    Attributes:
        image: The image file; absolute, symbolic links resolved.
        label: 1: ad, 0: not.
        text: Text found in the image; "" where there is none.
        origin: For messages: "train.csv, line 7".
        more: Further columns and their values.
    """

    image: Path
    label: int
    text: str
    origin: str
    more: tuple[tuple[str, str], ...] = ()


def read_table(path: Path, *, base_dir: Path | None, encoding: str = UTF8, unmask: bool = False) -> list[AdRow]:
    """Read a table with labels.

    Args:
        path: The CSV file, with or without byte order mark.
        base_dir: Where relative paths start. All paths, absolute ones included, must stay in it after symbolic links
            are followed. None: relative paths start at the table's folder and stay in it, absolute ones are free.
        encoding: Of the file, by Python's name.
        unmask: See `clean_text`.

    Returns:
        The rows in file order; every image is a file.

    Raises:
        UserError: The table cannot be used; all its problems are named together, with their lines.
    """
    places = Places(path, base_dir)
    problems: list[str] = []
    rows: list[AdRow] = []
    for line, values in read_records(path, COLUMNS, hints=_HINTS, encoding=encoding):
        found: list[str] = []
        image = find_image(places, values["local_image_path"], line=line, problems=found)
        label = _label(values["label"], found)
        if image is not None and label is not None:
            text, origin = clean_text(values["text_info"], unmask=unmask), f"{path}, line {line}"
            rows.append(AdRow(image, label, text, origin, more=further(values, COLUMNS)))
        problems += [f"line {line}: {problem}" for problem in found]
    if problems:
        raise failed(path, problems)
    if not rows:
        raise UserError(f"{path}: no rows below the header")
    return rows


def _label(text: str, problems: list[str]) -> int | None:
    label = LABELS.get(text.lower())
    if label is None:
        given = repr(_short(text)) if text else "empty"
        problems.append(f"label is {given}; expected true, yes or 1 for an ad, false, no or 0 otherwise")
    return label


def clean_text(text: str, *, unmask: bool = False) -> str:
    """A text as the encoder gets it: composed Unicode (NFC), no control characters but line breaks and tabs, stripped.

    "nan", which tables of missing values often hold, is no text.

    Args:
        text: As it comes.
        unmask: Undo what hides words from a filter: letters of other widths and fonts (NFKC), invisible characters, and
            in words with Latin letters those that look like Latin ones.
    """
    if unmask:
        text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
        table = str.maketrans(dict(LOOKALIKES))
        text = _LATIN_WORD.sub(lambda word: word[0].translate(table), text)
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text.isprintable():  # a line break is not printable either; most short texts stop here
        text = "".join(c for c in text if c in _KEPT_CONTROLS or unicodedata.category(c) not in ("Cc", "Cs"))
    text = text.strip()
    return "" if text.lower() == "nan" else text


def find_image(places: Places, text: str, *, line: int, problems: list[str]) -> Path | None:
    """The image that a cell names; None, and what is wrong added to `problems`, where a row cannot have it."""
    try:
        image = places.find(text)
        places.only_once(image, line=line, text=text, what="image")
    except UserError as error:
        problems.append(str(error))
        return None
    return image


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"

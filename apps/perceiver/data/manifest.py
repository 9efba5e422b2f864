"""Tables of raw samples, and folders of texts: what is in their cells is read when it is asked for.

A table (CSV, JSON Lines, Parquet) has a column for each modality (see ``raw.py``), ``label``, and perhaps ``split``
(train, val, test) and ``group``: samples of one group stay in one part of every split. Paths start at the table's
folder and stay in it. A folder of texts is ``[split/]class/name.txt``.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.data.images import find_images
from mlcore.data.places import Places
from mlcore.data.tables import TABLES, Table, open_table, warn_of_misspelt
from quartet.apps.perceiver.config import DataConfig
from quartet.apps.perceiver.data.images import SPLITS
from quartet.apps.perceiver.data.labels import in_order
from quartet.apps.perceiver.data.raw import KINDS, Modality, Raw, RawReader, kind_of, size_of
from quartet.apps.perceiver.data.samples import Sample, prevailing

__all__ = ["RawDataset", "load_raw", "read_like", "read_text"]

_log = logging.getLogger(__name__)

_OWN = ("label", "split", "group")  # columns that are no modality


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What is known of a row before its modalities are read; `problem` says why it cannot be used."""

    place: int
    label: str = ""
    split: str = ""
    group: str = ""
    problem: str = ""


class _Source(Protocol):
    """Where rows come from."""

    def cells(self, place: int) -> Mapping[str, str]:
        """Text by column."""

    def where(self, place: int) -> str:
        """How messages call it."""


class _Texts:
    """The texts of a folder."""

    def __init__(self, folder: Path) -> None:
        self._files = [path for path in find_images(folder, [".txt"]) if path.parent != folder]
        places = [path.relative_to(folder).parent for path in self._files]
        if not self._files:
            raise UserError(
                f"{folder}: no texts found; expected <class>/<name>.txt, perhaps below train/, val/ and test/"
            )
        self.rows = [
            _Row(place=number, label=place.name, split=SPLITS.get(place.parent.name.lower(), ""))
            for number, place in enumerate(places)
        ]
        splits = {row.split for row in self.rows}
        if "" in splits and splits - {""}:
            raise UserError(f"{folder}: some texts are below train/, val/ or test/, others are not")

    def cells(self, place: int) -> Mapping[str, str]:
        """The text."""
        return {"text": read_text(self._files[place])}

    def where(self, place: int) -> str:
        """Its file."""
        return str(self._files[place])


class _Rows:
    """The rows of a table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.cells, self.where = table.record, table.where
        self.rows = [self._row(place) for place in range(len(table))]

    def _row(self, place: int) -> _Row:
        try:
            cells = self.cells(place)
        except UserError as error:  # told of as a bad sample
            return _Row(place=place, split="train" if "split" in self._table.columns else "", problem=str(error))
        split = cells.get("split", "")
        if "split" in cells and split.lower() not in SPLITS:
            raise UserError(f"{self.where(place)}: split is {split[:40]!r}; expected train, val or test")
        return _Row(
            place=place, label=cells.get("label", ""), split=SPLITS.get(split.lower(), ""), group=cells.get("group", "")
        )


class RawDataset(torch.utils.data.Dataset[Sample]):
    """Samples whose ``input`` is what a row has, by modality; see ``Values``.

    Args:
        source: Where rows come from.
        rows: Those that are meant.
        classes: Names of the classes, in label order.
        reader: Reads a row.

    Attributes:
        labels: int64 [N]; -1 where a row's label is no class, which is told when the row is asked for.
    """

    def __init__(self, source: _Source, rows: Sequence[_Row], *, classes: Sequence[str], reader: RawReader) -> None:
        self._source, self._rows, self.classes, self.reader = source, rows, tuple(classes), reader
        places = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.array([places.get(row.label, -1) for row in rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row, where = self._rows[index], self.origin(index)
        try:
            if row.problem:
                raise UserError(row.problem)
            if self.labels[index] < 0:
                raise UserError(f"label {row.label[:40]!r} is not one of {', '.join(self.classes)}")
            return {"input": self.reader(self._source.cells(row.place)), "label": int(self.labels[index])}
        except UserError as error:
            raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None

    def origin(self, index: int) -> str:
        """File and line."""
        return self._source.where(self._rows[index].place)

    def group(self, index: int) -> str:
        """What the sample belongs to; "": to nothing."""
        return self._rows[index].group

    def value(self, index: int, name: str) -> Raw | None:
        """One modality of a row; None where the row does not have it, or is none."""
        row = self._rows[index]
        cell = "" if row.problem else self._source.cells(row.place).get(name, "")
        try:
            return self.reader.read(name, cell) if cell else None
        except UserError as error:
            raise UserError(f"{self.origin(index)}: {error}") from None


def load_raw(settings: DataConfig, path: Path) -> dict[str, RawDataset]:
    """The parts that the data section names: at least "train"; parts of their own files come before the table's.

    Args:
        settings: Which modalities are looked at, how they are read, and the other files.
        path: The table, or a folder of texts.

    Raises:
        UserError: It cannot be read, has no label, no modality or no training rows, or a group is in two parts.
    """
    source, columns, rows = _opened(path, settings)
    train = [row for row in rows if row.split in ("", "train")]
    if not train:
        raise UserError(f"{path}: no row of the split train")
    classes = in_order({row.label for row in train if row.label})
    reader = RawReader(columns=columns, find=Places(path, None).find, settings=settings)
    modalities = _modalities(RawDataset(source, train, classes=classes, reader=reader), columns, settings)
    held_out = {name: [row for row in rows if row.split == name] for name in ("val", "test")}
    parts = {
        name: RawDataset(source, those, classes=classes, reader=reader.known(modalities))
        for name, those in {"train": train, **held_out}.items()
        if those
    }
    for name, other in (("val", settings.val_path), ("test", settings.test_path)):
        if other is not None:
            parts[name] = read_like(other, settings, classes=classes, modalities=modalities)
    _check_groups(parts)
    return parts


def read_like(
    path: Path, settings: DataConfig, *, classes: Sequence[str], modalities: Sequence[Modality]
) -> RawDataset:
    """All rows of another table or folder, as samples like those of the training data.

    Raises:
        UserError: It cannot be read, has no label, or columns that the training data does not have.
    """
    source, columns, rows = _opened(path, settings)
    if strange := set(columns) - {modality.name for modality in modalities}:
        raise UserError(f"{path}: the column {min(strange)} is not in the training data; leave it out")
    reader = RawReader(columns=columns, find=Places(path, None).find, settings=settings)
    return RawDataset(source, rows, classes=classes, reader=reader.known(modalities))


def _opened(path: Path, settings: DataConfig) -> tuple[_Source, list[str], list[_Row]]:
    """What a table or folder is, its modalities and its rows."""
    if settings.dataset == "text" and path.is_dir():
        texts = _Texts(path)
        return texts, ["text"], texts.rows
    if path.suffix.lower() not in TABLES:
        folder = " or a folder with one subfolder for each class" if settings.dataset == "text" else ""
        raise UserError(f"{path}: expected a table ({', '.join(TABLES)}){folder}")
    table = open_table(path)
    try:
        columns = [
            name
            for name in table.columns
            if kind_of(name) and (settings.dataset == "manifest" or kind_of(name) == "text")
        ]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not columns or "label" not in table.columns:
        raise UserError(
            f"{path}: its columns are {', '.join(table.columns)}; expected label and at least one of text, image, "
            "series (several of a kind: text:title, image:front)"
        )
    own = [name for name in _OWN if name in table.columns]
    _log.info("%s: reads %s; %s", path, ", ".join(columns), ", ".join(own))
    rest = [name for name in table.columns if not kind_of(name) or name in columns]  # others are left out on purpose
    warn_of_misspelt(path, rest, [*_OWN, *columns, *(KINDS if settings.dataset == "manifest" else ("text",))])
    found = _Rows(table)
    if not found.rows:
        raise UserError(f"{path}: no rows below the header")
    return found, columns, found.rows


def _modalities(dataset: RawDataset, columns: Sequence[str], settings: DataConfig) -> list[Modality]:
    """The modalities, each of the size that most of its values have; a column without values is none."""
    patches = {"text": settings.text_patch, "image": settings.patch_size, "series": settings.series_patch}
    problems: dict[str, UserError] = {}

    def sizes(name: str) -> Iterator[tuple[int, ...]]:
        for index in range(len(dataset)):
            try:
                if (value := dataset.value(index, name)) is not None:
                    yield size_of(kind_of(name), value)
            except UserError as error:
                problems.setdefault(name, error)

    found = {name: prevailing(sizes(name)) for name in columns}
    if lost := [name for name, size in found.items() if size is None and name in problems]:
        raise problems[min(lost)]
    return [
        Modality(name=name, kind=kind_of(name), patch=patches[kind_of(name)], size=size)
        for name, size in found.items()
        if size is not None
    ]


def _check_groups(parts: Mapping[str, RawDataset]) -> None:
    """Refuse a group in two parts: figures of held-out samples would be too good."""
    seen: dict[str, tuple[str, str]] = {}
    for name, dataset in parts.items():
        for index in range(len(dataset)):
            if group := dataset.group(index):
                part, first = seen.setdefault(group, (name, dataset.origin(index)))
                if part != name:
                    raise UserError(
                        f"{dataset.origin(index)}: the group {group[:40]!r} is in {name}, and in {part} ({first}); a "
                        "group belongs to one part"
                    )


def read_text(path: Path) -> str:
    """A file of UTF-8, with or without byte order mark."""
    with reading(path, "a text in UTF-8"):
        return path.read_text(encoding="utf-8-sig")

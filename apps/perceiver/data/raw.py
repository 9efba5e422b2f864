"""Raw samples of several modalities: texts as UTF-8 bytes, pictures as pixels, series as numbers, and nothing else.

A modality is a column of a table: ``text``, ``image`` or ``series``, or, where there are several of a kind, that and a
name: ``text:title``, ``image:front``, ``series:ecg``. A row may leave any of them empty, but not all.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.data.packed import read_arrays
from quartet.apps.perceiver.config import DataConfig
from quartet.apps.perceiver.data.gaps import settle
from quartet.apps.perceiver.data.images import decode_image
from quartet.apps.perceiver.data.inspection import too_long

Raw = NDArray[Any]
Values = Mapping[str, Raw]
"""What a sample has, by modality: text uint8 ``[bytes]``, image uint8 ``[H, W, 3]``, series float32 ``[steps, C]``."""

KINDS = ("text", "image", "series")
SERIES_FILES = (".npy", ".npz", ".csv")
_COLUMN = re.compile(rf"({'|'.join(KINDS)})(:\w+)?")


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One input of a model, as its checkpoints note it.

    Attributes:
        name: Its column.
        kind: What it is.
        patch: What becomes one token: so many bytes, time steps, or pixels a side.
        size: What all its values have in common: height and width of pictures, channels of series, nothing of texts.
        longest: Most tokens that its positions know; None: any number.
    """

    name: str
    kind: Literal["text", "image", "series"]
    patch: int
    size: Sequence[int] = ()
    longest: int | None = None

    def tokens(self, value: Raw) -> int:
        """How many tokens a value becomes."""
        if self.kind == "image":
            height, width, _ = value.shape
            return int(height // self.patch * (width // self.patch))
        return -(-len(value) // self.patch)

    def check(self, value: Raw) -> None:
        """Refuse a value of another size, or of more tokens than the model has positions for."""
        if (size := size_of(self.kind, value)) != tuple(self.size):
            what = "x".join(map(str, size)), "x".join(map(str, self.size))
            unit = "channels" if self.kind == "series" else "pixels (set image_size)"
            raise UserError(f"{self.name}: {what[0]} {unit} where others have {what[1]}")
        if self.longest is not None and self.tokens(value) > self.longest:
            raise UserError(
                f"{self.name}: {self.tokens(value)} tokens are more than the {self.longest} that the model's positions "
                "know; shorten it, or train with --position sinusoidal"
            )

    def values(self) -> dict[str, Any]:
        """Itself as plain values, from which it can be made again."""
        return {**asdict(self), "size": list(self.size)}


def modalities_of(metadata: Mapping[str, Any]) -> list[Modality]:
    """Those of a model of raw samples, of what its checkpoint or export notes; none of another model."""
    return [Modality(**values) for values in metadata["model"]["options"].get("modalities", ())]


def size_of(kind: str, value: Raw) -> tuple[int, ...]:
    """What all values of a modality must have in common."""
    return {"text": (), "image": value.shape[:2], "series": value.shape[1:]}[kind]


def kind_of(column: str) -> Any:
    """The kind of modality that a column holds; None: it holds something else.

    Raises:
        UserError: Its name is meant as one and is none.
    """
    if _COLUMN.fullmatch(column):
        return column.partition(":")[0]
    if column.partition(":")[0] in KINDS and ":" in column:
        raise UserError(
            f"the column {column!r} needs a name of letters, digits and _ after the colon, as in text:title"
        )
    return None


@dataclass(frozen=True, kw_only=True)
class RawReader:
    """Reads the cells of a row.

    Attributes:
        columns: Names of the modalities.
        find: The file that a cell names.
        settings: How pictures, long sequences and gaps are treated.
        modalities: What values must be like; empty: not known yet.
    """

    columns: Sequence[str]
    find: Callable[[str], Path]
    settings: DataConfig
    modalities: Sequence[Modality] = ()

    def __call__(self, cells: Mapping[str, str]) -> dict[str, Raw]:
        """What the row has.

        Raises:
            UserError: It has nothing, or something that cannot be read or is of another size than in other rows.
        """
        found = {name: self.read(name, cells[name]) for name in self.columns if cells.get(name)}
        if not found:
            raise UserError(f"there is nothing in {', '.join(self.columns)}; expected at least one of them")
        for modality in self.modalities:
            if modality.name in found:
                modality.check(found[modality.name])
        return found

    def read(self, name: str, cell: str) -> Raw:
        """One cell that is not empty."""
        try:
            return self._read(kind_of(name), cell)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def _read(self, kind: str, cell: str) -> Raw:
        if kind == "image":
            return self._image(cell)
        return self._fit(_as_bytes(cell) if kind == "text" else self._series(cell))

    def _image(self, cell: str) -> Raw:
        path, settings = self.find(cell), self.settings
        pixels = round(settings.max_megapixels * 1e6)
        return decode_image(path, origin=str(path), image_size=settings.image_size, max_pixels=pixels)

    def known(self, modalities: Sequence[Modality]) -> "RawReader":
        """The same, which also knows what values must be like."""
        return replace(self, columns=[modality.name for modality in modalities], modalities=modalities)

    def _series(self, cell: str) -> Raw:
        if cell.startswith("["):
            with reading("the list", "a series: a list of numbers, or of lists of one number for each channel"):
                series = np.array(json.loads(cell, parse_constant=float), dtype=np.float32)
        else:
            series = read_series(self.find(cell))
        series = series[:, None] if series.ndim == 1 else series
        if series.ndim != 2 or 0 in series.shape:
            raise UserError(f"a series of shape {list(series.shape)}; expected [steps] or [steps, channels]")
        series, _ = settle(series, on_missing=self.settings.on_missing)
        if not np.isfinite(series).all():
            step, channel = np.argwhere(~np.isfinite(series))[0]
            raise UserError(
                f"step {step}, channel {channel} is {series[step, channel]}, not a finite number; "
                "--on_missing interpolate draws lines over gaps"
            )
        return series

    def _fit(self, value: Raw) -> Raw:
        limit = self.settings.max_seq_len
        if limit is not None and len(value) > limit and self.settings.on_too_long == "error":
            raise too_long(len(value), limit)
        return value[:limit]


def _as_bytes(text: str) -> Raw:
    """UTF-8, uint8 ``[bytes]``; a NUL, which batches are padded with, becomes a space."""
    return np.frombuffer(text.encode().replace(b"\0", b" "), dtype=np.uint8)


def read_series(path: Path) -> Raw:
    """The numbers of a ``.npy`` file, of the one array of an ``.npz`` file, or of a CSV file with a line for each step.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
    suffix = path.suffix.lower()
    if suffix not in SERIES_FILES:
        raise UserError(f"{path}: expected a series: {', '.join(SERIES_FILES)}, or a list of numbers in the cell")
    if suffix == ".npz":
        arrays = read_arrays(path)
        if len(arrays) != 1:
            raise UserError(f"{path}: holds the arrays {', '.join(arrays) or 'none'}; expected one, the series")
        (found,) = arrays.values()
    else:
        with reading(path, "a series of numbers"):
            # A map is refused where the header says more than the file has; reading would make room for it first.
            found = np.load(path, mmap_mode="r", allow_pickle=False) if suffix == ".npy" else _read_csv(path)
    if found.dtype.kind not in "biuf":
        raise UserError(f"{path}: holds {found.dtype}, not numbers")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return np.array(found, dtype=np.float32)


def _read_csv(path: Path) -> Raw:
    """Channels by column, under their names or not; an empty cell is a gap."""
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline().strip().split(",")
        names = not all(_is_number(cell) for cell in first)
        file.seek(0)
        return np.loadtxt(
            file, delimiter=",", skiprows=int(names), ndmin=2, converters=lambda cell: float(cell.strip() or "nan")
        )


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True

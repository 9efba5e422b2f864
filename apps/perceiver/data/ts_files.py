"""The ``.ts`` format of the UEA and UCR time series archives (Bagnall et al., arXiv 1811.00075).

A header of ``@key value`` lines, then after ``@data`` one series a line: channels separated by ``:``, their values by
``,``, the class last, or with ``@targetLabel true`` a number. ``?`` is a missing value; a series ends where only such
follow. Lines that start with ``#`` are comments. With ``@timeStamps true`` values are pairs ``(stamp,value)``, of which
each channel may have others: where it has none, its value is missing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from quartet.apps.perceiver.config import TaskKind
from quartet.apps.perceiver.data.gaps import OnMissing, settle
from quartet.apps.perceiver.data.samples import Array, SequenceDataset
from quartet.apps.perceiver.data.targets import Targets, as_number
from quartet.apps.perceiver.data.times import as_times, fault, told

_WHOLE = re.compile(r"0*[1-9][0-9]{0,8}")
_PAIR, _COLON = re.compile(r"\([^()]*\)"), "\0"


@dataclass
class _Header:
    classes: tuple[str, ...] | None = None
    target: str = ""  # where it says that series end with a target
    channels: int | None = None
    equal_length: int | None = None
    unequal: bool = False
    timed: bool = False


def read_ts(
    path: Path,
    *,
    classes: tuple[str, ...] | None = None,
    labelled: bool = True,
    on_missing: OnMissing = "error",
    strict: bool = True,
    kind: TaskKind = "classification",
) -> SequenceDataset:
    """Reads a ``.ts`` file.

    Args:
        path: The file, UTF-8, with or without a byte order mark.
        classes: The classes in the order that gives labels, for a test file; ``None``: those of the file's header.
        labelled: Whether it must have classes; otherwise those it may have are not looked at, and all labels are 0.
        on_missing: What to do with missing values before the end of a series, see ``settle``.
        strict: Whether a line that cannot be used is an error now; otherwise when its sample is asked for.
        kind: The task: regression reads targets, forecast and masked neither these nor classes.

    Returns:
        Its series ``[M, C]`` in file order; ``classes`` as in the header; ``origin`` names file and line.

    Raises:
        UserError: If the file is missing, has not what the task asks, or a line cannot be read (named by number).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; a .ts file of the UEA/UCR archive is expected")
    with reading(path, "text in UTF-8"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    numbered = _content(lines)
    header = _read_header(path, numbered)
    named, numbered_by = labelled and kind == "classification", labelled and kind == "regression"
    _check_asked(path, header, kind if labelled else None)
    known = {name: number for number, name in enumerate(classes or header.classes or ())} if named else {"0": 0}
    read = partial(_read_line, header=header, known=known if named else None, target=numbered_by, on_missing=on_missing)
    lines_read: list[_Line] = []
    problems: dict[int, str] = {}
    for number, line in numbered:
        where = f"{path}, line {number}"
        try:
            lines_read.append(read(where, line))
        except UserError as error:
            if strict:
                raise
            problems[len(lines_read)] = str(error)
            empty = np.zeros((0, 1), dtype=np.float32), np.zeros(0, dtype=bool), np.zeros(0)
            lines_read.append(_Line(where, *empty, -1, np.zeros(1)))
    if not lines_read:
        raise UserError(f"{path}: no series after @data; the file is empty or cut off")
    origins, series, masks, times, labels, values = zip(*lines_read, strict=True)
    return SequenceDataset(
        series,
        labels=labels,
        classes=tuple(known),
        origins=origins,
        masks=masks,
        times=times if header.timed else None,
        problems=problems,
        targets=Targets(values=values, names=("target",)) if numbered_by else None,
    )


def _check_asked(path: Path, header: _Header, kind: TaskKind | None) -> None:
    """Whether series have what the task asks; None: nothing is asked."""
    if kind == "classification" and header.target:
        raise UserError(f"{header.target}: regression targets, which --task regression learns; expected classes")
    if kind == "classification" and header.classes is None:
        raise UserError(f"{path}: the header has no '@classLabel true ...' line; only labelled series can be used")
    if kind == "regression" and not header.target:
        raise UserError(f"{path}: the header has no '@targetLabel true' line; --task regression wants one")
    if kind in ("multilabel", "per_step"):
        raise UserError(f"{path}: a .ts file has one class or one target a series; --task {kind} reads .npz files")


class _Line(NamedTuple):
    """One series: its origin, the series, its mask, its time stamps, its label, its target."""

    where: str
    series: Array
    mask: NDArray[np.bool_]
    times: NDArray[np.float64]
    label: int
    target: NDArray[np.float64]


def _read_line(
    where: str, line: str, *, header: _Header, known: Mapping[str, int] | None, target: bool, on_missing: OnMissing
) -> _Line:
    ends = header.classes is not None or bool(header.target)
    if header.timed:  # a stamp may be a date with a time of day
        line = _PAIR.sub(lambda pair: pair[0].replace(":", _COLON), line)
    *channels, label = line.split(":") if ends else [*line.split(":"), ""]
    if known is not None and label.strip() not in known:
        raise UserError(f"{where}: class {label.strip()[:40]!r} is not one of {', '.join(known)}")
    series, times = _read_series(where, channels, header)
    series, mask = settle(series, on_missing=on_missing, times=times if header.timed else None)
    value = as_number(where, label) if target else 0.0
    number = 0 if known is None else known[label.strip()]
    return _Line(where, series, mask, times[: len(series)], number, np.array([value]))


def _content(lines: list[str]) -> Iterator[tuple[int, str]]:
    stripped = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return ((number, line) for number, line in stripped if line and not line.startswith(("#", "%")))


def _read_header(path: Path, numbered: Iterator[tuple[int, str]]) -> _Header:
    header = _Header()
    for number, line in numbered:
        where = f"{path}, line {number}"
        key, *values = line.split()
        key = key.lower()
        if not key.startswith("@"):
            raise UserError(f"{where}: expected a header line that starts with @, or @data; got {line[:40]!r}")
        if key == "@data":
            return header
        _read_tag(where, key, values, header)
    raise UserError(f"{path}: no @data line; this is not a .ts file, or it is cut off")


def _read_tag(where: str, key: str, values: list[str], header: _Header) -> None:
    if key == "@timestamps":
        header.timed = _is_true(where, key, values)
    if key == "@equallength":
        header.unequal = values[:1] in (["false"], ["False"])
    if key == "@targetlabel" and _is_true(where, key, values):
        header.target = where
    if key == "@univariate" and _is_true(where, key, values):
        header.channels = 1
    elif key in ("@dimensions", "@dimension"):
        header.channels = _number(where, key, values)
    elif key == "@serieslength" and len(values) == 1 and _WHOLE.fullmatch(values[0]):
        header.equal_length = int(values[0])  # others (0, -1, ?, nothing) are how some say that lengths differ
    elif key == "@classlabel" and _is_true(where, key, values):
        if len(values) < 2 or len(set(values[1:])) != len(values) - 1:
            raise UserError(f"{where}: @classLabel true must be followed by the distinct names of all classes")
        header.classes = tuple(values[1:])
    # Other keys (@problemName, @missing, @equalLength, ...) say nothing that the data does not.


def _is_true(where: str, key: str, values: list[str]) -> bool:
    if not values or values[0].lower() not in ("true", "false"):
        raise UserError(f"{where}: {key} must be followed by true or false")
    return values[0].lower() == "true"


def _number(where: str, key: str, values: list[str]) -> int:
    if len(values) != 1 or not _WHOLE.fullmatch(values[0]):
        raise UserError(f"{where}: {key} must be followed by a number of at least 1")
    return int(values[0])


def _read_series(where: str, channels: list[str], header: _Header) -> tuple[Array, NDArray[np.float64]]:
    """A series ``[M, C]`` and its time stamps ``[M]``, or numbers of positions."""
    if not channels:
        raise UserError(f"{where}: no series before the class; is a ':' missing?")
    if header.channels is not None and len(channels) != header.channels:
        raise UserError(f"{where}: {len(channels)} channels where the header says {header.channels}")
    read = _timed_values if header.timed else _values
    rows = [read(f"{where}, channel {number}", text) for number, text in enumerate(channels, start=1)]
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 and not header.timed:
        raise UserError(f"{where}: its channels have different lengths: {sorted(lengths)}")
    if not (header.equal_length is None or header.unequal) and lengths != {header.equal_length}:
        raise UserError(f"{where}: {lengths.pop()} values where @seriesLength says {header.equal_length}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the inspection refuses
        if not header.timed:
            return np.array(rows, dtype=np.float32).T.copy(), np.arange(lengths.pop(), dtype=np.float64)
        pairs = [np.array(row, dtype=np.float64).reshape(-1, 2) for row in rows]
        times = np.unique(np.concatenate([pair[:, 0] for pair in pairs]))
        series = np.full((len(times), len(pairs)), np.nan, dtype=np.float32)
        for channel, pair in enumerate(pairs):
            series[np.searchsorted(times, pair[:, 0]), channel] = pair[:, 1]
    return series, times


def _timed_values(where: str, text: str) -> list[tuple[float, float]]:
    """The pairs of time stamp and value of a channel; a `UserError` names where stamps do not rise."""
    text = text.replace(_COLON, ":").strip()
    if not text:
        return []
    if not (text.startswith("(") and text.endswith(")")):
        raise UserError(f"{where}: expected (time,value),(time,value), as @timeStamps true says; got {text[:40]!r}")
    pairs = [pair.rpartition(",") for pair in re.split(r"\)\s*,\s*\(", text[1:-1])]
    times = as_times(np.array([stamp for stamp, _, _ in pairs]))
    if (place := fault(times)) is not None:
        raise UserError(f"{where}, pair {place + 1}: {told(times, place)}")
    return list(zip(times.tolist(), (_value(where, value.strip()) for _, _, value in pairs), strict=True))


def _values(where: str, text: str) -> list[float]:
    if "(" in text:
        raise UserError(f"{where}: pairs (time,value), and the header does not say @timeStamps true")
    if not text.strip():
        return []
    return [_value(where, item.strip()) for item in text.split(",")]


def _value(where: str, item: str) -> float:
    if item == "?":
        return float("nan")
    try:
        return float(item)
    except ValueError:
        raise UserError(f"{where}: {item[:40]!r} is not a number (a missing value is written ?)") from None


def find_ts_files(folder: Path) -> tuple[Path, Path | None]:
    """Finds ``*_TRAIN.ts`` and, where there is one, ``*_TEST.ts`` in a folder of the archive.

    Raises:
        UserError: If there is not exactly one training file.
    """
    train = _matching(folder, "_train.ts")
    if len(train) != 1:
        raise UserError(f"{folder}: expected one file named *_TRAIN.ts, found {len(train)}")
    test = _matching(folder, "_test.ts")
    return train[0], test[0] if test else None


def _matching(folder: Path, ending: str) -> list[Path]:
    files: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if file.name.lower().endswith(ending))

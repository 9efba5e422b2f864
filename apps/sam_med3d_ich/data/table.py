"""The table of cases: a CSV file with the columns path, ich and patient_id, and a folder of masks.

    path,ich,patient_id
    scans/12.pkl,1,patient_001
    scans/13.nii.gz,0,patient_002

The mask of `scans/12.pkl` is `12.nii` or `12.nii.gz` in the mask folder.
"""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.data.records import as_stored, failed, read_records
from quartet.apps.sam_med3d_ich.data.case import Case
from quartet.apps.sam_med3d_ich.data.volume import MASK_SUFFIXES, SUFFIXES, volume_name
from quartet.apps.sam_med3d_ich.data.words import counted, listed

__all__ = ["COLUMNS", "MaskFolder", "check_patients", "mask_key", "read_cases"]

COLUMNS = ("path", "ich", "patient_id")
_ICH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # a table with gaps makes pandas write whole numbers as 1.0


def read_cases(csv_path: Path, *, mask_dir: Path) -> list[Case]:
    """Read a table; further columns are ignored, relative paths start at the table's folder.

    A mask belongs to a case if its name is the image's, or the same number with other leading zeros (7.nii for
    007.pkl). `ich` 0 without a mask file is an empty mask.

    Returns:
        The cases in file order; every image and mask exists.

    Raises:
        UserError: The table cannot be used; all its problems are named together, with their lines.
    """
    masks = MaskFolder(mask_dir)
    problems: list[str] = []
    cases: list[Case] = []
    seen = _Seen()
    for line, row in read_records(csv_path, COLUMNS):
        found: list[str] = []
        case = _case(row, found, csv_path=csv_path, line=line, masks=masks)
        if case is not None:
            found += seen.problems(case, line)
            cases.append(case)
        problems += [f"line {line}: {problem}" for problem in found]
    if problems:
        raise failed(csv_path, problems)
    if not cases:
        raise UserError(f"{csv_path}: no rows below the header {','.join(COLUMNS)}")
    return cases


def check_patients(train: Sequence[Case], validation: Sequence[Case], *, allow: bool) -> str | None:
    """Find patients (and images) that are in both splits, whose validation figures would be too good.

    Returns:
        None where there are none, otherwise (with `allow`) the message to warn with.

    Raises:
        UserError: There are some and `allow` is false; it lists them.
    """
    shared = sorted({case.patient_id for case in train} & {case.patient_id for case in validation})
    twice = sorted({os.path.realpath(c.image) for c in train} & {os.path.realpath(c.image) for c in validation})
    if not shared and not twice:
        return None
    parts = []
    for names, what in ((shared, "patient"), (twice, "image")):
        if names:
            parts.append(f"{counted(len(names), what)} in both splits: {listed(names)}")
    message = f"{_table(train)} and {_table(validation)}: {'; '.join(parts)}"
    if not allow:
        raise UserError(
            f"{message}. The validation figures would be too good: split by patient, or allow it with "
            "--allow_shared_patients"
        )
    return message


def mask_key(name: str) -> str:
    """What an image's and its mask's names must agree in: numbers without leading zeros, letters in composed form."""
    name = unicodedata.normalize("NFC", name)  # some systems store accents and Hangul decomposed
    return str(int(name)) if name.isascii() and name.isdecimal() else name


class MaskFolder:
    """The masks in a folder, found by the names of their images.

    Args:
        folder: It.

    Raises:
        UserError: It cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise UserError(f"{folder}: the mask folder cannot be read: {error.strerror or error}") from None
        self._masks: dict[str, list[Path]] = {}
        for path in paths:
            if path.name.lower().endswith(MASK_SUFFIXES) and not path.name.startswith("."):
                self._masks.setdefault(mask_key(volume_name(path)), []).append(path)

    def case(self, image: Path, ich: str, *, patient_id: str, origin: str) -> Case:
        """The case of an image; raises `UserError` where its mask or what is told of it (`ich`) cannot be used."""
        name, told = volume_name(image), _read_ich(ich)
        masks = self._masks.get(mask_key(name), [])
        if len(masks) > 1:
            names = " and ".join(path.name for path in masks)
            raise UserError(f"{names} in {self._folder} could both be the mask of {image.name}; keep one")
        if told and not masks:
            raise UserError(f"ich is 1, but {self._folder} has no {name}.nii or {name}.nii.gz for {image}")
        return Case(name, image, masks[0] if masks else None, told, patient_id, origin)


def _read_ich(text: str) -> int:
    if text not in _ICH:
        raise UserError(f"ich is '{text}'; expected 0 or 1")
    return _ICH[text]


class _Seen:
    """Which line an image or a mask was met in before."""

    def __init__(self) -> None:
        self._images: dict[str, int] = {}
        self._masks: dict[Path, int] = {}

    def problems(self, case: Case, line: int) -> list[str]:
        found = []
        first = self._images.setdefault(os.path.realpath(case.image), line)
        if first != line:
            found.append(f"the same image as in line {first}: {case.image}")
        elif case.mask is not None and (first := self._masks.setdefault(case.mask, line)) != line:
            found.append(f"the mask {case.mask} also belongs to line {first}; give the images different names")
        return found


def _case(
    row: Mapping[str, str], problems: list[str], *, csv_path: Path, line: int, masks: "MaskFolder"
) -> Case | None:
    """The row's case, or None; what is wrong is added to `problems`."""
    image = _image(row["path"], problems, folder=csv_path.parent)
    found = None
    try:
        _read_ich(row["ich"])
        if image is not None:
            found = masks.case(image, row["ich"], patient_id=row["patient_id"], origin=f"{csv_path}, line {line}")
    except UserError as error:
        problems.append(str(error))
    if not row["patient_id"]:
        problems.append("patient_id is empty")
    return found


def _image(text: str, problems: list[str], *, folder: Path) -> Path | None:
    if not text:
        problems.append("path is empty")
        return None
    if not text.lower().endswith(SUFFIXES):
        problems.append(f"{text} is no volume; expected {', '.join(SUFFIXES)}")
        return None
    found = None
    with suppress(OSError, ValueError):  # too long, a NUL in it: no file in any case
        path = as_stored(folder / text)
        found = path if path.is_file() else None
    if found is None:
        where = "" if Path(text).is_absolute() else f" (relative paths start at {folder.absolute()})"
        problems.append(f"no such file: {text}{where}")
    return found


def _table(cases: Sequence[Case]) -> str:
    return cases[0].origin.rpartition(", line ")[0]

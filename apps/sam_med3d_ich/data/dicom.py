"""DICOM series as volumes: HU through the files' rescale slope and intercept, geometry from the slices' positions.

Slices are sorted by position along the normal of their plane. Missing, doubled and unevenly spaced slices are refused,
because a volume has one slice distance; a tilted gantry is kept as shear in the affine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.geometry import checked_affine, three_axes
from quartet.apps.sam_med3d_ich.data.volume import Volume
from quartet.apps.sam_med3d_ich.data.words import counted

__all__ = ["Series", "find_series", "read_series", "series_in"]

sitk: Any = SimpleITK  # half of it has no types

_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_DESCRIPTION, _SPACING = "0008|103e", "0028|0030"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN = 0.02  # share of the slice distance by which distances may differ; positions are rounded in many files


@dataclass(frozen=True)
class Series:
    """The files of one series in one folder, sorted by name."""

    folder: Path
    uid: str
    description: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        text = f" '{self.description}'" if self.description else ""
        return f"{self.uid}{text}, {counted(len(self.files), 'file')}, in {self.folder}"


def find_series(folder: Path) -> list[Series]:
    """Every DICOM series in `folder` and the folders below it, in the order of their paths and UIDs."""
    places = sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())])
    return [series for place in places for series in series_in(place)]


def series_in(folder: Path) -> list[Series]:
    """Every DICOM series whose files are in `folder` itself."""
    if not any(path.is_file() for path in folder.iterdir()):
        return []
    warn = False  # of every file that is not DICOM
    sitk.ProcessObject.SetGlobalWarningDisplay(warn)
    found = []
    for uid in sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        files = tuple(sorted(Path(name) for name in names))
        found.append(Series(folder, uid, _tag(_header(files[0]), _DESCRIPTION), files))
    return found


def read_series(series: Series) -> Volume:
    """Read a series.

    Raises:
        UserError: A file is damaged or lacks its place in the patient, or the slices do not form one even stack.
    """
    if len(series.files) == 1:
        return _read_one_file(series.files[0])
    slices = [_Slice.read(path) for path in series.files]
    row, column = slices[0].row, slices[0].column
    for other in slices[1:]:
        if np.abs(np.concatenate([other.row - row, other.column - column])).max() > 1e-3:
            raise UserError(f"{other.path}: its plane is turned against that of {slices[0].path}; not one volume")
        if other.size != slices[0].size or not np.allclose(other.spacing, slices[0].spacing, rtol=1e-4):
            raise UserError(f"{other.path}: its size or pixel spacing is not that of {slices[0].path}; not one volume")
    normal = np.cross(row, column)
    slices.sort(key=lambda one: float(one.position @ normal))
    positions = np.stack([one.position for one in slices])  # [Z, 3], mm, LPS
    _check_even(series, [one.path for one in slices], positions @ normal)
    image = _execute(series.folder, [one.path for one in slices])
    affine = np.eye(4)
    affine[:3, 0] = row * slices[0].spacing[0]
    affine[:3, 1] = column * slices[0].spacing[1]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine[:3, 3] = positions[0]
    return _volume(series.folder, image, _LPS_TO_RAS @ affine)


@dataclass(frozen=True, eq=False)
class _Slice:
    """Where one file lies, LPS, mm; `row` and `column` are the directions in which columns and rows are counted."""

    path: Path
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    size: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> "_Slice":
        header = _header(path)
        position, orientation = _numbers(path, header, _POSITION, 3), _numbers(path, header, _ORIENTATION, 6)
        along_y, along_x = _numbers(path, header, _SPACING, 2)  # DICOM gives the distance of rows first
        size = tuple(header.GetSize()[:2])
        return cls(path, position, orientation[:3], orientation[3:], (float(along_x), float(along_y)), size)


def _header(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path}: damaged or not a DICOM image ({_reason(error)})") from None
    return reader


def _tag(header: Any, key: str) -> str:
    return str(header.GetMetaData(key)).strip() if header.HasMetaDataKey(key) else ""


def _numbers(path: Path, header: Any, key: str, count: int) -> NDArray[np.float64]:
    text = _tag(header, key)
    try:
        values = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise UserError(f"{path}: DICOM attribute ({key.replace('|', ',')}) is '{text}'; expected {count} numbers")
    return values


def _check_even(series: Series, paths: Sequence[Path], places: NDArray[np.float64]) -> None:
    steps = np.diff(places)
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        at = int(steps.argmin())
        raise UserError(
            f"{paths[at + 1]}: lies where {paths[at].name} lies; the series {series.uid} holds slices twice or several "
            "volumes"
        )
    at = int(np.abs(steps - usual).argmax())
    if abs(steps[at] - usual) > _UNEVEN * usual:
        raise UserError(
            f"{series.folder}: slices of series {series.uid} are {usual:g} mm apart, but {paths[at].name} and "
            f"{paths[at + 1].name} {steps[at]:g} mm; are files missing?"
        )


def _execute(folder: Path, paths: Sequence[Path]) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(path) for path in paths])
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise UserError(f"{folder}: the series cannot be read ({_reason(error)})") from None


def _read_one_file(path: Path) -> Volume:
    """A multi-frame file, whose geometry ITK works out."""
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise UserError(f"{path}: damaged or not a DICOM image ({_reason(error)})") from None
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return _volume(path, image, _LPS_TO_RAS @ affine)


def _volume(path: Path, image: Any, affine: NDArray[np.float64]) -> Volume:
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path}: colour pictures; expected one number a voxel, as in CT")
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # ITK's arrays are [Z, Y, X]
    three_axes(path, array.shape)
    values = np.ascontiguousarray(array, dtype=np.float32)
    if values.min() == values.max() or not np.isfinite(values).all():
        raise UserError(f"{path}: all voxels are equal, or some are not finite; there is no image in this series")
    return Volume(values, checked_affine(path, affine))


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__

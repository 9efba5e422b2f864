"""DICOM series as volumes: HU through the files' rescale slopes and intercepts, geometry from the slices' positions.

Slices, be they files or frames of a file, are sorted by position along the normal of their plane. Missing, doubled and
unevenly spaced ones are refused, because a volume has one slice distance (or, where asked for, even slices are made of
uneven ones); a tilted gantry is kept as shear in the affine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.reading import check_unpacked, reading
from quartet.apps.sam_med3d_ich.data.frames import frame_values, read_header, read_slices
from quartet.apps.sam_med3d_ich.data.geometry import checked_affine, three_axes
from quartet.apps.sam_med3d_ich.data.slices import Slice, Stack, stacked
from quartet.apps.sam_med3d_ich.data.volume import Volume
from quartet.apps.sam_med3d_ich.data.words import counted

__all__ = ["Series", "find_series", "holds_series", "read_series", "series_in"]

sitk: Any = SimpleITK  # half of it has no types

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found: dict[str, list[Path]] = {}
    described: dict[str, str] = {}
    for path in files:
        uid, about = _series_of(path)
        if uid:
            found.setdefault(uid, []).append(path)
            described.setdefault(uid, about)
    return [Series(folder, uid, described[uid], tuple(found[uid])) for uid in sorted(found)]


def holds_series(folder: Path) -> bool:
    """Whether a DICOM file of a series, or what could be a damaged one, is in `folder` itself."""
    try:
        return any(_series_of(path)[0] for path in sorted(folder.iterdir()) if path.is_file())
    except UserError:
        return True


def _series_of(path: Path) -> tuple[str, str]:
    """UID and description of a file's series; both empty where it is of none."""
    header = read_header(path, tags=("SeriesInstanceUID", "SeriesDescription"))
    with reading(path, "a DICOM file"):  # values are parsed when they are asked for
        uid = "" if header is None else str(header.get("SeriesInstanceUID") or "")
        return uid, "" if not uid else str(header.get("SeriesDescription") or "").strip()


def read_series(series: Series, *, even_out: bool = False) -> Volume:
    """Read a series.

    Args:
        series: Its files, of one picture or several each.
        even_out: Make even slices of unevenly spaced ones, by linear interpolation, instead of refusing them.

    Returns:
        The volume, with why its values may not be HU, and that slices were evened out.

    Raises:
        UserError: A file is damaged or lacks its place in the patient, or the slices do not form one stack.
    """
    slices = [one for path in series.files for one in read_slices(path)]
    unpacked = sum(4 * one.size[0] * one.size[1] for one in slices)
    check_unpacked(series.folder, unpacked=unpacked, stored=sum(path.stat().st_size for path in series.files))
    stack = stacked(slices, series=f"series {series.uid}", even_out=even_out)
    values = _evened(_values(series.folder, stack.slices), stack)
    three_axes(series.folder, values.shape)
    if values.min() == values.max() or not np.isfinite(values).all():
        raise UserError(f"{series.folder}: all voxels are equal, or some are not finite; no image in this series")
    affine = checked_affine(series.folder, _LPS_TO_RAS @ stack.affine)
    told = _remarks(stack.slices)
    return Volume(values, affine, remarks=told, resampled=stack.resampled, source=str(series.folder))


def _remarks(slices: Sequence[Slice]) -> tuple[str, ...]:
    """Why the values may not be HU."""
    found = []
    modalities = sorted({one.modality for one in slices} - {"CT"})
    if modalities:
        found.append(f"Modality is {', '.join(modalities) or 'not given'}, not CT")
    untold = sum(one.rescale is None for one in slices)
    if untold:
        found.append(f"no RescaleSlope, RescaleIntercept in {untold} of {counted(len(slices), 'slice')}")
    units = sorted({one.unit for one in slices} - {"", "HU"})
    if units:
        found.append(f"RescaleType is {', '.join(units)}, not HU")
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------ voxels


def _values(folder: Path, slices: Sequence[Slice]) -> NDArray[np.float32]:
    """Real values of the slices, [Z, Y, X]."""
    if all(one.frame is None for one in slices):
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames([str(one.path) for one in slices])
        reader.SetOutputPixelType(sitk.sitkFloat32)  # the type of the first slice might not hold the others' fractions
        return _as_array(folder, reader.Execute)
    files = {path: _frames(path, slices) for path in {one.path for one in slices}}
    return np.stack([files[one.path][one.frame or 0] for one in slices])


def _frames(path: Path, slices: Sequence[Slice]) -> NDArray[np.float32]:
    """Real values of all frames of a file, in its order."""
    frames = sorted((one for one in slices if one.path == path), key=lambda one: one.frame or 0)
    if len({frame.rescale for frame in frames}) > 1:
        return frame_values(path, frames)
    return _as_array(path, lambda: sitk.ReadImage(str(path), imageIO="GDCMImageIO"))


def _as_array(path: Path, read: Callable[[], Any]) -> NDArray[np.float32]:
    with reading(path, "a DICOM image that can be unpacked"):
        sitk.ProcessObject.SetGlobalWarningDisplay(False)  # noqa: FBT003 - no keyword
        try:
            array = sitk.GetArrayFromImage(read())
        except RuntimeError as error:
            raise ValueError(str(error).strip().splitlines()[-1]) from None  # before it come places in C++
    return np.asarray(array, dtype=np.float32).reshape(-1, *array.shape[-2:])


def _evened(values: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """Slices [Z, Y, X] at the places of the stack, between two of them in proportion, as [X, Y, Z]."""
    below = np.floor(stack.places).astype(np.int64)
    above = np.ceil(stack.places).astype(np.int64)
    if not np.array_equal(below, np.arange(len(values))):
        share = (stack.places - below).astype(np.float32)[:, None, None]
        values = values[below] * (1 - share) + values[above] * share
    return np.ascontiguousarray(values.transpose(2, 1, 0))

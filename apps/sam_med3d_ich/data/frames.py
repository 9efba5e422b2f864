"""Multi-frame DICOM files: the place and the rescaling of every frame, which ITK does not tell."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.arrays import reason
from quartet.apps.sam_med3d_ich.data.slices import Slice, numbers

__all__ = ["frame_values", "read_frames"]


def read_frames(path: Path) -> list[Slice]:
    """Every frame of a file, in its order; of the pixels nothing is read.

    Raises:
        UserError: The file is damaged, or a frame does not say where it lies.
    """
    data = _opened(path, pixels=False)
    try:
        return _slices(path, data)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - values are parsed when they are asked for, and garbage fails anyhow
        raise UserError(f"{path}: damaged DICOM header ({reason(error)})") from None


def frame_values(path: Path, frames: Sequence[Slice]) -> NDArray[np.float32]:
    """Real values [frames, rows, columns], each frame by its own slope and intercept.

    Raises:
        UserError: The pixels are damaged, or packed in a way that only files with one rescaling for all can have.
    """
    data = _opened(path, pixels=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = data.pixel_array
    except Exception as error:  # noqa: BLE001 - damaged, or a codec that is not there
        raise UserError(
            f"{path}: its frames have slopes and intercepts of their own, and its pixels cannot be unpacked "
            f"({reason(error)}); store it uncompressed"
        ) from None
    scale = np.array([frame.rescale or (1.0, 0.0) for frame in frames])  # [F, 2]
    values: NDArray[np.float32] = (stored * scale[:, 0, None, None] + scale[:, 1, None, None]).astype(np.float32)
    return values


def _opened(path: Path, *, pixels: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values, which are checked where they matter
            deflated = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
            if deflated != DeflatedExplicitVRLittleEndian:  # unpacked as a whole, whatever size it has then
                return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except Exception as error:  # noqa: BLE001 - garbage makes the reader fail in any way it likes
        raise UserError(f"{path}: damaged or not a DICOM image ({reason(error)})") from None
    raise UserError(f"{path}: a deflated multi-frame file; store it uncompressed")


def _slices(path: Path, data: Any) -> list[Slice]:
    count = int(data.get("NumberOfFrames") or 1)
    groups = data.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != count:
        raise UserError(f"{path}: {len(groups)} of {count} frames say where they lie; a volume needs to know it of all")
    shared = [*(data.get("SharedFunctionalGroupsSequence") or [])]
    return [_slice(path, data, number, groups=[group, *shared]) for number, group in enumerate(groups)]


def _slice(path: Path, data: Any, number: int, *, groups: Sequence[Any]) -> Slice:
    where = f"{path}, frame {number + 1}"
    position, orientation, (along_y, along_x) = (
        numbers(where, attribute, _value(groups, sequence, key), count=count)
        for attribute, sequence, key, count in (
            ("0020,0032", "PlanePositionSequence", "ImagePositionPatient", 3),
            ("0020,0037", "PlaneOrientationSequence", "ImageOrientationPatient", 6),
            ("0028,0030", "PixelMeasuresSequence", "PixelSpacing", 2),  # the distance of rows first
        )
    )
    slope, intercept, unit = (
        _value(groups, "PixelValueTransformationSequence", key)
        for key in ("RescaleSlope", "RescaleIntercept", "RescaleType")
    )
    return Slice(
        path=path,
        frame=number,
        position=position,
        row=orientation[:3],
        column=orientation[3:],
        spacing=(float(along_x), float(along_y)),
        size=(int(data.Columns), int(data.Rows)),
        rescale=None if slope is None or intercept is None else (float(slope), float(intercept)),
        unit=str(unit or ""),
        modality=str(data.get("Modality") or ""),
    )


def _value(groups: Sequence[Any], sequence: str, key: str) -> Any:
    """The attribute of the frame's own group, or else of the shared one."""
    items = [item for group in groups for item in group.get(sequence) or []]
    return items[0].get(key) if items else None

"""Headers of DICOM files: where every picture lies and how it is scaled, before anything decodes its pixels.

The headers are read by pydicom, which fails on crafted files but does not crash; GDCM, which knows the codecs, gets
only what has passed here. What is packed as a whole (deflated) is not read: nothing says what it unpacks to.
"""

import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config, uid
from pydicom.encaps import generate_frames
from pydicom.filereader import read_partial

from mlcore.base.errors import UserError
from mlcore.base.reading import Bounded, check_unpacked, reading
from quartet.apps.sam_med3d_ich.data.geometry import by
from quartet.apps.sam_med3d_ich.data.slices import Slice, numbers

__all__ = ["frame_values", "read_header", "read_slices"]

_DEFERRED = 2**20  # bytes; larger values are left in the file, and no header needs them
# Odd values are checked where they matter; pydicom warns of each in the header.
config.settings.reading_validation_mode = config.IGNORE
_PIXELS = 0x7FE00010
_OPEN = 0xFFFFFFFF  # the length of what ends where it says so
_GREY = ("MONOCHROME2", "MONOCHROME1")
_STORED = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
_JPEG = {*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes}
_JPEG_2000 = b"\xff\x4f\xff\x51"
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a picture's size
_JPEG_TABLES = {0xC4, 0xCC, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0)}  # of what may stand before it


def read_header(path: Path, *, tags: Sequence[str] | None = None) -> Any:
    """The header of a DICOM file, as a pydicom dataset whose values are parsed when they are asked for.

    Args:
        path: The file.
        tags: Keywords of what is wanted; None: everything but the pixels.

    Returns:
        None where the file is no DICOM file.

    Raises:
        UserError: It is damaged, or packed in a way that is not read.
    """
    with reading(path, "a DICOM file"), _opened(path) as file:
        start = file.read(132)
        if start[128:] != b"DICM" and start[:2] != b"\x08\x00":  # files of before 1993 begin with their first group
            return None
        if start[128:] == b"DICM":
            _check_packing(path, _packing(file))
        file.seek(0)
        wanted = None if tags is None else list(tags)
        return pydicom.dcmread(file, defer_size=_DEFERRED, stop_before_pixels=True, force=True, specific_tags=wanted)


def read_slices(path: Path) -> list[Slice]:
    """Every picture of a file, in its order; of the pixels nothing is read.

    Raises:
        UserError: The file is damaged or takes far more memory than disk, its pictures are in colour, or one does not
            say where it lies.
    """
    data = read_header(path)
    if data is None:
        raise UserError(f"{path}: not a DICOM file")
    with reading(path, "a DICOM image"):  # values are parsed when they are asked for
        count = int(data.get("NumberOfFrames") or 1)
        if data.get("SamplesPerPixel", 1) != 1 or data.get("PhotometricInterpretation", _GREY[0]) not in _GREY:
            raise UserError(f"{path}: colour pictures; expected one number a voxel, as in CT")
        size, voxels = path.stat().st_size, count * int(data.Columns) * int(data.Rows)
        check_unpacked(path, unpacked=voxels * 4, stored=size)
        if data.file_meta.get("TransferSyntaxUID") in _STORED and size < voxels * int(data.BitsAllocated) // 8:
            raise UserError(f"{path}: incomplete, {size:,} bytes cannot hold its {voxels:,} voxels")
        _check_length(path, size)
        if data.file_meta.get("TransferSyntaxUID") in _JPEG:
            _check_pictures(path, count, (int(data.Columns), int(data.Rows)))
        if count == 1 and data.get("ImagePositionPatient") is not None:
            return [_slice(path, data, None, value=lambda _, key: data.get(key))]
        groups = data.get("PerFrameFunctionalGroupsSequence") or []
        if len(groups) != count:
            raise UserError(
                f"{path}: {len(groups)} of {count} frames say where they lie; a volume needs to know it of all"
            )
        shared = [*(data.get("SharedFunctionalGroupsSequence") or [])]
        return [_slice(path, data, n, value=partial(_value, [group, *shared])) for n, group in enumerate(groups)]


def frame_values(path: Path, frames: Sequence[Slice]) -> NDArray[np.float32]:
    """Real values [frames, rows, columns], each frame by its own slope and intercept.

    Raises:
        UserError: The pixels are damaged, or packed in a way that only files with one rescaling for all can have.
    """
    expected = "a file whose frames, with slopes and intercepts of their own, can be unpacked; store it uncompressed"
    with reading(path, expected), _opened(path) as file:
        stored = pydicom.dcmread(file).pixel_array
    scale = np.array([frame.rescale or (1.0, 0.0) for frame in frames])  # [F, 2]
    values: NDArray[np.float32] = (stored * scale[:, 0, None, None] + scale[:, 1, None, None]).astype(np.float32)
    return values


@contextmanager
def _opened(path: Path) -> Iterator[Bounded]:
    """A file for pydicom, which warns of what is odd; that is checked where it matters."""
    with Bounded(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield file


def _packing(file: Any) -> Any:
    """How the pixels are packed."""
    file.seek(0)
    return pydicom.dcmread(file, specific_tags=[], stop_before_pixels=True).file_meta.get("TransferSyntaxUID")


def _check_packing(path: Path, packing: Any) -> None:
    if packing not in _STORED | _JPEG | {uid.RLELossless}:
        name = " ".join(str(getattr(packing, "name", packing)).split())
        raise UserError(f"{path}: pixels packed as {name}, which is not read; store the file uncompressed")


def _check_length(path: Path, size: int) -> None:
    """Compare the length that the pixels are said to have with the file's: decoders make room for all of it."""
    length = 0

    def stop(tag: int, _representation: str | None, said: int) -> bool:
        nonlocal length
        length = said if tag == _PIXELS else 0
        return tag == _PIXELS

    with _opened(path) as file:
        read_partial(file, stop_when=stop, defer_size=_DEFERRED, force=True)
    if size < length != _OPEN:
        raise UserError(f"{path}: damaged, its pixels are said to take {length:,} bytes, the file has {size:,}")


def _check_pictures(path: Path, count: int, size: tuple[int, int]) -> None:
    """Compare the columns and rows within every JPEG picture with the header's: decoders go by them alone."""
    with _opened(path) as file:
        pictures = generate_frames(pydicom.dcmread(file).PixelData, number_of_frames=count)
    for number, picture in enumerate(pictures, start=1):
        found = _coded_size(picture)
        if found != size:
            raise ValueError(f"picture {number} is {by(found)}, the header says {by(size)}")


def _coded_size(picture: bytes) -> tuple[int, int]:
    if picture.startswith(_JPEG_2000):
        right, bottom, left, top = struct.unpack_from(">4I", picture, 8)
        return right - left, bottom - top
    place = 2
    while picture[place] == 0xFF and picture[place + 1] in _JPEG_TABLES:
        place += 2 + int.from_bytes(picture[place + 2 : place + 4], "big")
    if picture[place] != 0xFF or picture[place + 1] not in _JPEG_FRAMES:  # what one decoder skips, another reads
        raise ValueError("a JPEG picture without its size where it should be")
    rows, columns = struct.unpack_from(">HH", picture, place + 5)
    return columns, rows


def _slice(path: Path, data: Any, number: int | None, *, value: Callable[[str, str], Any]) -> Slice:
    """One picture; `value` gives an attribute, by the sequence that holds it in files of frames and its keyword."""
    where = str(path) if number is None else f"{path}, frame {number + 1}"
    position, orientation, (along_y, along_x) = (
        numbers(where, attribute, value(sequence, key), count=count)
        for attribute, sequence, key, count in (
            ("0020,0032", "PlanePositionSequence", "ImagePositionPatient", 3),
            ("0020,0037", "PlaneOrientationSequence", "ImageOrientationPatient", 6),
            ("0028,0030", "PixelMeasuresSequence", "PixelSpacing", 2),  # the distance of rows first
        )
    )
    slope, intercept, unit = (
        value("PixelValueTransformationSequence", key) for key in ("RescaleSlope", "RescaleIntercept", "RescaleType")
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

"""Scans whose headers lie: refused by name, before anything takes the memory that they claim."""

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from mlcore.base.errors import UserError
from mlcore.base.reading import READ_GIB
from quartet.apps.sam_med3d_ich.data.dicom import find_series, read_series
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing, prepare
from quartet.apps.sam_med3d_ich.data.straighten import straightened
from quartet.apps.sam_med3d_ich.data.volume import Volume, read_volume

VOXELS = np.arange(512, dtype="<f4").reshape(8, 8, 8)


def header(**fields: tuple[int, str, Any]) -> bytes:
    """A NIfTI-1 header of `VOXELS`, with values at byte offsets in `struct`'s formats."""
    image: Any = nibabel.Nifti1Image(VOXELS, np.eye(4))
    content = bytearray(image.to_bytes()[:348])
    for offset, kind, value in fields.values():
        struct.pack_into(kind, content, offset, *(value if isinstance(value, tuple) else (value,)))
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (header(offset=(108, "<f", 2e9)), "its voxels begin at byte 2,000,000,000"),
        (header(offset=(108, "<f", float("nan"))), "damaged or not a NIfTI file"),
        (header(magic=(344, "4s", b"ni1\0")), "its voxels are in another file"),
        (header(magic=(344, "4s", b"\0\0\0\0")), "it has no NIfTI header"),
        (header(dims=(40, "<8h", (3, -8, -8, 8, 1, 1, 1, 1))), "-8 x -8 x 8 voxels"),
        (header(dims=(40, "<8h", (8, 8, 8, 8, 1, 1, 1, 1))), "damaged or not a NIfTI file"),
        (header(dims=(40, "<8h", (3, 30000, 30000, 30000, 1, 1, 1, 1))), "refused, because"),
        (header(kind=(70, "<h", 128)), "expected one number a voxel"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_cannot_be_is_refused(content: bytes, problem: str, suffix: str, tmp_path: Path) -> None:
    whole, path = content + bytes(4) + VOXELS.tobytes(order="F"), tmp_path / f"scan{suffix}"
    path.write_bytes(gzip.compress(whole) if suffix == ".nii.gz" else whole)
    with pytest.raises(UserError, match=rf"scan\{suffix}: .*{problem}"):
        read_volume(path)


def test_extensions_are_not_read_whatever_they_claim(tmp_path: Path) -> None:
    claim = b"\1\0\0\0" + struct.pack("<ii", 2_000_000_000, 4)
    (tmp_path / "long.nii").write_bytes(header(offset=(108, "<f", 368)) + claim + bytes(8) + VOXELS.tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(tmp_path / "long.nii").array, VOXELS)


def test_the_checksum_of_a_packed_scan_is_compared(tmp_path: Path) -> None:
    content = gzip.compress(header() + bytes(4) + VOXELS.tobytes(order="F"))
    (tmp_path / "a.nii.gz").write_bytes(content[:-8] + struct.pack("<I", 12345) + content[-4:])
    with pytest.raises(UserError, match=r"a\.nii\.gz: damaged or not a complete NIfTI file .*CRC"):
        read_volume(tmp_path / "a.nii.gz")


def array_file(description: str, *, length: int | None = None) -> bytes:
    text = description.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text + bytes(2048)


@pytest.mark.parametrize(
    "content",
    [
        array_file("{'descr': '<f4', 'fortran_order': False, 'shape': (9999, 9999, 999), }"),
        array_file("{'descr': '<f4', 'fortran_order': False, 'shape': (-8, -8, 8), }"),
        array_file("{'descr': '|O', 'fortran_order': False, 'shape': (8, 8, 4), }"),
        array_file("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (8, 8, 8), }"),
        array_file("{'descr': '|S0', 'fortran_order': False, 'shape': (9999, 9999, 999), }"),
        array_file("[" * 117),
        array_file("-" * 117),
        array_file("", length=65535),
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_an_array_file_that_claims_more_than_there_is_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"^\S+a\.npy: ") as caught:
        read_volume(tmp_path / "a.npy", array_spacing=(1, 1, 1))
    assert "\n" not in str(caught.value)


def test_a_grid_of_any_size_is_refused_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(VOXELS, np.diag([20.0, 20, 20, 1]), source="coarse.nii")
    with pytest.raises(UserError, match=r"coarse\.nii: 8 x 8 x 8 voxels of 20 x 20 x 20 mm would become 3200 x 3200 x"):
        prepare(volume, Preprocessing(spacing=(0.05, 0.05, 0.05)))
    sheared = np.eye(4)
    sheared[0, 2] = 2e4
    with pytest.raises(UserError, match=rf"the volume: .* GiB; correct its spacing.*{READ_GIB}="):
        straightened(Volume(np.broadcast_to(VOXELS[:1, :1, :1], (400, 400, 400)), sheared))
    monkeypatch.setenv(READ_GIB, "2")
    assert prepare(volume, Preprocessing(spacing=(10, 10, 10))).image.shape == (16, 16, 16)


# -------------------------------------------------------------------------------------------------------------- DICOM


def slices(folder: Path, *, syntax: str = ExplicitVRLittleEndian, **given: Any) -> Path:
    """A series of three slices; `given` attributes lie."""
    for z in range(3):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, f"1.2.{z + 1}", "1.2.3"
        data.Modality, data.SamplesPerPixel, data.PhotometricInterpretation = "CT", 1, "MONOCHROME2"
        data.Rows = data.Columns = 8
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 5 * z], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [0.5, 0.5], 1, -1024
        data.PixelData = VOXELS[z].astype("<i2").tobytes()
        for name, value in given.items():
            setattr(data, name, value)
        folder.mkdir(exist_ok=True)
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(folder / f"{z}.dcm", enforce_file_format=True)
    return folder


def read(folder: Path) -> Volume:
    (series,) = find_series(folder)
    return read_series(series)


def test_the_series_of_these_tests_is_read_among_other_files(tmp_path: Path) -> None:
    folder = slices(tmp_path / "case")
    (folder / "notes.txt").write_text("text", encoding="utf-8")
    (folder / "empty").touch()
    assert read(folder).array.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"Rows": 65535, "Columns": 65535}, r"0\.dcm: refused, because"),
        ({"Rows": 300, "Columns": 300}, r"0\.dcm: incomplete, .* cannot hold its 90,000 voxels"),
        ({"NumberOfFrames": 2**31 - 1}, r"0\.dcm: refused, because"),
        ({"NumberOfFrames": 3}, r"0\.dcm: 0 of 3 frames say where they lie"),
        ({"SamplesPerPixel": 3}, r"0\.dcm: colour pictures"),
        ({"ImagePositionPatient": [0, 0]}, r"0\.dcm: DICOM attribute \(0020,0032\)"),
    ],
)
def test_a_dicom_header_that_lies_is_refused_before_the_pixels_are_read(
    given: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        read(slices(tmp_path / "case", **given))


def test_a_dicom_file_that_is_packed_as_a_whole_is_refused(tmp_path: Path) -> None:
    data = pydicom.dcmread(slices(tmp_path / "case") / "1.dcm")
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "case/1.dcm")
    with pytest.raises(UserError, match=r"1\.dcm: pixels packed as Deflated Explicit VR Little Endian"):
        find_series(tmp_path / "case")


def packed(kind: str, *, claimed: tuple[int, int] | None = None) -> bytes:
    """An 8 x 8 picture as JPEG or JPEG 2000, perhaps with another height and width in its own header."""
    buffer = io.BytesIO()
    Image.fromarray(VOXELS[0].astype(np.uint8)).save(buffer, kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    content = bytearray(buffer.getvalue())
    if claimed is not None and kind == "JPEG2000":
        struct.pack_into(">II", content, 8, *claimed)
    elif claimed is not None:
        struct.pack_into(">HH", content, content.find(b"\xff\xc0") + 5, *claimed)
    return encapsulate([bytes(content)])


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)])
def test_the_size_within_a_packed_picture_is_the_headers(kind: str, syntax: str, tmp_path: Path) -> None:
    given = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    folder = slices(tmp_path / "case", syntax=syntax, PixelData=packed(kind), **given)
    assert read(folder).array.shape == (8, 8, 3)
    slices(tmp_path / "case", syntax=syntax, PixelData=packed(kind, claimed=(60000, 60000)), **given)
    with pytest.raises(UserError, match=r"0\.dcm: .*picture 1 is 60000 x 60000, the header says 8 x 8"):
        read(folder)


def test_damaged_dicom_headers_raise_nothing_else(tmp_path: Path) -> None:
    folder, rng = slices(tmp_path / "case"), np.random.default_rng(0)
    whole = (folder / "1.dcm").read_bytes()
    for _ in range(150):
        broken = bytearray(whole[: rng.integers(140, len(whole))] if rng.random() < 0.3 else whole)
        for place in rng.integers(132, min(len(broken), 700), size=3):
            broken[place : place + 1] = rng.choice([b"\xff\xff\xff\xff", b"\0", b"\xfe", bytes([rng.integers(256)])])
        (folder / "1.dcm").write_bytes(broken)
        try:
            for series in find_series(folder):
                assert read_series(series).array.ndim == 3
        except UserError as error:
            assert str(tmp_path) in str(error) or "1.2.3" in str(error)  # noqa: PT017 - some damage changes nothing

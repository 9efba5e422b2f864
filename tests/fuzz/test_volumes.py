"""Volumes as scanners and programs write them: NIfTI, arrays, pickles, DICOM; and the cache of prepared ones."""

import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from quartet.apps.sam_med3d_ich.data.dicom import find_series, read_series
from quartet.apps.sam_med3d_ich.data.volume import check_header, read_mask, read_volume, write_nifti
from tests.fuzz.cases import Parser, checks_of

SPACING = (1.0, 1.0, 2.0)
ARRAY = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


def nifti(name: str) -> Callable[[Path], object]:
    array = ARRAY > 20 if "mask" in name else ARRAY
    return lambda folder: write_nifti(folder / name, array, like_affine=np.diag([1.0, 1.0, 2.0, 1.0]))


def pickled(folder: Path) -> None:
    (folder / "own.pkl").write_bytes(pickle.dumps({"array": ARRAY, "spacing": SPACING}, 4))


def volume(folder: Path) -> object:
    path = next(folder.iterdir())
    return check_header(path, array_spacing=SPACING), read_volume(path, array_spacing=SPACING)


def masked(folder: Path) -> object:
    whole = read_volume(folder / "own.nii", array_spacing=SPACING)
    return read_mask(folder / "mask.nii.gz", like=whole)


def slices(folder: Path, frames: int = 0) -> None:
    """A series of three files, or one of three frames."""
    for number in range(1 if frames else 3):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage if frames else CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
        data.Modality, data.PatientID, data.SeriesDescription = "CT", "P", "head"
        data.Rows = data.Columns = 4
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        if frames:
            _add_frames(data, frames)
        else:
            data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
            data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [0.5, 0.5], 2.0, number + 1
            data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = np.arange(16 * max(1, frames), dtype=np.int16).tobytes()
        data.save_as(folder / f"im{number}.dcm", enforce_file_format=True)


def _add_frames(data: Dataset, frames: int) -> None:
    def group(**values: object) -> Dataset:
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        return item

    data.NumberOfFrames = frames
    shared = group(
        PixelMeasuresSequence=[group(PixelSpacing=[0.5, 0.5], SliceThickness=2.0)],
        PlaneOrientationSequence=[group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelValueTransformationSequence=[group(RescaleSlope=1, RescaleIntercept=-1024)],
    )
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = [
        group(PlanePositionSequence=[group(ImagePositionPatient=[0, 0, 2.0 * number])]) for number in range(frames)
    ]


def series(folder: Path) -> object:
    return [read_series(found, even_out=True) for found in find_series(folder)]


with TemporaryDirectory() as scratch:
    slices(Path(scratch), frames=3)
    FRAMES = Path(scratch, "im0.dcm").read_bytes()
HEADER = nibabel.Nifti1Header()
HEADER.set_data_shape(ARRAY.shape)
HEADER["magic"], HEADER["vox_offset"], HEADER["qform_code"], HEADER["quatern_b"] = b"n+1", 352, 1, 2.0
TURNED = HEADER.binaryblock + bytes(4 + 2 * ARRAY.size)
"""A NIfTI file whose quaternion is longer than one."""

PARSERS = [
    Parser(name="NIfTI", write=nifti("own.nii"), read=volume, found={"no rotation": TURNED}),
    Parser(name="NIfTI, packed", write=nifti("own.nii.gz"), read=volume),
    Parser(
        name="mask",
        write=lambda folder: [nifti(name)(folder) for name in ("own.nii", "mask.nii.gz")],
        read=masked,
        edited="mask*",
    ),
    Parser(name="npy", write=lambda folder: np.save(folder / "own.npy", ARRAY), read=volume),
    Parser(
        name="npz of a volume",
        write=lambda folder: np.savez(folder / "own.npz", array=ARRAY, spacing=SPACING),
        read=volume,
    ),
    Parser(
        name="pickle of a volume",
        write=pickled,
        read=volume,
        found={
            "thin": pickle.dumps({"array": ARRAY, "spacing": [1e-9, 1e9, 1]}),
            "integer": pickle.dumps({"array": ARRAY, "spacing": [10**400, 1, 1]}),
        },
    ),
    Parser(name="DICOM", write=slices, read=series, edited="im1.dcm", share=0.3),
    Parser(
        name="DICOM, several frames",
        write=lambda folder: slices(folder, frames=3),
        read=series,
        found={"pixels of 1.5 GiB": FRAMES.replace(b"\xe0\x7f\x10\0OW\0\0", b"\xe0\x7f\x10\0-\0\0`")},
    ),
]

test_a_damaged_file_is_a_value_or_one_error, test_inputs_that_went_wrong_once = checks_of(PARSERS)

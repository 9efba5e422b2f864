"""DICOM stacks in one file or many: the same checks, the same values, even grids at right angles where asked for."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, RLELossless

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.case import load_case
from quartet.apps.sam_med3d_ich.data.dicom import find_series, read_series
from quartet.apps.sam_med3d_ich.data.geometry import is_orthogonal
from quartet.apps.sam_med3d_ich.data.metadata import CaseMetadata, case_metadata, not_hu
from quartet.apps.sam_med3d_ich.data.split import SplitSizes
from quartet.apps.sam_med3d_ich.data.table import read_cases
from quartet.apps.sam_med3d_ich.data.volume import Volume, read_volume, write_nifti
from quartet.apps.sam_med3d_ich.preparation import Preparation, prepare_data

COUNT, SIDE, STEP = 6, 12, 4.0
TILT = math.radians(15)
AXIAL, TILTED = (1.0, 0, 0, 0, 1, 0), (1.0, 0, 0, 0, math.cos(TILT), -math.sin(TILT))
ALONG = [(-3.0, -5.0, 7.0 + STEP * z) for z in range(COUNT)]
LEANING = [(-3.0, -5.0, 7.0 + STEP * z / math.cos(TILT)) for z in range(COUNT)]
EVERY = tuple(range(COUNT))
UNEVEN = [(-3.0, -5.0, z) for z in (0.0, 2, 4, 8, 12, 16)]
Position = tuple[float, float, float]


def picture(z: int) -> NDArray[np.float64]:
    """HU [rows, columns] of slice z; in slices 2 and 3 something is above 60."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    values = -1000.0 + 10 * rows + columns + 100 * z
    if z in (2, 3):
        values[3:6, 4:9] = 70
    return values


def dataset(kind: str, *, count: int = 1, **given: Any) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    data.Modality, data.PatientID, data.SeriesDescription = "CT", "P", "head"
    data.Rows = data.Columns = SIDE
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    if count > 1:
        data.NumberOfFrames = count
    for name, value in given.items():
        setattr(data, name, value)
    return data


def save(data: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{crc32(str(path).encode())}"
    data.save_as(path, enforce_file_format=True)


def series(
    folder: Path,
    *,
    places: Sequence[Position] = ALONG,
    shown: Sequence[int] = EVERY,
    orientation: Sequence[float] = AXIAL,
    rescale: Sequence[tuple[float, float]] = ((1, -1024),) * COUNT,
    compress: bool = False,
    **given: Any,
) -> Path:
    """One file for each slice; `shown` are the slices that are there."""
    for z in shown:
        slope, intercept = rescale[z]
        data = dataset(CTImageStorage, **given)
        data.ImagePositionPatient, data.ImageOrientationPatient = list(places[z]), list(orientation)
        data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [0.5, 0.75], STEP, z + 1
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = np.rint((picture(z) - intercept) / slope).astype(np.int16).tobytes()
        if compress:
            data.compress(RLELossless)
        save(data, folder / f"im{z:02d}.dcm")
    return folder


def item(**values: Any) -> list[Dataset]:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return [made]


def frames(
    folder: Path,
    *,
    places: Sequence[Position] | None = ALONG,
    shown: Sequence[int] = EVERY,
    orientation: Sequence[float] = AXIAL,
    rescale: Sequence[tuple[float, float]] | None = None,
    shared: Mapping[str, Any] | None = None,
    compress: bool = False,
) -> Path:
    """The same in one file; `rescale` of each frame, or one for all."""
    data = dataset(EnhancedCTImageStorage, count=len(shown))
    measures = item(PixelSpacing=[0.5, 0.75], SliceThickness=STEP, **(shared or {}))
    common = item(
        PixelMeasuresSequence=measures, PlaneOrientationSequence=item(ImageOrientationPatient=list(orientation))
    )
    if rescale is None:
        common[0].PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    data.SharedFunctionalGroupsSequence = common
    groups, pixels = [], []
    for z in shown:
        slope, intercept = (1.0, -1024.0) if rescale is None else rescale[z]
        group = Dataset()
        if places is not None:
            group.PlanePositionSequence = item(ImagePositionPatient=list(places[z]))
        if rescale is not None:
            group.PixelValueTransformationSequence = item(
                RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU"
            )
        groups.append(group)
        pixels.append(np.rint((picture(z) - intercept) / slope).astype(np.int16))
    data.PerFrameFunctionalGroupsSequence = groups if places is not None else []
    data.PixelData = np.stack(pixels).tobytes()
    if compress:
        data.compress(RLELossless)
    save(data, folder / "all.dcm")
    return folder


def read(folder: Path, *, even_out: bool = False) -> Volume:
    (found,) = find_series(folder)
    return read_series(found, even_out=even_out)


def same(first: Volume, second: Volume) -> None:
    np.testing.assert_array_equal(first.array, second.array)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ what is right


EACH = [(1.0, -1024.0 + 10 * z) for z in EVERY]
FRAMES: dict[str, dict[str, Any]] = {
    "plain": {},
    "shuffled": {"shown": (0, 2, 4, 1, 3, 5)},
    "a spacing that lies": {"shared": {"SpacingBetweenSlices": 1.5}},
    "rescaled each": {"rescale": EACH},
    "rescaled each and shuffled": {"rescale": EACH, "shown": (5, 2, 4, 1, 3, 0)},
    "packed": {"compress": True},
    "packed, rescaled each": {"rescale": EACH, "compress": True},
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_read_as_the_files_of_a_series(name: str, tmp_path: Path) -> None:
    volume = read(frames(tmp_path / "frames", **FRAMES[name]))
    np.testing.assert_array_equal(volume.array, np.stack([picture(z).T for z in EVERY], axis=-1))
    expected = [[-0.75, 0, 0, 3], [0, -0.5, 0, 5], [0, 0, STEP, 7], [0, 0, 0, 1]]  # rows are 0.5 mm apart
    np.testing.assert_allclose(volume.affine, expected, atol=1e-6)
    same(volume, read(series(tmp_path / "series")))
    assert (volume.remarks, volume.resampled) == ((), ())


def test_a_packed_series_is_read_as_another(tmp_path: Path) -> None:
    same(read(series(tmp_path / "packed", compress=True)), read(series(tmp_path / "plain")))


def test_frames_may_be_in_several_files(tmp_path: Path) -> None:
    frames(tmp_path, shown=(0, 2, 4), rescale=EACH)
    (tmp_path / "all.dcm").rename(tmp_path / "even.dcm")
    same(read(frames(tmp_path, shown=(5, 3, 1))), read(series(tmp_path / "series")))


def test_a_tilted_gantry_is_read_alike(tmp_path: Path) -> None:
    given: dict[str, Any] = {"places": LEANING, "orientation": TILTED}
    one, other = read(frames(tmp_path / "frames", **given)), read(series(tmp_path / "series", **given))
    same(one, other)
    assert one.voxel_ml == pytest.approx(0.5 * 0.75 * STEP / 1000)
    assert not is_orthogonal(one.affine)


def test_slopes_and_intercepts_are_those_of_each_slice(tmp_path: Path) -> None:
    scale = [(1.0, -1024.0), (0.5, -1000.25), (2.0, -999.5), (1.0, -990.0), (0.25, -1024.0), (1.0, 0.0)]
    expected = np.stack(
        [(np.rint((picture(z) - b) / a) * a + b).T for z, (a, b) in enumerate(scale)], axis=-1
    )  # with fractions, which the first slice has not
    for folder in (series(tmp_path / "series", rescale=scale), frames(tmp_path / "frames", rescale=scale)):
        np.testing.assert_allclose(read(folder).array, expected, atol=1e-3)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"shown": (0, 1, 2, 4, 5)}, r"4 mm apart, but .* 8 mm; are (files|frames) missing\?"),
    "uneven": ({"places": UNEVEN}, r"are (files|frames) missing\? prepare\.py --orthogonal"),
    "shifted aside": ({"places": [*ALONG[:3], (2.0, -5.0, ALONG[3][2]), *ALONG[4:]]}, "mm beside the line"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("write", [series, frames])
def test_both_are_refused_alike(name: str, write: Any, tmp_path: Path) -> None:
    given, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, **given))


def test_a_scout_among_the_slices_is_refused(tmp_path: Path) -> None:
    series(tmp_path)
    (tmp_path / "im00.dcm").rename(tmp_path / "im06.dcm")
    series(tmp_path, shown=(0,), orientation=(1, 0, 0, 0, 0, -1))
    with pytest.raises(UserError, match="its plane is turned against that of"):
        read(tmp_path)


def test_frames_twice_or_without_a_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all\.dcm, frame 7: lies where all\.dcm, frame 1 lies"):
        read(frames(tmp_path / "twice", shown=EVERY * 2))
    with pytest.raises(UserError, match=r"all\.dcm: 0 of 6 frames say where they lie"):
        read(frames(tmp_path / "nowhere", places=None))


def test_damaged_files_of_frames_are_refused(tmp_path: Path) -> None:
    frames(tmp_path, rescale=EACH)
    content = (tmp_path / "all.dcm").read_bytes()
    (found,) = find_series(tmp_path)
    for share in (0.3, 0.6, 0.9):
        (tmp_path / "all.dcm").write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r"all\.dcm"):
            read_series(found)


# ----------------------------------------------------------------------------------------------------------- not in HU


def test_what_is_not_ct_or_not_in_hu_is_said(tmp_path: Path) -> None:
    assert read(series(tmp_path / "mr", Modality="MR")).remarks == ("Modality is MR, not CT",)
    assert read(series(tmp_path / "od", RescaleType="OD")).remarks == ("RescaleType is OD, not HU",)
    for path in series(tmp_path / "raw").iterdir():
        data = pydicom.dcmread(path)
        del data.RescaleSlope, data.RescaleIntercept
        data.save_as(path)
    volume = read(tmp_path / "raw")
    assert volume.remarks == ("no RescaleSlope, RescaleIntercept in 6 of 6 slices",)
    assert volume.array.min() > 0


def prepared(folder: Path, output: Path, **settings: Any) -> tuple[Volume, NDArray[np.uint8]]:
    options: dict[str, Any] = {"unlabelled_are_negative": True, "sizes": SplitSizes(val_fraction=0)}
    prepare_data(folder, output, Preparation(**options | settings))
    (case,) = read_cases(output / "train.csv", mask_dir=output / "masks")
    return load_case(case)


def test_remarks_are_in_log_table_and_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series(tmp_path / "in/p1", Modality="MR")
    prepared(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/remarks.csv").read_text(encoding="utf-8") == 'case,remark\np1,"Modality is MR, not CT"\n'
    assert "1 case with remarks: " in capsys.readouterr().out
    volume = read_volume(tmp_path / "out/images/p1.nii.gz")  # what is trained on still says so
    assert volume.remarks == ("Modality is MR, not CT",)
    metadata = CaseMetadata.from_dict(case_metadata(volume, np.zeros(volume.array.shape, np.uint8)).to_dict())
    assert not_hu(metadata, (40.0, 80.0)) == ["Modality is MR, not CT"]
    assert not_hu(metadata, None) == []
    series(tmp_path / "fine/p1")
    prepared(tmp_path / "fine", tmp_path / "out2")
    assert not (tmp_path / "out2/remarks.csv").exists()


# ---------------------------------------------------------------------------------------------------------- orthogonal


def mass(volume: Volume, inside: NDArray[Any]) -> tuple[float, NDArray[np.float64]]:
    """Volume in mL and centre in mm of what is inside."""
    centre = volume.affine[:3, :3] @ np.argwhere(inside).mean(axis=0) + volume.affine[:3, 3]
    return float(inside.sum()) * volume.voxel_ml, centre


@pytest.mark.parametrize("write", [series, frames])
def test_uneven_slices_become_even_on_request(write: Any, tmp_path: Path) -> None:
    volume, _ = prepared(write(tmp_path / "in/p1", places=UNEVEN), tmp_path / "out", orthogonal=True)
    assert volume.array.shape == (SIDE, SIDE, 9)
    assert volume.spacing == pytest.approx((0.75, 0.5, 2))
    heights = [place[2] for place in UNEVEN]
    stored = np.stack([picture(z).T for z in EVERY], axis=-1)
    for index in range(9):
        above = np.interp(2 * index, heights, np.arange(COUNT))
        low, share = int(above), above - int(above)
        expected = stored[..., low] * (1 - share) + (stored[..., min(low + 1, COUNT - 1)] * share if share else 0)
        np.testing.assert_allclose(volume.array[..., index], expected, atol=1e-3)
    assert "slices 2 to 4 mm apart were resampled to 9 even ones" in (tmp_path / "out/remarks.csv").read_text("utf-8")


@pytest.mark.parametrize("drawn_on", ["tilted", "straight"])
def test_tilted_slices_come_to_right_angles_on_request_with_their_masks(drawn_on: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"places": LEANING, "orientation": TILTED}
    tilted = read(series(tmp_path / "in/p1", **given))
    marked = (tilted.array == 70).astype(np.uint8)
    (tmp_path / "in/labels").mkdir()
    if drawn_on == "straight":
        straight, _ = prepared(series(tmp_path / "first/p1", **given), tmp_path / "first_out", orthogonal=True)
        label = (straight.array > 60).astype(np.uint8)
        write_nifti(tmp_path / "in/labels/p1.nii.gz", label, like_affine=straight.affine)
    else:
        write_nifti(tmp_path / "in/labels/p1.nii.gz", marked, like_affine=tilted.affine)
    options: dict[str, Any] = {"label_dir": tmp_path / "in/labels", "unlabelled_are_negative": False}
    volume, mask = prepared(tmp_path / "in", tmp_path / "out", orthogonal=True, **options)
    assert is_orthogonal(volume.affine)
    assert volume.voxel_ml == pytest.approx(tilted.voxel_ml, rel=1e-4)
    expected, centre = mass(tilted, marked)
    got, place = mass(volume, mask)
    if drawn_on == "tilted":
        assert got == pytest.approx(expected, rel=0.07)
        np.testing.assert_allclose(place, centre, atol=0.2)
    else:
        np.testing.assert_array_equal(mask, label)
    shown = volume.array > 60
    assert mass(volume, shown)[1] == pytest.approx(centre, abs=0.3)
    (image,) = (tmp_path / "out/images").iterdir()
    opened = sitk.ReadImage(str(image))
    assert opened.GetSpacing() == pytest.approx(volume.spacing, rel=1e-5)
    # Each voxel where ITK takes it to be: the sform and the qform are one grid.
    corner = np.array(volume.array.shape) - 1.0
    there = np.array(opened.TransformContinuousIndexToPhysicalPoint(corner.tolist())) * (-1, -1, 1)
    np.testing.assert_allclose(there, volume.affine[:3, :3] @ corner + volume.affine[:3, 3], atol=1e-3)


def test_tilted_nifti_files_are_resampled_and_others_copied(tmp_path: Path) -> None:
    array = np.stack([picture(z) for z in EVERY], axis=-1).astype(np.int16)
    affine = np.diag([0.5, 0.5, STEP, 1.0])
    tilted = affine.copy()
    tilted[1, 2] = 1.0  # two voxels a slice: what comes out is not interpolated
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in/flat.nii", array, like_affine=affine)
    write_nifti(tmp_path / "in/tilted.nii", array, like_affine=tilted)
    options = Preparation(unlabelled_are_negative=True, orthogonal=True, sizes=SplitSizes(val_fraction=0))
    prepare_data(tmp_path / "in", tmp_path / "out", options)
    assert (tmp_path / "out/images/flat.nii").read_bytes() == (tmp_path / "in/flat.nii").read_bytes()
    straight = read_volume(tmp_path / "out/images/tilted.nii.gz")
    np.testing.assert_allclose(straight.affine, affine, atol=1e-6)
    assert straight.array.shape == (SIDE, SIDE + 2 * (COUNT - 1), COUNT)
    for z in EVERY:
        np.testing.assert_allclose(straight.array[:, 2 * z : 2 * z + SIDE, z], array[..., z], atol=1e-3)
    with pytest.raises(UserError, match="--orthogonal writes images, --link refers"):
        prepare_data(tmp_path / "in", tmp_path / "no", Preparation(orthogonal=True, link=True))

"""Folders of NIfTI files and DICOM series become tables that training reads, complete or not at all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.case import load_case
from quartet.apps.sam_med3d_ich.data.dicom import find_series, read_series
from quartet.apps.sam_med3d_ich.data.split import SplitSizes, Subject, split_by_patient
from quartet.apps.sam_med3d_ich.data.table import check_patients, read_cases
from quartet.apps.sam_med3d_ich.data.volume import Volume, read_volume, write_nifti
from quartet.apps.sam_med3d_ich.preparation import Preparation, prepare_data

SHAPE = (8, 7, 6)
AFFINE = np.array([[-0.5, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 5, -30], [0, 0, 0, 1]], dtype=np.float64)


def scan(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, SHAPE).astype(np.int16)


def labels(seed: int, *, values: int = 3) -> np.ndarray:
    return (np.random.default_rng(seed).integers(0, values, SHAPE) * (seed % 3 > 0)).astype(np.uint8)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, array, like_affine=AFFINE)


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    """Ten cases, each third one without target."""
    for n in range(10):
        write(tmp_path / f"in/images/case {n}.nii.gz", scan(n))
        write(tmp_path / f"in/labels/case {n}.nii.gz", labels(n))
    return tmp_path / "in"


def read(output: Path, split: str) -> list[Any]:
    return read_cases(output / f"{split}.csv", mask_dir=output / "masks")


def test_nifti_folders(nifti: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    sizes = SplitSizes(val_cases=3, test_cases=2)
    splits = prepare_data(nifti, output, Preparation(sizes=sizes))
    assert {split: len(names) for split, names in splits.items()} == {"val": 3, "test": 2, "train": 5}
    cases = [case for split in ("train", "val", "test") for case in read(output, split)]
    assert sorted(case.name for case in cases) == [f"case {n}" for n in range(10)]
    for case in cases:
        n = int(case.name[-1])
        volume, mask = load_case(case)
        np.testing.assert_array_equal(volume.array, scan(n))
        np.testing.assert_array_equal(mask, labels(n) > 0)
        assert case.ich == int(n % 3 > 0)
        assert case.patient_id == f"case {n}"
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[:2]] == [
        ["split", "cases", "patients", "positive"],
        ["train", "5", "5", str(sum(case.ich for case in read(output, "train")))],
    ]


def test_same_seed_same_split(nifti: Path, tmp_path: Path) -> None:
    tables = []
    for number, seed in enumerate((1, 1, 2)):
        prepare_data(nifti, tmp_path / str(number), Preparation(seed=seed))
        tables.append((tmp_path / str(number) / "train.csv").read_text(encoding="utf-8"))
    assert tables[0] == tables[1] != tables[2]


def test_nnunet_layout_and_links(tmp_path: Path) -> None:
    for n in range(4):
        write(tmp_path / f"in/imagesTr/b_{n}_0000.nii.gz", scan(n))
        write(tmp_path / f"in/labelsTr/b_{n}.nii.gz", labels(n))
    prepare_data(tmp_path / "in", tmp_path / "out", Preparation(link=True, labels=(2,), patient_regex=r"^b_(\d+)"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["masks", "train.csv", "val.csv"]
    cases = read(tmp_path / "out", "train") + read(tmp_path / "out", "val")
    for case in cases:
        assert case.image == tmp_path / f"in/imagesTr/b_{case.patient_id}_0000.nii.gz"
        np.testing.assert_array_equal(load_case(case)[1], labels(int(case.patient_id)) == 2)
    write(tmp_path / "in/imagesTr/b_0_0001.nii.gz", scan(0))
    with pytest.raises(UserError, match=r"several channels a case \(b_0_0001\.nii\.gz\)"):
        prepare_data(tmp_path / "in", tmp_path / "again", Preparation())


def test_one_folder_with_suffixes(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / f"in/S_{n}_ct.nii", scan(n))
        write(tmp_path / f"in/S_{n}_mask.nii.gz", labels(n))
    settings = Preparation(image_suffix="_ct", label_suffix="_mask")
    prepare_data(tmp_path / "in", tmp_path / "out", settings)
    names = [case.image.name for split in ("train", "val") for case in read(tmp_path / "out", split)]
    assert sorted(names) == ["S_0.nii", "S_1.nii", "S_2.nii"]


def test_patients_stay_together(tmp_path: Path) -> None:
    for n in range(12):
        write(tmp_path / f"in/images/p{n // 2}_{n % 2}.nii.gz", scan(n))
        write(tmp_path / f"in/labels/p{n // 2}_{n % 2}.nii.gz", labels(n))
    sizes = SplitSizes(val_cases=4)
    prepare_data(tmp_path / "in", tmp_path / "out", Preparation(sizes=sizes, patient_regex="(p[0-9]+)_"))
    train, validation = read(tmp_path / "out", "train"), read(tmp_path / "out", "val")
    assert (len(train), len(validation)) == (8, 4)
    assert check_patients(train, validation, allow=False) is None


def test_unlabelled_cases(nifti: Path, tmp_path: Path) -> None:
    (nifti / "labels/case 4.nii.gz").unlink()
    with pytest.raises(UserError, match=r"labels: no label map for case 4; .*--unlabelled_are_negative"):
        prepare_data(nifti, tmp_path / "out", Preparation())
    prepare_data(nifti, tmp_path / "out", Preparation(unlabelled_are_negative=True))
    cases = read(tmp_path / "out", "train") + read(tmp_path / "out", "val")
    (case,) = [case for case in cases if case.name == "case 4"]
    assert (case.ich, case.mask) == (0, None)


def test_errors_leave_nothing_behind(nifti: Path, tmp_path: Path) -> None:
    write_nifti(nifti / "labels/case 7.nii.gz", labels(7), like_affine=np.eye(4))
    with pytest.raises(UserError, match=r"case 7\.nii\.gz: mask and image differ in place"):
        prepare_data(nifti, tmp_path / "out", Preparation())
    (nifti / "labels/case 7.nii.gz").write_bytes(b"no")
    with pytest.raises(UserError, match=r"case 7\.nii\.gz: damaged"):
        prepare_data(nifti, tmp_path / "deep" / "er" / "out", Preparation())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_all_problems_of_a_folder_are_told_together(nifti: Path, tmp_path: Path) -> None:
    (nifti / "labels/case 1.nii.gz").unlink()
    write(nifti / "images/case 2.nii", scan(2))
    (nifti / "images/case 4.nii.gz").write_bytes(b"no")
    write_nifti(nifti / "labels/case 7.nii.gz", labels(7), like_affine=np.eye(4))
    with pytest.raises(UserError) as caught:
        prepare_data(nifti, tmp_path / "out", Preparation(patient_regex="(case [0-8])"))
    heading, *told = str(caught.value).splitlines()
    assert heading == f"{nifti}: 5 problems"
    for line, message in zip(
        told,
        (
            "would be the same case 'case 2'; rename one",
            "no label map for case 1;",
            "finds no patient in the name of case 9",
            "case 4.nii.gz: damaged",
            "case 7.nii.gz: mask and image differ in place",
        ),
        strict=True,
    ):
        assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_of_many_problems_ten_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    for n in range(13):
        write(tmp_path / f"in/images/{n}.nii.gz", scan(n))
        write(tmp_path / f"in/labels/{n}.nii.gz", labels(n)[:4])
    with pytest.raises(UserError) as caught:
        prepare_data(tmp_path / "in", tmp_path / "out", Preparation())
    heading, *told, rest = str(caught.value).splitlines()
    assert heading.endswith(": 13 problems")
    assert (len(told), rest) == (10, "  and 3 more")
    assert all("the mask is 4 x 7 x 6 voxels, its image 8 x 7 x 6" in line for line in told)


def test_sizes_that_cannot_be_are_told_before_any_image_is_read(nifti: Path, tmp_path: Path) -> None:
    (nifti / "images/case 4.nii.gz").write_bytes(b"no")
    with pytest.raises(UserError, match="10 cases cannot be split"):
        prepare_data(nifti, tmp_path / "out", Preparation(sizes=SplitSizes(val_cases=11)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Preparation(sizes=SplitSizes(val_cases=8, train_cases=3)), "10 cases cannot be split into val 8, .*train 3"),
        (Preparation(sizes=SplitSizes(val_fraction=1.5)), "--val_fraction 1.5"),
        (Preparation(sizes=SplitSizes(val_cases=10)), "no case is left for the train split"),
        (Preparation(patient_regex="("), "not a regular expression"),
        (Preparation(patient_regex="case"), "0 groups; expected one"),
        (Preparation(patient_regex="(x)"), "finds no patient in the name of case 0, case 1, .* and 5 more"),
        (Preparation(label_dir=Path("nowhere")), "no such folder of label maps"),
        (Preparation(image_suffix="_ct"), "no NIfTI files"),
        (Preparation(label_suffix="_m", unlabelled_are_negative=False), "no label map for case 0"),
    ],
)
def test_bad_settings(nifti: Path, tmp_path: Path, settings: Preparation, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_data(nifti, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_existing_output_is_refused(nifti: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists and is not empty"):
        prepare_data(nifti, nifti, Preparation())
    (tmp_path / "out").mkdir()
    prepare_data(nifti, tmp_path / "out", Preparation())


def test_names_that_are_the_same_number(tmp_path: Path) -> None:
    for name in ("7", "07"):
        write(tmp_path / f"in/images/{name}.nii", scan(1))
        write(tmp_path / f"in/labels/{name}.nii", labels(1))
    with pytest.raises(UserError, match="cases '07' and '7' are the same number"):
        prepare_data(tmp_path / "in", tmp_path / "out", Preparation())


def test_positives_are_spread() -> None:
    subjects = [Subject(str(n), str(n), positive=n % 4 == 0) for n in range(40)]
    for seed in range(5):
        splits = split_by_patient(subjects, SplitSizes(val_cases=8, test_cases=4, train_cases=20), seed=seed)
        positive = {split: sum(int(name) % 4 == 0 for name in names) for split, names in splits.items()}
        assert positive == {"val": 2, "test": 1, "train": 5}
        assert [len(splits[split]) for split in ("val", "test", "train")] == [8, 4, 20]
        assert len(set().union(*splits.values())) == 32


# -------------------------------------------------------------------------------------------------------------- DICOM

DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORIGIN = (-12.0, -34.0, 56.0)


def write_series(folder: Path, array: np.ndarray, *, uid: str = "1.2.3", **options: Any) -> list[Path]:
    """One DICOM file for each z of `array` [X, Y, Z] in HU; names are not in the order of the slices."""
    step = np.asarray(options.pop("step", (0.0, 0.0, 5.0)))
    row_column = options.pop("orientation", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    paths = []
    for z in range(array.shape[2]):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[:, :, z].T[None].astype(np.int16)))
        image.SetSpacing((0.5, 0.75, 5.0))
        position = np.asarray(ORIGIN) + z * step
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{z + 1}",
            "0008|0060": "CT",
            "0008|103e": f"head {uid}",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(f"{value:.10g}" for value in position),
            "0020|0037": "\\".join(f"{value:.10g}" for value in row_column),
            "0028|1052": "-1024",
            "0028|1053": "1",
            **options,
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        path = folder / f"{(7 * z + 3) % 11:02d}_{z}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(image)
        paths.append(path)
    return paths


def series_volume(folder: Path) -> Volume:
    (series,) = find_series(folder)
    return read_series(series)


def test_series_is_read_in_hu_and_ras(tmp_path: Path) -> None:
    paths = write_series(tmp_path, scan(5))
    header = sitk.ReadImage(str(paths[0]))
    assert header.GetMetaData("0028|1052").strip() == "-1024"
    volume = series_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, scan(5))
    expected = [[-0.5, 0, 0, 12], [0, -0.75, 0, 34], [0, 0, 5, 56], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-4)


def test_slices_counted_downwards_and_turned_planes(tmp_path: Path) -> None:
    write_series(tmp_path / "down", scan(5), step=(0, 0, -5.0))
    volume = series_volume(tmp_path / "down")
    np.testing.assert_array_equal(volume.array, scan(5)[:, :, ::-1])
    assert volume.affine[:3, 3] == pytest.approx([12, 34, 56 - 25])
    write_series(tmp_path / "coronal", scan(6), orientation=(1.0, 0, 0, 0, 0, -1.0), step=(0, 3.0, 0))
    volume = series_volume(tmp_path / "coronal")
    np.testing.assert_array_equal(volume.array, scan(6))
    np.testing.assert_allclose(volume.affine[:3, :3], [[-0.5, 0, 0], [0, 0, -3], [0, -0.75, 0]], atol=1e-6)


def test_tilted_gantry_becomes_shear(tmp_path: Path) -> None:
    write_series(tmp_path, scan(5), step=(0, 1.25, 5.0))
    volume = series_volume(tmp_path)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, -1.25, 5], atol=1e-6)
    assert volume.voxel_ml == pytest.approx(0.5 * 0.75 * 5 / 1000)


def test_series_with_gaps_or_doubles(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "gap", scan(5))
    paths[2].unlink()
    with pytest.raises(UserError, match=r"5 mm apart, but 10_1\.dcm and 02_3\.dcm 10 mm; are files missing"):
        series_volume(tmp_path / "gap")
    paths = write_series(tmp_path / "double", scan(5))
    (tmp_path / "double/copy.dcm").write_bytes(paths[1].read_bytes())
    with pytest.raises(UserError, match="holds slices twice"):
        series_volume(tmp_path / "double")
    write_series(tmp_path / "one", scan(5)[:, :, :1])
    with pytest.raises(UserError, match="not one slice"):
        series_volume(tmp_path / "one")


def test_damaged_slice(tmp_path: Path) -> None:
    paths = write_series(tmp_path, scan(5))
    paths[3].write_bytes(paths[3].read_bytes()[:-60])
    with pytest.raises(UserError):
        series_volume(tmp_path)


def test_dicom_folders(tmp_path: Path) -> None:
    for n in range(4):
        write_series(tmp_path / f"in/patient {n}/study/1", scan(n), uid=f"1.2.{n + 1}")
        (tmp_path / f"in/patient {n}/notes.txt").write_text("not DICOM", encoding="utf-8")
        volume = series_volume(tmp_path / f"in/patient {n}")
        (tmp_path / "in/labels").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"in/labels/patient {n}.nii.gz", labels(n), like_affine=volume.affine)
    prepare_data(tmp_path / "in", tmp_path / "out", Preparation())
    cases = read(tmp_path / "out", "train") + read(tmp_path / "out", "val")
    assert len(cases) == 4
    for case in cases:
        n = int(case.name[-1])
        volume, mask = load_case(case)
        np.testing.assert_array_equal(volume.array, scan(n))
        np.testing.assert_array_equal(mask, labels(n) > 0)
        assert nibabel.load(case.image).get_data_dtype() == np.int16
    with pytest.raises(UserError, match="--link needs NIfTI"):
        prepare_data(tmp_path / "in", tmp_path / "no", Preparation(link=True))


def test_several_series(tmp_path: Path) -> None:
    for n in range(2):
        write_series(tmp_path / f"in/p{n}/a", scan(n), uid=f"1.2.{n + 1}.1")
        write_series(tmp_path / f"in/p{n}/b", scan(n + 5)[:, :, :3], uid=f"1.2.{n + 1}.2")
    negative = Preparation(unlabelled_are_negative=True)
    with pytest.raises(
        UserError, match=r"(?s)p0: 2 DICOM series; choose.*\n    1\.2\.1\.1 'head 1\.2\.1\.1', 6 files.*p1: 2 D"
    ):
        prepare_data(tmp_path / "in", tmp_path / "out", negative)
    for choice, count in (("each", 4), ("largest", 2)):
        output = tmp_path / choice
        prepare_data(tmp_path / "in", output, Preparation(unlabelled_are_negative=True, series=choice))
        cases = read(output, "train") + read(output, "val")
        assert len(cases) == count
        if choice == "largest":
            assert all(read_volume(case.image).array.shape == SHAPE for case in cases)


def test_a_folder_that_is_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "lonely", scan(1))
    settings = Preparation(unlabelled_are_negative=True, sizes=SplitSizes(val_fraction=0))
    assert prepare_data(tmp_path / "lonely", tmp_path / "out", settings)["train"] == ["lonely"]


def test_command_line(nifti: Path, tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, str(repository / "apps/sam_med3d_ich/prepare.py"), "--input", str(nifti)]
    command += ["--output", str(tmp_path / "out"), "--val_cases", "4", "--train_cases", "5", "--labels", "1", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in no split: 1 case\n" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: {tmp_path / 'out'}: exists and is not empty")
    assert "Traceback" not in again.stderr


def test_hippocampus(real_data: Path, tmp_path: Path) -> None:
    sizes = SplitSizes(train_cases=60, val_cases=20)
    splits = prepare_data(real_data / "hippocampus", tmp_path / "out", Preparation(sizes=sizes, link=True))
    assert (len(splits["train"]), len(splits["val"])) == (60, 20)
    assert all(case.ich for case in read(tmp_path / "out", "train"))

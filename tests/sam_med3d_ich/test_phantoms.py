"""Generated head CTs are valid data in every format, the same for the same seed, and look like what they stand for."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.case import Case, load_case
from quartet.apps.sam_med3d_ich.data.phantoms import PhantomFiles, make_head, write_phantoms
from quartet.apps.sam_med3d_ich.data.table import check_patients, read_cases
from quartet.apps.sam_med3d_ich.data.volume import read_volume

SMALL = {"shape": (32, 32, 16), "spacing": (6.0, 6.0, 10.0)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def small(folder: Path, *, seed: int = 0, train: int = 12, validation: int = 8) -> PhantomFiles:
    return write_phantoms(folder, train=train, validation=validation, seed=seed, **SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PhantomFiles:
    return small(tmp_path_factory.mktemp("phantoms") / "data")


@pytest.fixture(scope="module")
def splits(files: PhantomFiles) -> tuple[list[Case], list[Case]]:
    return (
        read_cases(files.train_csv, mask_dir=files.mask_dir),
        read_cases(files.val_csv, mask_dir=files.mask_dir),
    )


def test_every_case_is_valid_data(splits: tuple[list[Case], list[Case]]) -> None:
    train, validation = splits
    assert (len(train), len(validation)) == (12, 8)
    assert check_patients(train, validation, allow=False) is None
    assert len({case.patient_id for case in train}) < 12  # some patients have two scans
    for case in train + validation:
        volume, mask = load_case(case)
        assert sorted(volume.array.shape) == [16, 32, 32]
        assert sorted(volume.spacing) == [6, 6, 10]
        assert mask.any() == bool(case.ich) == (case.mask is not None)


def test_all_formats_and_orientations(splits: tuple[list[Case], list[Case]]) -> None:
    cases = splits[0] + splits[1]
    assert {"".join(case.image.suffixes) for case in cases} == {".pkl", ".nii.gz", ".npz"}
    assert {"".join(case.mask.suffixes) for case in cases if case.mask} == {".nii", ".nii.gz"}
    assert len({nibabel.aff2axcodes(load_case(case)[0].affine) for case in cases}) >= 3


def test_every_image_says_how_large_its_voxels_are(splits: tuple[list[Case], list[Case]]) -> None:
    """So that predict.py takes them as they lie, without masks and without --array_spacing."""
    for case in splits[0] + splits[1]:
        assert sorted(read_volume(case.image).spacing) == [6, 6, 10]


@pytest.mark.parametrize("split", [0, 1])
def test_a_quarter_has_no_bleed(splits: tuple[list[Case], list[Case]], split: int) -> None:
    assert sum(1 - case.ich for case in splits[split]) == len(splits[split]) / 4


def test_orientation_is_told_truly(splits: tuple[list[Case], list[Case]]) -> None:
    """Read through its affine, every head is the same way up: the longest axis runs from back to front."""
    for case in splits[0] + splits[1]:
        volume, _ = load_case(case)
        head = ndimage.binary_fill_holes(volume.array > 300)
        points = np.argwhere(head) @ volume.affine[:3, :3].T
        assert np.ptp(points[:, 1]) > np.ptp(points[:, 0])


def test_same_arguments_same_files(files: PhantomFiles, tmp_path: Path) -> None:
    small(tmp_path / "again")
    small(tmp_path / "other", seed=1)
    first = contents(files.train_csv.parent)
    assert first == contents(tmp_path / "again")
    assert first["images/1.nii.gz"] != contents(tmp_path / "other")["images/1.nii.gz"]


def test_written_once_and_replaced_when_asked_for_others(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    files = small(folder, train=3, validation=2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert small(folder, train=3, validation=2) == files
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    small(folder, train=2, validation=2)
    assert len(read_cases(files.train_csv, mask_dir=files.mask_dir)) == 2
    assert len(list((folder / "images").iterdir())) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds something that was not generated"):
        small(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_densities() -> None:
    head = make_head(np.random.default_rng(3), bleeds=2, shape=(64, 64, 24), spacing=(3.0, 3.0, 6.0))
    image, bleed = head.image, head.mask.astype(bool)
    assert image[0, 0].max() < -900  # air
    assert np.percentile(image, 99) > 600  # skull
    inner = ndimage.binary_erosion(bleed)
    assert 55 < image[inner].mean() < 85
    brain = image[24:40, 24:40, 10:14][~ndimage.binary_dilation(bleed, iterations=4)[24:40, 24:40, 10:14]]
    assert 20 < np.median(brain) < 40
    voxel_ml = 3 * 3 * 6 / 1000
    parts, count = ndimage.label(bleed, structure=np.ones((3, 3, 3)))
    assert 1 <= count <= 2
    assert all(0.3 < size * voxel_ml < 50 for size in np.bincount(parts.ravel())[1:])

"""Volumes keep their voxels and their place; what cannot be used is named."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.case import Case, check_case_header, load_case
from quartet.apps.sam_med3d_ich.data.volume import (
    Volume,
    check_header,
    mask_affine,
    read_labels,
    read_mask,
    read_volume,
    volume_name,
    write_nifti,
)

SHAPE = (5, 6, 7)
AFFINE = np.array([[-0.5, 0, 0, 10], [0, -0.6, 0, 20], [0, 0, 5, -30], [0, 0, 0, 1]], dtype=np.float64)


def image(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 50


def dump(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


# --------------------------------------------------------------------------------------------------- what can be read


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "뇌 CT é.nii.gz", "SCAN.NII.GZ"])
def test_nifti_round_trip(tmp_path: Path, name: str) -> None:
    write_nifti(tmp_path / name, image(), like_affine=AFFINE)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, image())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.array.dtype == np.float32
    assert volume.spacing == pytest.approx((0.5, 0.6, 5.0))
    assert volume.voxel_ml == pytest.approx(0.5 * 0.6 * 5 / 1000)


def test_shear_survives(tmp_path: Path) -> None:
    tilted = AFFINE.copy()
    tilted[1, 2] = 1.5  # a tilted gantry
    write_nifti(tmp_path / "a.nii.gz", image(), like_affine=tilted)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").affine, tilted, atol=1e-6)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    whole = nibabel.Nifti1Image(image().astype(np.int16), AFFINE)
    content = bytearray(whole.to_bytes())
    content[112:120] = struct.pack("<ff", 2, -1024)  # scl_slope and scl_inter of the NIfTI-1 header
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").array, 2 * image() - 1024)


def test_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "a.nii.gz", image()[..., None]))
    np.testing.assert_array_equal(volume.array, image())


@pytest.mark.parametrize("key", ["array", "image", "data", "volume"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles(tmp_path: Path, key: str, protocol: int) -> None:
    plain, spaced, placed = (tmp_path / f"{n}.pkl" for n in "abc")
    stored = image().astype(np.int16)
    plain.write_bytes(pickle.dumps(stored, protocol=protocol))
    spaced.write_bytes(pickle.dumps({key: stored, "spacing": (1, 2.0, 3), "note": "x"}, protocol=protocol))
    placed.write_bytes(pickle.dumps({key: stored, "affine": AFFINE}, protocol=protocol))
    assert read_volume(plain, array_spacing=(1, 1, 4)).spacing == (1, 1, 4)
    assert read_volume(spaced, array_spacing=(9, 9, 9)).spacing == (1, 2, 3)
    np.testing.assert_array_equal(read_volume(placed).affine, AFFINE)
    for path in (spaced, placed):
        volume = read_volume(path)
        assert type(volume.array) is np.ndarray
        np.testing.assert_array_equal(volume.array, image())


def test_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", image())
    np.savez(tmp_path / "b.npz", only=image(), spacing=[1, 2, 3])
    np.savez_compressed(tmp_path / "c.npz", image=image(), other=np.zeros(2), affine=AFFINE)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.npy", array_spacing=(1, 1, 1)).affine, np.eye(4))
    assert read_volume(tmp_path / "b.npz").spacing == (1, 2, 3)
    np.testing.assert_array_equal(read_volume(tmp_path / "c.npz").affine, AFFINE)
    np.testing.assert_array_equal(read_volume(tmp_path / "c.npz").array, image())


def test_bare_arrays_take_the_masks_geometry(tmp_path: Path) -> None:
    mask = nifti(tmp_path / "m.nii", np.zeros(SHAPE, np.uint8))
    np.save(tmp_path / "a.npy", image())
    assert read_volume(tmp_path / "a.npy", reference=mask).affine == pytest.approx(AFFINE)
    spaced = dump(tmp_path / "b.pkl", {"array": image(), "spacing": [0.5, 0.6, 5]})
    assert read_volume(spaced, reference=mask).affine == pytest.approx(AFFINE)
    assert mask_affine(mask, shape=(1, 2, 3)) is None
    other = dump(tmp_path / "c.pkl", {"array": image(), "spacing": [5, 0.6, 0.5]})
    with pytest.raises(UserError, match=r"c\.pkl: its spacing is 5 x 0.6 x 0.5 mm, that of its mask .*m\.nii"):
        read_volume(other, reference=mask)
    np.save(tmp_path / "d.npy", image((4, 4, 4)))
    with pytest.raises(UserError, match=r"d\.npy: .*not of its shape 4 x 4 x 4; give --array_spacing X Y Z"):
        read_volume(tmp_path / "d.npy", reference=mask)


@pytest.mark.parametrize(("name", "expected"), [("12.pkl", "12"), ("12.nii.gz", "12"), ("a.b.nii", "a.b"), ("x", "x")])
def test_names(name: str, expected: str) -> None:
    assert volume_name(Path("folder.d") / name) == expected


def test_mask_dtypes_and_values(tmp_path: Path) -> None:
    volume = Volume(image(), AFFINE)
    mask = (image() % 7 == 0).astype(np.uint8)
    for number, dtype in enumerate((np.uint8, np.int16, np.float32, np.float64)):
        read = read_mask(nifti(tmp_path / f"{number}.nii.gz", mask.astype(dtype)), like=volume)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, mask)
    write_nifti(tmp_path / "b.nii", mask.astype(bool), like_affine=AFFINE)
    assert nibabel.load(tmp_path / "b.nii").get_data_dtype() == np.uint8


def test_labels_become_masks(tmp_path: Path) -> None:
    volume = Volume(image(), AFFINE)
    labels = np.arange(210).reshape(SHAPE) % 4
    path = nifti(tmp_path / "l.nii.gz", labels.astype(np.int16))
    np.testing.assert_array_equal(read_labels(path, like=volume), labels > 0)
    np.testing.assert_array_equal(read_labels(path, like=volume, labels=[1, 3]), labels % 2)
    with pytest.raises(UserError, match=r"f\.nii\.gz: holds fractions"):
        read_labels(nifti(tmp_path / "f.nii.gz", labels.astype(np.float32) * 0.3), like=volume)


# ----------------------------------------------------------------------------------------------------- what is refused

BAD_ARRAYS: dict[str, tuple[Callable[[], np.ndarray], str]] = {
    "2-D": (lambda: image((5, 6)), "2-dimensional"),
    "4-D": (lambda: image((5, 6, 7, 2)), "4-dimensional"),
    "one slice": (lambda: image((5, 6, 1)), "not one slice"),
    "all zero": (lambda: np.zeros(SHAPE, np.float32), "all voxels are 0"),
    "constant": (lambda: np.full(SHAPE, -1024, np.int16), "all voxels are -1024"),
    "NaN": (lambda: np.where(image() == 0, np.nan, image()).astype(np.float32), "NaN or infinite in 1 voxel;"),
    "infinity": (lambda: np.where(image() == 0, -np.inf, image()).astype(np.float32), "NaN or infinite in 1 voxel;"),
    "overflow": (lambda: image().astype(np.float64) * 1e300, "NaN or infinite"),
    "complex": (lambda: image().astype(np.complex64), "expected (one )?number"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy", ".npz", ".pkl"])
@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, suffix: str, kind: str) -> None:
    make, message = BAD_ARRAYS[kind]
    path = tmp_path / f"bad one{suffix}"
    if suffix.startswith(".nii"):
        nifti(path, make())
    elif suffix == ".npy":
        np.save(path, make())
    elif suffix == ".npz":
        np.savez(path, array=make())
    else:
        dump(path, make())
    with pytest.raises(UserError, match=message) as caught:
        read_volume(path, array_spacing=(1, 1, 1))
    assert str(caught.value).startswith(f"{path}: ")


def whole_files(folder: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=SHAPE).astype(np.float32)
    write_nifti(folder / "a.nii", noise, like_affine=AFFINE)
    write_nifti(folder / "a.nii.gz", noise, like_affine=AFFINE)
    np.save(folder / "a.npy", noise)
    np.savez_compressed(folder / "a.npz", array=noise, spacing=[1, 1, 1])
    dump(folder / "a.pkl", {"array": noise, "spacing": [1, 1, 1]})
    return {path.name[1:]: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    for suffix, content in whole_files(tmp_path).items():
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError) as caught:
            read_volume(path, array_spacing=(1, 1, 1))
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy", ".npz", ".pkl"])
def test_wrong_magic(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    for content in (
        b"this is no volume at all " * 40,
        gzip.compress(b"nor is this " * 40),
        b"\x89PNG\r\n" + bytes(600),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_volume(path, array_spacing=(1, 1, 1))
        assert str(caught.value).startswith(f"{path}: ")


def test_flipped_bytes_raise_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix, content in whole_files(tmp_path).items():
        path = tmp_path / f"flipped{suffix}"
        for _ in range(40):
            broken = bytearray(content)
            for place in rng.integers(min(len(broken), 400), size=3):
                broken[place] = rng.integers(256)
            path.write_bytes(broken)
            try:
                volume = read_volume(path, array_spacing=(1, 1, 1))
            except UserError as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017 - some of the damage cannot be noticed
            else:
                assert volume.array.ndim == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pixels": np.ones(SHAPE)}, "exactly one of array, image, data, volume; the keys are 'pixels'"),
        ({"array": image(), "image": image()}, "exactly one of"),
        ({}, "the keys are none"),
        ({"array": [1, 2, 3]}, "holds a list"),
        ([image()], "holds a list"),
        ("text", "holds a str"),
        (None, "holds a NoneType"),
        ({"array": image(), "spacing": (1, 2)}, "expected three voxel sizes"),
        ({"array": image(), "spacing": (1, 2, -3)}, "expected three voxel sizes"),
        ({"array": image(), "spacing": (1, 2, float("nan"))}, "expected three voxel sizes"),
        ({"array": image(), "spacing": "abc"}, "expected three voxel sizes"),
        ({"array": image(), "spacing": (10**400, 1, 1)}, "expected three voxel sizes"),
        ({"array": image(), "affine": [[10**400] * 4] * 4}, "no 4 x 4 matrix"),
        ({"array": image(), "affine": np.eye(3)}, "no 4 x 4 matrix"),
        ({"array": image(), "affine": np.zeros((4, 4))}, "last row"),
        ({"array": image(), "affine": np.diag([1.0, 0, 1, 1])}, "no volume"),
        ({"array": image(), "affine": np.eye(4), "spacing": (1, 1, 5)}, "contradicts its affine"),
        (np.array(["a"] * 8).reshape(2, 2, 2), "expected numbers"),
    ],
)
def test_bad_pickles(tmp_path: Path, content: Any, message: str) -> None:
    path = dump(tmp_path / "x.pkl", content)
    with pytest.raises(UserError, match=message) as caught:
        read_volume(path, array_spacing=(1, 1, 1))
    assert str(caught.value).startswith(f"{path}: ")


def test_no_geometry_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --array_spacing X Y Z"):
        read_volume(dump(tmp_path / "x.pkl", image()))


def test_other_paths(tmp_path: Path) -> None:
    for name, message in (("no.nii", "no such file"), ("a.dcm", "expected .nii"), ("folder.npy", "no such file")):
        (tmp_path / "folder.npy").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            read_volume(tmp_path / name)


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    volume = Volume(image(), AFFINE)
    mask = np.zeros(SHAPE, np.uint8)
    with pytest.raises(UserError, match=r"s\.nii: the mask is 5 x 6 x 8 voxels, its image 5 x 6 x 7"):
        read_mask(nifti(tmp_path / "s.nii", np.zeros((5, 6, 8), np.uint8)), like=volume)
    for number, (row, column, by) in enumerate([(0, 3, 0.002), (2, 2, 0.001), (0, 0, 1.0), (1, 3, -40)]):
        moved = AFFINE.copy()
        moved[row, column] += by
        with pytest.raises(UserError, match=rf"{number}\.nii: mask and image differ in place"):
            read_mask(nifti(tmp_path / f"{number}.nii", mask, moved), like=volume)
    nearly = AFFINE.copy()
    nearly[0, 3] += 5e-4
    assert not read_mask(nifti(tmp_path / "n.nii", mask, nearly), like=volume).any()


def reoriented(array: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels at the same places, stored along other axes."""
    image = nibabel.Nifti1Image(array, affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(axes)
    )
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned.affine


@pytest.mark.parametrize("tilt", [0.0, 1.5])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAI", "SAR", "PIL", "ILA"])
def test_masks_with_other_axes_are_taken_by_their_affine(tmp_path: Path, axes: str, tilt: float) -> None:
    affine = AFFINE.copy()
    affine[1, 2] = tilt
    mask = (np.random.default_rng(0).random(SHAPE) < 0.2).astype(np.uint8)  # no two sides are alike
    path = nifti(tmp_path / "m.nii.gz", *reoriented(mask, affine, axes))
    volume = Volume(image(), affine)
    np.testing.assert_array_equal(read_mask(path, like=volume), mask)
    np.testing.assert_array_equal(read_labels(path, like=volume), mask)
    nifti(tmp_path / "i.nii", image(), affine)
    case = Case("i", tmp_path / "i.nii", path, 1, "p", "train.csv, line 2")
    check_case_header(case)
    np.testing.assert_array_equal(load_case(case)[1], mask)


def test_masks_in_the_other_hemisphere_are_refused_without_advice_that_moves_them(tmp_path: Path) -> None:
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])  # the same numbers, mirrored about the origin
    path = nifti(tmp_path / "m.nii", np.zeros(SHAPE, np.uint8), flipped)
    with pytest.raises(
        UserError, match=r"differ in place by up to .* Resample the mask onto its image's grid"
    ) as caught:
        read_mask(path, like=Volume(image(), AFFINE))
    assert "copy" not in str(caught.value)


@pytest.mark.parametrize("factor", [1e3, 1e-3, 500, 1e6])
def test_voxels_that_no_scanner_has_are_refused(tmp_path: Path, factor: float) -> None:
    """Headers in micrometres or metres."""
    sizes = (0.5 * factor, 0.5 * factor, 5 * factor)
    affine = np.diag([*sizes, 1.0])
    paths = [nifti(tmp_path / "a.nii", image(), affine), dump(tmp_path / "b.pkl", {"array": image(), "spacing": sizes})]
    for path in [*paths, dump(tmp_path / "c.pkl", {"array": image(), "affine": affine})]:
        with pytest.raises(UserError, match=r"expected 0.05 to 20 mm along each axis.*micrometres or metres") as caught:
            read_volume(path)
        assert str(caught.value).startswith(f"{path}: ")
    assert read_volume(nifti(tmp_path / "d.nii", image(), np.diag([0.06, 1, 19, 1]))).spacing == pytest.approx(
        (0.06, 1, 19)
    )


@pytest.mark.parametrize(
    ("value", "message"), [(2, "mask values 2 in 1 voxel;"), (255, "255"), (-1, "-1"), (0.5, "0.5"), (np.nan, "nan")]
)
def test_mask_values(tmp_path: Path, value: float, message: str) -> None:
    mask = np.zeros(SHAPE, np.float32)
    mask[1, 2, 3], mask[0, 0, 0] = value, 1
    with pytest.raises(UserError, match=message) as caught:
        read_mask(nifti(tmp_path / "m.nii.gz", mask), like=Volume(image(), AFFINE))
    assert str(caught.value).startswith(f"{tmp_path / 'm.nii.gz'}: ")


def test_masks_are_nifti(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros(SHAPE))
    with pytest.raises(UserError, match=r"m\.npy: expected a NIfTI file"):
        read_mask(tmp_path / "m.npy", like=Volume(image(), AFFINE))


def test_load_case(tmp_path: Path) -> None:
    bleed = np.zeros(SHAPE, np.uint8)
    bleed[2, 3, 4] = 1
    full, empty = nifti(tmp_path / "f.nii", bleed), nifti(tmp_path / "e.nii", bleed * 0)
    np.save(tmp_path / "a.npy", image())

    def case(mask: Path | None, ich: int) -> Case:
        return Case("a", tmp_path / "a.npy", mask, ich, "p", "train.csv, line 7")

    volume, mask = load_case(case(full, 1))
    np.testing.assert_array_equal(mask, bleed)
    assert volume.affine == pytest.approx(AFFINE)
    _, mask = load_case(case(None, 0), array_spacing=(1, 1, 1))
    assert mask.shape == SHAPE
    assert mask.dtype == np.uint8
    assert not mask.any()
    assert not load_case(case(empty, 0))[1].any()
    for wrong, message in (
        (case(empty, 1), r"ich is 1, but this mask is empty.*\(train\.csv, line 7\)"),
        (case(full, 0), r"ich is 0, but this mask marks 1 voxel.*line 7"),
        (case(None, 0), r"a\.npy: .*--array_spacing.*\(train\.csv, line 7\)"),
    ):
        with pytest.raises(UserError, match=message):
            load_case(wrong)


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_nothing_half_written(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        write_nifti(tmp_path / folder / "a.nii", image(), like_affine=AFFINE)
    with pytest.raises(UserError, match=r"\.nii or \.nii\.gz"):
        write_nifti(tmp_path / "a.img", image(), like_affine=AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------------------------------------ headers


def test_headers_tell_the_place_of_what_can_be_read(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", image(), like_affine=AFFINE)
    np.save(tmp_path / "b.npy", image())
    for path in (tmp_path / "a.nii.gz", tmp_path / "b.npy"):
        geometry = check_header(path, array_spacing=(1, 2, 3))
        volume = read_volume(path, array_spacing=(1, 2, 3))
        assert geometry is not None
        assert geometry.shape == volume.array.shape
        np.testing.assert_array_equal(geometry.affine, volume.affine)
    np.savez(tmp_path / "c.npz", array=image(), affine=AFFINE)
    assert check_header(tmp_path / "c.npz") is None


def test_headers_are_refused_in_the_words_of_the_reader(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([[[object()]]]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    np.save(tmp_path / "text.npy", np.full(SHAPE, "a"))
    np.save(tmp_path / "bare.npy", image())
    np.savez(tmp_path / "bare.npz", array=image())
    np.savez(tmp_path / "two.npz", array=image(), image=image(), spacing=(1, 1, 1))
    np.savez(tmp_path / "far.npz", array=image(), spacing=(1, 1, -1))
    (tmp_path / "no.nii").write_bytes(b"no")
    (tmp_path / "no.npz").write_bytes(b"no")
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "absent.pkl", tmp_path / "a.dcm"]
    for path in paths:
        told = []
        for read in (check_header, read_volume):
            with pytest.raises(UserError) as caught:
                read(path)
            told.append(str(caught.value))
        assert told[0] == told[1]


def test_headers_know_nothing_of_values(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.full(SHAPE, np.nan, np.float32), like_affine=AFFINE)
    assert check_header(tmp_path / "a.nii.gz") is not None


def test_a_volume_that_inflates_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "zeros.nii.gz"
    header = bytearray(nibabel.Nifti1Image(np.zeros((4, 4, 4), "f4"), np.eye(4)).header.binaryblock)
    struct.pack_into("<8h", header, 40, 3, 1500, 1500, 800, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(header) + bytes(4096)))
    with pytest.raises(UserError, match=r"zeros\.nii\.gz: refused, because .* MiB on disk claim to be 6\.71 GiB"):
        read_volume(path)
    np.savez_compressed(tmp_path / "zeros.npz", array=np.zeros((410, 410, 410), "f4"))
    with pytest.raises(UserError, match=r"zeros\.npz: refused"):
        read_volume(tmp_path / "zeros.npz", array_spacing=(1.0, 1.0, 1.0))

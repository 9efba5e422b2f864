"""Volumes to masks and a table: the run's own figures, what is refused before the work, what a cut leaves."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.run.decision import read_decision
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS
from quartet.apps.sam_med3d_ich.data.volume import read_volume, write_nifti
from quartet.apps.sam_med3d_ich.segmentation import Segmenter
from tests.sam_med3d_ich.test_prepare import series_volume, write_series
from tests.scripts import Ended, run_script

pytestmark = pytest.mark.pictures

SHAPE, SPACING = (32, 32, 16), (6.0, 6.0, 10.0)
AFFINE = np.diag([*SPACING, 1.0])
COLUMNS = ["input", "mask", "millilitres", "ich_score", "remark", "problem"]

Trained = Callable[[str], Path]
Predict = Callable[..., Ended]


@pytest.fixture
def predict(tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """`predict(*arguments, run="plain")` in an empty folder; what it writes is in out/."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, run: str = "plain") -> Ended:
        fixed = ["--model_path", trained(run), "--device", "cpu", "--num_workers", "0", "--output_dir", "out"]
        return run_script("apps/sam_med3d_ich/predict.py", *fixed, *arguments)

    return run


def scan(path: str | Path, *, value: float | None = None) -> Path:
    array = np.random.default_rng(0).normal(30, 20, SHAPE).astype(np.float32)
    if value is not None:
        array[1, 2, 3] = value
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_nifti(Path(path), array, like_affine=AFFINE)
    return Path(path)


def table(path: str | Path = "out/predictions.csv") -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def masks() -> list[str]:
    """The masks that the table names."""
    lines = table()
    assert list(lines[0]) == COLUMNS
    return [line["mask"] for line in lines]


# ------------------------------------------------------------------------------------------------ the run's own figures


@pytest.mark.parametrize("name", ["plain", "score"])
def test_predictions_are_those_of_the_runs_own_validation(name: str, trained: Trained, heads: Path) -> None:
    run = trained(name)
    decision = read_decision(run)
    assert decision is not None
    cases = table(run / "cases.csv")
    images = [heads / row["path"] for row in table(heads / "val.csv")]
    found = load_run(run, device="cpu")(images)
    assert len(found) == len(cases) == 2
    for prediction, case, image in zip(found, cases, images, strict=True):
        assert prediction.ich_score == pytest.approx(float(case["ich_score"]), abs=1e-5)
        assert prediction.millilitres == pytest.approx(float(case["predicted_ml"]), rel=1e-5)
        volume = read_volume(image)
        assert prediction.mask.shape == prediction.probability.shape == volume.array.shape
        assert prediction.mask.dtype == np.uint8
        inside = prediction.probability >= decision.threshold
        assert (prediction.mask <= inside).all()
        assert decision.min_volume_ml or np.array_equal(prediction.mask, inside)
        assert np.array_equal(prediction.affine, volume.affine)


@pytest.mark.parametrize("name", ["plain", "clicks"])
def test_volumes_with_known_masks_give_the_validation_table(
    name: str, trained: Trained, heads: Path, predict: Predict
) -> None:
    ended = predict("--csv", heads / "val.csv", "--mask_dir", heads / "masks", "--overlays", run=name)
    assert ended.code == 0, ended.err
    assert list(table()[0]) == ["path", "ich", "patient_id", *COLUMNS[1:-1], *FIELDS, "problem"]
    ours, theirs = table("out/cases.csv"), table(trained(name) / "cases.csv")
    assert [row.pop("name") for row in ours] == [row.pop("name") for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert {key: float(value or "nan") for key, value in one.items()} == pytest.approx(
            {key: float(value or "nan") for key, value in other.items()}, rel=1e-5, abs=1e-5, nan_ok=True
        )
    for row in table():
        assert Path("out", row["mask"]).is_file()
        assert Path("out", row["mask"].replace(".nii.gz", ".png")).stat().st_size > 1000
    assert Path("out/volumes.png").is_file()
    shown = dict(line.split()[-2:] for line in ended.out.splitlines() if len(line.split()) >= 2)
    assert shown["hd95_undefined"].isdecimal(), "counts are whole numbers"
    assert "." in shown["dice"] or shown["dice"] == "nan"


def test_volumes_and_arrays_in_memory_are_taken_too(trained: Trained, tmp_path: Path) -> None:
    path = scan(tmp_path / "a.nii")
    volume = read_volume(path)
    predictor = load_run(trained("plain"), device="cpu", options={"array_spacing": "6 6 10"})
    (file,), (same,), (bare,) = predictor(path), predictor(volume), predictor(volume.array)
    assert file.ich_score == same.ich_score == bare.ich_score
    assert np.array_equal(file.probability, same.probability)
    assert np.array_equal(file.probability, bare.probability)
    with pytest.raises(UserError, match="an array without a voxel size; give array_spacing"):
        load_run(trained("plain"), device="cpu")(volume.array)
    volume.array[3, 4, 5] = np.nan
    with pytest.raises(UserError, match="NaN or infinite in 1 voxel"):
        predictor(volume.array)


def test_the_threshold_moves_the_mask_and_files_hold_what_is_said(predict: Predict) -> None:
    scan("a.nii")
    sizes = []
    for threshold in ("0.2", "0.5", "0.8"):
        assert predict("a.nii", "--threshold", threshold, "--probability_map").code == 0
        mask, probability = (nibabel.load(f"out/a{end}.nii.gz") for end in ("", "_probability"))
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(probability.dataobj) >= np.float32(threshold))
        sizes.append(float(table()[0]["millilitres"]))
    assert sizes[0] >= sizes[1] >= sizes[2]
    assert sizes[0] > sizes[2]


# ----------------------------------------------------------------------------------------------------- DICOM and tables


def test_a_folder_of_dicom_files_is_one_volume(predict: Predict, tmp_path: Path, trained: Trained) -> None:
    array = np.random.default_rng(1).integers(-50, 90, size=(24, 20, 8)).astype(np.float32)
    write_series(Path("study/head"), array)
    scan("study/a.nii")
    assert predict("study").code == 0
    first, second = table()
    assert [first["input"], first["mask"]] == ["study/a.nii", "a.nii.gz"]
    assert [second["input"], second["mask"]] == ["study/head", "head.nii.gz"]
    volume = series_volume(Path("study/head"))
    written = nibabel.load("out/head.nii.gz")
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-5)
    assert written.shape == volume.array.shape
    (expected,) = load_run(trained("plain"), device="cpu")(volume)
    assert np.array_equal(np.asarray(written.dataobj), expected.mask)
    Path("t.csv").write_text("id,path\n7,study/head\n8,study\n", encoding="utf-8")
    assert predict("--csv", "t.csv").code == 1
    named, above = table()
    assert (named["id"], named["ich_score"]) == ("7", second["ich_score"])
    assert "study: 0 DICOM series in this folder" in above["problem"]


def test_several_series_in_a_folder_are_rows_each(predict: Predict) -> None:
    array = np.random.default_rng(1).integers(-50, 90, size=(24, 20, 8)).astype(np.float32)
    for number, size in ((1, 8), (2, 1)):
        write_series(Path(f"made{number}"), array[:, :, :size], uid=f"1.2.{number}")
        for path in Path(f"made{number}").iterdir():
            Path("study").mkdir(exist_ok=True)
            path.rename(f"study/{number}_{path.name}")
    assert predict("study").code == 1
    head, scout = table()
    assert [head["input"], head["mask"]] == ["study, series 1", "study_1.nii.gz"]
    assert scout["input"] == "study, series 2"
    assert "at least two slices" in scout["problem"]
    Path("t.csv").write_text("path\nstudy\n", encoding="utf-8")
    ended = predict("--csv", "t.csv")
    assert ended.code == 2
    assert "2 DICOM series; give the folder itself" in ended.err


def test_one_volume_whatever_table_it_is_in_and_masks_open_in_itk(predict: Predict) -> None:
    """A gantry at 20 degrees, where the product of the voxel sizes is 6.4 % above a voxel's volume."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3], affine[1, 2] = (-96, -80, 10), SPACING[2] * np.tan(np.radians(20))
    array, mask = np.random.default_rng(0).normal(30, 20, SHAPE).astype(np.float32), np.zeros(SHAPE, np.uint8)
    array[0, 0, 0], mask[10:20, 10:18, 4:9] = -1000, 1
    Path("masks").mkdir()
    for path, values in (("a.nii", array), ("masks/a.nii", mask)):
        write_nifti(Path(path), values, like_affine=affine)
    Path("cases.csv").write_text("path,ich,patient_id\na.nii,1,p\n", encoding="utf-8")
    assert predict("--csv", "cases.csv", "--mask_dir", "masks", "--threshold", "0.3").code == 0
    predicted, case = (table(f"out/{name}.csv")[0] for name in ("predictions", "cases"))
    written = nibabel.load("out/a.nii.gz")
    one, two, three = written.affine[:3, :3].T
    expected = float(written.get_fdata().sum()) * abs(float(np.dot(one, np.cross(two, three)))) / 1000
    assert expected > 0
    assert float(predicted["millilitres"]) == pytest.approx(expected, rel=1e-6)
    assert float(case["predicted_ml"]) == pytest.approx(expected, rel=1e-6)
    assert float(case["volume_ml"]) == pytest.approx(mask.sum() * np.prod(SPACING) / 1000, rel=1e-6)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    image = sitk.ReadImage("out/a.nii.gz")
    inside = sitk.GetArrayFromImage(image).sum() * np.prod(image.GetSpacing()) / 1000
    assert inside == pytest.approx(expected, rel=1e-5)
    centre = (np.array(SHAPE) - 1) / 2
    there = image.TransformContinuousIndexToPhysicalPoint(centre.tolist())
    np.testing.assert_allclose(np.array(there) * (-1, -1, 1), affine[:3, :3] @ centre + affine[:3, 3], atol=1e-3)


# ------------------------------------------------------------------------------------------------- what cannot be used


def test_all_bad_headers_are_told_before_any_work(predict: Predict) -> None:
    scan("a.nii.gz")
    Path("b.nii").write_bytes(b"no")
    np.save("c.npy", np.zeros(SHAPE, np.int16))
    np.savez("d.npz", array=np.zeros(SHAPE, np.int16))
    names = ["b.nii", "c.npy", "d.npz"]
    for flags in (["--strict"], ["--on_bad_input", "error"]):
        ended = predict("a.nii.gz", *names, *flags)
        assert ended.code == 2
        heading, *told = ended.err.strip().splitlines()
        assert heading.endswith("inputs: 3 problems")
        assert [line.strip().startswith(f"{name}: ") for line, name in zip(told, names, strict=True)] == [True] * 3
        assert all("--array_spacing" in line for line in told[1:])
        assert "without --strict" in told[-1]
        assert not Path("out").exists()


def test_bad_inputs_are_rows_with_their_reason(predict: Predict) -> None:
    Path("a.nii").write_bytes(b"no")
    write_nifti(
        Path("m.nii"), np.random.default_rng(0).normal(30, 20, SHAPE), like_affine=np.diag([500.0, 500, 5e3, 1])
    )
    scan("b.nii", value=np.inf)
    scan("c.nii")
    ended = predict("a.nii", "b.nii", "c.nii", "m.nii", "gone.nii")
    assert ended.code == 1
    assert masks() == ["", "", "c.nii.gz", "", ""]
    rows = table()
    assert [row["input"] for row in rows] == ["a.nii", "b.nii", "c.nii", "m.nii", "gone.nii"]
    assert rows[0]["problem"].startswith("a.nii: damaged or not a NIfTI file")
    assert rows[1]["problem"].startswith("b.nii: NaN or infinite")
    assert "expected 0.05 to 20 mm" in rows[3]["problem"]
    assert "gone.nii: no such file" in rows[4]["problem"]
    assert [row["millilitres"] != "" for row in rows] == [False, False, True, False, False]
    lines = ended.out.splitlines()
    first = next(number for number, line in enumerate(lines) if "2 inputs cannot be used; the first: a.nii" in line)
    assert first < min(number for number, line in enumerate(lines) if "left out: " in line), "before the work"
    assert "5 inputs, 4 could not be used" in ended.out
    nothing = predict("a.nii", "b.nii")
    assert nothing.code == 2
    assert "nothing could be predicted" in nothing.err


def test_a_mask_that_does_not_fit_is_told_with_its_image(predict: Predict) -> None:
    scan("a.nii")
    Path("masks").mkdir()
    write_nifti(Path("masks/a.nii"), np.ones((8, 8, 8), np.uint8), like_affine=AFFINE)
    Path("cases.csv").write_text("path,ich,patient_id\na.nii,1,p\nb.nii,1,q\n", encoding="utf-8")
    scan("b.nii")
    ended = predict("--csv", "cases.csv", "--mask_dir", "masks", "--strict")
    assert ended.code == 2
    assert "masks/a.nii: the mask is 8 x 8 x 8 voxels, its image 32 x 32 x 16" in ended.err
    assert "ich is 1, but masks has no b.nii" in ended.err
    assert not Path("out").exists()
    assert predict("--csv", "cases.csv", "--mask_dir", "masks").code == 2
    assert ["its image 32 x 32 x 16" in row["problem"] for row in table()] == [True, False]
    assert not Path("out/cases.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.nii", "b.nii", "--clicks", "1,2,3"], "clicks belong to one volume, and there are 2"),
        (["a.nii", "--clicks", "1,2"], "clicks=1,2: expected X,Y,Z"),
        (["a.nii", "--threshold", "1.5"], "threshold=1.5: expected a probability between 0 and 1"),
        (["a.nii", "--mask_dir", "masks"], "mask_dir goes with a table"),
        (["a.nii", "a.nii.gz"], "a.nii and a.nii.gz would both become"),
        (["a.nii.gz", "--output_dir", "."], "a.nii.gz would be overwritten by a mask"),
    ],
)
def test_mistakes_are_told_before_the_work(arguments: list[str], message: str, predict: Predict) -> None:
    for name in ("a.nii", "b.nii", "a.nii.gz"):
        scan(name)
    Path("masks").mkdir()
    before = set(Path().rglob("*"))
    ended = predict(*arguments)
    assert ended.code == 2
    assert message in ended.err
    assert set(Path().rglob("*")) == before


def test_volumes_of_the_same_name_get_those_of_their_folders(predict: Predict) -> None:
    for folder in ("in/p1/day1", "in/p2/day1", "in/p2/day2"):
        scan(f"{folder}/ct.nii")
    scan("in/other.nii")
    assert predict("in").code == 0
    assert masks() == ["other.nii.gz", "p1_day1_ct.nii.gz", "p2_day1_ct.nii.gz", "day2_ct.nii.gz"]
    assert all(Path("out", name).is_file() for name in masks())


# ------------------------------------------------------------------------------------------------------------- a cut


def test_each_volume_is_kept_whatever_happens_to_the_next(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        scan(f"{name}.nii.gz", value=float(ord(name)))
    names = [f"{name}.nii.gz" for name in "abc"]
    work = Segmenter.__call__
    calls: list[Any] = []

    def fail_third(self: Segmenter, *given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise MemoryError
        return work(self, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "__call__", fail_third)
        with pytest.raises(MemoryError):
            predict(*names)
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "__call__", lambda self, *a, **o: (calls.append(a), work(self, *a, **o))[1])
        ended = predict(*names)
    assert ended.code == 0
    assert "going on: 2 of 3 shards are there" in ended.out
    assert len(calls) == 1, "the other two were not predicted again"
    assert masks() == names
    predict(*names, "--output", "whole.csv")
    assert Path("out/whole.csv").read_bytes() == Path("out/predictions.csv").read_bytes()


# -------------------------------------------------------------------------------------------------------------- remarks


def test_values_that_are_no_hu_are_said_of_each_volume(predict: Predict) -> None:
    scan("raw.nii")
    scan("right.nii", value=-1000)
    ended = predict("raw.nii", "right.nii")
    assert ended.code == 0
    first, second = table()
    assert first["remark"].startswith("perhaps not in HU: its lowest value is -")
    assert second["remark"] == ""
    assert ended.out.count("perhaps not in HU") == 1


@pytest.mark.parametrize(("clicks", "warned"), [(["3,4,5,0"], True), (["3,4,5,0", "6,7,8"], False)])
def test_clicks_that_are_all_outside_are_warned_of(clicks: list[str], warned: bool, predict: Predict) -> None:
    scan("a.nii")
    ended = predict("a.nii", "--clicks", *clicks, run="clicks")
    assert ended.code == 0, ended.err
    assert ("all clicks are outside" in ended.out) == warned


def test_a_model_of_clicks_wants_some(predict: Predict) -> None:
    scan("a.nii")
    ended = predict("a.nii", run="clicks")
    assert ended.code == 2
    assert "was trained with clicks: give clicks" in ended.err
    assert "trained without clicks" in predict("a.nii", "--clicks", "3,4,5").out

"""What `predict.py` refuses before the work, what it keeps when the work is cut short, and what it says."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from mlcore.base.errors import UserError
from mlcore.cli.parse import parse
from quartet.apps.sam_med3d_ich import prediction
from quartet.apps.sam_med3d_ich.app import APP
from quartet.apps.sam_med3d_ich.data.phantoms import PhantomFiles, write_phantoms
from quartet.apps.sam_med3d_ich.data.volume import write_nifti
from quartet.apps.sam_med3d_ich.prediction import Request, predict
from quartet.apps.sam_med3d_ich.restore import Restored, describe, make_model, make_segmenter
from quartet.apps.sam_med3d_ich.segmentation import Segmenter

SHAPE, SPACING = (32, 32, 16), (6.0, 6.0, 10.0)
AFFINE = np.diag([*SPACING, 1.0])

Ask = Callable[..., Request]


def restored(*options: str) -> Restored:
    """An untrained model of a moment's work a volume."""
    line = "--train_csv t --val_csv v --mask_dir m --model_type vit_tiny --image_size 16 --weights none"
    config = parse(APP, [*line.split(), "--spacing", "12", "12", "12", *options]).config
    torch.manual_seed(0)
    metadata = describe(config)
    model = make_model(metadata).eval()
    return Restored(segmenter=make_segmenter(metadata, model), prompted=metadata["prompted"], config=config, step=1)


@pytest.fixture(autouse=True)
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "restore", lambda *_, **__: restored())


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """`ask(paths, csv=...)`: a command line with its defaults, whose output goes to `tmp_path / "out"`."""

    def make(*inputs: Path, **options: object) -> Request:
        given: dict[str, object] = {"csv": None, "mask_dir": None, "array_spacing": None, "clicks": [], "device": "cpu"}
        given |= {"threshold": None, "probability_map": False, "overlays": False, "on_bad_input": "error"}
        given |= {"inputs": inputs, "model_path": Path("best.pth"), "output_dir": tmp_path / "out", **options}
        return Request(**given)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PhantomFiles:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    return write_phantoms(folder, train=5, validation=3, seed=0, shape=SHAPE, spacing=SPACING)


def scan(path: Path, *, value: float | None = None) -> Path:
    array = np.random.default_rng(0).normal(30, 20, SHAPE).astype(np.float32)
    if value is not None:
        array[1, 2, 3] = value
    write_nifti(path, array, like_affine=AFFINE)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows(folder: Path) -> list[str]:
    """The masks that the table names."""
    lines = table(folder / "predictions.csv")
    assert list(lines[0]) == ["input", "mask", "volume_ml", "ich_score", "remark"]
    return [line["mask"] for line in lines]


def test_all_bad_headers_are_told_before_any_work(tmp_path: Path, ask: Ask) -> None:
    good = scan(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii").write_bytes(b"no")
    np.save(tmp_path / "c.npy", np.zeros(SHAPE, np.int16))
    np.savez(tmp_path / "d.npz", array=np.zeros(SHAPE, np.int16))
    paths = [tmp_path / name for name in ("b.nii", "c.npy", "d.npz")]
    with pytest.raises(UserError) as caught:
        predict(ask(good, *paths))
    heading, *told, way_out = str(caught.value).splitlines()
    assert heading == "inputs: 3 problems"
    assert [line.strip().startswith(f"{path}: ") for line, path in zip(told, paths, strict=True)] == [True] * 3
    assert "--array_spacing" in told[1]
    assert "--array_spacing" in told[2]
    assert "--on_bad_input skip" in way_out
    assert not (tmp_path / "out").exists()


def test_a_mask_that_does_not_fit_is_told_before_any_work(tmp_path: Path, phantoms: PhantomFiles, ask: Ask) -> None:
    scan(tmp_path / "a.nii")
    (tmp_path / "masks").mkdir()
    write_nifti(tmp_path / "masks/a.nii", np.ones((8, 8, 8), np.uint8), like_affine=AFFINE)
    (tmp_path / "cases.csv").write_text("path,ich,patient_id\na.nii,1,p\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"8 x 8 x 8 voxels, its image 32 x 32 x 16 .*cases\.csv, line 2"):
        predict(ask(csv=tmp_path / "cases.csv", mask_dir=tmp_path / "masks"))
    assert not (tmp_path / "out").exists()


def test_finished_volumes_are_in_the_table_when_a_later_one_is_bad(tmp_path: Path, ask: Ask) -> None:
    first, second = scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b.nii.gz", value=np.nan)
    with pytest.raises(UserError, match=r"b\.nii\.gz: NaN .*\n1 volume finished before it, see .*predictions\.csv"):
        predict(ask(first, second))
    assert rows(tmp_path / "out") == ["a.nii.gz"]


def test_finished_volumes_are_in_the_table_whatever_happens(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [scan(tmp_path / f"{name}.nii.gz") for name in "abc"]
    work = Segmenter.__call__
    calls: list[object] = []

    def fail_third(self: Segmenter, *given: object, **options: object) -> object:
        calls.append(given)
        if len(calls) == 3:
            raise MemoryError
        return work(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Segmenter, "__call__", fail_third)
    with pytest.raises(MemoryError):
        predict(ask(*paths))
    assert rows(tmp_path / "out") == ["a.nii.gz", "b.nii.gz"]


def test_bad_inputs_can_be_left_out(tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.nii").write_bytes(b"no")
    paths = [tmp_path / "a.nii", scan(tmp_path / "b.nii", value=np.inf), scan(tmp_path / "c.nii")]
    assert predict(ask(*paths, on_bad_input="skip")) == 0
    assert rows(tmp_path / "out") == ["", "", "c.nii.gz"]
    first, second, _ = table(tmp_path / "out/predictions.csv")
    assert [first["input"], second["input"]] == [str(path) for path in paths[:2]]
    assert first["remark"].startswith(f"left out: {paths[0]}: damaged or not a NIfTI file")
    assert second["remark"].startswith(f"left out: {paths[1]}: NaN or infinite")
    printed = capsys.readouterr().out
    assert printed.count("left out: ") == 2
    assert f"1 mask in {tmp_path / 'out'}, 2 inputs left out" in printed
    with pytest.raises(UserError, match="none of the inputs can be used"):
        predict(ask(*paths[:2], on_bad_input="skip"))


def test_phantoms_are_taken_as_they_lie(phantoms: PhantomFiles, ask: Ask, tmp_path: Path) -> None:
    images = phantoms.train_csv.parent / "images"
    assert predict(ask(images)) == 0
    assert len(rows(tmp_path / "out")) == len(list(images.iterdir())) == 8


def test_counts_are_whole_numbers(phantoms: PhantomFiles, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    predict(ask(csv=phantoms.val_csv, mask_dir=phantoms.mask_dir))
    shown: Mapping[str, str] = dict(
        line.split()[1:] for line in capsys.readouterr().out.splitlines() if len(line.split()) == 3
    )
    assert shown["hd95_undefined"].isdecimal()
    assert "." in shown["dice"]


def test_a_header_in_micrometres_concerns_its_own_volume_alone(tmp_path: Path, ask: Ask) -> None:
    good, bad = scan(tmp_path / "a.nii"), tmp_path / "b.nii"
    write_nifti(bad, np.random.default_rng(0).normal(30, 20, SHAPE), like_affine=np.diag([500.0, 500, 5000, 1]))
    assert predict(ask(good, bad, on_bad_input="skip")) == 0
    first, second = table(tmp_path / "out/predictions.csv")
    assert (first["mask"], second["mask"], second["volume_ml"]) == ("a.nii.gz", "", "")
    assert "expected 0.05 to 20 mm" in second["remark"]


def test_values_that_are_no_hu_are_said_of_each_volume(
    tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, right = scan(tmp_path / "raw.nii"), scan(tmp_path / "right.nii", value=-1000)
    assert predict(ask(raw, right)) == 0
    first, second = table(tmp_path / "out/predictions.csv")
    assert first["remark"].startswith("perhaps not in HU: its lowest value is -")
    assert second["remark"] == ""
    assert capsys.readouterr().out.count("perhaps not in HU") == 1


def test_one_volume_whatever_table_it_is_in_and_masks_open_in_itk(tmp_path: Path, ask: Ask) -> None:
    """A gantry at 20 degrees, where the product of the voxel sizes is 6.4 % above a voxel's volume."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3], affine[1, 2] = (-96, -80, 10), SPACING[2] * np.tan(np.radians(20))
    array, mask = np.random.default_rng(0).normal(30, 20, SHAPE).astype(np.float32), np.zeros(SHAPE, np.uint8)
    array[0, 0, 0], mask[10:20, 10:18, 4:9] = -1000, 1
    (tmp_path / "masks").mkdir()
    for path, values in ((tmp_path / "a.nii", array), (tmp_path / "masks/a.nii", mask)):
        write_nifti(path, values, like_affine=affine)
    (tmp_path / "cases.csv").write_text("path,ich,patient_id\na.nii,1,p\n", encoding="utf-8")
    predict(ask(csv=tmp_path / "cases.csv", mask_dir=tmp_path / "masks"))
    predicted, case = (table(tmp_path / "out" / f"{name}.csv")[0] for name in ("predictions", "cases"))
    written = nibabel.load(tmp_path / "out/a.nii.gz")
    one, two, three = written.affine[:3, :3].T
    expected = float(written.get_fdata().sum()) * abs(float(np.dot(one, np.cross(two, three)))) / 1000
    assert expected > 0
    assert float(predicted["volume_ml"]) == pytest.approx(expected, abs=1e-6)
    assert float(case["predicted_ml"]) == pytest.approx(expected, rel=1e-6)
    assert float(case["volume_ml"]) == pytest.approx(mask.sum() * np.prod(SPACING) / 1000, rel=1e-6)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    image = sitk.ReadImage(str(tmp_path / "out/a.nii.gz"))
    inside = sitk.GetArrayFromImage(image).sum() * np.prod(image.GetSpacing()) / 1000
    assert inside == pytest.approx(expected, rel=1e-5)
    centre = (np.array(SHAPE) - 1) / 2
    there = image.TransformContinuousIndexToPhysicalPoint(centre.tolist())
    np.testing.assert_allclose(np.array(there) * (-1, -1, 1), affine[:3, :3] @ centre + affine[:3, 3], atol=1e-3)


@pytest.mark.parametrize(("clicks", "warned"), [(["3,4,5,0"], True), (["3,4,5,0", "6,7,8"], False)])
def test_clicks_that_are_all_outside_are_warned_of(
    clicks: list[str],
    warned: bool,
    tmp_path: Path,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prediction, "restore", lambda *_, **__: restored("--prompt_mode", "clicks"))
    assert predict(ask(scan(tmp_path / "a.nii"), clicks=clicks)) == 0
    assert ("all --clicks are outside" in capsys.readouterr().out) == warned

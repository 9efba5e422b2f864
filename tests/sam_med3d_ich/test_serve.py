"""quartet serve with a run of the app: slices, the mask over them, millilitres."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcore.run import load_run
from quartet.apps.sam_med3d_ich.data.volume import read_volume, write_nifti
from quartet.apps.sam_med3d_ich.scene import AxialSlices
from tests.sam_med3d_ich.test_prepare import write_series
from tests.served import served


def test_a_volume_and_a_zipped_study_are_answered_slice_by_slice(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    array = np.random.default_rng(0).normal(30, 20, (24, 20, 12)).astype(np.float32)
    write_nifti(tmp_path / "head.nii.gz", array, like_affine=np.diag([6.0, 6.0, 10.0, 1.0]))
    write_series(tmp_path / "study", array)
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in sorted((tmp_path / "study").iterdir()):
            archive.write(path, f"../../{path.name}")
    predictor = load_run(trained("plain"), device="cpu")
    with served(predictor) as server:
        files = [(name, (tmp_path / name).read_bytes()) for name in ("head.nii.gz", "study.zip")]
        head, study = (server.ask(file).values["predictions"][0] for file in files)
        pictures = [server.get(address) for address in (*head["pictures"], head["pictures"][3].replace(".", "_over."))]
        mask = server.get(head["files"][0])
        bad = server.ask(("bad.zip", files[1][1][:300])).values["problem"]
    for one, name in ((head, "head.nii.gz"), (study, "study")):
        (own,) = predictor(tmp_path / name)
        assert one["values"]["millilitres"] == pytest.approx(own.millilitres, abs=1e-6)
        assert one["values"]["ich_score"] == pytest.approx(own.ich_score, abs=1e-6)
        assert one["answer"] == f"{own.millilitres:.1f} mL"
        assert (len(one["pictures"]), one["overlay"]) == (array.shape[2], "mask")
    assert (head["input"], study["input"]) == ("head.nii.gz", "study.zip")
    assert {picture.status for picture in pictures} == {200}
    assert "attachment" in mask.headers["content-disposition"]
    (tmp_path / "mask.nii.gz").write_bytes(mask.body)
    assert np.array_equal(read_volume(tmp_path / "mask.nii.gz").array, predictor(tmp_path / "head.nii.gz")[0].mask)
    assert Image.open(io.BytesIO(pictures[-1].body)).mode == "RGBA"
    assert bad.startswith("bad.zip: damaged or not a zip archive")


def test_slices_lie_as_radiologists_read_them_and_begin_at_the_widest_of_the_mask() -> None:
    mask = np.zeros((10, 20, 6), dtype=np.uint8)
    mask[9, 19, 2] = mask[8:, 18:, 4] = 1  # the patient's right and front
    slices = AxialSlices(mask, affine=np.diag([2.0, 1.0, 5.0, 1.0]), mask=True)
    assert (len(slices), slices.widest) == (6, 4)
    picture = slices[4]
    assert picture.shape == (512, 512, 4), "20 mm by 20 mm"
    covered = picture[..., 3] > 0
    assert covered[:51, :102].all(), "right is left, front is above"
    assert covered.sum() <= 52 * 103
    image = AxialSlices(np.arange(1200.0).reshape(10, 20, 6), affine=np.eye(4), window=(600.0, 1200.0))[0]
    assert (image.shape, image.dtype) == ((512, 256), np.uint8)
    assert image.min() < 20
    assert image.max() > 230

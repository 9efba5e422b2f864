"""The MONAI bundle: MONAI alone runs it, and its masks are those of `quartet predict`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.run.decision import Decision, write_decision
from mlcore.use.command import export
from quartet.apps.sam_med3d_ich.data.volume import read_volume, write_nifti

pytest.importorskip("monai", reason="MONAI is not installed")

Trained = Callable[[str], Path]

# What `python -m monai.bundle run` does, whose command line needs one more package (fire).
RUN = """
import sys
from monai.bundle import run
run(config_file="configs/inference.json", dataset_dir=sys.argv[1], output_dir=sys.argv[2])
assert not any(name.split(".")[0] in ("quartet", "mlcore") for name in sys.modules)
"""


@pytest.mark.slow
def test_monai_runs_the_bundle_and_its_masks_are_those_of_predict(
    trained: Trained, heads: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained("plain"), tmp_path / "run")
    first = read_volume(next(path for path in sorted((heads / "images").iterdir()) if ".nii" in path.name))
    middle = float(np.median(load_run(run, device="cpu")(first)[0].probability))
    write_decision(run, Decision(kind="mask", threshold=middle, min_volume_ml=0.5))
    assert export([str(run), "--format", "monai", "--output", str(tmp_path / "bundle")]) == 0
    turned = np.array([[0, -1, 0, 40], [1, 0, 0, -9], [0, 0, -1, 5], [0, 0, 0, 1]]) @ np.diag([0.9, 1.1, 4.0, 1.0])
    volumes = {"stored": (first.array, first.affine), "turned": (first.array[20:60, 30:80, 8:20], turned)}
    (tmp_path / "data").mkdir()
    for name, (array, affine) in volumes.items():
        write_nifti(tmp_path / "data" / f"{name}.nii.gz", array, like_affine=affine)
    command = [sys.executable, "-c", RUN, str(tmp_path / "data"), str(tmp_path / "masks")]
    done = subprocess.run(command, cwd=tmp_path / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in volumes:
        (expected,) = load_run(run, device="cpu")(tmp_path / "data" / f"{name}.nii.gz")
        written = nibabel.load(tmp_path / "masks" / f"{name}_mask.nii.gz")
        assert np.array_equal(np.asarray(written.dataobj), expected.mask), name
        np.testing.assert_allclose(written.affine, expected.affine, atol=1e-4)
    assert 0 < expected.mask.mean() < 1


@pytest.mark.slow
def test_a_bundle_is_as_the_specification_has_it(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    export([str(trained("plain")), "--format", "monai", "--output", str(folder)])
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"configs/metadata.json", "configs/inference.json", "models/model.pt2", "docs/README.md"}
    assert files == expected | {"scripts/__init__.py", "scripts/ich.py"}
    about = json.loads((folder / "configs" / "metadata.json").read_text("utf-8"))
    assert about["network_data_format"]["inputs"]["image"]["spatial_shape"] == [32, 32, 32]


def test_what_can_be_no_bundle_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained with clicks cannot be a MONAI bundle"):
        export([str(trained("clicks")), "--format", "monai", "--output", str(tmp_path / "bundle")])
    with pytest.raises(UserError, match="give it alone"):
        export([str(trained("plain")), "--format", "monai", "--format", "pt2", "--output", str(tmp_path / "bundle")])
    assert not (tmp_path / "bundle").exists()

"""MONAI's UNet in the place of SAM-Med3D: trained, evaluated, exported and predicted with like the others."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.cli.parse import parse
from mlcore.config.text import ConfigError
from mlcore.run import load_run
from mlcore.use.exporting import export
from quartet.apps.sam_med3d_ich.app import APP
from quartet.apps.sam_med3d_ich.model.unet import UNetModel
from tests.scripts import run_script

UNET = ["model.model_type=unet", "model.image_size=32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small: Sequence[str], folders: Sequence[str]) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("unet") / "run"
    ended = run_script("apps/sam_med3d_ich/train.py", *small, *folders, *UNET, "--output_dir", folder)
    assert not ended.code, ended.out + ended.err
    return folder


def test_run_and_exports_give_the_validation_of_the_training(run: Path, heads: Path, tmp_path: Path) -> None:
    export(load_run(run, device="cpu"), tmp_path / "out", ["pt2"])
    with (run / "cases.csv").open(encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    with (heads / "val.csv").open(encoding="utf-8", newline="") as file:
        images = [heads / next(csv.DictReader(file))["path"]]
    expected = load_run(run, device="cpu")(images)
    for case, one in zip(cases[:1], expected, strict=True):
        assert one.millilitres == pytest.approx(float(case["predicted_ml"]), rel=1e-4)
    for form in (None, "pt2"):
        for one, other in zip(load_run(tmp_path / "out", device="cpu", network=form)(images), expected, strict=True):
            np.testing.assert_allclose(one.probability, other.probability, atol=1e-5)
    assert not (run / "sam_encoder.pth").exists()


def test_the_largest_mask_logit_says_whether_there_is_a_bleed() -> None:
    torch.manual_seed(0)
    answer = UNetModel(16)(torch.randn(2, 1, 16, 16, 16))
    assert answer.masks.shape == (2, 1, 16, 16, 16)
    torch.testing.assert_close(answer.ich, answer.masks.amax(dim=(1, 2, 3, 4)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("model.weights=hub", "starts at random"),
        ("model.image_size=36", "no multiple of 8"),
        ("model.freeze_encoder=true", "no such part"),
        ("model.patch_size=8", "no such part"),
        ("objective.prompt_mode=clicks", "takes no clicks"),
    ],
)
def test_what_a_unet_has_not_is_refused(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(APP, ["--demo", *UNET, given])


def test_clicks_are_refused_of_a_run(run: Path) -> None:
    with pytest.raises(UserError, match="takes no clicks"):
        load_run(run, device="cpu", options={"clicks": "1,1,1"})

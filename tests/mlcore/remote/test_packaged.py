"""Published weights from packages of the index."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.remote.packaged import Packaged, packaged
from mlcore.training.checkpoint import load_checkpoint
from quartet.apps.doc_ensemble.model.classifier import create_model
from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.vision.timm_models import load_timm

LITE = "tf_efficientnet_lite0"
SAME = {
    "_conv_stem.weight": "conv_stem.weight",
    "_bn0.running_var": "bn1.running_var",
    "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
    "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
    "_blocks.2._bn1.bias": "blocks.1.1.bn2.bias",
    "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
    "_conv_head.weight": "conv_head.weight",
    "_fc.bias": "classifier.bias",
}


@pytest.fixture(scope="module")
def own() -> Packaged:
    found = packaged(LITE)
    assert found is not None, "comes with the requirements"
    return found


@pytest.fixture(scope="module")
def like() -> dict[str, Tensor]:
    with torch.device("meta"):
        return timm.create_model(LITE).state_dict()


def test_tensors_get_timms_names(own: Packaged, like: dict[str, Tensor]) -> None:
    found, path = own.read(like), own.path
    assert path is not None
    original = load_checkpoint(path)
    assert len(found) == len(original) == 296
    for theirs, ours in SAME.items():
        assert torch.equal(found[ours], original[theirs]), ours
    assert all((value >= 0).all() for name, value in found.items() if name.endswith("running_var"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_both_apps_take_them(number: int) -> None:
    name = f"tf_efficientnet_lite{number}"
    grey = create_model(name, class_names=("a", "b"), pretrained=True, image_size=(64, 48), in_channels=1)
    encoder = load_timm(VisionEncoderConfig(kind="timm", model=name, image_size=(64, 48)), ways_out="")
    trunk, vision = grey.trunk.state_dict(), encoder.backbone.state_dict()
    assert torch.equal(trunk["conv_head.weight"], vision["conv_head.weight"])
    assert torch.allclose(trunk["conv_stem.weight"], vision["conv_stem.weight"].sum(1, keepdim=True), atol=1e-6)
    levels = torch.tensor([0.0, 127.0, 255.0]) / 255
    for mean, std in (
        (grey.metadata["mean"], grey.metadata["std"]),
        (encoder.processor.settings["image_mean"], encoder.processor.settings["image_std"]),
    ):
        assert ((levels - mean[0]) / std[0]).tolist() == pytest.approx([-127 / 128, 0, 1])


def test_another_file_or_network_is_refused(own: Packaged, like: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match="is not the file that was published"):
        replace(own, digest="0" * 64).read(like)
    with pytest.raises(UserError, match="holds another network's tensors"):
        own.read(timm.create_model("test_resnet").state_dict())


def test_only_the_same_weights_are_taken_for_a_name(own: Packaged) -> None:
    assert packaged(f"{LITE}.in1k") == own
    for name in ("efficientnet_lite0", f"{LITE}.other", "resnet18", str(Path("folder") / LITE)):
        assert packaged(name) is None
    assert replace(own, package="no_such_package").path is None

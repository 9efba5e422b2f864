"""Which weights train, and what frozen parts do under `train()`."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.vision.encoder import VisionEncoder, load_vision, meta_vision
from quartet.apps.multimodal_ads.vision.freezing import freeze

KINDS = ("siglip2", "siglip2_naflex", "vit", "timm")


def tiny(folder: Any, kind: str) -> VisionEncoder:
    size = (64, 64) if kind == "timm" else None
    return load_vision(VisionEncoderConfig(kind=kind, model=str(folder), max_patches=16, image_size=size))  # type: ignore[arg-type]


def step(encoder: VisionEncoder, pictures: list[NDArray[np.uint8]]) -> set[str]:
    """Names of the weights that one step changes."""
    before = {name: value.detach().clone() for name, value in encoder.named_parameters()}
    tokens = encoder(encoder.processor(pictures))
    loss = tokens.values.square().mean() + (0 if tokens.summary is None else tokens.summary.square().mean())
    loss.backward()
    torch.optim.SGD([value for value in encoder.parameters() if value.requires_grad], lr=1e-2).step()
    return {name for name, value in encoder.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_last_layers_and_what_follows_train(
    kind: str, hub_folder: Any, pictures: list[NDArray[np.uint8]]
) -> None:
    encoder = tiny(hub_folder(kind), kind)
    freeze(encoder, layers=2)
    encoder.train()
    changed = step(encoder, pictures)
    trainable = {name for name, value in encoder.named_parameters() if value.requires_grad}
    parts = {
        "siglip2": ("encoder.layers.2.", "encoder.layers.3.", "post_layernorm.", "head."),
        "siglip2_naflex": ("encoder.layers.2.", "encoder.layers.3.", "post_layernorm.", "head."),
        "vit": ("layers.2.", "layers.3.", "layernorm."),
        "timm": ("layer3.", "layer4."),
    }[kind]
    expected = {name for name, _ in encoder.named_parameters() if name.removeprefix("backbone.").startswith(parts)}
    assert trainable == expected
    assert {name for name in trainable - changed if "k_proj.bias" not in name} == set()
    assert changed <= trainable


@pytest.mark.parametrize("kind", KINDS)
def test_none_and_all(kind: str, hub_folder: Any) -> None:
    encoder = tiny(hub_folder(kind), kind)
    freeze(encoder, layers=0)
    assert not any(value.requires_grad for value in encoder.parameters())
    freeze(encoder, layers=-1)
    assert all(value.requires_grad for value in encoder.parameters())


def test_frozen_batch_norms_keep_their_statistics(hub_folder: Any, pictures: list[NDArray[np.uint8]]) -> None:
    encoder = tiny(hub_folder("timm"), "timm")
    pixels = encoder.processor(pictures)
    freeze(encoder, layers=1)
    nn.Sequential(encoder).train()  # as the classifier around it would be
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(pixels)
    moved = {name for name, value in encoder.named_buffers() if not torch.equal(value, statistics[name])}
    assert moved
    assert all("layer4" in name for name in moved)
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


def test_a_frozen_backbone_is_a_fixed_function_in_training() -> None:
    config = VisionEncoderConfig(kind="timm", model="resnet10t", pretrained=False, image_size=(32, 32))
    encoder = load_vision(config)
    encoder.backbone.layer4.add_module("noise", nn.Dropout(0.5))  # type: ignore[union-attr, operator]
    freeze(encoder, layers=0)
    assert not any(module.training for module in encoder.train().modules())
    freeze(encoder, layers=1)
    assert encoder.train().get_submodule("backbone.layer4.noise").training


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "google/siglip2-base-patch16-naflex"])
def test_more_layers_than_there_are(name: str) -> None:
    with pytest.raises(UserError, match=r"train\.finetune_layers=40.* has (4|12) layers"):
        freeze(meta_vision(name), layers=40)

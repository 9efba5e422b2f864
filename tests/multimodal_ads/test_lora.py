"""Adapters: on exactly the promised projections, alone in training, restored exactly, merged without a difference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.training.checkpoint import load_checkpoint, load_model_weights, save_checkpoint
from quartet.apps.multimodal_ads.adapters import adapter_names, add_adapters, merge_adapters
from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.vision.encoder import VisionEncoder, load_vision, meta_vision

KINDS = ("siglip2", "siglip2_naflex", "vit")
Pictures = list[NDArray[np.uint8]]


def tiny(folder: Any, kind: str) -> VisionEncoder:
    return load_vision(VisionEncoderConfig(kind=kind, model=str(folder), max_patches=16))  # type: ignore[arg-type]


def adapted(folder: Any, kind: str, *, dropout: float = 0.0, train: bool = True) -> VisionEncoder:
    """A tiny model with adapters on its last 2 layers; `train` fills them as training would."""
    encoder = tiny(folder, kind)
    add_adapters(encoder, rank=3, alpha=6.0, dropout=dropout, target_layers=2)
    if train:
        generator = torch.Generator().manual_seed(5)
        for name, value in encoder.named_parameters():
            if ".lora_" in name:
                value.data.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return encoder


def test_so400m_gets_adapters_on_18_projections_of_the_last_6_layers() -> None:
    encoder = meta_vision("google/siglip2-so400m-patch14-384")
    names = add_adapters(encoder, rank=16, alpha=8.0, dropout=0.0, target_layers=6)
    assert names == [
        f"encoder.layers.{layer}.self_attn.{projection}"
        for layer in range(21, 27)
        for projection in ("q_proj", "k_proj", "v_proj")
    ]
    owners = {name.removeprefix("backbone.").partition(".lora_")[0] for name in adapter_names(encoder)}
    assert owners == set(names)
    trainable = [value for value in encoder.parameters() if value.requires_grad]
    assert sum(value.numel() for value in trainable) == 18 * 16 * (1152 + 1152)
    assert len(trainable) == 2 * 18


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_train(kind: str, hub_folder: Any, pictures: Pictures) -> None:
    encoder = adapted(hub_folder(kind), kind).train()
    before = {name: value.detach().clone() for name, value in encoder.named_parameters()}
    tokens = encoder(encoder.processor(pictures))
    tokens.values.square().mean().backward()
    torch.optim.SGD([value for value in encoder.parameters() if value.requires_grad], lr=1e-1).step()
    changed = {name for name, value in encoder.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(adapter_names(encoder))
    assert len(changed) == 2 * 3 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing_and_trained_ones_do(kind: str, hub_folder: Any, pictures: Pictures) -> None:
    folder = hub_folder(kind)
    plain = tiny(folder, kind).eval()
    pixels = plain.processor(pictures)
    with torch.no_grad():
        expected = plain(pixels).values
        torch.testing.assert_close(adapted(folder, kind, train=False).eval()(pixels).values, expected, rtol=0, atol=0)
        assert (adapted(folder, kind).eval()(pixels).values - expected).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_the_same_function_with_the_original_s_names(kind: str, hub_folder: Any, pictures: Pictures) -> None:
    folder = hub_folder(kind)
    encoder = adapted(folder, kind, dropout=0.3).eval()
    pixels = encoder.processor(pictures)
    with torch.no_grad():
        expected = encoder(pixels)
        merge_adapters(encoder)
        merged = encoder(pixels)
    torch.testing.assert_close(merged.values, expected.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(merged.summary, expected.summary, rtol=0, atol=1e-5)
    plain = tiny(folder, kind)
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    load_model_weights(plain, encoder.state_dict(), source="merged")
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(pixels).values, merged.values, rtol=0, atol=0)


def test_adapters_come_back_exactly_from_a_checkpoint(hub_folder: Any, tmp_path: Path, pictures: Pictures) -> None:
    folder = hub_folder("siglip2")
    encoder = adapted(folder, "siglip2").eval()
    state = encoder.state_dict()
    save_checkpoint(tmp_path / "adapters.pth", {name: state[name] for name in adapter_names(encoder)})
    restored = adapted(folder, "siglip2", train=False).eval()
    saved = load_checkpoint(tmp_path / "adapters.pth")
    assert saved.keys() == set(adapter_names(restored))
    load_model_weights(restored, {**restored.state_dict(), **saved}, source="adapters.pth")
    pixels = encoder.processor(pictures)
    with torch.no_grad():
        assert torch.equal(restored(pixels).values, encoder(pixels).values)


def test_adapter_dropout_is_for_training_only(hub_folder: Any, pictures: Pictures) -> None:
    encoder = adapted(hub_folder("siglip2"), "siglip2", dropout=0.5)
    pixels = encoder.processor(pictures)
    with torch.no_grad():
        encoder.train()
        assert not torch.equal(encoder(pixels).values, encoder(pixels).values)
        encoder.eval()
        assert torch.equal(encoder(pixels).values, encoder(pixels).values)


def test_adapters_work_under_checkpointing(hub_folder: Any, pictures: Pictures) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = adapted(hub_folder("siglip2"), "siglip2").train()
        if checkpointing:
            encoder.enable_gradient_checkpointing()
        encoder(encoder.processor(pictures)).values.square().mean().backward()
        gradients.append([encoder.get_parameter(name).grad for name in adapter_names(encoder)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_cnns_have_no_place_for_adapters() -> None:
    with pytest.raises(UserError, match="no query, key and value"):
        add_adapters(meta_vision("resnet50.a1_in1k"), rank=4, alpha=8.0, dropout=0.0, target_layers=1)


def test_more_layers_than_there_are() -> None:
    with pytest.raises(UserError, match=r"target_layers=13.*12 layers"):
        add_adapters(meta_vision("google/siglip2-base-patch16-224"), rank=4, alpha=8.0, dropout=0.0, target_layers=13)

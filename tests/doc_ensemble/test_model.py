"""Classifiers of pages: any network of timm, any size, grey or colour, and never silently random."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.training.checkpoint import load_checkpoint, save_checkpoint
from quartet.apps.doc_ensemble.model.classifier import CellAttention, DocClassifier, create_model, make_model

NAMES = ("form", "letter", "표")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))
    torch.manual_seed(0)


def small(name: str = "test_resnet", **options: Any) -> DocClassifier:
    return create_model(name, **{"class_names": NAMES, "pretrained": False, "image_size": (64, 48), **options}).eval()


def pages(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def write_folder(folder: Path, trunk: nn.Module, name: str, *, weights: str = "safetensors", **metadata: Any) -> Path:
    folder.mkdir()
    config = {"architecture": name, "num_classes": 1000, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}, **metadata}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = {key: value.contiguous() for key, value in trunk.state_dict().items()}
    if weights == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("attention", [None, 12])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"])
def test_takes_pages_that_are_not_square(name: str, attention: int | None, channels: int) -> None:
    model = small(name, in_channels=channels, attention_dim=attention)
    with torch.inference_mode():
        assert model(pages(2, channels, 64, 48)).shape == (2, 3)


@pytest.mark.parametrize(
    "name", ["resnet50", "efficientnet_b0", "vit_base_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_every_parameter_of_known_networks_trains(name: str) -> None:
    """On the meta device: what has no gradient would stop a run on several ranks."""
    with torch.device("meta"):
        model = small(name, image_size=(256, 192), in_channels=1, attention_dim=64)
        logits = model(torch.zeros(2, 1, 256, 192))
    gradients = torch.autograd.grad(logits.sum(), list(model.parameters()), allow_unused=True)
    names = [key for key, _ in model.named_parameters()]
    assert [key for key, gradient in zip(names, gradients, strict=True) if gradient is None] == []


def test_is_timms_own_network() -> None:
    model = small()
    whole = timm.create_model("test_resnet", num_classes=3).eval()
    whole.load_state_dict(model.trunk.state_dict(), strict=False)
    whole.get_classifier().load_state_dict(model.classifier.state_dict())
    x = pages(2, 3, 64, 48)
    mean, std = (torch.tensor(model.metadata[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), whole((x - mean) / std))


def test_facts_rebuild_the_network_from_a_checkpoint(tmp_path: Path) -> None:
    for name in ("test_vit", "test_convnext"):
        model = small(name, in_channels=1, attention_dim=10, dropout_rate=0.2, drop_path_rate=0.1)
        path = tmp_path / f"{name}.pth"
        save_checkpoint(path, {"metadata": model.metadata, "weights": model.state_dict()})
        read = load_checkpoint(path)  # plain values only, or this refuses
        again = make_model(read["metadata"])
        again.load_state_dict(read["weights"])
        x = pages(2, 1, 64, 48)
        with torch.inference_mode():
            assert torch.equal(again.eval()(x), model(x))
        assert again.metadata == model.metadata
        assert again.metadata["class_names"] == list(NAMES)
        assert again.training is False
        assert again.dropout.p == 0.2


def test_normalises_by_itself() -> None:
    model = small()
    white = torch.ones(1, 3, 64, 48)
    seen: list[Tensor] = []
    model.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    forward_features = model.trunk.forward_features
    model.trunk.forward_features = lambda x: (seen.append(x), forward_features(x))[1]
    with torch.inference_mode():
        model(white)
    expected = [(1 - mean) / std for mean, std in zip(model.metadata["mean"], model.metadata["std"], strict=True)]
    torch.testing.assert_close(seen[-1][0, :, 0, 0], torch.tensor(expected))


def test_dropout_before_the_classifier_in_training_only() -> None:
    model = small(dropout_rate=0.9)
    x = pages(4, 3, 64, 48)
    with torch.inference_mode():
        assert torch.equal(model(x), model(x))
        model.trunk.eval()
        model.dropout.train()
        assert not torch.equal(model(x), model(x))


# ------------------------------------------------------------------------------------------------------- attention


def opened(attention: CellAttention) -> CellAttention:
    nn.init.normal_(attention.project.weight)
    return attention.double()


def test_attention_begins_as_the_plain_network() -> None:
    model = small("test_convnext", attention_dim=16)
    plain = small("test_convnext")
    plain.trunk.load_state_dict(model.trunk.state_dict())
    x = pages(2, 3, 64, 48)
    with torch.inference_mode():
        width = model.metadata["width"]
        torch.testing.assert_close(model.embed(x)[:, :width], plain.embed(x))
        assert model.embed(x).shape == (2, width + 16)
        assert torch.count_nonzero(model.embed(x)[:, width:]) == 0


@pytest.mark.parametrize("dim", [1, 6, 16, 17])
def test_attention_is_the_written_formula(dim: int) -> None:
    attention = opened(CellAttention(5, attention_dim=dim))
    cells = pages(2, 7, 5).double()
    normed = attention.norm(cells)
    key, value = attention.key(normed), attention.value(normed)
    parts = []
    size = attention.query.shape[-1]
    for head, query in enumerate(attention.query[:, 0]):
        mine = slice(head * size, (head + 1) * size)
        weights = torch.softmax(key[..., mine] @ query / size**0.5, dim=1)  # [B, N]
        parts.append((weights[..., None] * value[..., mine]).sum(dim=1))
    torch.testing.assert_close(attention(cells), attention.project(torch.cat(parts, dim=1)))


def test_attention_does_not_depend_on_the_order_of_cells_and_weighs_them_differently() -> None:
    attention = opened(CellAttention(5, attention_dim=16))
    cells = pages(2, 9, 5).double()
    torch.testing.assert_close(attention(cells), attention(cells.flip(1)))
    changed = cells.clone()
    changed[:, 0] = -changed[:, 0]
    other = cells.clone()
    other[:, 1] = -other[:, 1]
    assert not torch.allclose(attention(changed), attention(other))


def test_attention_sees_cells_and_neither_class_nor_register_tokens() -> None:
    model = small("test_vit", attention_dim=8)
    count: list[int] = []
    assert model.attention is not None
    model.attention.register_forward_pre_hook(lambda _, inputs: count.append(inputs[0].shape[1]))
    with torch.inference_mode():
        model(pages(1, 3, 64, 48))
    assert count == [4 * 3]  # patches of 16


# --------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_loads_a_folder_that_timm_could_have_written(tmp_path: Path, weights: str) -> None:
    whole = timm.create_model("test_resnet")
    folder = write_folder(tmp_path / "own", whole, "test_resnet", weights=weights)
    model = small(str(folder), pretrained=True)
    published = whole.state_dict()
    assert all(torch.equal(value, published[key]) for key, value in model.trunk.state_dict().items())
    assert model.metadata["mean"] == [0.1, 0.2, 0.3]
    assert str(tmp_path) not in str(model.metadata)


def test_grey_input_sums_the_first_layer_over_colours(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet")
    folder = write_folder(tmp_path / "own", whole, "test_resnet")
    model = small(str(folder), pretrained=True, in_channels=1)
    first = whole.pretrained_cfg["first_conv"] + ".weight"
    torch.testing.assert_close(model.trunk.state_dict()[first], whole.state_dict()[first].sum(dim=1, keepdim=True))
    assert model.metadata["mean"] == pytest.approx([0.2])


def test_position_embeddings_are_resampled_to_the_page(tmp_path: Path) -> None:
    whole = timm.create_model("vit_tiny_patch16_224", depth=1)
    folder = write_folder(tmp_path / "vit", whole, "vit_tiny_patch16_224", model_args={"depth": 1})
    model = small(str(folder), pretrained=True)
    state = model.trunk.state_dict()
    assert state["pos_embed"].shape == (1, 1 + 4 * 3, 192)
    assert torch.equal(state["blocks.0.attn.qkv.weight"], whole.state_dict()["blocks.0.attn.qkv.weight"])
    with torch.inference_mode():
        assert model(pages(1, 3, 64, 48)).shape == (1, 3)


def test_missing_weights_are_an_error_and_not_random(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet")
    folder = write_folder(tmp_path / "own", whole, "test_resnet")
    state = {key: value for key, value in whole.state_dict().items() if not key.startswith("layer2")}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        small(str(folder), pretrained=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors or pytorch_model\.bin"):
        small(str(folder), pretrained=True)


def test_pretrained_without_network_names_the_ways_out() -> None:
    with pytest.raises(UserError, match=r"model\.pretrained=false") as caught:
        small("test_resnet", pretrained=True)
    assert "model.model_name=FOLDER" in str(caught.value)


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", nn.Linear(1, 1), "test_resnet")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Path("y")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model"):
        small(str(folder), pretrained=True)


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet51", {}, "similar: .*resnet50"),
        ("resnet50.imagenet", {}, r"resnet50\.a1_in1k"),
        ("hf-hub:timm/resnet18", {}, "no model"),
        ("test_vit", {"image_size": (63, 50)}, "63 x 50 pixels"),
        ("vgg11", {"drop_path_rate": 0.1}, "drop_path_rate"),
        ("test_resnet", {"class_names": ("a",)}, "at least 2"),
        ("test_resnet", {"class_names": ("a", "a")}, "each once"),
    ],
)
def test_mistakes_are_told(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        small(name, **options)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "os.system"}, "architecture"),
        ({"architecture": None}, "architecture"),
        ({"model_args": {"checkpoint_path": "x"}}, "checkpoint_path"),
        ({"model_args": {"norm_layer": "torch.nn.Identity"}}, "norm_layer"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std"),
        ({"pretrained_cfg": []}, "pretrained_cfg"),
    ],
)
def test_mistakes_in_a_folder_are_told(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    folder = write_folder(tmp_path / "own", nn.Linear(1, 1), "test_resnet", **config)
    with pytest.raises(UserError, match=words):
        small(str(folder))


def test_facts_of_a_strange_checkpoint_are_not_believed() -> None:
    metadata = small().metadata
    with pytest.raises(UserError, match="no model"):
        make_model({**metadata, "architecture": "local-dir:/etc"})
    with pytest.raises(UserError, match="checkpoint_path"):
        make_model({**metadata, "arguments": {"checkpoint_path": "weights"}})
    with pytest.raises(KeyError):
        make_model({key: value for key, value in metadata.items() if key != "width"})

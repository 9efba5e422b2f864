"""The promised ConvNeXt constructor: its arguments, sizes, attention and focal loss."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from mlcore.base.errors import UserError
from mlcore.training import losses
from quartet.apps.doc_ensemble.model.convnext import SIZES, create_convnext_model


def test_has_the_promised_arguments() -> None:
    defaults = {name: part.default for name, part in inspect.signature(create_convnext_model).parameters.items()}
    assert defaults == {
        "model_name": "convnext_tiny",
        "num_classes": 17,
        "dropout_rate": 0.1,
        "pretrained": True,
        "use_attention": False,
        "attention_dim": 256,
        "use_focal_loss": False,
        "alpha": 1.0,
        "gamma": 2.0,
    }


@pytest.mark.parametrize("name", SIZES)
def test_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = create_convnext_model(name, num_classes=1000, pretrained=False)
    assert abs(sum(weight.numel() for weight in model.parameters()) / 1e6 - SIZES[name]) < 1


@pytest.mark.parametrize("use_attention", [False, True])
def test_gives_logits_of_pages_of_any_size(use_attention: bool) -> None:
    model = create_convnext_model(
        "test_convnext", num_classes=5, pretrained=False, use_attention=use_attention, attention_dim=24
    ).eval()
    for size in ((64, 48), (96, 160)):
        with torch.inference_mode():
            assert model(torch.rand(2, 3, *size)).shape == (2, 5)
    assert model.metadata["class_names"] == ["class_0", "class_1", "class_2", "class_3", "class_4"]
    assert (model.attention is not None) is use_attention


def test_carries_its_loss() -> None:
    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    plain = create_convnext_model("test_convnext", num_classes=5, pretrained=False)
    torch.testing.assert_close(
        plain.loss(logits, labels), nn.functional.cross_entropy(logits, labels, reduction="none")
    )
    focal = create_convnext_model(
        "test_convnext", num_classes=5, pretrained=False, use_focal_loss=True, alpha=0.5, gamma=3.0
    )
    torch.testing.assert_close(focal.loss(logits, labels), 0.5 * losses.focal(logits, labels, gamma=3.0))


def test_pretrained_is_the_default_and_never_silently_random(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="cannot be had"):
        create_convnext_model("test_convnext")


@pytest.mark.parametrize(
    "wrong",
    [{"model_name": "resnet18"}, {"dropout_rate": 1.0}, {"attention_dim": 0}, {"alpha": 0.0}, {"gamma": -1.0}],
)
def test_mistakes_are_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        create_convnext_model(**{"model_name": "test_convnext", "pretrained": False, **wrong})

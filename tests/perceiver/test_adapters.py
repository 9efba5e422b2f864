"""Raw samples become tokens in the model: an answer depends on no padding, batch-mates or absences of others."""

import os
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.base.seeding import numpy_rng
from quartet.apps.perceiver.ablation import only
from quartet.apps.perceiver.config import ModelConfig
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.data.raw_batches import RawAugmentation, RawCollate
from quartet.apps.perceiver.model import PerceiverModel
from quartet.apps.perceiver.model.adapters import convolved
from quartet.apps.perceiver.restore import make_model, model_settings

TINY = {"d_model": 16, "num_heads": 2, "num_latents": 4, "num_cross_attention_layers": 2, "stem_channels": 16}
SAME = 1e-6


def modalities(patch: int = 1, longest: int | None = None) -> list[Modality]:
    return [
        Modality(name="text", kind="text", patch=patch, longest=longest),
        Modality(name="image", kind="image", patch=4, size=(8, 12)),
        Modality(name="series:ecg", kind="series", patch=patch, size=(2,), longest=longest),
    ]


def make(those: list[Modality], **settings: Any) -> PerceiverModel:
    torch.manual_seed(0)
    config = ModelConfig(**TINY, **settings)
    values = [modality.values() for modality in those]
    return make_model(model_settings(config, input_dim=0, num_classes=3, max_seq_len=1, modalities=values)).eval()


def sample(index: int, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    rng = np.random.default_rng(index)
    values = {
        "text": rng.integers(32, 127, 3 + 5 * index, dtype=np.uint8),
        "image": rng.integers(0, 256, (8, 12, 3), dtype=np.uint8),
        "series:ecg": rng.standard_normal((2 + 3 * index, 2), dtype=np.float32),
    }
    return {"input": {name: value for name, value in values.items() if name not in without}, "label": index % 3}


SAMPLES = [
    sample(0),
    sample(1, without=("image",)),
    sample(2, without=("text", "series:ecg")),
    sample(3, without=("text", "image")),
    sample(4),
    sample(5, without=("image", "series:ecg")),
]
KINDS = [("linear", 1, "sinusoidal"), ("conv", 4, "sinusoidal"), ("linear", 4, "learned"), ("conv", 1, "fourier")]


@pytest.mark.parametrize(("stem", "patch", "position"), KINDS)
@torch.inference_mode()
def test_a_sample_is_answered_alike_in_any_company(stem: str, patch: int, position: str) -> None:
    those = modalities(patch, longest=None if position == "sinusoidal" else 40)
    model, collate = make(those, stem=stem, position=position), RawCollate(modalities=those)
    together = collate(SAMPLES)
    answers = model(together["input"], together["mask"])
    for place, one in enumerate(SAMPLES):
        alone = collate([one])
        torch.testing.assert_close(model(alone["input"], alone["mask"])[0], answers[place], rtol=0, atol=SAME)
    assert (answers[0] - answers[4]).abs().max() > 1e-3  # which is not because they are all the same


@torch.inference_mode()
def test_a_convolution_is_what_torch_makes_of_it() -> None:
    convolution = torch.nn.Conv1d(3, 4, 5, padding=2).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    expected = convolution(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(convolved(convolution, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("given", "expected"), [(None, "128"), ("7", "7")])
def test_kernels_of_few_shapes_are_kept_where_each_batch_has_another(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", given or "")
    if given is None:
        monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    make(modalities())
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == expected


def test_absent_modalities_take_no_place() -> None:
    those = modalities()
    batch = RawCollate(modalities=those)([SAMPLES[1], SAMPLES[3]])
    assert batch["mask"].sum(dim=1).tolist() == [8 + 5, 11]
    assert batch["mask"].shape == (2, 13)
    assert {name: tuple(value.shape) for name, value in batch["input"].items()} == {
        "text": (1, 8, 1), "image": (1, 8, 12, 3), "series:ecg": (2, 11, 1, 2), "length": (2, 3), "row": (2, 3),
    }  # fmt: skip
    assert [batch["input"][name].dtype for name in ("text", "image", "series:ecg")] == [
        torch.uint8,
        torch.uint8,
        torch.float32,
    ]
    model = make(those)
    assert model.encoder.adapters is not None
    tokens = model.encoder.adapters(batch["input"], batch["mask"])
    assert tokens.shape == (2, 13, model.encoder.adapters.width)


@torch.inference_mode()
def test_series_are_standardised_and_padding_is_as_good_as_their_mean() -> None:
    those = modalities(patch=4)[2:]
    model, collate = make(those), RawCollate(modalities=those)
    adapters = model.encoder.adapters
    assert adapters is not None
    adapters.set_scales({"series:ecg": ([1.0, -2.0], [0.5, 4.0])})
    series = np.random.default_rng(0).standard_normal((6, 2), dtype=np.float32)
    raw = collate([{"input": {"series:ecg": series * [0.5, 4.0] + [1.0, -2.0]}, "label": 0}])
    tokens = adapters(raw["input"], raw["mask"])
    adapters.set_scales({"series:ecg": ([0.0, 0.0], [1.0, 1.0])})
    filled = collate([{"input": {"series:ecg": np.pad(series, ((0, 2), (0, 0)))}, "label": 0}])
    torch.testing.assert_close(tokens, adapters(filled["input"], filled["mask"]), rtol=0, atol=1e-5)


def test_gradients_reach_what_is_there_alone() -> None:
    those = modalities()
    model = make(those)
    batch = RawCollate(modalities=those)([SAMPLES[5], SAMPLES[5]])
    model(batch["input"], batch["mask"]).sum().backward()
    adapters = model.encoder.adapters
    assert adapters is not None
    sizes = [
        sum(float(weight.grad.abs().sum()) for weight in embedding.parameters() if weight.grad is not None)
        for embedding in adapters.embeddings
    ]
    assert sizes[0] > 0
    assert sizes[1:] == [0, 0]
    assert all(weight.grad is not None for weight in model.parameters())  # which several ranks need


@torch.inference_mode()
def test_one_modality_alone_is_the_sample_without_the_others() -> None:
    those = modalities()
    model, collate = make(those), RawCollate(modalities=those)
    batch = only(collate(SAMPLES), 1)
    answers = model(batch["input"], batch["mask"])
    picture = collate([{"input": {"image": SAMPLES[4]["input"]["image"]}, "label": 0}])
    torch.testing.assert_close(answers[4], model(picture["input"], picture["mask"])[0], rtol=0, atol=SAME)
    lacking = collate([SAMPLES[3]])  # keeps what it has
    torch.testing.assert_close(answers[3], model(lacking["input"], lacking["mask"])[0], rtol=0, atol=SAME)


def test_modality_dropout_is_a_function_of_the_key_and_leaves_something() -> None:
    change = RawAugmentation(dropout=0.7)
    drawn = [
        [*change(SAMPLES[0], numpy_rng(2, 0, epoch, index))["input"]] for epoch in range(20) for index in range(20)
    ]
    again = [
        [*change(SAMPLES[0], numpy_rng(2, 0, epoch, index))["input"]] for epoch in range(20) for index in range(20)
    ]
    assert drawn == again
    assert min(map(len, drawn)) == 1
    assert {name for names in drawn for name in names} == {"text", "image", "series:ecg"}
    assert 0.3 < np.mean([len(names) == 1 for names in drawn]) < 0.95
    assert [*change(SAMPLES[2], numpy_rng(0))["input"]] == ["image"]


@pytest.mark.parametrize(
    ("those", "settings", "message"),
    [
        (modalities(patch=3), {"stem": "conv"}, r"text_patch and data\.series_patch must be 1, 2, 4 \.\.\., not 3"),
        ([Modality(name="image", kind="image", patch=5, size=(8, 12))], {}, "patches of 5 pixels do not tile .*8 x 12"),
    ],
)
def test_what_does_not_fit_is_told(those: list[Modality], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(those, **settings)

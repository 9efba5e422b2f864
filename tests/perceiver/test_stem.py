"""Stems: convolutions over a picture's patches, a linear embedding; and a training with all that pictures can have."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.training.checkpoint import load_checkpoint
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.model import PerceiverModel, PerceiverOptions
from quartet.apps.perceiver.model.stem import ConvStem
from tests.perceiver.conftest import Script

LAYOUT = PatchLayout(height=8, width=16, patch_size=4)
CHANNELS = LAYOUT.pixel_channels + LAYOUT.positions.shape[1]


def photos(number: int) -> Tensor:
    """Tokens of random pictures, float64 [B, M, C]."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (number, 8, 16, 3), dtype=np.uint8)
    return torch.from_numpy(np.stack([LAYOUT.sequence(picture) for picture in pictures])).double()


def model(**options: Any) -> PerceiverModel:
    torch.manual_seed(0)
    return PerceiverModel(
        CHANNELS,
        d_model=16,
        num_heads=2,
        num_cross_attention_layers=1,
        num_self_attention_layers=1,
        num_latents=4,
        num_classes=3,
        options=PerceiverOptions(**{"stem_channels": 16, "grid": LAYOUT.patches, **options}),
    ).double()


def test_convolutions_see_the_picture_that_the_patches_are_of() -> None:
    tokens, stem = photos(3), ConvStem(LAYOUT.patches, channels=16).double()
    found = stem(tokens)
    assert found.shape == (3, 8, 16 + LAYOUT.positions.shape[1])
    torch.testing.assert_close(found[..., 16:], tokens[..., LAYOUT.pixel_channels :])
    pictures = np.stack([LAYOUT.image(sequence.numpy()) for sequence in tokens])
    expected = stem.levels(torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255)  # [B, 16, 2, 4]
    torch.testing.assert_close(found[..., :16], expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)
    neighbour = tokens.clone()
    neighbour[:, 1, : LAYOUT.pixel_channels] = 0
    assert not torch.allclose(stem(neighbour)[:, 0], found[:, 0]), "it looks across borders"


@pytest.mark.parametrize("stem", ["conv", "linear"])
def test_gradients_of_a_window_do_not_depend_on_its_cut(stem: str) -> None:
    network, tokens, labels = model(stem=stem), photos(12), torch.arange(12) % 3
    found = []
    for cut in ((12,), (4, 4, 4), (5, 5, 2)):
        network.zero_grad()
        for x, y in zip(tokens.split(cut), labels.split(cut), strict=True):
            torch.nn.functional.cross_entropy(network(x), y, reduction="sum").backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert found[0].abs().max() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("stem", ["conv", "linear"])
def test_hidden_tokens_change_nothing_and_recomputing_neither(stem: str) -> None:
    network, tokens = model(stem=stem), photos(2)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, 5:] = False
    expected = network(tokens, mask)
    junk = tokens.masked_fill(~mask[..., None], float("nan"))
    torch.testing.assert_close(network(junk, mask), expected, rtol=0, atol=0)
    again = model(stem=stem, gradient_checkpointing=True)
    torch.testing.assert_close(again(tokens, mask), expected, rtol=0, atol=0)
    assert not torch.allclose(network(tokens), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": None}, "model.stem=conv reads pictures"),
        ({"grid": (2, 2, 6)}, "data.patch_size must be 2, 4, 8 ..., not 6"),
        ({"grid": (2, 2, 1)}, "data.patch_size must be 2, 4, 8 ..., not 1"),
        ({"stem_channels": 24}, "a multiple of 16 as model.stem_channels, not 24"),
        ({"stem": "fourier"}, "stem must be none, linear or conv, not 'fourier'"),
    ],
)
def test_a_stem_that_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model(**{"stem": "conv", **options})


def test_other_numbers_of_tokens_are_named() -> None:
    with pytest.raises(UserError, match="reads pictures of 2 x 4 patches, not 7 tokens"):
        model(stem="conv")(photos(1)[:, :7])


FULL = """
--dataset image_folder --patch_size 8 --val_fraction 0.3 --stem conv --stem_channels 32 --augment weak --randaugment 5
--mixup 0.4 --ema_decay 0.9 --epochs 2 --batch_size 4 --log_every 1
"""


def test_a_training_with_all_of_it_goes_on_as_if_it_had_not_stopped(
    pictures: Path, script: Script, tiny: list[str]
) -> None:
    command = ["train", *tiny, *shlex.split(FULL), "--data_dir", pictures]
    assert script(*command, "--output_dir", "whole").code == 0
    assert script(*command, "--output_dir", "parts", "--max_hours", "1e-9").code == 76
    ended = script(*command, "--output_dir", "parts")
    assert ended.code == 0, ended.err
    whole, parts = (load_checkpoint(Path(name, "checkpoints", "latest_model.pth")) for name in ("whole", "parts"))
    assert whole["progress"]["step"] == parts["progress"]["step"] == 4
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name


def test_series_are_not_treated_as_pictures(script: Script, tiny: list[str]) -> None:
    series = [*tiny, "--dataset", "synthetic", "--num_samples", "20"]
    for flags, message in (
        (("--mixup", "0.2"), "data.randaugment and data.mixup change pictures"),
        (("--stem", "conv"), "model.stem=conv reads pictures"),
    ):
        ended = script("train", *series, *flags, "--output_dir", "out")
        assert ended.code == 2
        assert message in ended.err

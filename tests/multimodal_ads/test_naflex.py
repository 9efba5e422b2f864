"""NaFlex: a picture's features do not depend on padding or on the other pictures of the batch."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.vision.encoder import Tokens, VisionEncoder, load_vision

Pictures = list[NDArray[np.uint8]]


@pytest.fixture
def encoder(hub_folder: Any) -> VisionEncoder:
    folder = str(hub_folder("siglip2_naflex"))
    return load_vision(VisionEncoderConfig(kind="siglip2_naflex", model=folder, max_patches=16)).eval()


def features(tokens: Tokens, row: int) -> list[Tensor]:
    """One picture's tokens, their mean and the summary."""
    assert tokens.mask is not None
    assert tokens.summary is not None
    values = tokens.values[row][tokens.mask[row]]
    return [values, values.mean(dim=0), tokens.summary[row]]


def padded(pixels: dict[str, Tensor], more: int, *, garbage: bool) -> dict[str, Tensor]:
    values, mask = pixels["pixel_values"], pixels["pixel_attention_mask"]
    extra = (
        torch.randn(len(values), more, values.shape[2]) * 50
        if garbage
        else values.new_zeros(*values.shape[:1], more, values.shape[2])
    )
    return {
        "pixel_values": torch.cat([values, extra], dim=1),
        "pixel_attention_mask": torch.cat([mask, torch.zeros(len(mask), more, dtype=torch.bool)], dim=1),
        "spatial_shapes": pixels["spatial_shapes"],
    }


def test_the_processor_keeps_aspect_ratios_and_marks_padding(encoder: VisionEncoder, pictures: Pictures) -> None:
    pixels = encoder.processor(pictures)
    rows, columns = pixels["spatial_shapes"].T
    assert (columns[0] > rows[0], columns[1] < rows[1], columns[2] == rows[2]) == (True, True, True)
    assert pixels["pixel_attention_mask"].dtype == torch.bool
    assert torch.equal(pixels["pixel_attention_mask"].sum(dim=1), rows * columns)
    assert not pixels["pixel_attention_mask"].all(), "no picture is padded: this test would show nothing"


@pytest.mark.parametrize("garbage", [False, True])
@pytest.mark.parametrize("more", [1, 7])
def test_more_padding_changes_nothing(encoder: VisionEncoder, pictures: Pictures, more: int, garbage: bool) -> None:
    pixels = encoder.processor(pictures)
    with torch.no_grad():
        expected, found = encoder(pixels), encoder(padded(pixels, more, garbage=garbage))
    assert found.values.shape[1] == expected.values.shape[1] + more
    for row in range(len(pictures)):
        for a, b in zip(features(expected, row), features(found, row), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_rest_of_the_batch_changes_nothing(encoder: VisionEncoder, pictures: Pictures) -> None:
    other = np.full((50, 90, 3), 255, np.uint8)
    with torch.no_grad():
        together = encoder(encoder.processor(pictures))
        for row, picture in enumerate(pictures):
            for batch in ([picture], [picture, other], [picture, *pictures]):
                found = encoder(encoder.processor(batch))
                for a, b in zip(features(together, row), features(found, 0), strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_mask_matters(encoder: VisionEncoder, pictures: Pictures) -> None:
    """Without it the padding would be seen, so that the tests above can fail."""
    pixels = padded(encoder.processor(pictures), 7, garbage=True)
    unmasked = {**pixels, "pixel_attention_mask": torch.ones_like(pixels["pixel_attention_mask"])}
    with torch.no_grad():
        a, b = encoder(pixels).summary, encoder(unmasked).summary
    assert a is not None
    assert b is not None
    assert (a - b).abs().max() > 1e-2


def test_no_gradient_comes_from_padding(encoder: VisionEncoder, pictures: Pictures) -> None:
    pixels = padded(encoder.processor(pictures), 3, garbage=False)
    pixels["pixel_values"].requires_grad_(requires_grad=True)
    tokens = encoder(pixels)
    assert tokens.mask is not None
    assert tokens.summary is not None
    (tokens.values[tokens.mask].square().sum() + tokens.summary.square().sum()).backward()
    gradient = pixels["pixel_values"].grad
    assert gradient is not None
    assert gradient[~tokens.mask].abs().max() == 0
    assert gradient[tokens.mask].abs().sum(dim=-1).min() > 0

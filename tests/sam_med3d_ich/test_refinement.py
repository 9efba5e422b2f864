"""Masks refined beside the image: nothing at the start, what patches cannot see after it, the same after a restart."""

from dataclasses import replace

import pytest
import torch

from quartet.apps.sam_med3d_ich.config import ModelConfig, SamMed3DConfig
from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.restore import describe, make_model


def refined(shape: EncoderShape) -> IchModel:
    torch.manual_seed(0)
    return IchModel(shape, visual_tokens=8, refined=True).eval()


def test_it_begins_with_the_answers_of_a_model_without(tiny_shape: EncoderShape) -> None:
    model = refined(tiny_shape)
    plain = IchModel(tiny_shape, visual_tokens=8).eval()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("refinement.")}
    plain.load_state_dict(weights)
    image = torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(model(image).masks, plain(image).masks)


def test_it_learns_from_the_first_step_on_and_then_follows_the_image(tiny_shape: EncoderShape) -> None:
    model = refined(tiny_shape)
    assert model.refinement is not None
    image = torch.randn(2, 1, 16, 16, 16)
    model(image).masks.square().sum().backward()
    assert model.refinement.outer.weight.grad is not None
    assert model.refinement.outer.weight.grad.abs().max() > 0
    torch.nn.init.normal_(model.refinement.outer.weight)
    with torch.no_grad():
        embedding = model.encode(image)
        one, other = (model.segment(embedding, seen) for seen in (image, image.roll(1, dims=2)))
    assert not torch.allclose(one, other), "the same embedding, another image"


@pytest.mark.parametrize(("side", "patch"), [(16, 2), (16, 4), (24, 6), (32, 8), (40, 10)])
def test_the_image_is_seen_at_the_masks_resolution_whatever_that_is(
    side: int, patch: int, tiny_shape: EncoderShape
) -> None:
    model = refined(replace(tiny_shape, image_size=side, patch_size=patch))
    assert model(torch.randn(1, 1, side, side, side)).masks.shape == (1, 1, side, side, side)


def test_a_checkpoint_says_whether_there_is_one() -> None:
    for refine in (False, True):
        config = SamMed3DConfig(model=ModelConfig(model_type="vit_tiny", weights="none", refine_masks=refine))
        model = make_model(describe(config))
        assert isinstance(model, IchModel)
        assert (model.refinement is not None) == refine

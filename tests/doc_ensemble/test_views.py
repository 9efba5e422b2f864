"""Views are fixed functions; those that a model cannot tell apart change nothing, and the rest match the library."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.ensemble.combine import average_views
from quartet.apps.doc_ensemble.ensemble.views import IDENTITY, View, ViewKind, with_identity

EVERYTHING = [
    ViewKind(type="horizontal_flip", probability=0.5),
    ViewKind(type="vertical_flip"),
    ViewKind(type="rotation"),
    ViewKind(type="color_jitter"),
    ViewKind(type="multi_scale"),
]


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))


def views() -> dict[str, View]:
    return {view.name: view for view in with_identity(EVERYTHING)}


def test_the_page_as_it_is_comes_first_and_weights_are_the_probabilities() -> None:
    found = with_identity(EVERYTHING)
    assert [(view.name, view.weight) for view in found] == [
        ("original", 1.0),
        ("horizontal_flip", 0.5),
        ("vertical_flip", 1.0),
        ("rotation_90", 1.0),
        ("rotation_180", 1.0),
        ("rotation_270", 1.0),
        ("brightness_1.1", 1.0),
        ("brightness_0.9", 1.0),
        ("contrast_1.1", 1.0),
        ("contrast_0.9", 1.0),
        ("scale_0.8", 1.0),
        ("scale_1.2", 1.0),
    ]
    assert with_identity([]) == (IDENTITY,)


@pytest.mark.parametrize("shape", [(2, 3, 24, 16), (1, 1, 17, 17), (3, 1, 16, 31)])
def test_every_view_keeps_shape_range_and_its_input(shape: tuple[int, ...]) -> None:
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    before = pixels.clone()
    for view in with_identity(EVERYTHING):
        seen = view.apply(pixels)
        assert seen.shape == pixels.shape, view.name
        assert seen.dtype == torch.float32
        assert 0 <= seen.min() <= seen.max() <= 1 + 1e-6, view.name
        torch.testing.assert_close(view.apply(pixels), seen, rtol=0, atol=0)
        torch.testing.assert_close(pixels, before, rtol=0, atol=0)
        # A page looks the same in whatever company.
        torch.testing.assert_close(view.apply(pixels[:1]), seen[:1])


def test_views_are_what_their_names_say(pixels: Tensor) -> None:
    named = {name: view.apply(pixels) for name, view in views().items()}
    torch.testing.assert_close(named["original"], pixels)
    torch.testing.assert_close(named["horizontal_flip"], pixels.flip(3))
    torch.testing.assert_close(named["vertical_flip"], pixels.flip(2))
    torch.testing.assert_close(named["rotation_180"], pixels.flip(2, 3))
    torch.testing.assert_close(named["rotation_270"].flip(2, 3), named["rotation_90"])
    torch.testing.assert_close(named["brightness_1.1"], (pixels * 1.1).clamp(0, 1))
    grey = reference.rgb_to_grayscale(pixels).mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(named["contrast_0.9"], 0.9 * pixels + 0.1 * grey)


def test_a_quarter_turn_of_a_square_page_moves_pixels_only() -> None:
    page = torch.arange(9.0).reshape(1, 1, 3, 3) / 9
    (_, turned) = with_identity([ViewKind(type="rotation", degrees=(90,))])
    torch.testing.assert_close(turned.apply(page), torch.rot90(page, 1, (2, 3)))


def test_a_quarter_turn_of_a_page_that_is_not_square_is_squeezed_into_its_shape(pixels: Tensor) -> None:
    expected = reference.resize(torch.rot90(pixels, 1, (2, 3)), [24, 16], antialias=True)
    torch.testing.assert_close(views()["rotation_90"].apply(pixels), expected)


def test_scales_crop_or_add_white_margins() -> None:
    page = torch.zeros(1, 1, 20, 30)
    page[:, :, 5:15, 10:20] = 0.5  # a patch in the middle
    half, double = (view.apply(page) for view in with_identity([ViewKind(type="multi_scale", scales=(0.5, 2))])[1:])
    assert (half[0, 0, :5] == 1).all()
    assert (half[0, 0, :, -7:] == 1).all()
    assert half[0, 0, 10, 15] == pytest.approx(0.5, abs=0.01)
    assert half[0, 0, 5, 8] == pytest.approx(0.0, abs=0.01)
    assert (double > 0.25).float().mean() == pytest.approx(2 / 3, abs=0.05)  # 20 x 20 of 20 x 30


def test_views_of_a_model_that_cannot_tell_them_apart_change_nothing() -> None:
    # Sorted values know nothing of places: flips and turns of square pages are all the same to them.
    page = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(3 * 144, 5, generator=torch.Generator().manual_seed(3)) / 10

    def model(pixels: Tensor) -> Tensor:
        return torch.softmax(pixels.flatten(2).sort(dim=2).values.flatten(1) @ weights, dim=1)

    kinds = [ViewKind(type=kind, probability=0.3) for kind in ("horizontal_flip", "vertical_flip", "rotation")]
    found = with_identity(kinds)
    predicted = np.stack([model(view.apply(page)).numpy() for view in found])
    mean = average_views(predicted[None], weights=[view.weight for view in found])[0]
    np.testing.assert_allclose(mean, predicted[0], atol=1e-7)


def test_scales_and_turns_change_nothing_on_a_blank_page() -> None:
    blank = torch.ones(1, 1, 24, 16)
    for name in ("horizontal_flip", "rotation_90", "rotation_270", "scale_0.8", "scale_1.2"):
        torch.testing.assert_close(views()[name].apply(blank), blank)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([ViewKind(type="rotation", degrees=())], "rotation changes nothing"),
        ([ViewKind(type="color_jitter", brightness=0, contrast=0)], "color_jitter changes nothing"),
        ([ViewKind(type="multi_scale", scales=(1.0,))], "multi_scale changes nothing"),
        ([ViewKind(type="rotation"), ViewKind(type="rotation", degrees=(90,))], "'rotation_90' is listed twice"),
        ([ViewKind(type="rotation", degrees=(45,))], "rotation by 45 degrees"),
    ],
)
def test_lists_that_make_no_sense_are_refused(kinds: list[ViewKind], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_identity(kinds)

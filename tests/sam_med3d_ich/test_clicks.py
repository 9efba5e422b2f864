"""Simulated clicks fall evenly on what is wrong, and training along them reaches every part that is to be trained."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quartet.apps.sam_med3d_ich.model.clicks import next_click
from quartet.apps.sam_med3d_ich.model.ich import IchModel, enlarge_cubes
from quartet.apps.sam_med3d_ich.model.prompts import NOT_A_POINT

MakeModel = Callable[..., IchModel]
SHAPE = (5, 4, 3)
JUST_UNDER_ONE = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))


def random_case(seed: int, *, batch: int = 1, errors: float = 0.2) -> tuple[Tensor, Tensor]:
    """Logits and target that disagree in a share of the voxels."""
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(batch, 1, *SHAPE, generator=generator) < 0.4).to(torch.uint8)
    wrong = torch.rand(batch, 1, *SHAPE, generator=generator) < errors
    size = torch.rand(batch, 1, *SHAPE, generator=generator) + 0.01
    return torch.where((target > 0) ^ wrong, size, -size), target


def wrong_voxels(logits: Tensor, target: Tensor) -> set[tuple[int, ...]]:
    return {tuple(index) for index in ((logits > 0) != (target > 0))[0, 0].nonzero().tolist()}


# ------------------------------------------------------------------------------------------------------------- a click


@pytest.mark.parametrize("seed", range(4))
def test_clicks_are_even_over_the_wrong_voxels_and_the_label_says_which_side(seed: int) -> None:
    logits, target = random_case(seed)
    wrong = wrong_voxels(logits, target)
    draws = 50 * len(wrong)
    drawn: Counter[tuple[int, ...]] = Counter()
    for step in range(draws):
        # float64: the middle of each of equally many cells for every wrong voxel
        position, label = next_click(logits, target, draw=torch.tensor([(step + 0.5) / draws], dtype=torch.float64))
        assert position.shape == (1, 1, 3)
        assert label.dtype == torch.int64
        voxel = tuple(int(value) for value in position[0, 0])
        assert label.item() == int(target[(0, 0, *voxel)])
        drawn[voxel] += 1
    assert drawn == dict.fromkeys(wrong, 50)


@pytest.mark.parametrize("draw", [torch.tensor(0.0), JUST_UNDER_ONE, torch.tensor(0.5)])
@pytest.mark.parametrize("errors", [1.0, 0.2, 0.03])
def test_the_ends_of_the_range_are_wrong_voxels_too(draw: Tensor, errors: float) -> None:
    logits, target = random_case(7, errors=errors)
    wrong = sorted(wrong_voxels(logits, target))
    assert wrong
    position, _ = next_click(logits, target, draw=draw[None])
    rank = int(Fraction(draw.item()) * len(wrong))
    assert tuple(int(value) for value in position[0, 0]) == wrong[rank]


@pytest.mark.parametrize("voxel", [(0, 0, 0), (4, 3, 2), (2, 1, 0)])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("draw", [torch.tensor([0.0]), JUST_UNDER_ONE[None]])
def test_a_single_wrong_voxel_is_always_found(voxel: tuple[int, int, int], inside: bool, draw: Tensor) -> None:
    target = torch.full((1, 1, *SHAPE), 0 if inside else 1)
    logits = torch.where(target > 0, 1.0, -1.0)
    target[(0, 0, *voxel)] = int(inside)
    position, label = next_click(logits, target, draw=draw)
    assert position.tolist() == [[list(map(float, voxel))]]
    assert label.tolist() == [[int(inside)]]


@pytest.mark.parametrize("draw", [torch.tensor([0.0]), JUST_UNDER_ONE[None]])
@pytest.mark.parametrize("value", [0, 1])
def test_nothing_wrong_is_no_point(draw: Tensor, value: int) -> None:
    target = torch.full((1, 1, *SHAPE), value, dtype=torch.uint8)
    position, label = next_click(target * 2.0 - 1, target, draw=draw)
    assert label.tolist() == [[NOT_A_POINT]]
    assert ((position >= 0) & (position < torch.tensor(SHAPE))).all()


def test_a_click_does_not_depend_on_the_rest_of_the_batch() -> None:
    logits, target = random_case(11, batch=5)
    logits[2] = torch.where(target[2] > 0, 1.0, -1.0)  # one of them has nothing wrong
    draw = torch.tensor([0.1, 0.9, 0.3, 0.0, 0.7])
    positions, labels = next_click(logits, target, draw=draw)
    for index in range(5):
        one = slice(index, index + 1)
        position, label = next_click(logits[one], target[one], draw=draw[one])
        assert torch.equal(position, positions[one])
        assert torch.equal(label, labels[one])
    assert labels[2].item() == NOT_A_POINT


# ----------------------------------------------------------------------------------------------------------- the model


def batch(*, size: int = 2, side: int = 16, rounds: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Image, target with a cube in it, draws."""
    generator = torch.Generator().manual_seed(3)
    target = torch.zeros(size, 1, side, side, side, dtype=torch.uint8)
    target[:, :, 3:9, 5:12, 2:8] = 1
    image = torch.randn(size, 1, side, side, side, generator=generator) + 2 * target
    return image, target, torch.rand(size, rounds, generator=generator)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_there_is_one_mask_for_each_round_and_draws_decide(tiny_model: MakeModel, rounds: int) -> None:
    model = tiny_model(prompted=True)
    image, target, draws = batch(rounds=rounds)
    with torch.no_grad():
        first = model(image, target=target, draws=draws)
        again = model(image, target=target, draws=draws)
        other = model(image, target=target, draws=(draws + 0.37) % 1)
    assert first.masks.shape == (2, rounds, 16, 16, 16)
    assert first.ich.shape == (2,)
    assert torch.equal(first.masks, again.masks)
    assert torch.equal(first.ich, other.ich)
    assert not torch.equal(first.masks, other.masks)


def test_samples_along_clicks_do_not_depend_on_each_other(tiny_model: MakeModel) -> None:
    model = tiny_model(prompted=True)
    image, target, draws = batch(size=3)
    with torch.no_grad():
        together = model(image, target=target, draws=draws)
        for index in range(3):
            one = slice(index, index + 1)
            alone = model(image[one], target=target[one], draws=draws[one])
            torch.testing.assert_close(alone.masks, together.masks[one], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(alone.ich, together.ich[one], rtol=1e-4, atol=1e-4)


def test_each_round_answers_the_clicks_so_far(tiny_model: MakeModel) -> None:
    """The loop, written out with the public parts."""
    model = tiny_model(prompted=True)
    image, target, draws = batch(rounds=5)
    with torch.no_grad():
        answer = model(image, target=target, draws=draws)
        embedding = model.encode(image)
        low = torch.zeros(2, 1, 16, 16, 16)
        clicks: list[tuple[Tensor, Tensor]] = []
        for index in range(5):
            clicks.append(next_click(model.enlarge(low), target, draw=draws[:, index]))
            points = tuple(torch.cat(parts, dim=1) for parts in zip(*clicks, strict=True))
            refines = index in (2, 4)  # the middle and the last round see the previous mask alone
            low = model.segment(embedding, image, points=None if refines else points, mask=low)
            torch.testing.assert_close(answer.masks[:, index : index + 1], model.enlarge(low))


def test_without_clicks_there_is_one_mask(tiny_model: MakeModel) -> None:
    model = tiny_model()
    image, _, _ = batch()
    with torch.no_grad():
        answer = model(image)
        expected = model.enlarge(model.segment(model.encode(image), image))
    assert answer.masks.shape == (2, 1, 16, 16, 16)
    assert torch.equal(answer.masks, expected)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("freeze_encoder", [False, True])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("rounds", [1, 5])
def test_every_trained_parameter_gets_a_gradient_and_no_other(
    tiny_model: MakeModel, prompted: bool, freeze_encoder: bool, gradient_checkpointing: bool, rounds: int
) -> None:
    model = tiny_model(
        prompted=prompted, freeze_encoder=freeze_encoder, gradient_checkpointing=gradient_checkpointing
    ).train()
    image, target, draws = batch(rounds=rounds)
    answer = model(image, target=target, draws=draws) if prompted else model(image)
    (answer.masks.square().sum() + answer.ich.sum()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == trained  # distributed training waits for the gradient of every trained parameter
    parts = {name.split(".")[1] if name.startswith("sam.") else "head" for name in trained}
    assert parts == {"prompt_encoder", "mask_decoder", "head"} | (set() if freeze_encoder else {"image_encoder"})
    prompts = {name.split(".")[2] for name in trained if name.startswith("sam.prompt_encoder.")}
    clicks = {"point_embeddings", "not_a_point_embed", "mask_downscaling"}
    assert prompts == (clicks if prompted else {"no_mask_embed"})
    silent = {name for name in trained if not model.get_parameter(name).grad.any()}  # type: ignore[union-attr]
    # The first click is inside, and the mask before the first round is zero, which only a bias passes on.
    first_round = {"sam.prompt_encoder.point_embeddings.0.weight", "sam.prompt_encoder.mask_downscaling.0.weight"}
    assert silent <= (first_round if rounds == 1 else set())


@pytest.mark.parametrize(("own", "side"), [(8, 32), (5, 7), (1, 4), (6, 6)])
def test_masks_are_enlarged_as_torch_interpolates_them(own: int, side: int) -> None:
    generator = torch.Generator().manual_seed(own)
    values = torch.randn(2, 3, own, own, own, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = functional.interpolate(values, size=(side,) * 3, mode="trilinear", align_corners=False)
    found = enlarge_cubes(values, side)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    (mine,), (theirs,) = (torch.autograd.grad(given, values, upstream) for given in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_enlarged_masks_are_float32_also_under_autocast() -> None:
    values = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = enlarge_cubes(values.bfloat16(), 16)
    torch.testing.assert_close(half, enlarge_cubes(values.bfloat16().float(), 16), rtol=0, atol=0)

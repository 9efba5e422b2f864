"""Changes move image and mask together, keep lesions, and depend on the generator only."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from quartet.apps.sam_med3d_ich.data.augment import Augmentation, affine_crop, plain_crop
from quartet.apps.sam_med3d_ich.data.cache import CachedCase
from quartet.apps.sam_med3d_ich.data.crops import label_components
from quartet.apps.sam_med3d_ich.data.metadata import case_metadata
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing, prepare
from quartet.apps.sam_med3d_ich.data.volume import Volume

START = np.array([10, 12, 14])
SIZE = 24
STILL = Augmentation(
    probability=1.0, flip_axes=(), rotation=(0, 0, 0), scaling=0, blur=0, noise=0, contrast=0, shift=0, gamma=1
)


def make_case(mask: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> CachedCase:
    """An image that is brighter the more of the mask is near, at its own spacing."""
    array = np.random.default_rng(0).normal(0, 0.1, size=mask.shape).astype(np.float32) + mask * 10
    volume = Volume(array=array, affine=np.diag([*spacing, 1.0]))
    prepared = prepare(volume, Preprocessing(spacing=None, window=None, normalize="none"))
    components, boxes = label_components(mask)
    return CachedCase(
        image=prepared.image,
        components=components,
        boxes=boxes,
        background=-1.0,
        grid=prepared.grid,
        metadata=case_metadata(volume, mask),
    )


@pytest.fixture(scope="module")
def case() -> CachedCase:
    mask = np.zeros((48, 50, 52), dtype=np.uint8)
    mask[18:26, 20:30, 22:27] = 1
    return make_case(mask)


def spatial(case: CachedCase, changes: Augmentation, *, seed: int = 0, keep: tuple[int, ...] = ()) -> Any:
    return changes.spatial(case, START, size=SIZE, keep=keep, rng=np.random.default_rng(seed))


def test_no_change_is_the_plain_crop(case: CachedCase) -> None:
    plain = plain_crop(case, START, size=SIZE)
    for made in (spatial(case, replace(STILL, probability=0)), affine_crop(case, START, size=SIZE, matrix=np.eye(3))):
        np.testing.assert_allclose(made[0], plain[0], atol=1e-3)
        np.testing.assert_array_equal(made[1], plain[1])
    image = plain[0]
    np.testing.assert_array_equal(Augmentation(probability=0).intensity(image, np.random.default_rng(0)), image)
    np.testing.assert_allclose(STILL.intensity(image, np.random.default_rng(0)), image, atol=1e-5)


def test_a_flip_turns_left_and_right(case: CachedCase) -> None:
    plain = plain_crop(case, START, size=SIZE)
    flipped = spatial(case, replace(STILL, flip_axes=(0,)))
    np.testing.assert_allclose(flipped[0], plain[0][::-1], atol=1e-3)
    np.testing.assert_array_equal(flipped[1], plain[1][::-1])


def test_a_quarter_turn_is_a_permutation_of_voxels(case: CachedCase) -> None:
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # offset o shows turn @ o
    plain = plain_crop(case, START, size=SIZE)
    image, components = affine_crop(case, START, size=SIZE, matrix=turn)
    np.testing.assert_allclose(image, plain[0][::-1].transpose(1, 0, 2), atol=1e-3)
    np.testing.assert_array_equal(components, plain[1][::-1].transpose(1, 0, 2))


def test_the_corners_of_a_turned_crop_show_the_volume_around_it(case: CachedCase) -> None:
    bright = replace(case, image=np.ones_like(case.image), background=-50.0)
    image, _ = affine_crop(bright, START, size=SIZE, matrix=_turn(15))
    np.testing.assert_allclose(image, 1, atol=1e-4)
    beyond, _ = affine_crop(bright, np.array([-12, 0, 0]), size=SIZE, matrix=_turn(15))
    assert beyond[0, 0, 0] == pytest.approx(-50)


def test_image_and_mask_move_together(case: CachedCase) -> None:
    changes = replace(STILL, rotation=(5, 5, 15), scaling=0.1, flip_axes=(0, 1, 2))
    for seed in range(10):
        image, components = spatial(case, changes, seed=seed, keep=(1,))
        overlap = ((image > 5) & (components > 0)).sum() / ((image > 5) | (components > 0)).sum()
        assert overlap > 0.9
        assert (np.asarray(components) != plain_crop(case, START, size=SIZE)[1]).any()


def test_turns_are_made_in_millimetres() -> None:
    """In 0.5 x 0.5 x 4 mm voxels, a turn about R keeps every distance in mm."""
    spacing = np.array([0.5, 0.5, 4.0])
    matrix = replace(STILL, rotation=(20, 0, 0))._matrix((0.5, 0.5, 4.0), np.random.default_rng(3))
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
    assert abs(in_mm[1, 2]) > 0.01
    assert in_mm[0, 0] == 1
    scaled = replace(STILL, scaling=0.1)._matrix((0.5, 0.5, 4.0), np.random.default_rng(3))
    assert 1 / 1.1 <= scaled[0, 0] == scaled[2, 2] <= 1 / 0.9


def test_no_lesion_is_turned_out_of_its_crop() -> None:
    """Single voxels at the crop's corners and edges."""
    mask = np.zeros((48, 48, 48), dtype=np.uint8)
    mask[START[0], START[1], START[2]] = mask[tuple(START + SIZE - 1)] = mask[START[0], 20, 20] = 1
    case = make_case(mask)
    changed = 0
    for seed in range(40):
        image, components = spatial(case, replace(STILL, rotation=(5, 5, 15), scaling=0.1), seed=seed, keep=(1, 2, 3))
        assert set(np.unique(components)) == {0, 1, 2, 3}
        # Not asked to keep any: something marked must still be there.
        image, components = spatial(case, replace(STILL, rotation=(5, 5, 15), scaling=0.1), seed=seed)
        assert components.any()
        changed += not np.array_equal(image, plain_crop(case, START, size=SIZE)[0])
    assert changed > 0


def test_each_change_of_values_does_what_its_name_says(case: CachedCase) -> None:
    image = np.ascontiguousarray(plain_crop(case, START, size=SIZE)[0])

    def changed(**strength: float) -> np.ndarray:
        return replace(STILL, **strength).intensity(image, np.random.default_rng(1))  # type: ignore[arg-type]

    assert changed(blur=2.0).std() < image.std()
    noise = changed(noise=0.5) - image
    assert 0 < noise.std() <= 0.5 * image.std()
    assert abs(np.corrcoef(noise.ravel(), image.ravel())[0, 1]) < 0.05
    contrast = changed(contrast=0.5)
    assert contrast.mean() == pytest.approx(image.mean(), abs=1e-4)
    assert 0.5 <= contrast.std() / image.std() <= 1.5
    assert contrast.std() != pytest.approx(image.std(), rel=1e-3)
    shift = changed(shift=1.0) - image
    assert 0 < abs(shift.mean()) <= image.std()
    assert shift.std() < 1e-5
    bent = changed(gamma=2.0)
    assert (bent.min(), bent.max()) == pytest.approx((image.min(), image.max()))
    order = np.argsort(image, axis=None)
    assert all(a <= b + 1e-6 for a, b in pairwise(bent.ravel()[order][::500].tolist()))
    assert not np.allclose(bent, image)


def test_a_flat_crop_stays_finite() -> None:
    flat = np.full((8, 8, 8), -3.0, dtype=np.float32)
    for seed in range(5):
        np.testing.assert_allclose(Augmentation(probability=1).intensity(flat, np.random.default_rng(seed)), flat)


def test_the_generator_alone_decides(case: CachedCase) -> None:
    changes = Augmentation(probability=0.7)
    made = []
    for threads in (1, 2, 1):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        np.random.seed(threads)
        torch.manual_seed(threads)
        rng = np.random.default_rng(5)
        image, components = changes.spatial(case, START, size=SIZE, keep=(1,), rng=rng)
        made.append((changes.intensity(np.asarray(image), rng), components))
        torch.set_num_threads(before)
    for image, components in made[1:]:
        np.testing.assert_array_equal(image, made[0][0])
        np.testing.assert_array_equal(components, made[0][1])
    other = changes.spatial(case, START, size=SIZE, keep=(1,), rng=np.random.default_rng(6))[0]
    assert not np.array_equal(other, made[0][0])


def test_probability_is_that_of_each_change(case: CachedCase) -> None:
    plain = plain_crop(case, START, size=SIZE)[0]
    changes = replace(STILL, probability=0.3, flip_axes=(0,))
    flips = sum(np.allclose(spatial(case, changes, seed=seed)[0], plain[::-1], atol=1e-3) for seed in range(200))
    assert 40 <= flips <= 80


def _turn(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])

"""Augmentation is a function of the sample and the generator, in any process, and mirrors nothing."""

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quartet.apps.doc_ensemble.data.augment import PageAugmentation

GREY = np.kron(np.random.default_rng(0).integers(0, 256, (15, 12)), np.ones((6, 6))).astype(np.uint8)[..., None]
COLOUR = np.repeat(GREY, 3, axis=2)


def change(name: Any, seed: int, image: NDArray[np.uint8] = GREY) -> NDArray[np.uint8]:
    changed: NDArray[np.uint8] = PageAugmentation(name)({"image": image}, np.random.default_rng(seed))["image"]
    return changed


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", ["light", "page"])
def test_same_generator_same_pixels_whatever_came_before(name: Any, image: NDArray[np.uint8]) -> None:
    used = PageAugmentation(name)
    before = image.copy()
    for seed in range(15):
        found = used({"image": image, "index": 5}, np.random.default_rng(seed))
        np.testing.assert_array_equal(found["image"], change(name, seed, image))
        assert found["index"] == 5
        assert found["image"].shape == image.shape
        assert found["image"].dtype == np.uint8
    np.testing.assert_array_equal(before, image)  # the sample given is not written to


def test_pixels_vary_and_page_varies_more() -> None:
    assert len({change("page", seed).tobytes() for seed in range(20)}) >= 18
    spread = {
        name: np.mean([np.abs(change(name, s).astype(int) - GREY).mean() for s in range(25)])
        for name in ("light", "page")
    }
    assert 1 < spread["light"] < spread["page"]


def test_nothing_is_mirrored() -> None:
    """A page that is dark at the left and lighter at the bottom stays so."""
    y, x = np.mgrid[:96, :128]
    image = (20 + x + y / 3)[..., None].astype(np.uint8)
    for seed in range(30):
        changed = change("page", seed, image).astype(float)[20:-20, 28:-28, 0]  # not the new paper at the edges
        columns = np.median(changed, axis=0)  # not the hidden parts
        assert np.polyfit(np.arange(len(columns)), columns, 1)[0] > 0


def test_none_adds_the_key_only() -> None:
    sample = PageAugmentation("none")({"image": GREY, "index": 1}, np.random.default_rng(0))
    assert sample["image"] is GREY
    keys = {
        name: PageAugmentation(name)({"image": GREY}, np.random.default_rng(3))["key"]
        for name in ("none", "light", "page")  # type: ignore[var-annotated]
    }
    assert len(set(keys.values())) == 1
    assert keys["none"] != sample["key"]


def test_pickled_for_a_worker() -> None:
    augmentation = PageAugmentation("page")
    expected = augmentation({"image": GREY}, np.random.default_rng(7))["image"]
    copy = pickle.loads(pickle.dumps(augmentation))
    np.testing.assert_array_equal(copy({"image": GREY}, np.random.default_rng(7))["image"], expected)


def test_small_and_odd_sizes() -> None:
    for shape in ((16, 16, 3), (17, 400, 1), (1, 1, 3)):
        image: NDArray[np.uint8] = np.full(shape, 128, dtype=np.uint8)
        for seed in range(6):
            assert change("page", seed, image).shape == shape

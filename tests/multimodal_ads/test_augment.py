"""Augmentation is a function of the sample and the generator, in any process, and mirrors nothing."""

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quartet.apps.multimodal_ads.data.augment import Augmentation, TextDropout
from quartet.apps.multimodal_ads.data.batches import collate

IMAGE = np.kron(np.random.default_rng(0).integers(0, 256, (15, 20, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def change(name: Any, seed: int, image: NDArray[np.uint8] = IMAGE) -> NDArray[np.uint8]:
    changed: NDArray[np.uint8] = Augmentation(name)({"image": image}, np.random.default_rng(seed))["image"]
    return changed


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_same_generator_same_pixels_whatever_came_before(name: Any) -> None:
    used = Augmentation(name)
    for seed in range(20):
        before = IMAGE.copy()
        found = used({"image": IMAGE, "index": 5}, np.random.default_rng(seed))
        np.testing.assert_array_equal(found["image"], change(name, seed))
        np.testing.assert_array_equal(before, IMAGE)  # the sample given is not written to
        assert found["index"] == 5
        assert found["image"].shape == IMAGE.shape
        assert found["image"].dtype == np.uint8


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_pixels_vary_and_strong_varies_more(name: Any) -> None:
    assert len({change(name, seed).tobytes() for seed in range(20)}) >= 18
    spread = {
        kind: np.mean([np.abs(change(kind, s).astype(int) - IMAGE).mean() for s in range(30)])
        for kind in ("weak", "strong")
    }
    assert 1 < spread["weak"] < spread["strong"]


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_nothing_is_mirrored(name: Any) -> None:
    """A picture that is dark at the left and lighter at the bottom stays so."""
    y, x = np.mgrid[:96, :128]
    image = np.repeat((20 + x + y / 3)[..., None], 3, axis=2).astype(np.uint8)
    for seed in range(40):
        changed = change(name, seed, image).astype(float).mean(axis=2)
        assert np.polyfit(x.ravel(), changed.ravel(), 1)[0] > 0


def test_pickled_for_a_worker() -> None:
    augmentation = Augmentation("strong")
    expected = augmentation({"image": IMAGE}, np.random.default_rng(7))["image"]
    copy = pickle.loads(pickle.dumps(augmentation))
    np.testing.assert_array_equal(copy({"image": IMAGE}, np.random.default_rng(7))["image"], expected)


def test_small_and_odd_sizes() -> None:
    for shape in ((16, 16, 3), (17, 400, 3), (1, 1, 3)):
        image: NDArray[np.uint8] = np.full(shape, 128, dtype=np.uint8)
        for seed in range(10):
            assert change("strong", seed, image).shape == shape


def test_text_dropout_hides_the_stated_share_and_nothing_else() -> None:
    dropout = TextDropout(0.3)
    samples = [{"index": i, "has_text": i % 5 > 0, "embedding": np.full(2, i)} for i in range(2000)]
    seen = [dropout(sample, np.random.default_rng(sample["index"])) for sample in samples]
    assert np.mean([sample["hide_text"] for sample in seen]) == pytest.approx(0.3, abs=0.04)
    for before, after in zip(samples, seen, strict=True):
        assert {key: after[key] is value for key, value in before.items()} == dict.fromkeys(before, True)
    made = collate([{**sample, "label": 0} for sample in seen])
    told = [sample["has_text"] and not sample["hide_text"] for sample in seen]
    assert made["has_text"].tolist() == told
    assert made["real_text"].tolist() == [sample["has_text"] for sample in samples]
    again = [dropout(sample, np.random.default_rng(sample["index"])) for sample in samples]
    assert [sample["hide_text"] for sample in again] == [sample["hide_text"] for sample in seen]

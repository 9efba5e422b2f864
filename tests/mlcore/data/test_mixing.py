"""Mixup and cutmix: functions of keys, with targets that say what of a sample is its own."""

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.data.mixing import Mixing, mix, sample_keys

CLASSES = 4
LABELS = torch.tensor([0, 1, 2, 3, 1, 2])
# Each sample is one class's number everywhere, so that a mixed pixel tells its parts.
PIXELS = LABELS.to(torch.float32)[:, None, None, None].expand(-1, 1, 20, 30).contiguous()
KEYS = sample_keys(3, 7, range(6))


def test_keys_are_functions_of_seed_epoch_and_id() -> None:
    assert sample_keys(3, 7, [5, 2]) == [KEYS[5], KEYS[2]]
    others = sample_keys(4, 7, range(6)) + sample_keys(3, 8, range(6)) + KEYS
    assert len(set(others)) == 18


def test_nothing_to_mix_gives_one_hot() -> None:
    pixels, target = mix(PIXELS, LABELS, KEYS, classes=CLASSES)
    assert pixels is PIXELS
    assert torch.equal(target, torch.eye(CLASSES)[LABELS])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_targets_say_what_is_in_the_pixels(mixup: float, cutmix: float) -> None:
    for epoch in range(5):
        keys = sample_keys(0, epoch, range(6))
        pixels, target = mix(PIXELS, LABELS, keys, classes=CLASSES, mixup=mixup, cutmix=cutmix)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(6))
        torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)), target @ torch.arange(4.0), atol=1e-5, rtol=0)


def test_cutmix_pastes_a_box_and_mixup_blends_everywhere() -> None:
    keys = sample_keys(0, 0, range(6))
    cut, _ = mix(PIXELS, LABELS, keys, classes=CLASSES, cutmix=1.0)
    assert set(cut.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    blended, _ = mix(PIXELS, LABELS, keys, classes=CLASSES, mixup=1.0)
    assert all(len(sample.unique()) == 1 for sample in blended)
    assert not torch.equal(blended, PIXELS)


def test_order_within_the_batch_does_not_matter() -> None:
    pixels, target = mix(PIXELS, LABELS, KEYS, classes=CLASSES, mixup=0.4, cutmix=1.0)
    order = [4, 2, 0, 5, 1, 3]
    again = mix(PIXELS[order], LABELS[order], [KEYS[k] for k in order], classes=CLASSES, mixup=0.4, cutmix=1.0)
    assert torch.equal(again[0], pixels[order])
    assert torch.equal(again[1], target[order])


def test_generators_of_the_process_do_not_matter() -> None:
    first = mix(PIXELS, LABELS, KEYS, classes=CLASSES, mixup=0.4)
    torch.manual_seed(1)
    np.random.seed(1)
    second = mix(PIXELS, LABELS, KEYS, classes=CLASSES, mixup=0.4)
    assert torch.equal(first[0], second[0])


def test_shares_follow_the_beta_distribution() -> None:
    """Mean 1/2 and variance 1 / (4 (2a + 1)) for Beta(a, a)."""
    count = 2000
    labels = torch.arange(count)
    keys = sample_keys(1, 1, range(count))
    _, target = mix(torch.zeros(count, 1, 1, 1), labels, keys, classes=count, mixup=0.5)
    own = target[labels, labels]
    assert float(own.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(own.var()) == pytest.approx(0.125, abs=0.01)


def test_batches_with_keys() -> None:
    batch = {"pixels": PIXELS, "label": LABELS, "key": torch.tensor(KEYS), "index": torch.arange(6)}
    mixed = Mixing(CLASSES, mixup=0.4)(batch)
    expected = mix(PIXELS, LABELS, KEYS, classes=CLASSES, mixup=0.4)
    assert torch.equal(mixed["pixels"], expected[0])
    assert torch.equal(mixed["target"], expected[1])
    assert torch.equal(mixed["label"], LABELS)
    assert "target" not in batch


def test_a_single_sample_is_mixed_with_itself() -> None:
    pixels, target = mix(PIXELS[3:4], LABELS[3:4], [5], classes=CLASSES, mixup=0.4, cutmix=1.0)
    torch.testing.assert_close(pixels, PIXELS[3:4])
    torch.testing.assert_close(target, torch.eye(CLASSES)[3:4])


def test_negative_parameters() -> None:
    with pytest.raises(UserError, match="must not be negative"):
        Mixing(CLASSES, mixup=-0.1)

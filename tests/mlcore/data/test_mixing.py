"""Mixup and cutmix: functions of keys, with targets that say what of a sample is its own."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.data.mixing import Mixing

CLASSES = 4
LABELS = torch.tensor([0, 1, 2, 3, 1, 2])
# Each sample is one class's number everywhere, so that a mixed pixel tells its parts.
PIXELS = LABELS.to(torch.float32)[:, None, None, None].expand(-1, 1, 20, 30).contiguous()


def keys_of(seed: int, count: int = 6) -> list[int]:
    return np.random.default_rng(seed).integers(2**63, size=count).tolist()


KEYS = keys_of(3)


def mix(
    pixels: Tensor, labels: Tensor, keys: list[int], *, classes: int, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Tensor, Tensor]:
    mixed = Mixing(classes, mixup=mixup, cutmix=cutmix)({"pixels": pixels, "label": labels, "key": torch.tensor(keys)})
    return mixed["pixels"], mixed["target"]


def test_nothing_to_mix_gives_one_hot() -> None:
    pixels, target = mix(PIXELS, LABELS, KEYS, classes=CLASSES)
    assert pixels is PIXELS
    assert torch.equal(target, torch.eye(CLASSES)[LABELS])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_targets_say_what_is_in_the_pixels(mixup: float, cutmix: float) -> None:
    for epoch in range(5):
        keys = keys_of(epoch)
        pixels, target = mix(PIXELS, LABELS, keys, classes=CLASSES, mixup=mixup, cutmix=cutmix)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(6))
        torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)), target @ torch.arange(4.0), atol=1e-5, rtol=0)


def test_cutmix_pastes_a_box_and_mixup_blends_everywhere() -> None:
    keys = keys_of(0)
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
    keys = keys_of(1, count)
    _, target = mix(torch.zeros(count, 1, 1, 1), labels, keys, classes=count, mixup=0.5)
    own = target[labels, labels]
    assert float(own.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(own.var()) == pytest.approx(0.125, abs=0.01)


def test_the_rest_of_a_batch_stays() -> None:
    batch = {"pixels": PIXELS, "label": LABELS, "key": torch.tensor(KEYS), "index": torch.arange(6)}
    mixed = Mixing(CLASSES, mixup=0.4)(batch)
    assert torch.equal(mixed["label"], LABELS)
    assert torch.equal(mixed["index"], torch.arange(6))


def test_a_single_sample_is_mixed_with_itself() -> None:
    pixels, target = mix(PIXELS[3:4], LABELS[3:4], [5], classes=CLASSES, mixup=0.4, cutmix=1.0)
    torch.testing.assert_close(pixels, PIXELS[3:4])
    torch.testing.assert_close(target, torch.eye(CLASSES)[3:4])


def test_negative_parameters() -> None:
    with pytest.raises(UserError, match="must not be negative"):
        Mixing(CLASSES, mixup=-0.1)

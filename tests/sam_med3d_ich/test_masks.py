"""Overlap of masks against scikit-learn, and the policy for empty ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.masks import dice_per_case, iou_per_case


@pytest.mark.parametrize("seed", range(5))
def test_overlap_equals_scikit_learn_case_by_case(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, there = rng.random((2, 4, 3, 5, 6)) > 0.6
    for one, two, dice, iou in zip(
        found, there, dice_per_case(found, target=there), iou_per_case(found, target=there), strict=True
    ):
        assert dice == pytest.approx(sk.f1_score(two.ravel(), one.ravel()))
        assert iou == pytest.approx(sk.jaccard_score(two.ravel(), one.ravel()))
        assert iou == pytest.approx(dice / (2 - dice))
    np.testing.assert_array_equal(dice_per_case(found, target=there), dice_per_case(there, target=found))
    tensors = dice_per_case(torch.tensor(found).float(), target=torch.tensor(there).to(torch.uint8))
    np.testing.assert_array_equal(tensors, dice_per_case(found, target=there))


def test_empty_masks_follow_the_stated_policy() -> None:
    found, there = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    found[1, 0] = there[2, 0] = True
    assert dice_per_case(found, target=there).tolist() == [1.0, 0.0, 0.0]
    assert iou_per_case(found, target=there).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dice_per_case(np.zeros((0, 4)), target=np.zeros((0, 4))), "no masks"),
        (lambda: dice_per_case([[0.3, 1.0]], target=[[0, 1]]), "threshold"),
        (lambda: dice_per_case([[0, 1]], target=[[0, 1, 1]]), r"\(1, 2\).*\(1, 3\)"),
    ],
)
def test_wrong_masks_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()

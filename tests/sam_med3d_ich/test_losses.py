"""Losses of masks are proved by their formulas, parity with MONAI, and derivatives."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.data.batch import MicroBatch
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.optim import build_optimizer
from quartet.apps.sam_med3d_ich import losses
from tests.loss_identities import Loss, LossIdentities

SEGMENTATION: dict[str, Loss] = {
    "dice": losses.dice,
    "dice squared": partial(losses.dice, squared=True),
    "dice_cross_entropy": losses.dice_cross_entropy,
    "dice_focal": losses.dice_focal,
}


def _volumes(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    target = torch.randint(0, 2, (3, 1, 4, 5, 3))
    target[0] = 0  # an empty mask
    return torch.randn(3, 1, 4, 5, 3, dtype=dtype), target


every_loss = pytest.mark.parametrize(
    ("loss", "values"), [(loss, _volumes()) for loss in SEGMENTATION.values()], ids=list(SEGMENTATION)
)


@every_loss
class TestEveryMaskLoss(LossIdentities):
    """Those of masks."""


@pytest.mark.parametrize("squared", [False, True])
def test_dice_is_the_formula(squared: bool) -> None:
    logits, target = _volumes()
    p, t = logits.sigmoid(), target.double()
    power = 2 if squared else 1
    axes = (2, 3, 4)
    ratio = (2 * (p * t).sum(axes) + 1e-5) / ((p**power).sum(axes) + (t**power).sum(axes) + 1e-5)
    torch.testing.assert_close(losses.dice(logits, target, squared=squared), (1 - ratio).mean(1))


@pytest.mark.parametrize("squared", [False, True])
def test_means_equal_monais(squared: bool) -> None:
    logits, target = _volumes(torch.float32)
    values = (
        (losses.dice(logits, target, squared=squared), DiceLoss(sigmoid=True, squared_pred=squared)),
        (losses.dice_cross_entropy(logits, target, squared=squared), DiceCELoss(sigmoid=True, squared_pred=squared)),
        (losses.dice_focal(logits, target, gamma=3.0), DiceFocalLoss(sigmoid=True, gamma=3.0)),
    )
    for value, monai in values:
        torch.testing.assert_close(value.mean(), monai(logits, target.float()))


def test_an_empty_mask_predicted_empty_has_no_dice_loss() -> None:
    target = torch.zeros(2, 1, 4, 4)
    assert losses.dice(torch.full((2, 1, 4, 4), -100.0), target).max() < 1e-6
    assert losses.dice(torch.full((2, 1, 4, 4), 100.0), target).min() > 0.99


@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 5, 2], [1] * 12])
@pytest.mark.parametrize("name", SEGMENTATION)
def test_gradients_do_not_depend_on_how_a_window_is_cut(name: str, sizes: list[int]) -> None:
    torch.manual_seed(3)
    images, masks = torch.randn(12, 1, 4, 4, 4, dtype=torch.float64), torch.randint(0, 2, (12, 1, 4, 4, 4))

    def gradients(sizes: list[int]) -> Tensor:
        torch.manual_seed(4)
        model = torch.nn.Conv3d(1, 1, 3, padding=1, dtype=torch.float64)
        optimizer = build_optimizer([{"params": list(model.parameters()), "lr": 1.0, "weight_decay": 0.0}], name="sgd")
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        window = [MicroBatch(pair) for pair in zip(images.split(sizes), masks.split(sizes), strict=True)]
        engine = Engine(model, optimizer, learning_rates=np.ones((2, 1)))
        engine.run_window(
            lambda model, pair: StepOutput(SEGMENTATION[name](model(pair[0]), pair[1]).sum(), len(pair[0])), window
        )
        return before - torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(gradients(sizes), gradients([12]), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.dice(torch.zeros(2, 1, 4), torch.zeros(2, 4)), r"\(2, 1, 4\)"),
        (lambda: losses.dice_focal(torch.zeros(2, 3, 4), torch.zeros(2, 1, 4)), r"logits \(2, 3, 4\)"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()

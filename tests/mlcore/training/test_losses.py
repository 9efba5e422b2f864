"""Losses are proved by identities, parity with torch, and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mlcore.base.errors import UserError
from mlcore.training import losses
from tests.loss_identities import Loss, LossIdentities

MULTICLASS: dict[str, Loss] = {
    "cross_entropy": losses.cross_entropy,
    "cross_entropy smoothed": partial(losses.cross_entropy, label_smoothing=0.1),
    "cross_entropy weighted": partial(losses.cross_entropy, weight=torch.tensor([0.5, 1.0, 3.0, 2.0])),
    "cross_entropy weighted, smoothed": partial(
        losses.cross_entropy, weight=torch.tensor([0.5, 1.0, 3.0, 2.0]), label_smoothing=0.1
    ),
    "focal": losses.focal,
    "focal gamma 0.5, smoothed": partial(losses.focal, gamma=0.5, label_smoothing=0.1),
    "focal gamma 0.5": partial(losses.focal, gamma=0.5),
    "focal gamma 0": partial(losses.focal, gamma=0.0),
    "focal per class, smoothed": partial(losses.focal, alpha=torch.tensor([0.5, 1.0, 3.0, 2.0]), label_smoothing=0.1),
}
BINARY: dict[str, Loss] = {
    "bce": losses.binary_cross_entropy,
    "bce weighted, smoothed": partial(losses.binary_cross_entropy, pos_weight=3.0, label_smoothing=0.2),
    "binary focal": partial(losses.binary_focal, alpha=0.25),
    "binary focal gamma 0.5, smoothed": partial(losses.binary_focal, gamma=0.5, label_smoothing=0.2),
}


def _multiclass(batch: int = 6, classes: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(batch, classes, dtype=dtype) * 3, torch.randint(0, classes, (batch,))


def _binary(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(shape, dtype=dtype) * 3, torch.randint(0, 2, shape)


def _cases() -> list[tuple[str, Loss, tuple[Tensor, Tensor]]]:
    cases = [(name, loss, _multiclass()) for name, loss in MULTICLASS.items()]
    cases += [(name, loss, _binary(6)) for name, loss in BINARY.items()]
    return cases + [(f"{name}, multi-label", loss, _binary(6, 3)) for name, loss in BINARY.items()]


every_loss = pytest.mark.parametrize(
    ("loss", "values"), [(loss, values) for _, loss, values in _cases()], ids=[name for name, _, _ in _cases()]
)


@every_loss
class TestEveryLoss(LossIdentities):
    """Those of the core."""


def test_cross_entropy_sums_to_torchs() -> None:
    logits, target = _multiclass()
    weight = torch.rand(4, dtype=torch.float64)
    for options in ({}, {"label_smoothing": 0.1}, {"weight": weight}):
        ours = losses.cross_entropy(logits, target, **options).sum()
        torch.testing.assert_close(ours, F.cross_entropy(logits, target, reduction="sum", **options))


@pytest.mark.parametrize("dense", [False, True])
def test_weighted_sum_over_count_is_torchs_weighted_mean(dense: bool) -> None:
    torch.manual_seed(3)
    shape = (6, 4, 5, 2) if dense else (6, 4)
    logits = torch.randn(shape, dtype=torch.float64)
    target = torch.randint(0, 4, (6, 5, 2) if dense else (6,))
    weight = torch.tensor([0.5, 1.0, 3.0, 2.0], dtype=torch.float64)
    count = losses.class_weight_count(target, weight)
    mean = losses.cross_entropy(logits, target, weight=weight).sum() / count
    torch.testing.assert_close(mean, F.cross_entropy(logits, target, weight=weight))
    shares = F.one_hot(target, 4).movedim(-1, 1).float()
    torch.testing.assert_close(losses.class_weight_count(shares, weight).double(), count)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.focal])
def test_class_probabilities_that_name_one_class_equal_its_index(loss: Loss) -> None:
    logits, target = _multiclass()
    one_hot = F.one_hot(target, 4).float()
    torch.testing.assert_close(loss(logits, one_hot), loss(logits, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_are_the_mix_of_the_losses(smoothing: float) -> None:
    logits, target = _multiclass()
    other = target.roll(1)
    mixed = 0.3 * F.one_hot(target, 4).double() + 0.7 * F.one_hot(other, 4).double()
    weight = torch.tensor([0.5, 1.0, 30.0, 2.0], dtype=torch.float64)
    for loss in (
        partial(losses.cross_entropy, label_smoothing=smoothing),
        partial(losses.cross_entropy, label_smoothing=smoothing, weight=weight),
        partial(losses.focal, label_smoothing=smoothing),
        partial(losses.focal, label_smoothing=smoothing, alpha=weight),
    ):
        expected = 0.3 * loss(logits, target) + 0.7 * loss(logits, other)
        torch.testing.assert_close(loss(logits, mixed), expected)
    z, y = _binary(8)
    for binary in (
        partial(losses.binary_cross_entropy, label_smoothing=smoothing, pos_weight=30.0),
        partial(losses.binary_focal, label_smoothing=smoothing, alpha=0.9),
    ):
        expected = 0.3 * binary(z, torch.zeros_like(y)) + 0.7 * binary(z, torch.ones_like(y))
        torch.testing.assert_close(binary(z, torch.full_like(z, 0.7)), expected)


def test_weights_count_a_sample_so_many_times_and_leave_its_loss_alone() -> None:
    logits, target = _multiclass()
    weight = torch.tensor([0.5, 1.0, 30.0, 2.0], dtype=torch.float64)
    for plain, weighted in (
        (losses.cross_entropy, partial(losses.cross_entropy, weight=weight)),
        (losses.focal, partial(losses.focal, alpha=weight)),
    ):
        expected = weight[target] * plain(logits, target, label_smoothing=0.1)
        torch.testing.assert_close(weighted(logits, target, label_smoothing=0.1), expected)
    z, y = _binary(8)
    expected = (1 + 29 * y) * losses.binary_cross_entropy(z, y, label_smoothing=0.1)
    torch.testing.assert_close(losses.binary_cross_entropy(z, y, pos_weight=30.0, label_smoothing=0.1), expected)


RARE = torch.ones(17, dtype=torch.float64).index_fill(0, torch.tensor(16), 167.0)  # the last class, 167 : 1


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        (partial(losses.cross_entropy, weight=RARE), 17),
        (partial(losses.focal, gamma=0.5, alpha=RARE), 17),
        (partial(losses.focal, gamma=2.0, alpha=RARE), 17),
        (partial(losses.focal, gamma=3.0), 4),
        (partial(losses.binary_cross_entropy, pos_weight=167.0), 2),
        (partial(losses.binary_focal, gamma=0.5, alpha=0.9), 2),
        (partial(losses.binary_focal, gamma=2.0), 2),
    ],
)
def test_the_optimum_of_every_sample_is_its_smoothed_target(loss: Callable[..., Tensor], classes: int) -> None:
    binary = loss.func in (losses.binary_cross_entropy, losses.binary_focal)  # type: ignore[attr-defined]
    target = torch.arange(classes)  # one page of each class, each with logits of its own: a perfectly trained network
    p = _minimise(lambda z: loss(z[:, 1] - z[:, 0] if binary else z, target, label_smoothing=0.1), classes)
    wanted = 0.9 * torch.eye(classes, dtype=torch.float64) + 0.1 / classes
    torch.testing.assert_close(p, wanted, atol=0.02, rtol=0.0)


def test_a_mixed_page_leans_to_its_classes_by_share_and_weight() -> None:
    target = torch.zeros(1, 17, dtype=torch.float64)
    target[0, 3], target[0, 16] = 0.999, 0.001
    p = _minimise(lambda z: losses.cross_entropy(z, target, weight=RARE, label_smoothing=0.1), 17)
    heavy = torch.tensor([0.999, 0.167], dtype=torch.float64)
    torch.testing.assert_close(p[0, [3, 16]], 0.9 * heavy / heavy.sum() + 0.1 / 17, atol=1e-4, rtol=0.0)


def _minimise(loss: Callable[[Tensor], Tensor], classes: int) -> Tensor:
    """Class probabilities [C, C] of the logits at which the loss of C samples is smallest."""
    logits = torch.zeros(classes, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=400, tolerance_grad=1e-14, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)
    return logits.detach().softmax(dim=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_focal_without_focus_is_cross_entropy(smoothing: float) -> None:
    logits, target = _multiclass()
    torch.testing.assert_close(
        losses.focal(logits, target, gamma=0.0, label_smoothing=smoothing),
        losses.cross_entropy(logits, target, label_smoothing=smoothing),
    )
    z, y = _binary(8)
    torch.testing.assert_close(
        losses.binary_focal(z, y, gamma=0.0, label_smoothing=smoothing),
        losses.binary_cross_entropy(z, y, label_smoothing=smoothing),
    )


def test_focal_alpha_without_focus_is_a_class_weight() -> None:
    logits, target = _multiclass()
    weight = torch.tensor([0.5, 1.0, 3.0, 2.0])
    torch.testing.assert_close(
        losses.focal(logits, target, gamma=0.0, alpha=weight), losses.cross_entropy(logits, target, weight=weight)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_focal_is_two_class_focal(gamma: float, smoothing: float) -> None:
    z, y = _binary(8)
    two = torch.stack([torch.zeros_like(z), z], dim=1)
    torch.testing.assert_close(
        losses.binary_focal(z, y, gamma=gamma, alpha=0.25, label_smoothing=smoothing),
        losses.focal(two, y, gamma=gamma, alpha=torch.tensor([0.75, 0.25]), label_smoothing=smoothing),
    )


def test_focal_is_the_formula_of_the_paper() -> None:
    logits, target = _multiclass()
    p = logits.softmax(1)[torch.arange(6), target]
    torch.testing.assert_close(losses.focal(logits, target, gamma=2.0), -((1 - p) ** 2) * p.log())
    torch.testing.assert_close(losses.focal(logits, target, gamma=2.0, alpha=0.25), -0.25 * (1 - p) ** 2 * p.log())


def test_binary_cross_entropy_is_two_class_cross_entropy_and_torchs() -> None:
    z, y = _binary(8)
    two = torch.stack([torch.zeros_like(z), z], dim=1)
    torch.testing.assert_close(
        losses.binary_cross_entropy(z, y, label_smoothing=0.1), losses.cross_entropy(two, y, label_smoothing=0.1)
    )
    z, y = _binary(8, 3)
    factor = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    ours = losses.binary_cross_entropy(z, y, pos_weight=factor).mean()
    torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(z, y.double(), pos_weight=factor))


def test_smoothing_away_everything_forgets_the_label() -> None:
    logits, target = _multiclass()
    for loss in (losses.cross_entropy, losses.focal):
        torch.testing.assert_close(
            loss(logits, target, label_smoothing=1.0), loss(logits, target.roll(1), label_smoothing=1.0)
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.focal(*_multiclass(), gamma=-1.0), "gamma is -1.0"),
        (lambda: losses.cross_entropy(*_multiclass(), label_smoothing=1.5), "label_smoothing is 1.5"),
        (lambda: losses.binary_focal(*_binary(4), alpha=float("nan")), "alpha is nan"),
        (lambda: losses.binary_cross_entropy(torch.zeros(4, 1), torch.zeros(4)), r"\(4, 1\).*\(4,\)"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()

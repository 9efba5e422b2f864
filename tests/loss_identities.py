"""What holds for every loss; tests of losses parametrise a class of their own, derived from this, by `loss, values`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

Loss = Callable[[Tensor, Tensor], Tensor]


class LossIdentities:
    """Given a loss and its arguments: logits float64 and targets, samples along the first dimension."""

    def test_one_value_per_sample_which_no_other_sample_changes(
        self, loss: Loss, values: tuple[Tensor, Tensor]
    ) -> None:
        logits, target = values
        whole = loss(logits, target)
        alone = torch.cat([loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(logits))])
        assert whole.shape == (len(logits),)
        torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)
        assert (whole >= 0).all()

    def test_gradcheck_in_double_precision(self, loss: Loss, values: tuple[Tensor, Tensor]) -> None:
        logits, target = values
        assert loss(logits, target).dtype == torch.float64
        assert gradcheck(lambda z: loss(z, target), (logits.clone().requires_grad_(),), fast_mode=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("size", [1e-6, 30.0, 6e4])
    def test_extreme_logits_give_finite_values_and_gradients(
        self, loss: Loss, values: tuple[Tensor, Tensor], dtype: torch.dtype, size: float
    ) -> None:
        logits, target = values
        extreme = (logits.sign() * size).to(dtype).requires_grad_()
        value = loss(extreme, target)
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        value.sum().backward()
        assert extreme.grad is not None
        assert torch.isfinite(extreme.grad).all()

    def test_autocast_changes_nothing(self, loss: Loss, values: tuple[Tensor, Tensor]) -> None:
        logits, target = values[0].float(), values[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = loss(logits, target)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, loss(logits, target))

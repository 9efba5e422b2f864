"""A network says how far its arithmetic is from float32, once."""

import logging

import pytest
import torch
from torch import nn

from mlcore.run.networks import Eager, Signature

SIGNATURE = Signature(inputs={"x": ("batch", 1)}, outputs={"y": ("batch", 1)})


@pytest.mark.parametrize(("has_bf16", "said"), [(True, ["bfloat16", "3.9e-03"]), (False, [])])
def test_automatic_precision_is_named_by_what_it_is(
    has_bf16: bool, said: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0 + 2**-8)  # a bit more than bfloat16 has
    network = Eager(module.eval(), SIGNATURE, device=torch.device("cpu"), precision="auto")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            network({"x": torch.ones(2, 1)})
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == bool(said)
    assert all(word in told[0] for word in said)

"""What only a CUDA device can show; skipped, and said, where there is none."""

import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mlcore.base.distributed import World
from mlcore.data.batch import MicroBatch
from mlcore.training.batch_norm import synchronise
from mlcore.training.engine import Engine, Precision, StepOutput
from mlcore.training.losses import cross_entropy
from mlcore.training.optim import build_optimizer, parameter_groups

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICE = torch.device("cuda", 0)


class Block(nn.Module):
    def __init__(self, inputs: int, *, recompute: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(inputs, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.recompute = recompute

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layers, x, use_reentrant=False) if self.recompute else self.layers(x)


def network(*, recompute: bool = False) -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(inputs, recompute=recompute) for inputs in (3, 16, 16)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).to(DEVICE)


def step(model: nn.Module, batch: Any) -> StepOutput:
    values = cross_entropy(model(batch["x"]), batch["y"])
    return StepOutput(values.sum(), len(values))


def engine_of(model: nn.Module, wrapped: nn.Module | None = None, **options: Any) -> Engine:
    groups = parameter_groups(model, lr=1e-3)
    rates = np.full((2, len(groups)), 1e-3)
    return Engine(wrapped or model, build_optimizer(groups), learning_rates=rates, **{"world": WORLD, **options})


WORLD = World(device=DEVICE)


def window(samples: int, cuts: int = 1) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(1)
    x = (3 + 2 * torch.randn(samples, 3, 16, 16, generator=generator)).to(DEVICE)
    y = (torch.arange(samples) % 10).to(DEVICE)
    return [MicroBatch({"x": a, "y": b}) for a, b in zip(x.chunk(cuts), y.chunk(cuts), strict=True)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_never_waits_for_the_device(precision: Precision, recompute: bool) -> None:
    model = network(recompute=recompute).train()
    engine = engine_of(model, precision=precision, ema_decay=0.999, max_grad_norm=1.0, nominal_count=32)
    engine.recomputes = recompute
    batches = window(32, cuts=2)
    for _ in range(4):  # what is made at the first steps may wait
        engine.run_window(step, batches)
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the mode, which torch calls a prototype
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            engine.run_window(step, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    totals = engine.read_totals()
    assert totals.updates + totals.skipped == 7


def gradients(engine: Engine, batch: MicroBatch) -> Tensor:
    """Mean gradients of one window, [parameters]; the weights stay."""
    seen: list[Tensor] = []

    def look(_finite: Tensor) -> None:
        parts = [p.grad.flatten() for group in engine.optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat(parts).cpu())

    setattr(engine, "_update", look)  # noqa: B010
    engine.run_window(step, [batch])
    return seen[0]


def _rank(rank: int, port: int, folder: str) -> None:
    torch.backends.cudnn.allow_tf32 = False  # what is compared is not rounding
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)  # NCCL wants a GPU for each
    try:
        world = World(rank=rank, size=2, device=DEVICE)
        found = {}
        for together in (False, True):
            model = network()
            if together:
                synchronise(model, world=world)
            engine = engine_of(model, DistributedDataParallel(model, device_ids=[DEVICE]), world=world)
            found[together] = gradients(engine, window(32, cuts=2)[rank])
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_synchronised_batch_norms_of_two_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = False  # what is compared is not rounding
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    whole = gradients(engine_of(network()), window(32)[0])
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    off = {together: float((value - whole).norm() / whole.norm()) for together, value in found.items()}
    assert off[True] < 1e-4 < off[False]


def test_a_converted_batch_norm_on_one_rank_is_torchs() -> None:
    plain, other = network(), network()
    synchronise(other, world=World(size=2, device=DEVICE))  # without a process group it is as plain as before
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in other.modules()) == 3
    assert plain.state_dict().keys() == other.state_dict().keys()
    for model in (plain, other):
        engine_of(model).run_window(step, window(16))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-4, atol=1e-5)

"""Gradients of a window do not depend on how it is cut into micro-batches or spread over ranks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlcore.base.distributed import World, start_world
from mlcore.data.batch import MicroBatch
from mlcore.training import losses
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.optim import build_optimizer

SAMPLES = 12
CLASSES = 4


class Net(nn.Module):
    """Two layers and a mask head, in fp64."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 8, dtype=torch.float64)
        self.out = nn.Linear(8, CLASSES, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))


Batch = dict[str, Tensor]


def classification(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Batch], StepOutput]:
    def step(model: nn.Module, batch: Batch) -> StepOutput:
        return StepOutput(loss(model(batch["x"]), batch["label"]).sum(), len(batch["x"]))

    return step


def weighted(model: nn.Module, batch: Batch) -> StepOutput:
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    values = losses.cross_entropy(model(batch["x"]), batch["label"], weight=weight)
    return StepOutput(values.sum(), losses.class_weight_count(batch["label"], weight))


def binary(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Batch], StepOutput]:
    def step(model: nn.Module, batch: Batch) -> StepOutput:
        return StepOutput(loss(model(batch["x"])[:, 0], (batch["label"] > 1).double()).sum(), len(batch["x"]))

    return step


def masked_tokens(model: nn.Module, batch: Batch) -> StepOutput:
    """Counts valid positions, of which each sample has another number."""
    error = (model(batch["x"]) - batch["target"]).square()
    return StepOutput((error * batch["valid"]).sum(), batch["valid"].sum())


def dice(model: nn.Module, batch: Batch) -> StepOutput:
    """A ratio within each sample."""
    logits = model(batch["x"]).reshape(-1, 1, 2, 2)
    values = DiceLoss(sigmoid=True, reduction="none")(logits, batch["valid"].reshape(-1, 1, 2, 2))
    return StepOutput(values.sum(), len(logits))


STEPS: dict[str, Callable[[nn.Module, Batch], StepOutput]] = {
    "cross_entropy": classification(losses.cross_entropy),
    "cross_entropy_smoothed": classification(lambda z, y: losses.cross_entropy(z, y, label_smoothing=0.1)),
    "cross_entropy_weighted": weighted,
    "focal": classification(lambda z, y: losses.focal(z, y, gamma=2.0)),
    "bce": binary(losses.binary_cross_entropy),
    "binary_focal": binary(losses.binary_focal),
    "masked_tokens": masked_tokens,
    "dice": dice,
}


def data() -> Batch:
    rng = np.random.default_rng(7)
    return {
        "x": torch.from_numpy(rng.normal(size=(SAMPLES, 6))),
        "label": torch.from_numpy(rng.integers(0, CLASSES, SAMPLES)),
        "target": torch.from_numpy(rng.normal(size=(SAMPLES, CLASSES))),
        "valid": torch.from_numpy((rng.random((SAMPLES, CLASSES)) < 0.6).astype(np.float64)),
    }


def cut(batch: Batch, sizes: Sequence[int]) -> list[MicroBatch]:
    parts = {key: value.split(list(sizes)) for key, value in batch.items()}
    return [MicroBatch({key: value[i] for key, value in parts.items()}) for i in range(len(sizes))]


class Spy(torch.optim.SGD):
    """An optimiser that keeps the gradients it is given."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def window_gradients(
    step: Callable[[nn.Module, Batch], StepOutput],
    window: Sequence[MicroBatch],
    *,
    world: World | None = None,
    max_grad_norm: float | None = None,
) -> Tensor:
    torch.manual_seed(0)
    model: nn.Module = Net()
    if world is not None:
        model = DistributedDataParallel(model)
    optimizer = Spy(model.parameters(), lr=0.1)
    optimizer._step_supports_amp_scaling = False
    engine = Engine(model, optimizer, learning_rates=np.full((2, 1), 0.1), max_grad_norm=max_grad_norm, world=world)
    engine.run_window(step, window)
    return torch.cat([g.flatten() for g in optimizer.seen])


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 5, 2], [1] * 12])
@pytest.mark.parametrize("name", STEPS)
def test_accumulation_of_any_cut_gives_the_gradients_of_one_batch(
    name: str, sizes: list[int], clip: float | None
) -> None:
    whole = window_gradients(STEPS[name], cut(data(), [SAMPLES]), max_grad_norm=clip)
    parts = window_gradients(STEPS[name], cut(data(), sizes), max_grad_norm=clip)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", STEPS)
def test_accumulation_gives_the_gradient_of_the_mean_loss(name: str) -> None:
    torch.manual_seed(0)
    model = Net()
    output = STEPS[name](model, data())
    (output.loss_sum / output.count).backward()
    direct = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(window_gradients(STEPS[name], cut(data(), [5, 5, 2])), direct, rtol=0, atol=1e-10)


CUTS = {"even": [[6], [6]], "uneven-two-micro-batches": [[5, 2], [3, 2]], "one-rank-has-none": [[12], []]}
"""Sizes of the micro-batches of either rank."""


def _rank(rank: int, rendezvous: str, out: str) -> None:
    import os

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = rendezvous
    torch.set_num_threads(1)
    with start_world("cpu") as world:
        for cuts, sizes in CUTS.items():
            start = sum(sizes[0]) if rank else 0
            mine = {key: value[start : start + max(1, sum(sizes[rank]))] for key, value in data().items()}
            if sum(sizes[rank]):
                window = cut(mine, sizes[rank])
            else:  # a rank without samples runs a stand-in
                window = [MicroBatch({k: v[:1] for k, v in data().items()}, real=False)]
            gradients = {name: window_gradients(step, window, world=world) for name, step in STEPS.items()}
            torch.save(gradients, f"{out}/{cuts}-{rank}.pt")


def test_accumulation_over_two_gloo_ranks(tmp_path: Path, free_port: int) -> None:
    mp.spawn(_rank, args=(str(free_port), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    for name, step in STEPS.items():
        whole = window_gradients(step, cut(data(), [SAMPLES]))
        for cuts in CUTS:
            for rank in (0, 1):
                gradients = torch.load(tmp_path / f"{cuts}-{rank}.pt", weights_only=True)
                torch.testing.assert_close(
                    gradients[name], whole, rtol=0, atol=1e-10, msg=lambda m, n=name, c=cuts: f"{n}, {c}: {m}"
                )


def test_clipping_matches_torch() -> None:
    torch.manual_seed(0)
    model = Net()
    output = STEPS["cross_entropy"](model, data())
    (output.loss_sum / output.count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    direct = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    ours = window_gradients(STEPS["cross_entropy"], cut(data(), [5, 5, 2]), max_grad_norm=0.05)
    torch.testing.assert_close(ours, direct, rtol=1e-4, atol=1e-10)  # torch adds 1e-6 to the norm


def test_fused_adamw_updates_as_torch_does() -> None:
    steps = [cut(data(), [12])] * 5
    torch.manual_seed(0)
    model, reference = Net(), Net()
    reference.load_state_dict(model.state_dict())
    groups = [{"params": list(model.parameters()), "lr": 0.01, "weight_decay": 0.1}]
    engine = Engine(model, build_optimizer(groups), learning_rates=np.full((6, 1), 0.01))
    plain = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.1)
    for window in steps:
        engine.run_window(STEPS["cross_entropy"], window)
        plain.zero_grad()
        output = STEPS["cross_entropy"](reference, window[0].data)
        (output.loss_sum / output.count).backward()
        plain.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)  # learning rates are float32 on the device

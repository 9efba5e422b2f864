"""Batch norm, whose statistics depend on how a batch is cut, and go with certain weights.

In training a batch norm takes mean and variance from the micro-batch of its rank. So accumulation and data parallelism,
exact for every other layer, change what such a network computes; `synchronise` makes one batch of all ranks'. For
evaluation it keeps running statistics of the weights as they were, which are not those of averaged weights:
`estimate_statistics` measures these.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlcore.base.distributed import World, all_reduce_sum
from mlcore.base.errors import UserError
from mlcore.data.loader import BatchLoader
from mlcore.training.engine import Precision, autocast
from mlcore.training.task import Task

__all__ = ["batch_norms", "estimate_statistics", "synchronise"]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those that take their statistics from the batch in training; not those of frozen parts, which keep theirs."""
    mode = model.training
    model.train()
    found = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    model.train(mode)
    return found


def synchronise(model: nn.Module, *, world: World) -> None:
    """Let batch norms take their statistics from the micro-batches of all ranks; names in the state dict stay.

    Args:
        model: The bare model, on its device. Its parameters stay the same objects.
        world: Ranks and device; with one rank there is nothing to do.

    Raises:
        UserError: The device cannot, or a batch norm is of a kind that nobody knows how to synchronise.
    """
    if world.size == 1:
        return
    live = set(batch_norms(model))
    if live and world.device.type != "cuda":
        raise UserError(
            f"train.sync_batch_norm: torch synchronises batch norms on CUDA devices only, and this is {world.device}; "
            "leave it out (each rank then takes its own statistics), or train in one process"
        )
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in live:
                parent.add_module(name, _synchronised(child))


def _synchronised(norm: nn.Module) -> nn.Module:
    made: nn.Module
    if isinstance(norm, nn.SyncBatchNorm):
        made = norm
    elif type(norm).__module__.startswith("timm."):
        # timm's own carry an activation, which torch's conversion would lose. Where there is one, there is timm.
        from timm.layers.norm_act import convert_sync_batchnorm

        made = convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
    elif type(norm).__module__.startswith("torch."):
        made = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
    else:
        raise UserError(f"train.sync_batch_norm: {type(norm).__name__} is neither torch's nor timm's; leave it out")
    return made


@torch.no_grad()
def estimate_statistics(task: Task, *, loader: BatchLoader, world: World, precision: Precision = "fp32") -> None:
    """Give batch norms the statistics that training batches have with the present weights.

    Running statistics become the means of the batches' means and variances over `loader`, all ranks together. Nothing
    is random but the augmentation, which follows from seed and sample: dropout is off, as it is when the statistics are
    used. So the result is a function of the weights; the network's mode and its counts of batches are left alone.
    A batch that makes statistics not finite is passed over; if all do, the statistics stay.

    Args:
        task: Gives the model and its training step.
        loader: The same batches at every call; every rank has as many.
        world: Ranks and device.
        precision: Of the forward passes.
    """
    norms = [norm for norm in batch_norms(task.model) if norm.running_mean is not None]
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    if not statistics:
        return
    sums = torch.zeros(1 + sum(s.numel() for s in statistics), dtype=torch.float64, device=world.device)
    before = [s.clone() for s in statistics]
    with _statistics_of_one_batch(task.model, norms):
        for batch in loader.epoch(0):
            torch._foreach_copy_(statistics, before)  # no trace of a batch that was not finite
            with autocast(precision, world.device):
                task.training_step(task.model, batch.to(world.device).data)
            if batch.real:
                row = torch.cat([sums.new_ones(1), *(s.flatten().double() for s in statistics)])
                sums += torch.where(row.isfinite().all(), row, 0.0)
    all_reduce_sum(sums)
    means = torch.split(sums[1:] / sums[0], [s.numel() for s in statistics])
    for value, mean, old in zip(statistics, means, before, strict=True):
        value.copy_(torch.where(sums[0] > 0, mean.view_as(value).to(value.dtype), old))


@contextmanager
def _statistics_of_one_batch(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Inside, running statistics are the last batch's, and all but batch norms are in evaluation mode."""
    mode, momenta = model.training, [norm.momentum for norm in norms]
    counts: list[Tensor | None] = [
        None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms
    ]
    model.eval()
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
        model.train(mode)

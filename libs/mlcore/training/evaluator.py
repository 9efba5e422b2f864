"""Predictions for every sample of a data set exactly once, on any number of ranks, in dataset order."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlcore.base.distributed import World, any_rank, gather_objects
from mlcore.base.signals import Interrupted, deferred, received
from mlcore.data.batch import MicroBatch
from mlcore.data.loader import BatchLoader
from mlcore.training.engine import Engine
from mlcore.training.task import Task

Predictions = Mapping[str, Tensor]


class Evaluator:
    """Runs a task's evaluation step over a loader.

    Ranks read disjoint parts without padding; where a rank has no sample left in the last batch it runs a stand-in,
    so that models with collective operations stay in step, and drops the result.

    Args:
        task: Gives `evaluation_step` and `metrics`.
        loader: Over the data set, not shuffled (grouping by length is fine: rows are put back in order).
        world: Ranks and device.
    """

    def __init__(self, task: Task, loader: BatchLoader, *, world: World | None = None) -> None:
        self._task = task
        self._loader = loader
        self._world = world or World()
        self._names: set[str] = set()

    def __len__(self) -> int:
        """Samples of the data set."""
        return self._loader.order.size

    @torch.inference_mode()
    def predict(self, model: nn.Module, *, engine: Engine | None = None) -> Predictions:
        """Evaluate `model` on every sample.

        Args:
            model: The module to run; it is left in the mode it came in.
            engine: Where the precision context comes from; none runs in the model's own precision.

        Returns:
            Tensors on the host, row i belonging to sample i, the same on every rank.

        Raises:
            Interrupted: A signal came to some rank; all of them stop after the same batch.
        """
        with deferred(), _evaluating(model):
            rows = list(self._rows(model, engine))
        indices = np.concatenate([index for index, _ in rows]) if rows else np.empty(0, np.int64)
        mine = {key: torch.cat([row[key] for _, row in rows]).cpu() for key in (rows[0][1] if rows else {})}
        parts = [part for part in gather_objects((indices, mine)) if len(part[0])]
        order = torch.from_numpy(np.argsort(np.concatenate([part[0] for part in parts]), kind="stable"))
        return {key: torch.cat([part[1][key] for part in parts])[order] for key in parts[0][1]}

    def _rows(self, model: nn.Module, engine: Engine | None) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        keys = self._loader.order.batches(0)
        batch: MicroBatch
        for key, batch in zip(keys, self._loader.epoch(0), strict=True):
            if any_rank(received()):
                raise Interrupted
            output = self._step(model, batch, engine)
            if key.real:
                yield np.asarray(key.indices), output

    def _step(self, model: nn.Module, batch: MicroBatch, engine: Engine | None) -> dict[str, Tensor]:
        data = batch.to(self._world.device).data
        with nullcontext() if engine is None else engine.autocast():
            return self._task.evaluation_step(model, data)

    @torch.inference_mode()
    def metric_names(self, model: nn.Module, *, engine: Engine | None = None) -> set[str]:
        """Names of the figures that `run` gives, found on one batch the first time."""
        if not self._names:
            batch = self._loader.read(next(self._loader.order.batches(0)))
            with _evaluating(model):
                rows = self._step(model, batch, engine)
            self._names = {*self._task.metrics({key: value.cpu() for key, value in rows.items()}), "n"}
        return self._names

    @torch.inference_mode()
    def departure(self, model: nn.Module, *, engine: Engine | None = None) -> float | None:
        """How far the outputs of the first batch are from those in float32, see `largest_difference`.

        Args:
            model: As for `predict`.
            engine: Likewise; none: the arithmetic in force.

        Returns:
            None where that is float32, and where the memory does not suffice for it.
        """
        device = self._world.device.type
        with nullcontext() if engine is None else engine.autocast(), _evaluating(model):
            if not torch.is_autocast_enabled(device):
                return None
            batch = self._loader.read(next(self._loader.order.batches(0)))
            found = self._step(model, batch, None)
            try:
                with torch.autocast(device, enabled=False):
                    return largest_difference(found, self._step(model, batch, None))
            except torch.OutOfMemoryError:
                return None

    def run(self, model: nn.Module, *, engine: Engine | None = None) -> tuple[dict[str, float], Predictions]:
        """Predictions and the task's metrics over them, with the number of samples as `n`."""
        predictions = self.predict(model, engine=engine)
        return {**self._task.metrics(predictions), "n": float(len(self))}, predictions


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Of all finite numbers that are expected and no integers, relative to the largest of those of the same name.

    Infinite where one is found that is not finite.
    """
    worst = 0.0
    for name, values in expected.items():
        known = values.isfinite()
        if values.is_floating_point() and known.any():
            error = (found[name] - values)[known].abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
            worst = max(worst, float(error.max() / values[known].abs().max().clamp(min=1e-12)))
    return worst


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, then in the mode it came in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

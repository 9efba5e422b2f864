"""The loop of `benchmarks/loops.py` written for mlcore: what an app's `build.py` puts together."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.clocked import BATCH, LOG_EVERY, RATE, STEPS_PER_EPOCH, ClockedModel, Data
from mlcore.data.batch import MicroBatch
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.optim import build_optimizer
from mlcore.training.progress import Cadence, Limits
from mlcore.training.schedules import lr_table
from mlcore.training.trainer import Trainer


def train(model: ClockedModel, data: Data, steps: int) -> None:
    """Train `steps` steps."""
    # One group, as in the other loops; the apps exempt biases from weight decay, which makes two.
    optimizer = build_optimizer([{"params": list(model.parameters()), "lr": RATE, "weight_decay": 0.01}])
    rates = lr_table("cosine", {}, base_lrs=[RATE], total_steps=steps, steps_per_epoch=STEPS_PER_EPOCH)
    engine = Engine(model, optimizer, learning_rates=rates, max_grad_norm=1.0, nominal_count=BATCH)
    order = EpochOrder(size=len(data.dataset), batch_size=BATCH)
    loader: Any = _ReadyMade(data.batches, order) if data.ready_made else BatchLoader(data.dataset, order)
    Trainer(
        task=_Task(model),
        engine=engine,
        loader=loader,
        evaluator=None,
        limits=Limits(epochs=10**6, max_steps=steps),
        cadence=Cadence(log_every=LOG_EVERY),
        tracker=_Memory(),
    ).fit()


class _Task:
    """A loss sum and its count."""

    metadata: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def training_step(self, model: nn.Module, batch: Any) -> StepOutput:
        x, y = batch
        return StepOutput(F.cross_entropy(model(x), y, reduction="sum"), len(x))

    def evaluation_step(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"logits": model(batch[0])}

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        return {"n": float(len(predictions["logits"]))}


class _Memory:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **values})

    def image(self, step: int, name: str, path: Path) -> None:
        raise NotImplementedError("no pictures are made here")

    def close(self, *, status: str) -> None:
        pass

    def state(self) -> dict[str, str]:
        return {}


class _ReadyMade:
    """Stands in for a `BatchLoader` over batches that lie in memory."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], order: EpochOrder) -> None:
        self._batches, self.order = [MicroBatch(batch) for batch in batches], order

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, _: int, *, start: int = 0) -> Iterator[MicroBatch]:
        return iter(self._batches[start:])

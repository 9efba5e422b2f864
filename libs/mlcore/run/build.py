"""From the shared configuration sections and an app's training setup, which its `build.py` makes, to a trainer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.sections import CheckpointConfig, EarlyStoppingConfig, RunConfig, TrackingConfig, TrainConfig
from mlcore.data.loader import BatchLoader, Collate, Prepare, SizedDataset, Transform, worker_count
from mlcore.data.order import EpochOrder
from mlcore.metrics.ranking import Interval
from mlcore.report.page import Section
from mlcore.run.baseline import Baseline
from mlcore.run.splits import Held
from mlcore.trackers.base import Tracker
from mlcore.training.batch_norm import batch_norms, estimate_statistics, synchronise
from mlcore.training.checkpoint import CheckpointStore
from mlcore.training.course import Cut
from mlcore.training.engine import Engine, unwrap
from mlcore.training.evaluator import Evaluator, Predictions
from mlcore.training.optim import GroupRule, build_optimizer, parameter_groups
from mlcore.training.progress import Cadence, Limits, Monitor
from mlcore.training.schedules import Plateau, lr_table
from mlcore.training.task import Task
from mlcore.training.trainer import Trainer

VALIDATION = "validation_samples"
"""Key of a checkpoint."""
_PLATEAU = ("plateau", "reduce_on_plateau")
_STATISTICS_BATCHES = 32  # about a thousand samples are enough (Wu & Johnson 2021, arXiv 2105.07576)
_STATISTICS_WORKERS = 2


class CoreConfig(Protocol):
    """The sections every app's configuration has."""

    @property
    def train(self) -> TrainConfig: ...  # noqa: D102
    @property
    def scheduler(self) -> SchedulerConfig: ...  # noqa: D102
    @property
    def run(self) -> RunConfig: ...  # noqa: D102
    @property
    def checkpoint(self) -> CheckpointConfig: ...  # noqa: D102
    @property
    def tracking(self) -> TrackingConfig: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Data:
    """One data set and how its samples become batches.

    Attributes:
        dataset: Map-style.
        prepare: Last change of each sample, after random augmentation.
        collate: Makes a batch of a list of samples; torch's default if None.
        lengths: Length of each sample; batches then hold samples of similar length. None for no grouping.
    """

    dataset: SizedDataset
    prepare: Prepare | None = None
    collate: Collate | None = None
    lengths: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationSetup:
    """What an app builds of a trained model that is to be evaluated.

    Attributes:
        task: Model, loss, predictions, metrics.
        evaluation: What the best checkpoint is evaluated on at the end, by name and in this order. "val" is the
            held-out data that chooses the best checkpoint; without it the last one stands for the run. "test" is looked
            at once, after training; "train" are training samples without augmentation, for comparison.
        choose: Chooses on validation what evaluations need, before them, with the best checkpoint's weights; on every
            rank, given what gives a task's evaluation rows for the validation data.
        analyse: Makes report sections and pictures of predictions: `(predictions, folder, prefix) -> sections`.
        interval: The 95 % interval of a figure: `(split, predictions, metric) -> interval`, NaN where there is none.
        finish: Writes the app's own files into the folder, given the summary; the model has the best weights.
        warnings: For the report.
    """

    task: Task
    evaluation: Mapping[str, Data]
    choose: Callable[[Callable[[Any], Predictions]], None] | None = None
    analyse: Callable[[Predictions, Path, str], Sequence[Section]] | None = None
    interval: Callable[[str, Predictions, str], Interval] | None = None
    finish: Callable[[Path, Mapping[str, Any]], None] | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingSetup(EvaluationSetup):
    """What an app builds from its configuration.

    Attributes:
        train: Training data.
        transform: Random augmentation of a training sample.
        group_rules: Learning rates of parts of the model.
        overview: Makes report sections about the data, given the run folder, into which their pictures go.
        figures: More of `summary.json`, once `analyse` has seen all splits.
        held_out: The samples of "test", in order, where that is a fold of a cross-validation.
        baselines: What the network is compared with at the end.
    """

    train: Data
    transform: Transform | None = None
    group_rules: Sequence[GroupRule] = ()
    overview: Callable[[Path], Sequence[Section]] | None = None
    figures: Callable[[], Mapping[str, Any]] | None = None
    held_out: Sequence[Held] = ()
    baselines: Sequence[Baseline] = ()

    @property
    def validation(self) -> Data:
        """The data that chooses the best checkpoint."""
        return self.evaluation["val"]


def build_trainer(
    config: CoreConfig,
    setup: TrainingSetup,
    *,
    world: World,
    folder: Path | None = None,
    tracker: Tracker | None = None,
    extra: Mapping[str, Any] | None = None,
    on_saved: Callable[[Path], None] | None = None,
) -> Trainer:
    """A trainer for `setup` as `config` describes.

    Args:
        config: The shared sections.
        setup: The app's part.
        world: Ranks and device.
        folder: Where checkpoints go; None saves none.
        tracker: Where figures go.
        extra: Plain values every checkpoint carries.
        on_saved: See `CheckpointStore`.
    """
    settings = config.train
    loader = train_loader(config, setup, world=world)
    evaluator = None
    if "val" in setup.evaluation:
        evaluator = Evaluator(setup.task, evaluation_loader(config, setup.validation, world=world), world=world)
    elif settings.early_stopping.patience is not None or config.scheduler.name in _PLATEAU:
        raise UserError("no validation data: --patience and the plateau schedule have nothing to watch; leave them out")
    groups = _groups(config, setup, world=world)
    rates = partial(
        lr_table,
        config.scheduler.name,
        config.scheduler.params(),
        base_lrs=[group["lr"] for group in groups],
        unit=config.scheduler.resolved_unit,
    )
    cut = Cut.of(loader.order, settings.gradient_accumulation_steps)
    total_steps = min(settings.epochs * cut.steps_per_epoch, settings.max_steps or 2**62)
    table = rates(total_steps=total_steps, steps_per_epoch=cut.steps_per_epoch)
    monitor = _monitor(settings.early_stopping)
    return Trainer(
        task=setup.task,
        engine=_engine(config, setup, groups=groups, world=world, learning_rates=table),
        loader=loader,
        evaluator=evaluator,
        limits=_limits(settings),
        cadence=_cadence(config),
        monitor=monitor,
        accumulation=settings.gradient_accumulation_steps,
        store=None if folder is None else _store(config.checkpoint, folder, on_saved),
        tracker=tracker,
        plateau=_plateau(config.scheduler, monitor),
        schedule=rates,
        max_bad_steps=settings.max_bad_steps,
        extra={**(extra or {}), VALIDATION: 0 if evaluator is None else len(evaluator)},
    )


def _limits(settings: TrainConfig) -> Limits:
    seconds = None if settings.max_hours is None else settings.max_hours * 3600.0
    return Limits(epochs=settings.epochs, max_steps=settings.max_steps, max_seconds=seconds)


def _monitor(settings: EarlyStoppingConfig) -> Monitor:
    mode, patience = settings.resolved_mode, settings.patience
    return Monitor(metric=settings.monitored, mode=mode, patience=patience, min_delta=settings.min_delta)


def train_loader(config: CoreConfig, setup: TrainingSetup, *, world: World) -> BatchLoader:
    """Shuffled, augmented training batches."""
    order = EpochOrder(
        size=len(setup.train.dataset),
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        lengths=setup.train.lengths,
        drop_last=config.train.drop_last,
        rank=world.rank,
        world_size=world.size,
    )
    return _loader(config, setup.train, order, world=world, transform=setup.transform)


def statistics_loader(config: CoreConfig, setup: TrainingSetup, *, world: World) -> BatchLoader:
    """Up to 32 full micro-batches of training samples, always the same, for the statistics of averaged weights.

    Its workers stay beside those of training for the whole run, for so few batches: there are two at most.
    """
    batch, size = config.train.batch_size, len(setup.train.dataset)
    chosen = min(_STATISTICS_BATCHES, size // (batch * world.size)) * batch * world.size or size
    shuffled = EpochOrder(size=size, batch_size=batch, seed=config.run.seed).permutation(0)
    subset: Subset[Any] = Subset(setup.train.dataset, shuffled[:chosen].tolist())  # type: ignore[arg-type]
    order = EpochOrder(
        size=chosen,
        batch_size=batch,
        seed=config.run.seed,
        shuffle=False,
        rank=world.rank,
        world_size=world.size,
    )
    data = replace(setup.train, dataset=subset)
    return _loader(config, data, order, world=world, transform=setup.transform, most_workers=_STATISTICS_WORKERS)


def evaluation_loader(config: CoreConfig, data: Data, *, world: World) -> BatchLoader:
    """Batches of every sample exactly once, unaugmented."""
    order = EpochOrder(
        size=len(data.dataset),
        batch_size=config.train.eval_batch_size or config.train.batch_size,
        seed=config.run.seed,
        shuffle=False,
        lengths=data.lengths,
        rank=world.rank,
        world_size=world.size,
    )
    return _loader(config, data, order, world=world)


def _loader(
    config: CoreConfig,
    data: Data,
    order: EpochOrder,
    *,
    world: World,
    transform: Transform | None = None,
    most_workers: int | None = None,
) -> BatchLoader:
    workers = worker_count(
        config.run.num_workers, samples=order.size, batch_size=order.batch_size, processes=world.size
    )
    return BatchLoader(
        data.dataset,
        order,
        transform=transform,
        prepare=data.prepare,
        collate=data.collate,
        num_workers=workers if most_workers is None else min(workers, most_workers),
        pin_memory=world.device.type == "cuda",
    )


def _groups(config: CoreConfig, setup: TrainingSetup, *, world: World) -> list[dict[str, Any]]:
    """Parameter groups of the model, which is on the device from here on."""
    settings, model = config.train, setup.task.model.to(world.device)
    return parameter_groups(model, lr=settings.lr, weight_decay=settings.weight_decay, rules=list(setup.group_rules))


def _engine(
    config: CoreConfig,
    setup: TrainingSetup,
    *,
    groups: list[dict[str, Any]],
    learning_rates: NDArray[np.float64],
    world: World,
) -> Engine:
    settings = config.train
    model: nn.Module = setup.task.model
    optimizer = build_optimizer(groups, name=settings.optimizer, momentum=settings.momentum)
    if settings.sync_batch_norm:
        synchronise(model, world=world)
    if settings.compile:
        model.compile()
    if world.size > 1:
        model = DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)
    engine = Engine(
        model,
        optimizer,
        learning_rates=learning_rates,
        precision=settings.precision,
        max_grad_norm=settings.max_grad_norm,
        nominal_count=settings.batch_size * settings.gradient_accumulation_steps * world.size,
        ema_decay=settings.ema_decay,
        world=world,
    )
    engine.recomputes = settings.gradient_checkpointing
    if settings.ema_decay is not None and batch_norms(setup.task.model):
        engine.settle = partial(
            estimate_statistics,
            setup.task,
            loader=statistics_loader(config, setup, world=world),
            world=world,
            precision=settings.precision,
        )
    return engine


def _cadence(config: CoreConfig) -> Cadence:
    minutes = config.checkpoint.save_every_minutes
    return Cadence(
        log_every=config.tracking.log_every,
        evaluate_every=config.train.eval_every,
        evaluate_unit=config.train.eval_unit,
        save_every_steps=config.checkpoint.save_every_steps,
        save_every_seconds=None if minutes is None else minutes * 60.0,
        milestone_every_epochs=config.checkpoint.keep_every_epochs,
    )


def _store(settings: CheckpointConfig, folder: Path, on_saved: Callable[[Path], None] | None) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=settings.keep_last, asynchronous=settings.async_save, on_saved=on_saved)


def _plateau(settings: SchedulerConfig, monitor: Monitor) -> Plateau | None:
    """The plateau schedule watches the monitored metric, or the loss where `mode: min` is not that metric's."""
    if settings.name not in _PLATEAU:
        return None
    given = settings.params()
    metric, mode = monitor.metric, given.get("mode", monitor.mode)
    if mode != monitor.mode:
        if mode == "max":
            raise UserError(
                f"scheduler.mode=max, but a smaller {metric} is better: the learning rate would fall while the model "
                "improves; leave scheduler.mode out, or set train.early_stopping.metric to what should rise"
            )
        metric = "loss"
    return Plateau(metric=metric, mode=mode, factor=given.get("factor", 0.1), patience=given.get("patience", 10))


def describe(trainer: Trainer) -> str:
    """What will be trained on what, in one line."""
    parameters = sum(p.numel() for p in unwrap(trainer.engine.model).parameters() if p.requires_grad)
    validation = 0 if trainer.evaluator is None else len(trainer.evaluator)
    world = trainer.engine.world
    return (
        f"{parameters:,} trainable parameters, {trainer.loader.order.size} training and {validation} validation "
        f"samples, {trainer.total_steps} steps, on {world.device}{f' x {world.size}' if world.size > 1 else ''} "
        f"in {str(trainer.engine.arithmetic).removeprefix('torch.')}"
    )


def configure_torch(config: CoreConfig) -> None:
    """Thread count and matrix precision of this process."""
    if config.run.num_threads is not None:
        torch.set_num_threads(config.run.num_threads)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; exact fp32 elsewhere

"""From the typed configuration to objects; the only place of this app where the two meet."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mlcore.base.distributed import World, barrier
from mlcore.base.errors import UserError
from mlcore.metrics.arrays import IntArray
from mlcore.metrics.ranking import Interval, bootstrap_interval
from mlcore.remote.s3 import stored_file
from mlcore.run.build import Data, EvaluationSetup, TrainingSetup
from mlcore.run.decision import write_decision
from mlcore.run.evaluating import Asked
from mlcore.run.member import member_splits
from mlcore.run.restore import RunCheckpoint
from mlcore.run.splits import Held
from mlcore.run.splits import Splits as OfRun
from mlcore.training.evaluator import Predictions
from mlcore.training.optim import GroupRule
from quartet.apps.sam_med3d_ich.choosing import Chooser
from quartet.apps.sam_med3d_ich.config import DataConfig, ModelConfig, ObjectiveConfig, SamMed3DConfig
from quartet.apps.sam_med3d_ich.data.cache import Cache
from quartet.apps.sam_med3d_ich.data.case import Case
from quartet.apps.sam_med3d_ich.data.dataset import CaseDataset, CropDataset, CropTransform
from quartet.apps.sam_med3d_ich.data.phantoms import write_phantoms
from quartet.apps.sam_med3d_ich.data.statistics import DatasetStatistics, dataset_statistics, statistics_sections
from quartet.apps.sam_med3d_ich.data.table import check_patients, read_cases
from quartet.apps.sam_med3d_ich.data.words import counted, listed
from quartet.apps.sam_med3d_ich.inspection import Inspector
from quartet.apps.sam_med3d_ich.losses import dice_cross_entropy, dice_focal
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.weights import fetch_released, load_weights, read_weights, resize_tables
from quartet.apps.sam_med3d_ich.outputs import write_outputs
from quartet.apps.sam_med3d_ich.restore import Model, describe, make_model, make_segmenter, restored
from quartet.apps.sam_med3d_ich.task import IchTask, MaskLoss

_log = logging.getLogger(__name__)

_OUTPUTS = Path("outputs") / "sam_med3d_ich"
_TOLD = 10  # remarks on units in the log; the report has all


Splits = OfRun[Case]


def build(config: SamMed3DConfig, world: World) -> TrainingSetup:
    """Data, model and task of a run.

    Raises:
        UserError: Data or weights are missing or cannot be used, or settings do not fit together.
    """
    source, weights = _weights(config.model)  # first, as the demo's phantoms take a while to be made
    splits = member_of(load_splits(config.data, world=world), config)
    metadata = describe(config)
    model = make_model(
        metadata, freeze_encoder=config.model.freeze_encoder, gradient_checkpointing=config.train.gradient_checkpointing
    )
    notes = [*splits.notes, *_load_weights(model, config.model, weights, source=source)]
    task = _task(config, model, metadata)
    folder, spacing = config.data.cache_dir or _OUTPUTS / "cache", config.data.array_spacing
    cache = Cache(folder, task.segmenter.preprocessing, array_spacing=spacing)
    cache.fill(splits.train, rank=world.rank, world_size=world.size)
    barrier()
    side = model.side
    crops = CropDataset(splits.train, cache=cache, crop_size=side, random_crops=config.data.random_crops)
    whole = {
        name: CaseDataset(cases, array_spacing=spacing) for name, cases in splits.named().items() if name != "train"
    }
    chooser = Chooser(task, config.decision)
    statistics = _statistics(splits, cache) if world.is_main else {}
    notes += told_of_units(statistics)
    return TrainingSetup(
        task=task,
        train=Data(dataset=crops),
        evaluation={name: Data(dataset=dataset, collate=list) for name, dataset in whole.items()},
        transform=CropTransform(
            crop_size=side,
            augmentation_prob=config.data.augmentation_prob,
            n_draws=config.objective.num_clicks if task.prompted else 0,
        ),
        group_rules=learning_rates(model, config),
        overview=partial(statistics_sections, statistics) if world.is_main else None,
        interval=partial(_interval, task, whole),
        choose=chooser.choose,
        analyse=Inspector(
            task=task, datasets=whole, window=task.segmenter.preprocessing.window, decide=chooser.sections
        ),
        finish=partial(write_outputs, task, config, chooser),
        warnings=notes,
        held_out=[Held(case.name, case.patient_id) for case in splits.test or ()] if config.protocol.fold else (),
    )


def evaluation(run: RunCheckpoint[SamMed3DConfig], asked: Asked, world: World) -> EvaluationSetup:
    """The model of a run with the cases that are asked for; `App.evaluation`.

    Raises:
        UserError: A table is missing or has mistakes, or nothing says where the masks are.
    """
    settings, own = run.config.data, dict[str, Sequence[Case]]()
    if None in asked.data.values():
        own = asked.pick(member_of(load_splits(settings, world=world), run.config).named())
    for name, path in asked.data.items():
        if path is not None:
            if settings.mask_dir is None:
                raise UserError(f"{path}: no folder of masks is known; give data.mask_dir=DIR")
            own[name] = read_cases(path, mask_dir=settings.mask_dir)
    found = restored(run, device=world.device)
    segmenter, loss = found.segmenter, _mask_loss(run.config.objective)
    task = IchTask(model=found.model, segmenter=segmenter, mask_loss=loss, prompted=found.prompted)
    whole = {name: CaseDataset(own[name], array_spacing=settings.array_spacing) for name in asked.data}
    chooser = Chooser(task, run.config.decision, kept=asked.kept(run))
    return EvaluationSetup(
        task=task,
        evaluation={name: Data(dataset=dataset, collate=list) for name, dataset in whole.items()},
        interval=partial(_interval, task, whole),
        choose=chooser.choose,
        analyse=Inspector(task=task, datasets=whole, window=segmenter.preprocessing.window, decide=chooser.sections),
        finish=lambda folder, _: write_decision(folder, chooser.decision),
    )


def _interval(
    task: IchTask, datasets: Mapping[str, CaseDataset], split: str, predictions: Predictions, metric: str
) -> Interval:
    def figure(times: IntArray) -> float:
        drawn = np.repeat(np.arange(len(times)), times)
        return task.metrics({name: rows[drawn] for name, rows in predictions.items()}).get(metric, math.nan)

    cases = datasets[split].cases
    return bootstrap_interval(figure, units=[case.patient_id for case in cases], resamples=200)


# ---------------------------------------------------------------------------------------------------------- the model


def _weights(settings: ModelConfig) -> tuple[Path, Mapping[str, Tensor]]:
    """The file of the weights to start from, and what is in it; nothing for a random start."""
    if settings.weights == "none":
        return Path(), {}
    path = fetch_released() if settings.weights == "hub" else stored_file(settings.weights)
    return path, read_weights(path)


def _load_weights(model: Model, settings: ModelConfig, weights: Mapping[str, Tensor], *, source: Path) -> list[str]:
    """Load the weights to start from; returns warnings."""
    if not weights or not isinstance(model, IchModel):
        return []
    if settings.interpolate_positions:
        weights = resize_tables(weights, model.sam)
    left_out = load_weights(model.sam, weights, source=source, allow_partial=settings.allow_partial_weights)
    loaded = len(weights) - sum("not in the model" in line for line in left_out)
    _log.info("%s: %s loaded", source, counted(loaded, "tensor"))
    for line in left_out:
        _log.warning("not loaded: %s", line)
    return [f"not loaded of {source}: {counted(len(left_out), 'tensor')}, first {left_out[0]}"] if left_out else []


def _task(config: SamMed3DConfig, model: Model, metadata: Mapping[str, Any]) -> IchTask:
    return IchTask(
        model=model,
        segmenter=make_segmenter(metadata, model),
        mask_loss=_mask_loss(config.objective),
        ich_weight=config.objective.ich_weight,
        prompted=config.objective.prompt_mode == "clicks",
        metadata=metadata,
    )


def _mask_loss(settings: ObjectiveConfig) -> MaskLoss:
    if settings.loss == "dice_ce":
        return partial(dice_cross_entropy, squared=True)
    return partial(dice_focal, gamma=settings.focal_gamma)


def learning_rates(model: Model, config: SamMed3DConfig) -> list[GroupRule]:
    """Rates of the model's parts: falling with depth in the encoder, scaled in prompt encoder and mask decoder."""
    if not isinstance(model, IchModel):
        return []
    lr, decay = config.train.lr, config.model.layer_decay
    rates = {f"sam.{part}.": lr * config.model.decoder_lr_scale for part in ("prompt_encoder", "mask_decoder")}
    depth = model.sam.shape.depth
    if decay < 1:
        rates |= {f"sam.image_encoder.blocks.{i}.": lr * decay ** (depth - i) for i in range(depth)}
        rates |= {f"sam.image_encoder.{part}": lr * decay ** (depth + 1) for part in ("pos_embed", "patch_embed.")}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        GroupRule(prefix, rate)
        for prefix, rate in rates.items()
        if rate != lr and any(name.startswith(prefix) for name in trained)
    ]


# ----------------------------------------------------------------------------------------------------------- the data


def load_splits(settings: DataConfig, *, world: World) -> Splits:
    """The cases that the data section names.

    Raises:
        UserError: A table is missing or has mistakes, or patients are in two splits.
    """
    if settings.source == "phantoms":
        folder = settings.phantom_dir or _OUTPUTS / "phantoms"
        if world.is_main:
            write_phantoms(folder, train=settings.num_train, validation=settings.num_val, seed=0)
        barrier()
        tables = {"train": folder / "train.csv", "val": folder / "val.csv"}
        return _read_splits(tables, mask_dir=folder / "masks", allow=False)
    mask_dir, tables = _tables(settings)
    return _read_splits(tables, mask_dir=mask_dir, allow=settings.allow_shared_patients)


def member_of(splits: Splits, config: SamMed3DConfig) -> Splits:
    """The cases of a run of the protocol, whole patients at a time."""
    return member_splits(
        splits,
        config.protocol,
        label=lambda case: case.ich,
        unit=lambda case: case.patient_id,
        classes=("no bleed", "bleed"),
        seed=0,
        what="cases",
    )


def samples(config: SamMed3DConfig) -> dict[str, CaseDataset]:
    """What `--check_data` opens: volume and mask of all cases.

    Raises:
        UserError: A table is missing or has mistakes; they are all named.
    """
    settings = config.data
    parts: Mapping[str, Sequence[Case]]
    if settings.source == "phantoms":
        parts = load_splits(settings, world=World()).named()
    else:
        mask_dir, tables = _tables(settings)
        parts = {name: read_cases(path, mask_dir=mask_dir) for name, path in tables.items()}
    return {name: CaseDataset(cases, array_spacing=settings.array_spacing) for name, cases in parts.items()}


def _tables(settings: DataConfig) -> tuple[Path, dict[str, Path]]:
    """The folder of masks, and the tables by split."""
    if settings.train_csv is None or settings.val_csv is None or settings.mask_dir is None:
        raise UserError("no data chosen: give --train_csv, --val_csv and --mask_dir, or --demo for the demo")
    tables = {"train": settings.train_csv, "val": settings.val_csv, "test": settings.test_csv}
    return settings.mask_dir, {name: path for name, path in tables.items() if path is not None}


def _read_splits(tables: Mapping[str, Path], *, mask_dir: Path, allow: bool) -> Splits:
    cases = {name: read_cases(path, mask_dir=mask_dir) for name, path in tables.items()}
    train, validation, test = cases["train"], cases["val"], cases.get("test")
    if not any(case.ich for case in train):
        raise UserError(f"{tables['train']}: no case has a bleed (column ich), so there is nothing to learn; add some")
    notes = [check_patients(train, validation, allow=allow), _nothing_to_find(validation)]
    if test is not None:
        notes += [check_patients([*train, *validation], test, allow=allow)]
    for note in notes:
        if note is not None:
            _log.warning(note)
    return Splits(train=train, validation=validation, test=test, notes=[note for note in notes if note is not None])


def _nothing_to_find(validation: Sequence[Case]) -> str | None:
    if any(case.ich for case in validation):
        return None
    table = validation[0].origin.rpartition(", line ")[0]
    return f"{table}: no case has a bleed, so no checkpoint is better than another and the newest is kept; add some"


def _statistics(splits: Splits, cache: Cache) -> dict[str, DatasetStatistics]:
    """What the report says of the data; now, so that a held-out case that cannot be used is told before training."""
    called = {"val": "validation"}
    return {called.get(name, name): dataset_statistics(cases, cache=cache) for name, cases in splits.named().items()}


def told_of_units(statistics: Mapping[str, DatasetStatistics]) -> list[str]:
    """Log which cases may not hold HU; returns warnings for the report, which lists all of them."""
    notes = []
    for name, part in statistics.items():
        for case, remark in part.not_hu[:_TOLD]:
            _log.warning("%s data, %s: perhaps not in HU, %s", name, case, remark)
        cases = list(dict.fromkeys(case for case, _ in part.not_hu))
        if cases:
            who = f"{counted(len(cases), 'case')} of the {name} data may not be in HU, as --window needs it"
            notes.append(f"{who}: {listed(cases)}")
            _log.warning(notes[-1])
    return notes

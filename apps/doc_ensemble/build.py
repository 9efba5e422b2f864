"""From the typed configuration to objects; the only place of this app where the two meet."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import group_parameters
from torch.utils.data import default_collate

from mlcore.base.distributed import World, broadcast_object
from mlcore.base.errors import UserError
from mlcore.data.loader import Collate
from mlcore.data.mixing import MixedCollate, Mixing
from mlcore.metrics.arrays import FloatArray
from mlcore.metrics.ranking import Interval
from mlcore.report.classification import measure_interval
from mlcore.report.page import Section
from mlcore.run.build import Data, EvaluationSetup, TrainingSetup, evaluation_loader
from mlcore.run.deciding import Decider
from mlcore.run.evaluating import Asked
from mlcore.run.restore import RunCheckpoint, of_this_version, rebuild
from mlcore.run.splits import Held
from mlcore.training.evaluator import Predictions
from mlcore.training.optim import GroupRule
from quartet.apps.doc_ensemble.baselines import baselines
from quartet.apps.doc_ensemble.config import LAYOUT, TEXT, DocConfig
from quartet.apps.doc_ensemble.data.augment import PageAugmentation
from quartet.apps.doc_ensemble.data.balance import Balanced
from quartet.apps.doc_ensemble.data.dataset import Fit, PageDataset, PageFiles, Prepare
from quartet.apps.doc_ensemble.data.pages import Page, page_size
from quartet.apps.doc_ensemble.data.statistics import page_statistics, statistics_sections, upright_sections
from quartet.apps.doc_ensemble.data.upright import Upright, fit_upright
from quartet.apps.doc_ensemble.data.words import WIDTH, TextDataset
from quartet.apps.doc_ensemble.ensemble.folds import one_fold
from quartet.apps.doc_ensemble.keeping import Keeping
from quartet.apps.doc_ensemble.model.classifier import DocClassifier, create_model, make_model
from quartet.apps.doc_ensemble.outputs import Inspector, write_outputs, write_tables
from quartet.apps.doc_ensemble.restore import upright_of
from quartet.apps.doc_ensemble.splits import Splits, labelled_pages, load_splits, places_of
from quartet.apps.doc_ensemble.task import DocTask, Objective
from quartet.apps.doc_ensemble.teaching import Taught, Teacher, ask_teacher

__all__ = ["build", "evaluation", "learning_rates", "samples"]

_log = logging.getLogger(__name__)


def build(config: DocConfig, world: World) -> TrainingSetup:
    """Data, model and task of a run.

    Raises:
        UserError: Data or weights are missing or cannot be used, or settings do not fit together.
    """
    splits = _splits(config, world)
    if config.model.model_name == TEXT and not any(page.text for page in splits.train):
        raise UserError("model=text reads the column text of the tables, and no training page has one")
    upright = _upright(config, splits, world)
    teacher = ask_teacher(config, splits, world)
    model = _model(config, splits.classes)
    more = () if teacher is None else teacher.unlabelled
    metadata = {
        "model": model.metadata,
        "fit": config.data.fit,
        **({} if upright is None else {"upright": upright.values}),
        "trained_on": sorted({page.digest for page in (*splits.train, *more)}),
        **({} if teacher is None else {"teacher": teacher.digest}),
    }
    task = DocTask(
        model=model,
        class_names=splits.classes,
        objective=_objective(config, splits.train, splits.classes),
        extra=metadata,
    )
    data = partial(_data, config=config, upright=upright)
    decider = Decider(config.decision, class_names=splits.classes, kind="multiclass")
    pixels = round(config.data.max_megapixels * 1e6)
    inspector = Inspector(splits.named(), classes=splits.classes, decider=decider, max_pixels=pixels)
    keeping = None if teacher is None else Keeping(inspector, teacher, splits.named())
    return TrainingSetup(
        task=task,
        train=_training_data(splits, config, teacher, data),
        evaluation={name: data(pages) for name, pages in splits.named().items()},
        transform=PageAugmentation(config.augmentation.name),
        group_rules=learning_rates(model, config),
        overview=partial(_overview, splits, upright, pixels),
        analyse=keeping or inspector,
        interval=partial(_interval, splits.named()),
        finish=partial(write_outputs, inspector, splits, config),
        figures=None if keeping is None else lambda: {"distillation": keeping.figures},
        warnings=[*splits.notes, *_doubts(config), *(() if teacher is None else teacher.notes)],
        baselines=baselines(
            splits.named(),
            classes=len(splits.classes),
            max_pixels=pixels,
            published=partial(_published, config, splits.classes, data, world) if _starts_published(config) else None,
        ),
        held_out=[_held(page) for page in splits.test or ()] if config.protocol.fold else (),
    )


def evaluation(run: RunCheckpoint[DocConfig], asked: Asked, world: World) -> EvaluationSetup:
    """The model of a run with the pages that are asked for; `App.evaluation`.

    Raises:
        UserError: A table or folder is missing or has mistakes, or has other classes.
    """
    with of_this_version(run.path):
        classes = tuple(str(name) for name in run.metadata["class_names"])
    model = rebuild(lambda: make_model(run.metadata["model"]), run.weights, source=run.path)
    own = _splits(run.config, world, classes=classes).named() if None in asked.data.values() else {}
    pages = asked.pick(own)
    for name, path in asked.data.items():
        if path is not None:
            pages[name] = labelled_pages(path, base_dir=run.config.data.base_dir, classes=classes)
    pages = {name: pages[name] for name in asked.data}
    decider = Decider(run.config.decision, class_names=classes, kind="multiclass", kept=asked.kept(run))
    pixels = round(run.config.data.max_megapixels * 1e6)
    inspector = Inspector(pages, classes=classes, decider=decider, max_pixels=pixels)
    return EvaluationSetup(
        task=DocTask(model=model.to(memory_format=torch.channels_last).to(world.device), class_names=classes),
        evaluation={name: _data(part, config=run.config, upright=upright_of(run)) for name, part in pages.items()},
        analyse=inspector,
        interval=partial(_interval, pages),
        finish=partial(write_tables, inspector),
    )


def _splits(config: DocConfig, world: World, *, classes: Sequence[str] | None = None) -> Splits:
    """The run's pages; of a fold's run those of the fold."""
    splits: Splits | None = broadcast_object(load_splits(config, classes=classes) if world.is_main else None)
    assert splits is not None  # noqa: S101 - the main rank has them
    return splits if config.kfold.fold is None else one_fold(splits, config.kfold, seed=config.data.split_seed)


def _interval(parts: Mapping[str, Sequence[Page]], split: str, predictions: Predictions, metric: str) -> Interval:
    return measure_interval(predictions, metric, units=[page.bundle for page in parts[split]])


def samples(config: DocConfig) -> dict[str, PageFiles]:
    """What `--check_data` opens: the pages of tables, or the files of folders.

    Raises:
        UserError: A table or folder is missing or has mistakes.
    """
    max_pixels = round(config.data.max_megapixels * 1e6)
    return {name: PageFiles(places, max_pixels=max_pixels) for name, places in places_of(config.data).items()}


def _doubts(config: DocConfig) -> list[str]:
    """Settings that do not suit one another, for the log and the report."""
    if not (config.loss.class_weights and config.loss.balanced_sampling):
        return []
    doubt = (
        "loss.class_weights and loss.balanced_sampling each even out the classes; together they count rare pages twice "
        "over, and the network calls too many pages rare: one of the two is enough"
    )
    _log.warning("%s", doubt)
    return [doubt]


def _model(config: DocConfig, classes: Sequence[str]) -> DocClassifier:
    settings = config.model
    model = create_model(
        settings.model_name,
        class_names=classes,
        pretrained=settings.pretrained,
        image_size=settings.image_size,
        in_channels=settings.in_channels,
        dropout_rate=settings.dropout_rate,
        drop_path_rate=settings.drop_path_rate,
        attention_dim=settings.attention_dim if settings.use_attention else None,
        arguments=settings.arguments,
    )
    if config.train.gradient_checkpointing and settings.model_name not in (LAYOUT, TEXT):
        model.trunk.set_grad_checkpointing(True)  # type: ignore[operator]
    return model.to(memory_format=torch.channels_last)


def _starts_published(config: DocConfig) -> bool:
    return config.model.pretrained and config.model.model_name not in (LAYOUT, TEXT)


def _published(
    config: DocConfig,
    classes: Sequence[str],
    data: Callable[[Sequence[Page]], Data],
    world: World,
    pages: Sequence[Page],
) -> FloatArray:
    """What the weights that the run started from say of pages, [N, D]."""
    model = _model(config, classes).eval().to(world.device)
    loader = evaluation_loader(config, data(pages), world=World(device=world.device))
    with torch.inference_mode():
        rows = [model.embed(batch.to(world.device).data["pixels"]).cpu().numpy() for batch in loader.epoch(0)]
    return np.concatenate(rows).astype(np.float64)


def learning_rates(model: DocClassifier, config: DocConfig) -> list[GroupRule]:
    """Rates of the network's stages, as timm divides it: those that stay as published, and less towards the input.

    Raises:
        UserError: The network has no more stages than are to stay.
    """
    decay, frozen = config.model.layer_decay, config.model.frozen_stages
    if (decay == 1 and not frozen) or config.model.model_name in (LAYOUT, TEXT):
        return []
    trunk: Any = model.trunk
    stages = list(group_parameters(trunk, trunk.group_matcher(coarse=True)).values())
    if frozen >= len(stages):
        raise UserError(
            f"model.frozen_stages={frozen}: {config.model.model_name} has {len(stages)} stages, and one must learn"
        )
    rates = [0.0 if k < frozen else config.train.lr * decay ** (len(stages) - k) for k in range(len(stages))]
    return [GroupRule(f"trunk.{name}", rate) for names, rate in zip(stages, rates, strict=True) for name in names]


def _objective(config: DocConfig, train: Sequence[Page], classes: Sequence[str]) -> Objective:
    """The loss section's, or the focal loss that the model section asks for."""
    loss, model = config.loss, config.model
    weights = None
    if loss.class_weights:
        counts = np.bincount([_label(page) for page in train], minlength=len(classes))
        weights = torch.from_numpy(len(train) / (len(classes) * np.maximum(counts, 1))).float()
    gamma = model.gamma if model.use_focal_loss else loss.focal_gamma if loss.name == "focal" else None
    return Objective(
        focal_gamma=gamma,
        focal_alpha=model.alpha if model.use_focal_loss else 1.0,
        label_smoothing=loss.label_smoothing,
        class_weights=weights,
        temperature=config.distill.temperature,
        taught=config.distill.weight,
    )


def _training_data(
    splits: Splits, config: DocConfig, teacher: Teacher | None, make: Callable[[Sequence[Page]], Data]
) -> Data:
    """Training pages with what makes batches of them: a teacher's answers, balanced classes, mixed pages."""
    pages = [*splits.train, *(() if teacher is None else teacher.unlabelled)]
    data = make(pages)
    settings = config.augmentation
    collate: Collate | None = None
    if settings.mixup or settings.cutmix:
        mixing = Mixing(len(splits.classes), mixup=settings.mixup, cutmix=settings.cutmix)
        collate = MixedCollate(default_collate, mixing)
    dataset = data.dataset
    if teacher is not None:
        dataset = Taught(dataset, teacher.of(pages), temperature=config.distill.temperature)
    if config.loss.balanced_sampling:
        dataset = Balanced(dataset, labels=[_label(page) for page in splits.train], seed=config.run.seed)
    return Data(dataset=dataset, prepare=data.prepare, collate=collate)


def _upright(config: DocConfig, splits: Splits, world: World) -> Upright | None:
    """What rights pages, where that is asked for and pages are looked at."""
    if config.data.orientation == "as_is" or config.model.model_name == TEXT:
        return None
    pixels, side = round(config.data.max_megapixels * 1e6), config.data.decode_side
    learned = fit_upright(splits.train, max_pixels=pixels, decode_side=side) if world.is_main else None
    found: Upright = broadcast_object(learned)
    return found


def _data(pages: Sequence[Page], *, config: DocConfig, upright: Upright | None) -> Data:
    if config.model.model_name == TEXT:
        counts = Prepare(Fit((1, WIDTH)), mean=(0.0,), std=(1.0,))
        return Data(dataset=TextDataset(pages), prepare=counts)
    fit = Fit(config.model.image_size, config.data.fit)
    dataset = PageDataset(
        pages,
        max_pixels=round(config.data.max_megapixels * 1e6),
        decode_side=config.data.decode_side,
        grey=config.model.in_channels == 1,
        fit=replace(fit, upright=upright),
    )
    return Data(dataset=dataset, prepare=Prepare(fit, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))


def _overview(splits: Splits, upright: Upright | None, max_pixels: int, folder: Path) -> list[Section]:
    parts = {name: page_statistics(pages, classes=len(splits.classes)) for name, pages in splits.named().items()}
    sections = statistics_sections(parts, classes=splits.classes, path=folder / "statistics.png")
    if upright is not None:
        sections += upright_sections(splits.named(), upright, max_pixels=max_pixels, path=folder / "turned_pages.png")
    return sections


def _held(page: Page) -> Held:
    height, width = page_size(page.path, page.number)
    about = {"text": "yes" if page.text else "no", "characters": len(page.text), "height": height, "width": width}
    return Held(page.key, page.bundle, copies=page.digest, about={**about, **dict(page.more)})


def _label(page: Page) -> int:
    assert page.label is not None  # noqa: S101 - pages of splits have one
    return page.label

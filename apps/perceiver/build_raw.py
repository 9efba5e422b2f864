"""As `build.py`, of raw samples: tables with texts, images and series, and texts alone."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.report.classification import measure_interval
from mlcore.report.page import Section, Table
from mlcore.run.build import Data, TrainingSetup
from mlcore.run.deciding import Decider, kind_of
from mlcore.training.evaluator import Predictions
from quartet.apps.perceiver.ablation import Ablation
from quartet.apps.perceiver.attention_report import AttentionReport
from quartet.apps.perceiver.baselines import raw_baselines
from quartet.apps.perceiver.build import CALLED, analyse, held_out, make_objective, parts_of, sources_of, warnings_of
from quartet.apps.perceiver.config import DataConfig, PerceiverConfig
from quartet.apps.perceiver.data.augment import series_augmentation
from quartet.apps.perceiver.data.image_augment import ImageAugmentation, image_augmentation
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.data.raw_batches import RawAugmentation, RawCollate, RawInspection, inspect_raw
from quartet.apps.perceiver.data.samples import SampleDataset, Subset
from quartet.apps.perceiver.data.sources import Sources
from quartet.apps.perceiver.fine_tuning import fitting, read_start, take_encoder
from quartet.apps.perceiver.model.positions import LIMITED
from quartet.apps.perceiver.restore import make_model, model_settings
from quartet.apps.perceiver.task import PerceiverTask

__all__ = ["RAW", "ablated", "build", "raw_data"]

_log = logging.getLogger(__name__)

RAW = ("manifest", "text")
"""Kinds of data whose samples are raw."""


def build(config: PerceiverConfig, world: World) -> TrainingSetup:
    """Data, model and task of a run.

    Raises:
        UserError: Data is missing or cannot be used, or settings do not fit together or the data.
    """
    settings = config.data
    _check(settings)
    sources = sources_of(config)
    modalities = [Modality(**values) for values in sources.preprocessing["modalities"]]
    parts = parts_of(sources, config)
    looks: dict[str, RawInspection] = {
        name: inspect_raw(
            part,
            classes=sources.classes,
            modalities=modalities,
            name=CALLED[name],
            on_bad_sample=settings.on_bad_sample,
            every_class=name == "train",
        )
        for name, part in parts.items()
    }
    task = _task(config, sources, looks, world=world)
    skipped = [message for look in looks.values() for message in look.problems]
    for message in skipped:
        _log.warning("left out: %s", message)
    data = {name: _data(part, looks[name], modalities, settings) for name, part in parts.items()}
    decider = Decider(config.decision, class_names=sources.classes, kind=kind_of(sources.classes))
    ablation = Ablation(task=task, modalities=modalities)
    evaluated: dict[str, Data] = {name: data[name] for name in data if name != "train" or "val" not in data}
    attention = AttentionReport(model=task.model, data=evaluated, modalities=modalities, class_names=sources.classes)
    return TrainingSetup(
        task=task,
        train=data["train"],
        evaluation=evaluated,
        transform=_transform(settings, modalities),
        overview=lambda _: [Table.of_parts({name: look.rows for name, look in looks.items()})],
        warnings=warnings_of(parts, skipped),
        choose=ablation.choose if len(modalities) > 1 else None,
        analyse=attention.after(partial(ablated, decider=decider, ablation=ablation)),
        figures=ablation.figures,
        interval=lambda _, predictions, metric: measure_interval(predictions, metric),
        finish=decider.write,
        held_out=held_out(parts["test"]) if config.protocol.fold else (),
        baselines=raw_baselines(
            {name: one.dataset for name, one in data.items()}, classes=len(sources.classes), modalities=modalities
        ),
    )


def raw_data(
    dataset: SampleDataset, name: str, *, settings: DataConfig, classes: Sequence[str], modalities: Sequence[Modality]
) -> tuple[Data, Sequence[str]]:
    """Samples as evaluations take them, and one message for each that is left out; as `evaluation_data`."""
    look = inspect_raw(
        dataset, classes=classes, modalities=modalities, name=CALLED[name], on_bad_sample=settings.on_bad_sample
    )
    return _data(dataset, look, modalities, settings), look.problems


def ablated(
    predictions: Predictions, folder: Path, prefix: str, *, decider: Decider, ablation: Ablation
) -> list[Section]:
    """As `analyse`, and what each modality tells alone."""
    more = [] if prefix else ablation.sections(predictions)
    return [*more, *analyse(predictions, folder, prefix, decider=decider)]


def _check(settings: DataConfig) -> None:
    """Refuse what raw samples do not have."""
    refused = {
        "mixup": "pictures of image_folder and cifar10 are mixed",
        "time_mask": "use jitter, scaling, time_warp or window_slice",
    }
    for name, hint in refused.items():
        if getattr(settings, name):
            raise UserError(f"data.{name} is not of --dataset {settings.dataset}: {hint}")
    if settings.on_missing == "mask":
        raise UserError(f"data.on_missing=mask is not of --dataset {settings.dataset}: use interpolate or error")


def _task(
    config: PerceiverConfig, sources: Sources, looks: Mapping[str, RawInspection], *, world: World
) -> PerceiverTask:
    start = None if config.task.init_from is None else read_start(config.task.init_from)
    ends = config.model.position in LIMITED or start is not None
    modalities = [
        {**values, "longest": max(look.longest[values["name"]] for look in looks.values())}
        if ends and values["kind"] != "image"
        else values
        for values in sources.preprocessing["modalities"]
    ]
    settings = model_settings(
        config.model, input_dim=0, num_classes=len(sources.classes), max_seq_len=1, modalities=modalities
    )
    settings = settings if start is None else fitting(settings, start)
    model = make_model(settings, gradient_checkpointing=config.train.gradient_checkpointing)
    if start is not None:
        take_encoder(model, start)  # and its scales, which its weights are made for
    elif config.data.normalize and model.encoder.adapters is not None:
        model.encoder.adapters.set_scales(looks["train"].scales)
    return PerceiverTask(
        model=model,
        class_names=tuple(sources.classes),
        objective=make_objective(config.objective, looks["train"].class_counts, device=world.device),
        extra={"model": settings, "preprocessing": dict(sources.preprocessing)},
    )


def _data(dataset: SampleDataset, look: RawInspection, modalities: Sequence[Modality], settings: DataConfig) -> Data:
    return Data(
        dataset=Subset(dataset, indices=look.kept),
        collate=RawCollate(modalities=modalities),
        lengths=look.lengths.tolist() if settings.group_by_length else None,
    )


def _transform(settings: DataConfig, modalities: Sequence[Modality]) -> RawAugmentation | None:
    pictures: dict[str, ImageAugmentation] = {}
    for modality in modalities:
        if modality.kind == "image":
            height, width = modality.size
            layout = PatchLayout(height=height, width=width, patch_size=modality.patch)
            change = image_augmentation(layout, strength=settings.augment, randaugment=settings.randaugment)
            pictures |= {} if change is None else {modality.name: change}
    series = series_augmentation(
        jitter=settings.jitter,
        scaling=settings.scaling,
        time_warp=settings.time_warp,
        window_slice=settings.window_slice,
        max_seq_len=settings.max_seq_len,
    )
    if not (pictures or series or settings.modality_dropout):
        return None
    return RawAugmentation(pictures=pictures, series=series, dropout=settings.modality_dropout)

"""From the typed configuration to objects; the only place of this app where the two meet."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.config.protocol import ProtocolConfig
from mlcore.data.loader import Transform
from mlcore.data.mixing import MixedCollate, Mixing
from mlcore.report.classification import classification_sections, measure_interval
from mlcore.report.page import Section, Table
from mlcore.run.build import Data, TrainingSetup
from mlcore.run.deciding import Decider, kind_of
from mlcore.run.member import member_splits
from mlcore.run.splits import Held, Splits
from mlcore.training.evaluator import Predictions
from quartet.apps.perceiver.attention_report import AttentionReport
from quartet.apps.perceiver.baselines import baselines
from quartet.apps.perceiver.config import DataConfig, ObjectiveConfig, PerceiverConfig
from quartet.apps.perceiver.data.asking import Asking
from quartet.apps.perceiver.data.augment import Pipeline, series_augmentation
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.image_augment import image_augmentation
from quartet.apps.perceiver.data.inspection import Inspection, Needs, inspect_dataset
from quartet.apps.perceiver.data.patches import ImagePatches, PatchLayout
from quartet.apps.perceiver.data.samples import Joined, SampleDataset, Subset, group_of, origin_of
from quartet.apps.perceiver.data.sources import Part, Sources, load_sources
from quartet.apps.perceiver.data.splits import stratified_split
from quartet.apps.perceiver.fine_tuning import fitting, read_start, take_encoder
from quartet.apps.perceiver.judging import asking_of, judged, least_positions, outputs_of
from quartet.apps.perceiver.model.positions import LIMITED
from quartet.apps.perceiver.output_task import OutputTask
from quartet.apps.perceiver.outputs import Outputs
from quartet.apps.perceiver.restore import make_model, settings_of
from quartet.apps.perceiver.task import Objective, PerceiverTask

_log = logging.getLogger(__name__)

CALLED: Mapping[str, str] = {"train": "training data", "val": "validation data", "test": "test data"}
_SHOWN = 20  # constant channels named in the log


# ------------------------------------------------------------------------------------------------ the training setup


def build(config: PerceiverConfig, world: World) -> TrainingSetup:
    """Data, model and task of a run.

    Raises:
        UserError: Data is missing or cannot be used, or model settings do not fit together.
    """
    return build_of(sources_of(config), config, world)


def build_of(sources: Sources, config: PerceiverConfig, world: World) -> TrainingSetup:
    """The same of data sets that are there; the data section says how they are treated, not where they are."""
    parts = parts_of(sources, config)
    inspect = partial(_inspect, settings=config.data, classes=sources.classes)
    names, timed = tuple(sources.channels), bool(sources.preprocessing.get("timed"))
    needs = Needs(least=least_positions(config.task), timed=timed, names=names)
    looks = {"train": inspect(parts["train"], CALLED["train"], every_class=True, needs=needs)}
    needs = replace(needs, channels=len(looks["train"].statistics.mean) + needs.timed)
    looks |= {part: inspect(parts[part], CALLED[part], needs=needs) for part in parts if part != "train"}
    _name_constant_channels(looks["train"], names)
    longest = max(int(look.lengths.max()) for look in looks.values())
    kept = Subset(parts["train"], indices=looks["train"].kept)
    outputs = outputs_of(config.task, sources.targets, kept, looks["train"], channels=names)
    asking = None if outputs is None else asking_of(outputs, config)
    count = len(sources.classes) if outputs is None else len(outputs.names)
    settings = settings_of(config, looks, num_classes=count, layout=_layout(sources))
    if outputs is not None and outputs.by_position:
        settings["visible"] = outputs.visible(len(looks["train"].statistics.mean))
    task = _task(
        config, sources, looks["train"], outputs=outputs, settings=settings, length=longest, device=world.device
    )
    data = partial(_data, settings=config.data, asking=asking)
    skipped = [*sources.skipped, *(message for look in looks.values() for message in look.problems)]
    for message in skipped:
        _log.warning("left out: %s", message)
    samples: dict[str, Data] = {part: data(parts[part], looks[part]) for part in parts}
    evaluated: dict[str, Data] = {part: samples[part] for part in parts if part != "train" or "val" not in parts}
    judging = _judged(config, sources, samples) if outputs is None else judged(outputs, samples, length=longest)
    told = sources.classes if outputs is None else ()
    attention = AttentionReport(model=task.model, data=evaluated, layout=_layout(sources), class_names=told)
    return TrainingSetup(
        task=task,
        train=_mixed(samples["train"], config.data, classes=len(sources.classes)),
        evaluation=evaluated,
        transform=_transform(config, _layout(sources), asking=asking, longest=longest, timed=needs.timed),
        overview=partial(_overview, looks),
        warnings=warnings_of(parts, skipped),
        held_out=held_out(parts["test"]) if config.protocol.fold else (),
        **{**judging, "analyse": attention.after(judging["analyse"])},
    )


def _judged(config: PerceiverConfig, sources: Sources, samples: Mapping[str, Data]) -> dict[str, Any]:
    """How a classifier is judged."""
    decider = Decider(config.decision, class_names=sources.classes, kind=kind_of(sources.classes))
    return {
        "analyse": partial(analyse, decider=decider),
        "interval": lambda _, predictions, metric: measure_interval(predictions, metric),
        "finish": decider.write,
        "baselines": baselines(
            {part: one.dataset for part, one in samples.items()},
            classes=len(sources.classes),
            layout=_layout(sources),
            max_seq_len=config.data.max_seq_len,
        ),
    }


def sources_of(config: PerceiverConfig) -> Sources:
    """The data sets of a run; a `UserError` where there is nothing to tell apart."""
    sources = load_sources(config.data, seed=config.run.seed, kind=config.task.kind)
    if len(sources.classes) == 1 and config.task.kind == "classification":
        raise UserError(
            f"the training data has one class only, {sources.classes[0]}: a classifier needs at least two; add "
            "samples of another one, or look at the labels"
        )
    return sources


def _layout(sources: Sources) -> PatchLayout | None:
    """How pictures are cut; None where samples are series."""
    return sources.train.layout if isinstance(sources.train, ImagePatches) else None


def _task(
    config: PerceiverConfig,
    sources: Sources,
    look: Inspection,
    *,
    outputs: Outputs | None,
    settings: dict[str, Any],
    length: int,
    device: torch.device,
) -> PerceiverTask | OutputTask:
    statistics = look.statistics
    start = None if config.task.init_from is None else read_start(config.task.init_from)
    settings = settings if start is None else fitting(settings, start)
    model = make_model(settings, gradient_checkpointing=config.train.gradient_checkpointing)
    if start is not None:
        take_encoder(model, start)  # and its statistics, which its weights are made for
    elif config.data.normalize:
        model.encoder.set_input_statistics(statistics.mean, statistics.std)
    extra = {"model": settings, "preprocessing": dict(sources.preprocessing)}
    if outputs is not None:
        return OutputTask(model=model, outputs=outputs, length=length, extra=extra)
    return PerceiverTask(
        model=model,
        class_names=tuple(sources.classes),
        objective=make_objective(config.objective, statistics.class_counts, device=device),
        extra=extra,
    )


def make_objective(settings: ObjectiveConfig, counts: Sequence[int], *, device: torch.device) -> Objective:
    """The training loss, given the samples of each class."""
    weights: Tensor | None = None
    if settings.class_weights == "balanced":
        weights = torch.tensor([sum(counts) / (len(counts) * max(count, 1)) for count in counts])
    elif settings.class_weights != "none":
        weights = torch.tensor(settings.class_weights)
        if not bool((weights > 0).any()):
            raise UserError("objective.class_weights are all 0: nothing would be learnt; at least one must be above 0")
        if len(weights) != len(counts):
            raise UserError(f"objective.class_weights has {len(weights)} numbers, the data has {len(counts)} classes")
    return Objective(
        focal_gamma=settings.focal_gamma if settings.loss == "focal" else None,
        label_smoothing=settings.label_smoothing,
        class_weights=None if weights is None else weights.to(device),
    )


def _name_constant_channels(look: Inspection, names: Sequence[str]) -> None:
    constant = [names[channel] if names else str(channel) for channel in look.statistics.constant]
    if constant:
        shown = ", ".join(constant[:_SHOWN]) + (" ..." if len(constant) > _SHOWN else "")
        _log.warning("%d channels are constant in the training data and tell nothing: %s", len(constant), shown)


def warnings_of(parts: Mapping[Part, SampleDataset], skipped: Sequence[str]) -> list[str]:
    """For the report's head."""
    warnings = [f"{len(skipped)} samples were left out, see train.log: {skipped[0]} ..."] if skipped else []
    if "val" not in parts:
        warnings.append("No validation data: the weights are those of the last step, chosen by nothing.")
    return warnings


def parts_of(sources: Sources, config: PerceiverConfig) -> dict[Part, SampleDataset]:
    """The data sets that there are: validation data is missing where none is given and none is to be set aside."""
    fraction, seed = config.data.val_fraction, config.data.split_seed
    if config.protocol.fold is not None:
        return _parts_of_fold(sources, config.protocol, seed=seed)
    parts: dict[Part, SampleDataset] = {"train": sources.train}
    if sources.validation is not None:
        parts["val"] = sources.validation
    elif fraction:
        labels = np.asarray(sources.train.labels)  # type: ignore[attr-defined]  # every source below has them
        # What has no class cannot be split by class; it stays where the inspection names it first.
        known = np.flatnonzero((labels >= 0) & (labels < len(sources.classes)))
        small = _set_aside(sources.train, labels, known, fraction=fraction, seed=seed) if len(known) else known
        parts["train"] = Subset(sources.train, indices=np.setdiff1d(np.arange(len(labels)), small))
        parts["val"] = Subset(sources.train, indices=small)
    if sources.test is not None:
        parts["test"] = sources.test
    return parts


def _set_aside(
    dataset: SampleDataset, labels: NDArray[np.int64], known: NDArray[np.int64], *, fraction: float, seed: int
) -> NDArray[np.int64]:
    """A share of the known samples, class by class; groups, which count with the class of their first sample, whole."""
    numbers: dict[str | int, int] = {}
    units = np.array([numbers.setdefault(group_of(dataset, index) or index, len(numbers)) for index in known.tolist()])
    _, first = np.unique(units, return_index=True)
    chosen = stratified_split(labels[known[first]], fraction=fraction, seed=seed)[1]
    return known[np.isin(units, chosen)]


def _parts_of_fold(sources: Sources, protocol: ProtocolConfig, *, seed: int) -> dict[Part, SampleDataset]:
    """The data sets of a run of the protocol; copies of a sample are in one part."""
    pool: Any = sources.train if sources.validation is None else Joined(sources.train, sources.validation)
    labels = np.asarray(pool.labels)
    known = (labels >= 0) & (labels < len(sources.classes))
    units = [group_of(pool, index) or _content(pool, index)[0] for index in range(len(pool))]
    found = member_splits(
        Splits(train=np.flatnonzero(known).tolist(), validation=(), test=None),
        protocol,
        label=labels.tolist().__getitem__,
        unit=units.__getitem__,
        classes=sources.classes,
        seed=seed,
    )
    chosen = {**found.named(), "train": [*found.train, *np.flatnonzero(~known).tolist()]}  # the inspection names those
    parts: dict[Part, SampleDataset] = {"train": Subset(pool, indices=chosen["train"])}
    if "val" in chosen:
        parts["val"] = Subset(pool, indices=chosen["val"])
    if "test" in chosen:
        parts["test"] = Subset(pool, indices=chosen["test"])
    elif sources.test is not None:
        parts["test"] = sources.test
    return parts


def held_out(dataset: SampleDataset) -> list[Held]:
    """The samples of a fold: where each comes from, and its content."""
    found = []
    for index in range(len(dataset)):
        digest, length = _content(dataset, index)
        unit = group_of(dataset, index) or digest
        found.append(Held(origin_of(dataset, index), unit, copies=digest, about={"length": length}))
    return found


def _content(dataset: SampleDataset, index: int) -> tuple[str, int]:
    """What names a sample's content, and its length."""
    try:
        content = dataset[index]["input"]
    except UserError as error:  # a sample that cannot be used is told of by the inspection
        return str(error), 0
    parts = content if isinstance(content, Mapping) else {"": content}
    digest = hashlib.blake2b(digest_size=16)
    for name, values in parts.items():
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest(), sum(map(len, parts.values()))


def evaluation_data(
    dataset: SampleDataset,
    name: str,
    *,
    settings: DataConfig,
    classes: Sequence[str],
    needs: Needs,
    asking: Asking | None = None,
) -> tuple[Data, Sequence[str]]:
    """Samples as evaluations take them, and one message for each that is left out.

    Args:
        dataset: The samples.
        name: What they are for: "val", "test", "train".
        settings: The data section.
        classes: Names of the classes.
        needs: What the model asks of them.
        asking: What other tasks than classification ask of them.

    Raises:
        UserError: They do not fit the model, or cannot be used.
    """
    needs = needs if asking is None else replace(needs, least=asking.outputs.least)
    look = _inspect(dataset, CALLED[name], settings=settings, classes=classes, needs=needs)
    return _data(dataset, look, settings=settings, asking=asking), look.problems


def _inspect(
    dataset: SampleDataset,
    name: str,
    *,
    settings: DataConfig,
    classes: Sequence[str],
    needs: Needs,
    every_class: bool = False,
) -> Inspection:
    return inspect_dataset(
        dataset,
        classes=classes,
        name=name,
        needs=needs,
        max_seq_len=settings.max_seq_len,
        on_too_long=settings.on_too_long,
        on_bad_sample=settings.on_bad_sample,
        every_class=every_class,
    )


def _data(dataset: SampleDataset, look: Inspection, *, settings: DataConfig, asking: Asking | None) -> Data:
    return Data(
        dataset=Subset(dataset, indices=look.kept),
        prepare=asking,
        collate=PadCollate(max_seq_len=settings.max_seq_len, on_too_long=settings.on_too_long),
        lengths=look.lengths.tolist() if settings.group_by_length else None,
    )


def _mixed(data: Data, settings: DataConfig, *, classes: int) -> Data:
    """The training data, its batches mixed where that is asked for."""
    if not settings.mixup:
        return data
    assert data.collate is not None  # noqa: S101 - `_data` sets it
    return replace(data, collate=MixedCollate(data.collate, Mixing(classes, mixup=settings.mixup, name="input")))


def _transform(
    config: PerceiverConfig, layout: PatchLayout | None, *, asking: Asking | None, longest: int, timed: bool
) -> Transform | None:
    settings = config.data
    if layout is not None:
        return image_augmentation(
            layout, strength=settings.augment, randaugment=settings.randaugment, keyed=settings.mixup > 0
        )
    if settings.randaugment or settings.mixup:
        raise UserError("data.randaugment and data.mixup change pictures; series have jitter, time_warp and others")
    limited = config.model.position in LIMITED
    changes = series_augmentation(
        jitter=settings.jitter,
        scaling=settings.scaling,
        time_warp=settings.time_warp,
        time_mask=settings.time_mask,
        window_slice=settings.window_slice,
        max_seq_len=settings.max_seq_len or (longest if limited else None),
        timed=timed,
    )
    if asking is None or asking.outputs.kind not in ("forecast", "masked"):
        return changes
    return Pipeline((*(changes.steps if changes else ()), asking.vary))


def _overview(looks: Mapping[str, Inspection], _folder: Path) -> list[Section]:
    return [Table.of_parts({name: look.statistics.rows() for name, look in looks.items()})]


def analyse(predictions: Predictions, folder: Path, prefix: str, *, decider: Decider) -> list[Section]:
    """Sections of a report on predictions; a decision is chosen where they are of the validation data."""
    names = decider.decision.class_names
    labels, probabilities = predictions["label"].numpy(), predictions["probabilities"].numpy()
    if not prefix:
        decider.choose(labels, probabilities)
    return [
        *classification_sections(predictions, class_names=names, folder=folder, prefix=prefix),
        *decider.sections(labels, probabilities, folder=folder, prefix=prefix),
    ]

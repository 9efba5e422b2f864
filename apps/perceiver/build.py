"""From the typed configuration to objects; the only place of this app where the two meet."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.data.loader import Transform
from mlcore.report.classification import classification_sections
from mlcore.report.page import Section, Table
from mlcore.run.build import Data, TrainingSetup
from mlcore.training.evaluator import Predictions
from quartet.apps.perceiver.config import DataConfig, ObjectiveConfig, PerceiverConfig
from quartet.apps.perceiver.data.arrays import read_npz
from quartet.apps.perceiver.data.augment import series_augmentation
from quartet.apps.perceiver.data.checking import CheckedSamples, ImageFiles
from quartet.apps.perceiver.data.cifar import load_cifar10
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.image_augment import image_augmentation
from quartet.apps.perceiver.data.images import ImageSource, LabelledImages
from quartet.apps.perceiver.data.inspection import Inspection, inspect_dataset
from quartet.apps.perceiver.data.patches import ImagePatches
from quartet.apps.perceiver.data.samples import SampleDataset, SequenceDataset, Subset
from quartet.apps.perceiver.data.splits import stratified_split
from quartet.apps.perceiver.data.synthetic import SyntheticPatterns
from quartet.apps.perceiver.data.ts_files import find_ts_files, read_ts
from quartet.apps.perceiver.restore import Restored, make_model, model_settings
from quartet.apps.perceiver.task import Objective, PerceiverTask

_log = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]

_CALLED: Mapping[Part, str] = {"train": "training data", "val": "validation data", "test": "test data"}
_SHOWN = 20  # constant channels named in the log


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The data sets of a run.

    Attributes:
        train: Training samples.
        validation: Held-out samples; None: a part of `train` is to be set aside.
        test: Samples looked at once, after training; None for none.
        classes: Class names, in label order.
        preprocessing: What `predict.py` needs to treat new data alike.
        skipped: One message for each file left out.
    """

    train: SampleDataset
    validation: SampleDataset | None
    test: SampleDataset | None
    classes: Sequence[str]
    preprocessing: Mapping[str, Any]
    skipped: Sequence[str] = ()


# ------------------------------------------------------------------------------------------------ the training setup


def build(config: PerceiverConfig, world: World) -> TrainingSetup:
    """Data, model and task of a run.

    Raises:
        UserError: Data is missing or cannot be used, or model settings do not fit together.
    """
    sources = load_sources(config.data, seed=config.run.seed)
    if len(sources.classes) == 1:
        raise UserError(
            f"the training data has one class only, {sources.classes[0]}: a classifier needs at least two; add "
            "samples of another one, or look at the labels"
        )
    parts = _parts(sources, fraction=config.data.val_fraction, seed=config.data.split_seed)
    inspect = partial(_inspect, settings=config.data, classes=sources.classes)
    looks = {"train": inspect(parts["train"], _CALLED["train"], every_class=True)}
    channels = len(looks["train"].statistics.mean)
    looks |= {part: inspect(parts[part], _CALLED[part], channels=channels) for part in parts if part != "train"}
    _name_constant_channels(looks["train"])
    longest = max(int(look.lengths.max()) for look in looks.values())
    task = _task(config, sources, looks["train"], longest=longest, device=world.device)
    data = partial(_data, settings=config.data)
    skipped = [*sources.skipped, *(message for look in looks.values() for message in look.problems)]
    for message in skipped:
        _log.warning("left out: %s", message)
    samples = {part: data(parts[part], looks[part]) for part in parts}
    return TrainingSetup(
        task=task,
        train=samples["train"],
        evaluation={part: samples[part] for part in parts if part != "train" or "val" not in parts},
        transform=_transform(config, sources.train, longest=longest),
        overview=partial(_overview, looks),
        warnings=_warnings(parts, skipped),
        analyse=partial(_analyse, class_names=tuple(sources.classes)),
        export_command=_export_command,
    )


def samples(config: PerceiverConfig) -> dict[str, Any]:
    """What `--check_data` opens: the files of image folders; of other data sets the samples, and what their files lack.

    Raises:
        UserError: No data set is chosen, its path is missing, or a file cannot be read as a whole.
    """
    settings = config.data.model_copy(update={"on_bad_sample": "skip"})
    root = settings.data_dir or settings.train_path
    if settings.dataset == "image_folder" and root is not None and root.is_dir():
        folders = {"images": root, "val": settings.val_path, "test": settings.test_path}
        sources = {name: ImageSource(path) for name, path in folders.items() if path is not None}
        return {name: ImageFiles(source.files, image_size=settings.image_size) for name, source in sources.items()}
    found = load_sources(settings, seed=config.run.seed)
    parts = {"train": found.train, "val": found.validation, "test": found.test}
    return {
        name: CheckedSamples(part, num_classes=len(found.classes), settings=settings, known=found.skipped)
        for name, part in parts.items()
        if part is not None
    }


def _task(
    config: PerceiverConfig, sources: Sources, look: Inspection, *, longest: int, device: torch.device
) -> PerceiverTask:
    statistics = look.statistics
    settings = model_settings(
        config.model,
        input_dim=len(statistics.mean),
        num_classes=len(sources.classes),
        max_seq_len=config.data.max_seq_len or longest,
    )
    model = make_model(settings, gradient_checkpointing=config.train.gradient_checkpointing)
    if config.data.normalize:
        model.encoder.set_input_statistics(statistics.mean, statistics.std)
    return PerceiverTask(
        model=model,
        class_names=tuple(sources.classes),
        objective=_objective(config.objective, statistics.class_counts, device=device),
        extra={"model": settings, "preprocessing": dict(sources.preprocessing)},
    )


def _objective(settings: ObjectiveConfig, counts: Sequence[int], *, device: torch.device) -> Objective:
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


def _name_constant_channels(look: Inspection) -> None:
    constant = look.statistics.constant
    if constant:
        shown = ", ".join(map(str, constant[:_SHOWN])) + (" ..." if len(constant) > _SHOWN else "")
        _log.warning("%d channels are constant in the training data and tell nothing: %s", len(constant), shown)


def _warnings(parts: Mapping[Part, SampleDataset], skipped: Sequence[str]) -> list[str]:
    warnings = [f"{len(skipped)} samples were left out, see train.log: {skipped[0]} ..."] if skipped else []
    if "val" not in parts:
        warnings.append("No validation data: the weights are those of the last step, chosen by nothing.")
    return warnings


def _parts(sources: Sources, *, fraction: float, seed: int) -> dict[Part, SampleDataset]:
    """The data sets that there are: validation data is missing where none is given and none is to be set aside."""
    parts: dict[Part, SampleDataset] = {"train": sources.train}
    if sources.validation is not None:
        parts["val"] = sources.validation
    elif fraction:
        labels = np.asarray(sources.train.labels)  # type: ignore[attr-defined]  # every source below has them
        # What has no class cannot be split by class; it stays where the inspection names it first.
        known = np.flatnonzero((labels >= 0) & (labels < len(sources.classes)))
        small = known[stratified_split(labels[known], fraction=fraction, seed=seed)[1]] if len(known) else known
        parts["train"] = Subset(sources.train, indices=np.setdiff1d(np.arange(len(labels)), small))
        parts["val"] = Subset(sources.train, indices=small)
    if sources.test is not None:
        parts["test"] = sources.test
    return parts


def load_part(restored: Restored, part: Part, *, config: PerceiverConfig) -> tuple[Data, Sequence[str]]:
    """One part of a run's data, the same samples in the same order as the run had.

    Args:
        restored: The trained model, which the data must fit.
        part: Which part.
        config: The run's configuration, perhaps with other paths.

    Returns:
        The data, and one message for each sample left out.

    Raises:
        UserError: There is no such part, it does not fit the model, or samples cannot be used.
    """
    sources = load_sources(config.data, seed=config.run.seed)
    if list(sources.classes) != list(restored.class_names):
        here, there = (", ".join(names) for names in (sources.classes, restored.class_names))
        raise UserError(f"the data has the classes {here}; the model was trained on {there}")
    if sources.preprocessing != restored.metadata["preprocessing"]:
        raise UserError(
            f"the data is {sources.preprocessing}; the model was trained on {restored.metadata['preprocessing']}"
        )
    parts = _parts(sources, fraction=config.data.val_fraction, seed=config.data.split_seed)
    if part not in parts:
        raise UserError(f"this data has no {part} part; give --{part}_path, or look at --split {' or '.join(parts)}")
    channels = restored.metadata["model"]["input_dim"]
    look = _inspect(parts[part], _CALLED[part], settings=config.data, classes=sources.classes, channels=channels)
    return _data(parts[part], look, settings=config.data), [*sources.skipped, *look.problems]


def _inspect(
    dataset: SampleDataset,
    name: str,
    *,
    settings: DataConfig,
    classes: Sequence[str],
    channels: int | None = None,
    every_class: bool = False,
) -> Inspection:
    return inspect_dataset(
        dataset,
        classes=classes,
        name=name,
        channels=channels,
        max_seq_len=settings.max_seq_len,
        on_too_long=settings.on_too_long,
        on_bad_sample=settings.on_bad_sample,
        every_class=every_class,
    )


def _data(dataset: SampleDataset, look: Inspection, *, settings: DataConfig) -> Data:
    return Data(
        dataset=Subset(dataset, indices=look.kept),
        collate=PadCollate(max_seq_len=settings.max_seq_len, on_too_long=settings.on_too_long),
        lengths=look.lengths.tolist() if settings.group_by_length else None,
    )


def _transform(config: PerceiverConfig, train: SampleDataset, *, longest: int) -> Transform | None:
    settings = config.data
    if isinstance(train, ImagePatches):
        return image_augmentation(train.layout, strength=settings.augment)
    limited = config.model.position in ("fourier", "learned")
    return series_augmentation(
        jitter=settings.jitter,
        scaling=settings.scaling,
        time_warp=settings.time_warp,
        time_mask=settings.time_mask,
        window_slice=settings.window_slice,
        max_seq_len=settings.max_seq_len or (longest if limited else None),
    )


def _overview(looks: Mapping[str, Inspection], _folder: Path) -> list[Section]:
    tables = {name: dict(look.statistics.rows()) for name, look in looks.items()}
    rows = [[label, *(table[label] for table in tables.values())] for label in next(iter(tables.values()))]
    return [Table("Data", ["", *tables], rows)]


def _analyse(predictions: Predictions, folder: Path, prefix: str, *, class_names: Sequence[str]) -> list[Section]:
    return classification_sections(predictions, class_names=class_names, folder=folder, prefix=prefix)


def _export_command(checkpoint: Path, folder: Path) -> list[str]:
    script = Path(__file__).with_name("export.py")
    return [sys.executable, str(script), "--model_path", str(checkpoint), "--output_dir", str(folder)]


# --------------------------------------------------------------------------------------------------------- the data


def load_sources(settings: DataConfig, *, seed: int) -> Sources:
    """The data sets that the data section names.

    Raises:
        UserError: No data set is chosen, its path is missing, or a file cannot be used.
    """
    if settings.dataset is None:
        raise UserError("no data set chosen: give --dataset, or --demo for the demo")
    sources: dict[str, Callable[[], Sources]] = {
        "synthetic": lambda: _synthetic(settings, seed=seed),
        "cifar10": lambda: _cifar10(settings),
        "image_folder": lambda: _image_folder(settings),
        "ts": lambda: _ts(settings),
        "custom": lambda: _custom(settings),
    }
    return sources[settings.dataset]()


def _synthetic(settings: DataConfig, *, seed: int) -> Sources:
    patterns = SyntheticPatterns(
        settings.num_samples,
        seq_len_range=settings.seq_len_range,
        feature_dim=settings.feature_dim,
        num_classes=settings.num_classes,
        seed=seed,
    )
    kind = {"kind": "series"}
    return Sources(train=patterns, validation=None, test=None, classes=patterns.classes, preprocessing=kind)


def _cifar10(settings: DataConfig) -> Sources:
    what = "the folder (or .tar.gz) of CIFAR-10's official python archive"
    folder = _path(settings.data_dir or Path("data"), "data_dir", what)
    train, test = (load_cifar10(folder, part) for part in ("train", "test"))
    return _images(settings, train=train, val=None, test=test)


def _image_folder(settings: DataConfig) -> Sources:
    root = settings.data_dir or _path(settings.train_path, "data_dir", "a folder with one subfolder per class")
    source = ImageSource(root)
    load = partial(_load_images, settings=settings)
    train = load(source, "train" if "train" in source.splits else None)
    held_out = {
        part: load(source, part, classes=train.classes) if part in source.splits else None for part in ("val", "test")
    }
    for part, path in (("val", settings.val_path), ("test", settings.test_path)):
        if path is not None:
            held_out[part] = load(ImageSource(path), None, classes=train.classes)
    return _images(settings, train=train, **held_out)


def _load_images(
    source: ImageSource, part: Part | None, *, settings: DataConfig, classes: tuple[str, ...] | None = None
) -> LabelledImages:
    return source.load(
        part,
        classes=classes,
        image_size=settings.image_size,
        max_pixels=round(settings.max_megapixels * 1e6),
        on_bad_sample=settings.on_bad_sample,
    )


def _images(
    settings: DataConfig, *, train: LabelledImages, val: LabelledImages | None, test: LabelledImages | None
) -> Sources:
    cut = {
        name: None if images is None else ImagePatches(images, patch_size=settings.patch_size)
        for name, images in (("train", train), ("val", val), ("test", test))
    }
    patches = cut["train"]
    assert patches is not None  # noqa: S101 - train is always there
    layout = {"patch_size": settings.patch_size, "height": patches.layout.height, "width": patches.layout.width}
    return Sources(
        train=patches,
        validation=cut["val"],
        test=cut["test"],
        classes=train.classes,
        preprocessing={"kind": "image", **layout},
        skipped=[message for images in (train, val, test) if images is not None for message in images.skipped],
    )


def _ts(settings: DataConfig) -> Sources:
    train_path, test_path = settings.train_path, settings.test_path
    if train_path is None:
        folder = _path(settings.data_dir, "data_dir (or --train_path)", "the folder with *_TRAIN.ts and *_TEST.ts")
        train_path, found = find_ts_files(folder)
        test_path = test_path or found

    def read(path: Path, like: SequenceDataset | None = None) -> SequenceDataset:
        classes = None if like is None else like.classes
        return read_ts(path, classes=classes, on_missing=settings.on_missing, strict=False)

    return _sequences(read, train_path, val_path=settings.val_path, test_path=test_path)


def _custom(settings: DataConfig) -> Sources:
    path = _path(settings.train_path or settings.data_dir, "train_path", "an .npz file")
    read = partial(read_npz, on_missing=settings.on_missing, strict=False)
    return _sequences(read, path, val_path=settings.val_path, test_path=settings.test_path)


def _sequences(
    read: Callable[..., SequenceDataset], train_path: Path, *, val_path: Path | None, test_path: Path | None
) -> Sources:
    train = read(train_path)
    validation, test = (None if path is None else read(path, like=train) for path in (val_path, test_path))
    kind = {"kind": "series"}
    return Sources(train=train, validation=validation, test=test, classes=train.classes, preprocessing=kind)


def _path(path: Path | None, flag: str, what: str) -> Path:
    if path is None:
        raise UserError(f"this data set needs --{flag}: {what}")
    if not path.exists():
        raise UserError(f"{path}: not found; --{flag} should be {what}")
    return path

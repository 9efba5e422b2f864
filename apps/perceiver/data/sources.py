"""The data sets that the data section of a configuration names: for a training, and for `--check_data`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlcore.base.errors import UserError
from quartet.apps.perceiver.config import DataConfig, TaskKind
from quartet.apps.perceiver.data.arrays import read_npz
from quartet.apps.perceiver.data.checking import CheckedSamples, ImageFiles
from quartet.apps.perceiver.data.cifar import load_cifar10
from quartet.apps.perceiver.data.images import ImageSource, LabelledImages
from quartet.apps.perceiver.data.long_tables import LONG, LongColumns, read_long
from quartet.apps.perceiver.data.manifest import RawDataset, load_raw, read_like
from quartet.apps.perceiver.data.patches import ImagePatches
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.data.samples import SampleDataset, SequenceDataset
from quartet.apps.perceiver.data.synthetic import SyntheticPatterns
from quartet.apps.perceiver.data.targets import ASKED, Targets
from quartet.apps.perceiver.data.ts_files import find_ts_files, read_ts

__all__ = ["Part", "Sources", "check_timed", "labelled_samples", "load_sources", "samples_to_check"]

Part = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The data sets of a run.

    Attributes:
        train: Training samples.
        validation: Held-out samples; None: a part of `train` is to be set aside.
        test: Samples looked at once, after training; None for none.
        classes: Class names, in label order; of tasks without classes one, which all samples have.
        preprocessing: What `predict.py` needs to treat new data alike.
        skipped: One message for each file left out.
    """

    train: SampleDataset
    validation: SampleDataset | None
    test: SampleDataset | None
    classes: Sequence[str]
    preprocessing: Mapping[str, Any]
    skipped: Sequence[str] = ()

    @property
    def channels(self) -> Sequence[str]:
        """Names of the channels; none where they have none."""
        found: Sequence[str] = getattr(self.train, "channels", ())
        return found

    @property
    def targets(self) -> Targets | None:
        """Those of the training samples, of tasks that files have targets for."""
        found: Targets | None = getattr(self.train, "targets", None)
        return found


def load_sources(settings: DataConfig, *, seed: int, kind: TaskKind = "classification") -> Sources:
    """The data sets that the data section names, with what the task asks of them.

    Raises:
        UserError: No data set is chosen, its path is missing, or a file cannot be used.
    """
    if settings.dataset is None:
        raise UserError("no data set chosen: give --dataset, or --demo for the demo")
    sources: dict[str, Callable[[], Sources]] = {
        "synthetic": lambda: _synthetic(settings, seed=seed, kind=kind),
        "cifar10": lambda: _cifar10(settings),
        "image_folder": lambda: _image_folder(settings),
        "ts": lambda: _ts(settings, kind),
        "custom": lambda: _custom(settings, kind),
        "long": lambda: _long(settings, kind),
        "manifest": lambda: _raw(settings),
        "text": lambda: _raw(settings),
    }
    return sources[settings.dataset]()


def labelled_samples(
    path: Path,
    settings: DataConfig,
    *,
    classes: tuple[str, ...],
    preprocessing: Mapping[str, Any],
    kind: TaskKind = "classification",
    targets: Targets | None = None,
) -> tuple[SampleDataset, Sequence[str]]:
    """Labelled samples for a trained model, whatever it was trained on, and one message for each file left out.

    Args:
        path: A folder with a subfolder for each class, or a file of sequences.
        settings: How they are read.
        classes: Those of the model, in its order.
        preprocessing: What the model notes of it.
        kind: Its task.
        targets: What these are like; None: of any other task than those of `ASKED`.

    Raises:
        UserError: It cannot be read, or has other classes or targets.
    """
    if preprocessing["kind"] == "image":
        height, width = preprocessing["height"], preprocessing["width"]
        read = settings.model_copy(update={"image_size": height if height == width else None})
        images = _load_images(ImageSource(path), None, settings=read, classes=classes)
        if images.images.shape[1:3] != (height, width):
            raise UserError(f"{path}: its images are not {height} x {width} pixels, as the model was trained on")
        return ImagePatches(images, patch_size=preprocessing["patch_size"]), images.skipped
    if preprocessing["kind"] == "raw":
        modalities = [Modality(**values) for values in preprocessing["modalities"]]
        return read_like(path, settings, classes=classes, modalities=modalities), ()
    like = SequenceDataset([], labels=[], classes=classes, targets=targets)
    if path.suffix.lower() == ".ts":
        found = read_ts(path, classes=classes, on_missing=settings.on_missing, strict=False, kind=kind)
    elif path.suffix.lower() in LONG and "columns" in preprocessing:
        columns = LongColumns.of(preprocessing, settings)
        found = read_long(path, columns, like=like, on_missing=settings.on_missing, kind=kind)
    else:
        found = read_npz(path, like=like, on_missing=settings.on_missing, strict=False, kind=kind)
    check_timed(found, path, timed=bool(preprocessing.get("timed")))
    return found, ()


def samples_to_check(settings: DataConfig, *, seed: int, kind: TaskKind = "classification") -> dict[str, Any]:
    """What `--check_data` opens: the files of image folders; of other data sets the samples, and what their files lack.

    Raises:
        UserError: No data set is chosen, its path is missing, or a file cannot be read as a whole.
    """
    settings = settings.model_copy(update={"on_bad_sample": "skip"})
    root = settings.data_dir or settings.train_path
    if settings.dataset == "image_folder" and root is not None and root.is_dir():
        folders = {"images": root, "val": settings.val_path, "test": settings.test_path}
        sources = {name: ImageSource(path) for name, path in folders.items() if path is not None}
        opened = partial(ImageFiles, image_size=settings.image_size, max_pixels=_max_pixels(settings))
        return {name: opened(source.files) for name, source in sources.items()}
    found = load_sources(settings, seed=seed, kind=kind)
    parts = {"train": found.train, "val": found.validation, "test": found.test}
    if isinstance(found.train, RawDataset):  # which checks what it reads
        return {name: part for name, part in parts.items() if part is not None}
    return {
        name: CheckedSamples(part, num_classes=len(found.classes), settings=settings, known=found.skipped)
        for name, part in parts.items()
        if part is not None
    }


def _synthetic(settings: DataConfig, *, seed: int, kind: TaskKind) -> Sources:
    if kind in ASKED:
        raise UserError(f"generated patterns have classes and no targets: --task {kind} takes --dataset custom or ts")
    patterns = SyntheticPatterns(
        settings.num_samples,
        seq_len_range=settings.seq_len_range,
        feature_dim=settings.feature_dim,
        num_classes=settings.num_classes,
        seed=seed,
    )
    series = {"kind": "series"}
    return Sources(train=patterns, validation=None, test=None, classes=patterns.classes, preprocessing=series)


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
        max_pixels=_max_pixels(settings),
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


def _ts(settings: DataConfig, kind: TaskKind) -> Sources:
    train_path, test_path = settings.train_path, settings.test_path
    if train_path is None:
        folder = _path(settings.data_dir, "data_dir (or --train_path)", "the folder with *_TRAIN.ts and *_TEST.ts")
        train_path, found = find_ts_files(folder)
        test_path = test_path or found

    def read(path: Path, like: SequenceDataset | None = None) -> SequenceDataset:
        classes = None if like is None else like.classes
        return read_ts(path, classes=classes, on_missing=settings.on_missing, strict=False, kind=kind)

    return _sequences(read, train_path, val_path=settings.val_path, test_path=test_path)


def _custom(settings: DataConfig, kind: TaskKind) -> Sources:
    path = _path(settings.train_path or settings.data_dir, "train_path", "an .npz file, or a folder of .npy files")
    read = partial(read_npz, on_missing=settings.on_missing, strict=False, kind=kind)
    return _sequences(read, path, val_path=settings.val_path, test_path=settings.test_path)


def _long(settings: DataConfig, kind: TaskKind) -> Sources:
    path = _path(settings.train_path or settings.data_dir, "train_path", f"a table ({', '.join(LONG)})")

    def read(path: Path, like: SequenceDataset | None = None) -> SequenceDataset:
        columns = LongColumns(
            id=settings.id_column,
            time=settings.time_column,
            channels=tuple(settings.channels if like is None else like.channels),
            label=settings.label_column,
            labels=settings.label_path,
        )
        return read_long(path, columns, like=like, on_missing=settings.on_missing, kind=kind)

    found = _sequences(read, path, val_path=settings.val_path, test_path=settings.test_path)
    columns = {"id": settings.id_column, "time": settings.time_column, "channels": list(found.channels)}
    return replace(found, preprocessing={**found.preprocessing, "columns": columns})


def check_timed(dataset: SequenceDataset, path: Path, *, timed: bool) -> None:
    """Refuse series of a file that have time stamps where the training data has none, or none where it has them."""
    if (dataset.times is not None) != timed:
        has, other = ("has", "has none") if dataset.times is not None else ("has no", "has them")
        raise UserError(f"{path}: {has} time stamps, and the training data {other}")


def _sequences(
    read: Callable[..., SequenceDataset], train_path: Path, *, val_path: Path | None, test_path: Path | None
) -> Sources:
    train = read(train_path)
    validation, test = (None if path is None else read(path, like=train) for path in (val_path, test_path))
    kind: dict[str, Any] = {"kind": "series"}
    if train.times is not None:
        kind["timed"] = True
    for part, path in ((validation, val_path), (test, test_path)):
        if part is not None and path is not None:
            check_timed(part, path, timed="timed" in kind)
    return Sources(train=train, validation=validation, test=test, classes=train.classes, preprocessing=kind)


def _raw(settings: DataConfig) -> Sources:
    path = _path(settings.train_path or settings.data_dir, "train_path", "a table (.csv, .jsonl, .parquet)")
    parts = load_raw(settings, path)
    train = parts["train"]
    return Sources(
        train=train,
        validation=parts.get("val"),
        test=parts.get("test"),
        classes=train.classes,
        preprocessing={"kind": "raw", "modalities": [modality.values() for modality in train.reader.modalities]},
    )


def _max_pixels(settings: DataConfig) -> int:
    return round(settings.max_megapixels * 1e6)


def _path(path: Path | None, flag: str, what: str) -> Path:
    if path is None:
        raise UserError(f"this data set needs --{flag}: {what}")
    if not path.exists():
        raise UserError(f"{path}: not found; --{flag} should be {what}")
    return path

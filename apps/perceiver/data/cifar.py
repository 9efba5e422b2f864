"""CIFAR-10 in its official python form (Krizhevsky, 2009): pickles of arrays, read without running anything."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.safe_pickle import load_pickle
from mlcore.data.packed import TarFiles
from quartet.apps.perceiver.data.images import LabelledImages

_FOLDER, _ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


def load_cifar10(path: Path, split: Literal["train", "test"] = "train") -> LabelledImages:
    """Reads the official archive or the folder it unpacks to.

    Args:
        path: ``cifar-10-python.tar.gz``, ``cifar-10-batches-py``, or a folder that holds either.
        split: The 50,000 training or 10,000 test images.

    Returns:
        Images 32 x 32 in the order of the files.

    Raises:
        UserError: If nothing is there, or a file is missing, damaged, or more than a pickle of arrays.
    """
    place = _find(path)
    names = _TRAIN if split == "train" else ("test_batch",)
    files = _read(place, (*names, "batches.meta"))
    classes = _classes(f"{place}/batches.meta", files["batches.meta"])
    parts = [_batch(f"{place}/{name}", files[name], len(classes)) for name in names]
    images = np.concatenate([images for images, _ in parts])
    return LabelledImages(
        images=images,
        labels=np.concatenate([labels for _, labels in parts]),
        classes=classes,
        origins=tuple(
            f"{place}/{name}, row {row}"
            for name, (_, labels) in zip(names, parts, strict=True)
            for row in range(len(labels))
        ),
    )


def _find(path: Path) -> Path:
    for candidate in (path / _FOLDER, path / _ARCHIVE, path):
        if candidate.is_file() or (candidate / "test_batch").is_file():
            return candidate
    raise UserError(
        f"{path}: no CIFAR-10 there; expected {_ARCHIVE} or the folder {_FOLDER} from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _read(place: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    if place.is_dir():
        try:
            return {name: (place / name).read_bytes() for name in names}
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    with TarFiles(place) as archive:
        wanted = {Path(member.name).name: member for member in archive.members}
        found = {name: archive.read(wanted[name]) for name in names if name in wanted}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{place}: the archive lacks {', '.join(missing)}")
    return found


def _classes(origin: str, content: bytes) -> tuple[str, ...]:
    meta = _mapping(origin, content)
    names = meta.get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"{origin}: expected a list of class names under label_names")
    return tuple(name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in names)


def _batch(origin: str, content: bytes, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _mapping(origin, content)
    if not {b"data", b"labels"} <= batch.keys():
        raise UserError(f"{origin}: expected the keys data and labels")
    try:
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except ValueError:
        raise UserError(f"{origin}: data or labels are lists of different lengths; expected arrays") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072 or labels.shape != pixels.shape[:1]:
        raise UserError(f"{origin}: expected data uint8 [N, 3072] and N labels, got {pixels.dtype} {pixels.shape}")
    if labels.dtype.kind not in "iu" or (len(labels) and not 0 <= labels.min() <= labels.max() < num_classes):
        raise UserError(f"{origin}: labels must be whole numbers from 0 to {num_classes - 1}")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), labels.astype(np.int64)


def _mapping(origin: str, content: bytes) -> dict[Any, Any]:
    loaded = load_pickle(content, name=origin, encoding="bytes")
    if not isinstance(loaded, dict):
        raise UserError(f"{origin}: expected a pickled dict, got {type(loaded).__name__}")
    # Files written anew by Python 3 have text keys.
    return {key.encode() if isinstance(key, str) else key: value for key, value in loaded.items()}

"""Everything that a run leaves, item by item, and the first item in which two runs differ.

Left out is what cannot be the same: when, how long, where, and pictures, of which only the names count.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from mlcore.training.checkpoint import load_checkpoint

__all__ = ["difference", "flat", "outcome", "windows", "windows_difference"]

_MISSING = object()
# By the last part of their name, values that tell when, how long, where or by which commit; and files of the kind. A
# step's file is compared through the names that stay, latest and best: after a signal there may be one more of them.
_TIMES = re.compile(
    r"\['(perf/[^']*|seconds|started|ended|command|host|code|code_version|copied|output_dir|resume|upload_to|use_wandb"
    r"|tracker)'\]"
)
_FILES_LEFT_OUT = re.compile(
    r"run\.lock|train\.log|config\.(yaml|json)|tensorboard/|wandb/|\.hydra/|metrics\.csv|checkpoints/step_\d+\.pth"
)
_STAMP = re.compile(r"\d{8}-\d{6}")


def flat(state: Any, *, name: str) -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by the way to them; times and places left out."""
    leaves, _ = tree_flatten_with_path(state)
    found = {f"{name}{keystr(path)}": leaf for path, leaf in leaves}
    return {key: leaf for key, leaf in found.items() if not _TIMES.search(key.removeprefix(name))}


def outcome(folder: Path, *, place: Path | None = None) -> dict[str, Any]:
    """All items of a run folder, or of a group's, by file and place in it.

    Args:
        folder: The run's.
        place: Where it was trained, which texts in it may name; it is left out of them.
    """
    items: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = _STAMP.sub("TIME", path.relative_to(folder).as_posix())
        if path.is_file() and not _FILES_LEFT_OUT.search(name):
            items[name] = True
            items.update(_items(path, name))
    here = str((place or folder.parent).absolute())
    return {name: item.replace(here, "PLACE") if isinstance(item, str) else item for name, item in items.items()}


def _items(path: Path, name: str) -> Mapping[str, Any]:
    if path.suffix in (".pth", ".ckpt"):
        return flat(load_checkpoint(path), name=name)
    if path.suffix == ".jsonl":
        return flat([json.loads(line) for line in path.read_text("utf-8").splitlines()], name=name)
    if path.suffix == ".json":
        return flat(json.loads(path.read_text("utf-8")), name=name)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return flat(list(csv.DictReader(file)), name=name)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {f"{name}[{key}]": arrays[key] for key in arrays.files}
    return {}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first item of `one` that is not, to the last bit, in `other`, or the other way round; None for none."""
    for name in (*one, *(name for name in other if name not in one)):
        first, second = one.get(name, _MISSING), other.get(name, _MISSING)
        if first is _MISSING or second is _MISSING:
            return f"{name}: only in {'the second' if first is _MISSING else 'the first'}"
        if not _same(first, second):
            return f"{name}: {_short(first)} and {_short(second)}"
    return None


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _bytes(one) == _bytes(other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool(one.tobytes() == other.tobytes())
    return repr(one) == repr(other)  # to the last digit, and NaN is NaN


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _short(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        flattened = value.reshape(-1)[:3].tolist()
        return f"{tuple(value.shape)} {str(flattened)[:-1]} ..]"
    return repr(value)[:80]


def windows(notes: Path) -> dict[str, set[str]]:
    """What each window of training samples held, by "run rank step"; more than one digest where passes differ."""
    found: dict[str, set[str]] = {}
    for line in _lines(notes):
        key, _, digest = line.rpartition(" ")
        found.setdefault(key, set()).add(digest)
    return found


def _lines(notes: Path) -> Iterator[str]:
    for path in sorted(notes.glob("windows.*")):
        yield from path.read_text("utf-8").splitlines()


def windows_difference(whole: Mapping[str, set[str]], other: Mapping[str, set[str]]) -> str | None:
    """The first window whose samples are not those that the undisturbed run saw at that step; None for none."""
    for key in (*whole, *(key for key in other if key not in whole)):
        if whole.get(key) != other.get(key):
            return f"samples of window '{key}': {sorted(whole.get(key, ()))} and {sorted(other.get(key, ()))}"
    return None

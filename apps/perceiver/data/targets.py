"""What samples are asked for besides a class: yes or no for labels, numbers, or a class or numbers for each position.

Of a ``.npz`` file, whose ``inputs`` are ``[N, M, C]`` or, with ``lengths``, ``[total, C]``:

- multilabel: ``labels`` ``[N, K]`` of 0 and 1; ``classes``, names ``[K]``, may be left out;
- regression: ``targets`` ``[N]`` or ``[N, T]``; ``target_names`` ``[T]`` may be left out;
- per_step: ``labels`` of the shape of ``inputs`` without its last axis, whole numbers, -1 where there is none, and
  perhaps ``classes``; or ``targets`` of that shape, or with an axis ``T`` more, NaN where there is none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.perceiver.config import TaskKind

__all__ = ["ASKED", "Targets", "as_number", "read_targets"]

ASKED: Mapping[TaskKind, str] = {
    "multilabel": "labels [N, K] of 0 and 1",
    "regression": "targets [N] or [N, T]",
    "per_step": "labels or targets for each position of inputs",
}
"""The tasks that files have targets for, and which arrays of a ``.npz`` file these are."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Targets of samples.

    Attributes:
        values: Of each sample: float64 ``[K]`` or ``[T]``; of its positions int64 ``[M]``, -1 for none, or float64
            ``[M, T]``, NaN for none.
        names: Of the K labels, the T numbers, or the classes of positions.
        classes: Whether positions have classes.
        problems: By sample, why it has none that can be used.
    """

    values: Sequence[NDArray[Any]]
    names: tuple[str, ...]
    classes: bool = False
    problems: Mapping[int, str] = field(default_factory=dict)


def read_targets(
    path: Path,
    arrays: Mapping[str, Any],
    *,
    kind: TaskKind,
    cut: Callable[[NDArray[Any]], Sequence[NDArray[Any]]],
    like: Targets | None,
) -> Targets | None:
    """The targets of a file; None for a task that needs none.

    Args:
        path: The file, for messages.
        arrays: Its arrays.
        kind: The task.
        cut: Cuts an array of all positions into those of samples.
        like: Those of the training data, whose names hold; None: these are they.

    Raises:
        UserError: There are none, or they are of another shape or kind than the task's, or than those of training.
    """
    if kind not in ASKED:
        return None
    numbers = kind == "regression" or (kind == "per_step" and "targets" in arrays)
    name = "targets" if numbers else "labels"
    if name not in arrays:
        raise UserError(f"{path}: no array named {name}; --task {kind} wants {ASKED[kind]}")
    values = arrays[name]
    places = arrays["inputs"].shape[:-1] if kind == "per_step" else (len(arrays.get("lengths", arrays["inputs"])),)
    more = {0, 1} if numbers else {1} if kind == "multilabel" else {0}  # axes besides those of samples and positions
    fits = values.shape[: len(places)] == places and values.ndim - len(places) in more
    if values.dtype.kind not in "biuf" or not fits:
        raise UserError(f"{path}: {name} {values.dtype} {list(values.shape)}; --task {kind} wants {ASKED[kind]}")
    if kind == "per_step" and not numbers:
        return _step_classes(path, values, arrays.get("classes"), cut, like)
    values = np.asarray(values if values.ndim > len(places) else values[..., None], dtype=np.float64)
    listed = arrays.get("target_names" if numbers else "classes")
    names = _names(path, listed, values.shape[-1], "target" if numbers else "label", like)
    if kind == "per_step":
        rows = list(cut(values))
        known = [bool(np.isfinite(row).all(axis=1).any()) for row in rows]
        problems = {row: "no position has a target" for row, any_known in enumerate(known) if not any_known}
        # A position counts whole or not at all.
        rows = [np.where(np.isfinite(row).all(axis=1, keepdims=True), row, np.nan) for row in rows]
    else:
        rows = list(values)
        good = np.isfinite(values) if numbers else np.isin(values, (0, 1))
        wanted = "a finite number" if numbers else "0 or 1"
        bad = {int(row): int(good[row].argmin()) for row in np.flatnonzero(~good.all(axis=1))}
        problems = {row: f"{names[at]} is {values[row, at]:g}, expected {wanted}" for row, at in bad.items()}
    told = {row: f"{path}, row {row}: {problem}" for row, problem in problems.items()}
    return Targets(values=rows, names=names, problems=told)


def as_number(where: str, text: str) -> float:
    """The target of a line, a finite number; else a `UserError` says where it stands."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{where}: target {text.strip()[:40]!r} is no finite number")
    return value


def _step_classes(path: Path, values: Any, listed: Any, cut: Callable[..., Any], like: Targets | None) -> Targets:
    numbers = np.asarray(values, dtype=np.float64)
    if not (numbers == np.round(numbers)).all() or not np.isfinite(numbers).all():
        raise UserError(f"{path}: labels of positions are whole numbers, -1 for none")
    numbers = numbers.astype(np.int64)
    count = int(numbers.max(initial=0)) + 1
    if listed is not None:
        count = len(listed)
    elif like is not None:
        count = len(like.names)
    names = _names(path, listed, count, "", like)
    rows, problems = cut(numbers), {}
    for row, labels in enumerate(rows):
        wrong = labels[(labels < -1) | (labels >= count)]
        if len(wrong):
            problems[row] = f"{path}, row {row}: label {wrong[0]} of a position is none of the {count} classes"
        elif not (labels >= 0).any():
            problems[row] = f"{path}, row {row}: no position has a label"
    return Targets(values=rows, names=names, classes=True, problems=problems)


def _names(path: Path, listed: Any, count: int, called: str, like: Targets | None) -> tuple[str, ...]:
    """Those that a file lists, or numbers; the training data's where there are some."""
    if listed is not None and (listed.ndim != 1 or len(set(listed.tolist())) != count):
        raise UserError(f"{path}: {list(listed.shape)} names; expected {count} that differ")
    if listed is not None:
        names = tuple(map(str, listed.tolist()))
    elif like is not None:
        names = like.names
    elif called:
        names = tuple(f"{called}_{number}" for number in range(1, count + 1)) if count > 1 else (called,)
    else:
        names = tuple(map(str, range(count)))
    if len(names) != count or (like is not None and names != like.names):
        raise UserError(
            f"{path}: its {count} are {', '.join(names)}, the training data's {', '.join(like.names if like else ())}"
        )
    return names

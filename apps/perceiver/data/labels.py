"""What the labels of an ``.npz`` file mean: class names, or numbers that stand for them.

Strings are names. Whole numbers (as floats, too) are places in the list ``classes`` of the file or, where it has none,
of the training data. Without any list they are the classes themselves: 0, 1, 2 ..., or -1 and 1. Classes are told by
their names: a file that lists them in another order than the training data means the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.samples import SequenceDataset


@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """Labels as numbers.

    Attributes:
        numbers: Int64 ``[N]``, indices into ``classes``; where a label is no class, a number that is no index.
        classes: Class names; ``None``: numbers up to the largest label.
        are_names: Whether there was no list of names, so that the labels name the classes.
        problems: By row, why a label that is text is no class.
    """

    numbers: NDArray[np.int64]
    classes: Sequence[str] | None = None
    are_names: bool = False
    problems: Mapping[int, str] = field(default_factory=dict)


def read_labels(path: Path, labels: Any, classes: Any, *, like: SequenceDataset | None) -> ClassLabels:
    """Understands the labels of a file.

    Args:
        path: The file, for messages.
        labels: Its array ``labels``.
        classes: Its array ``classes``, or ``None``.
        like: The training data, whose classes give the numbers; ``None``: this is the training data.

    Raises:
        UserError: If labels are neither text nor whole numbers, ``classes`` are not distinct names or not those of the
            training data, or numbers could be names as well as places.
    """
    values = _values(path, labels, "labels")
    texts: list[str] = values.astype(str).tolist()
    listed = None if classes is None else _distinct(path, classes)
    if listed is not None and like is not None and set(listed) != set(like.classes):
        raise UserError(
            f"{path}: its classes are {', '.join(listed)}, the training data's {', '.join(like.classes)}; both files "
            "must list the same names, in any order"
        )
    are_names = listed is None and (_name_classes(values) if like is None else like.named_by_labels)
    if listed is None and (like is not None or are_names):
        listed = tuple(map(str, np.unique(values).tolist()) if like is None else like.classes)
    if listed is None:
        return ClassLabels(numbers=values)
    places = {name: place for place, name in enumerate(listed if like is None else like.classes)}
    if values.dtype.kind == "U" or are_names or _only_names(path, values, listed):
        problems = {
            row: f"{path}, row {row}: label {text[:40]!r} is not one of {', '.join(places)}"
            for row, text in enumerate(texts)
            if text not in places
        }
        numbers = [places.get(text, -1) for text in texts]
    else:
        problems = {}
        numbers = [places[listed[value]] if 0 <= value < len(listed) else value for value in values.tolist()]
    return ClassLabels(
        numbers=np.array(numbers, dtype=np.int64), classes=tuple(places), are_names=are_names, problems=problems
    )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in their order; whole numbers by size."""
    found = list(names)
    return tuple(sorted(found, key=(lambda name: int(name)) if all(map(str.isdecimal, found)) else None))


def _values(path: Path, labels: Any, name: str) -> NDArray[Any]:
    """Text, or int64 where they are whole numbers."""
    kind = labels.dtype.kind
    whole = kind in "biu" or (kind == "f" and bool((labels == np.round(labels)).all() and np.isfinite(labels).all()))
    if labels.ndim != 1 or not (whole or kind in "US"):
        raise UserError(
            f"{path}: {name} {labels.dtype} {list(labels.shape)}; expected a list of names or whole numbers"
        )
    if kind == "S":
        return np.char.decode(labels, "utf-8", "replace")
    return labels if kind == "U" else np.asarray(labels, dtype=np.int64)


def _distinct(path: Path, classes: Any) -> tuple[str, ...]:
    names = tuple(map(str, _values(path, classes, "classes").tolist()))
    if len(set(names)) != len(names):
        raise UserError(f"{path}: classes are not distinct: {', '.join(names)}")
    return names


def _name_classes(values: NDArray[Any]) -> bool:
    """Whether labels without a list of classes name them; else they count from 0."""
    return values.dtype.kind == "U" or set(np.unique(values).tolist()) == {-1, 1}


def _only_names(path: Path, values: NDArray[Any], listed: Sequence[str]) -> bool:
    """Whether numbers are found among the names, and are no places in their list."""
    numbers: list[int] = np.unique(values).tolist()
    if not all(str(number) in listed for number in numbers):
        return False
    if not all(0 <= number < len(listed) for number in numbers):
        return True
    for number in numbers:
        if listed[number] != str(number):
            raise UserError(
                f"{path}: label {number} may be the class named {number}, or {listed[number]}, which is at place "
                f"{number} of {', '.join(listed)}; give labels as text"
            )
    return False

"""Own data in ``.npz`` files, or folders of ``.npy`` files of the same names, read without unpickling.

Two layouts, both with ``labels`` ``[N]``:

- all sequences of one length: ``inputs`` ``[N, M, C]``;
- lengths that differ: ``inputs`` ``[total, C]``, all sequences one after another, and ``lengths`` int ``[N]``.

The second is written by
``numpy.savez("train.npz", inputs=np.concatenate(sequences), lengths=[len(s) for s in sequences], labels=labels)``.

Both may have a ``mask``, 1 where a position is real and 0 where it is not, of the shape of ``inputs`` without its last
axis; ``times`` of that shape, which rise within a sequence; and ``classes``, distinct names ``[K]``. What labels may be
is said in ``labels.py``, what other tasks than classification read in ``targets.py``.

In a folder ``inputs.npy``, ``mask.npy`` and ``times.npy`` stay where they are: memory holds a sample of them at a time,
and a set may be larger than it. The rest, a few numbers a sample (or, of ``per_step``, a position), is read.
"""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.data.packed import StoredArray, read_arrays
from quartet.apps.perceiver.config import TaskKind
from quartet.apps.perceiver.data.gaps import OnMissing, shown_positions
from quartet.apps.perceiver.data.labels import ClassLabels, read_labels
from quartet.apps.perceiver.data.samples import Cut, SequenceDataset
from quartet.apps.perceiver.data.targets import read_targets

_WANTED = "inputs [N, M, C] or inputs [total, C] with lengths [N]; labels [N]"
_LARGE = ("inputs", "mask", "times")
_NAMES = ("inputs", "labels", "lengths", "mask", "times", "classes", "targets", "target_names")


def read_npz(
    path: Path,
    *,
    like: SequenceDataset | None = None,
    labelled: bool = True,
    on_missing: OnMissing = "error",
    strict: bool = True,
    kind: TaskKind = "classification",
) -> SequenceDataset:
    """Reads a dataset in either layout.

    Args:
        path: The ``.npz`` file, or the folder.
        like: The training data, whose classes a validation or test file must have, in any order; ``None``: the file
            itself says what classes there are.
        labelled: Whether it must have labels, or targets; otherwise they are not looked at, and all labels are 0.
        on_missing: What to do with NaN before the end of a sequence, see ``settle``.
        strict: Whether a label that is no class is an error now; otherwise when its sample is asked for.
        kind: The task; of others than classification all labels are 0.

    Returns:
        Its sequences in file order; ``origin`` names file and row.

    Raises:
        UserError: If the file is missing or damaged, holds Python objects or arrays of other names, its arrays do not
            fit together, its classes are not the training data's, or its labels cannot be understood.
    """
    named = labelled and kind == "classification"
    arrays = _read_arrays(path, {"inputs", "labels"} if named else {"inputs"})
    inputs = arrays["inputs"]
    if inputs.dtype.kind not in "biuf":
        raise UserError(f"{path}: inputs are {inputs.dtype} {list(inputs.shape)}; expected numbers: {_WANTED}")
    cut = _cutter(path, inputs, arrays.get("lengths"))
    mask = _per_position(path, "mask", inputs, arrays.get("mask"))
    sequences, times = cut(inputs), _per_position(path, "times", inputs, arrays.get("times"))
    labels = ClassLabels(numbers=np.zeros(len(sequences), dtype=np.int64))
    if named:
        labels = read_labels(path, arrays["labels"], arrays.get("classes"), like=like)
    if len(sequences) != len(labels.numbers):
        raise UserError(f"{path}: {len(sequences)} sequences but {len(labels.numbers)} labels")
    if strict and labels.problems:
        raise UserError(next(iter(labels.problems.values())))
    known = None if like is None else like.targets
    targets = read_targets(path, arrays, kind=kind, cut=cut, like=known) if labelled else None
    data = SequenceDataset(
        sequences,
        labels=labels.numbers,
        classes=labels.classes,
        origins=[f"{path}, row {row}" for row in range(len(sequences))],
        masks=None if mask is None else cut(mask),
        times=None if times is None else cut(times),
        on_missing=on_missing,
        problems=labels.problems,
        targets=targets,
    )
    data.named_by_labels = labels.are_names
    return data


def is_stored(path: Path) -> bool:
    """Whether this is a folder of arrays."""
    return (path / f"{_LARGE[0]}.npy").is_file()


def _read_arrays(path: Path, needed: set[str]) -> dict[str, Any]:
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        _check_names(path, list(files), needed)
        stored = {name: StoredArray.open(file) for name, file in files.items()}
        return {name: array if name in _LARGE else array[:] for name, array in stored.items()}
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a .npz file, or a folder of .npy files, with {_WANTED}")
    arrays = read_arrays(path)
    _check_names(path, list(arrays), needed)
    return arrays


def _check_names(path: Path, names: list[str], needed: set[str]) -> None:
    for name in names:
        if name not in _NAMES:
            close = get_close_matches(name, _NAMES, n=1)
            advice = f"did you mean {close[0]}?" if close else "leave it out of the file"
            raise UserError(f"{path}: unknown array {name}; known are {', '.join(_NAMES)}; {advice}")
    missing = needed - set(names)
    if missing:
        raise UserError(f"{path}: no array named {' or '.join(sorted(missing))}; expected {_WANTED}")


def _cutter(path: Path, inputs: Any, lengths: Any) -> Callable[[NDArray[Any] | StoredArray], Cut]:
    """What cuts an array of all positions into the sequences of one sample each."""
    if lengths is None:
        if inputs.ndim != 3:
            raise UserError(f"{path}: inputs are {list(inputs.shape)} and there are no lengths; expected {_WANTED}")
        return Cut
    if inputs.ndim != 2 or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise UserError(
            f"{path}: lengths {lengths.dtype} {list(lengths.shape)}, inputs {list(inputs.shape)}; expected {_WANTED}"
        )
    if (lengths < 0).any() or int(lengths.sum()) != len(inputs):
        raise UserError(f"{path}: lengths add up to {int(lengths.sum())}, inputs have {len(inputs)} positions")
    ends = np.cumsum(lengths.astype(np.int64))
    return lambda values: Cut(values, ends)


def _per_position(path: Path, name: str, inputs: Any, values: Any) -> Any:
    """A number for each position; a mask that is in memory is looked at here, others when a sample is asked for."""
    if values is None:
        return None
    if values.shape != inputs.shape[:-1]:
        given, wanted = list(values.shape), list(inputs.shape[:-1])
        raise UserError(f"{path}: {name} is {given}; expected {wanted}, a number a position")
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name} is {values.dtype}; expected numbers")
    if name == "times" or isinstance(values, StoredArray):
        return values
    try:
        return shown_positions(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None

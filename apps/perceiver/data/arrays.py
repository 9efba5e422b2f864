"""Own data in ``.npz`` files, read without unpickling.

Two layouts, both with ``labels`` int ``[N]`` and optionally ``classes`` (strings ``[K]``):

- all sequences of one length: ``inputs`` ``[N, M, C]``;
- lengths that differ: ``inputs`` ``[total, C]``, all sequences one after another, and ``lengths`` int ``[N]``.

The second is written by
``numpy.savez("train.npz", inputs=np.concatenate(sequences), lengths=[len(s) for s in sequences], labels=labels)``.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.samples import SequenceDataset

_WANTED = "inputs [N, M, C] or inputs [total, C] with lengths [N]; labels [N]"


def read_npz(path: Path, *, labelled: bool = True) -> SequenceDataset:
    """Reads a dataset in either layout.

    Args:
        path: The ``.npz`` file.
        labelled: Whether it must have labels; otherwise they are not looked at, and all labels are 0.

    Returns:
        Its sequences in file order; ``origin`` names file and row.

    Raises:
        UserError: If the file is missing or damaged, holds Python objects, or its arrays do not fit together.
    """
    arrays = _read_arrays(path)
    missing = ({"inputs", "labels"} if labelled else {"inputs"}) - arrays.keys()
    if missing:
        raise UserError(f"{path}: no array named {' or '.join(sorted(missing))}; expected {_WANTED}")
    inputs = arrays["inputs"]
    if not labelled:
        arrays["labels"] = np.zeros(len(arrays.get("lengths", inputs)), dtype=np.int64)
    labels = arrays["labels"]
    if inputs.dtype.kind not in "biuf" or labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"{path}: inputs are {inputs.dtype} {list(inputs.shape)}, labels {labels.dtype} {list(labels.shape)}; "
            f"expected numbers: {_WANTED}"
        )
    sequences = _sequences(path, inputs, arrays.get("lengths"))
    if len(sequences) != len(labels):
        raise UserError(f"{path}: {len(sequences)} sequences but {len(labels)} labels")
    return SequenceDataset(
        sequences,
        labels=labels.astype(np.int64),
        classes=[str(name) for name in arrays["classes"]] if "classes" in arrays else None,
        origins=[f"{path}, row {row}" for row in range(len(labels))],
    )


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: holds one array; expected a .npz file with {_WANTED}")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a .npz file with {_WANTED}") from None
    except ValueError as error:
        raise UserError(f"{path}: not an .npz file of plain arrays ({error}); expected {_WANTED}") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or not an .npz file: {error}") from None


def _sequences(path: Path, inputs: Any, lengths: Any) -> list[Any]:
    if lengths is None:
        if inputs.ndim != 3:
            raise UserError(f"{path}: inputs are {list(inputs.shape)} and there are no lengths; expected {_WANTED}")
        return list(inputs)
    if inputs.ndim != 2 or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise UserError(
            f"{path}: lengths {lengths.dtype} {list(lengths.shape)}, inputs {list(inputs.shape)}; expected {_WANTED}"
        )
    if (lengths < 0).any() or int(lengths.sum()) != len(inputs):
        raise UserError(f"{path}: lengths add up to {int(lengths.sum())}, inputs have {len(inputs)} positions")
    return np.split(inputs, np.cumsum(lengths)[:-1])

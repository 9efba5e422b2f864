"""The predictions that a cross-validation keeps of its samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.reading import reading
from mlcore.data.packed import read_arrays

__all__ = ["OUT_OF_FOLD", "read_out_of_fold"]

OUT_OF_FOLD = "out_of_fold"
"""Name of the split that the figures of a cross-validation are of, and of the files with its predictions."""


def read_out_of_fold(folder: Path) -> Mapping[str, NDArray[Any]] | None:
    """What the cross-validation in a folder kept of labelled samples.

    Returns:
        "name" and "unit" [N], "label" int64 [seeds, N], and further predictions [seeds, N, ...]; None where there is no
        such file, or one of another kind, such as of volumes.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / f"{OUT_OF_FOLD}.npz"
    if not path.is_file():
        return None
    arrays = read_arrays(path)
    if not {"name", "unit", "label"} <= set(arrays):
        return None
    with reading(path, "out-of-fold predictions"):
        return {**arrays, "label": arrays["label"].astype(np.int64)}

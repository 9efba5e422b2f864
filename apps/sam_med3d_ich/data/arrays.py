"""Files of arrays: `.npy`, `.npz` and pickles, and what they say of their geometry; nothing in them is executed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX, open_memmap
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.base.safe_pickle import load_pickle
from mlcore.data.packed import check_arrays
from quartet.apps.sam_med3d_ich.data.geometry import (
    Spacing,
    affine_spacing,
    checked_affine,
    checked_spacing,
    mm,
    spacings_agree,
    three_axes,
)
from quartet.apps.sam_med3d_ich.data.words import counted

__all__ = ["ARRAY_KEYS", "array_shape", "as_float", "checked_image", "load_arrays", "stored_geometry", "the_array"]

ARRAY_KEYS = ("array", "image", "data", "volume")
_GEOMETRY = ("spacing", "affine")


def load_arrays(path: Path, *, header_only: bool = False) -> Any:
    """What a `.npy`, `.npz` or `.pkl` file holds: an array, or a mapping of names.

    Args:
        path: The file.
        header_only: Read no voxels where the format allows it: a `.npy` comes as a memory map, an `.npz` with its
            geometry, and None in place of other arrays. Pickles are read whole.

    Raises:
        UserError: Missing, damaged, or asking for more than arrays and plain values.
    """
    if path.suffix.lower() == ".pkl":
        return load_pickle(path, encoding="latin1")
    with reading(path, "a numpy file of plain numbers"), np.errstate(all="ignore"):
        with path.open("rb") as file:
            start = file.read(len(MAGIC_PREFIX))
        if not start.startswith((MAGIC_PREFIX, b"PK")):
            raise ValueError("it begins like neither .npy nor .npz")
        if start == MAGIC_PREFIX:
            mapped = open_memmap(path, mode="r")  # which a header that claims more than there is does not pass
            return mapped if header_only else np.array(mapped)
        check_arrays(path)
        with np.load(path, allow_pickle=False) as content:
            return {name: None if header_only and name not in _GEOMETRY else content[name] for name in content.files}


def the_array(path: Path, content: object) -> object:
    """The one that is the volume.

    Raises:
        UserError: There is none, or more than one.
    """
    if not isinstance(content, Mapping):
        return content
    found = [key for key in ARRAY_KEYS if key in content]
    if not found and path.suffix.lower() == ".npz":  # then any name will do
        found = [key for key in content if key not in _GEOMETRY]
    if len(found) != 1:
        keys = ", ".join(map(repr, list(content)[:8])) or "none"
        raise UserError(f"{path}: expected exactly one of {', '.join(ARRAY_KEYS)}; the keys are {keys}")
    return content[found[0]]


def stored_geometry(path: Path, content: object) -> tuple[Spacing | None, NDArray[np.float64] | None]:
    """Spacing (mm) and affine, where the file gives them.

    Raises:
        UserError: They are none, or contradict each other.
    """
    if not isinstance(content, Mapping):
        return None, None
    spacing = checked_spacing(path, content["spacing"]) if content.get("spacing") is not None else None
    affine = checked_affine(path, content["affine"]) if content.get("affine") is not None else None
    if spacing is not None and affine is not None and not spacings_agree(spacing, affine_spacing(affine)):
        raise UserError(
            f"{path}: spacing {mm(spacing)} contradicts its affine, whose spacing is {mm(affine_spacing(affine))}"
        )
    return spacing, affine


def as_float(path: Path, raw: object) -> NDArray[np.float32]:
    """The volume as float32 [X, Y, Z]; a UserError unless it is an array of numbers with three axes."""
    shape = array_shape(path, raw)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(raw, dtype=np.float32).reshape(shape)


def array_shape(path: Path, raw: object) -> tuple[int, ...]:
    """X, Y, Z of a volume, whose values are not looked at; errors as in `as_float`."""
    if not isinstance(raw, np.ndarray):
        raise UserError(f"{path}: holds a {type(raw).__name__}; expected an array of numbers [X, Y, Z]")
    if raw.dtype.kind not in "biuf":
        raise UserError(f"{path}: an array of {raw.dtype}; expected numbers")
    return three_axes(path, raw.shape)


def checked_image(path: Path, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The voxels of an image; a UserError where some are not finite or all are equal."""
    lowest, highest = float(array.min()), float(array.max())  # both are NaN where any voxel is
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        count = counted(int(array.size - np.isfinite(array).sum()), "voxel")
        raise UserError(f"{path}: NaN or infinite in {count}; replace them (for CT with -1024, air)")
    if lowest == highest:
        raise UserError(f"{path}: all voxels are {lowest:g}; there is no image in this file")
    return array

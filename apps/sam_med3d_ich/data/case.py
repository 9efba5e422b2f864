"""A case: an image, its mask, and how both are read, one way for training and evaluation."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.geometry import Spacing
from quartet.apps.sam_med3d_ich.data.volume import (
    Volume,
    check_fit,
    check_header,
    read_geometry,
    read_mask,
    read_volume,
)
from quartet.apps.sam_med3d_ich.data.words import counted

__all__ = ["Case", "check_case_header", "load_case"]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: The image's file name without suffix: "12" of "12.pkl" and of "12.nii.gz".
        image: The image file.
        mask: The mask file; None (only where `ich` is 0) stands for an empty mask.
        ich: 1 if there is a bleed, else 0.
        patient_id: Whose scan it is.
        origin: For messages: "train.csv, line 7".
    """

    name: str
    image: Path
    mask: Path | None
    ich: int
    patient_id: str
    origin: str


def load_case(case: Case, *, array_spacing: Spacing | None = None) -> tuple[Volume, NDArray[np.uint8]]:
    """Read a case's image and its mask (all zero where the case has none): one way for training and evaluation.

    Raises:
        UserError: A file cannot be used, or the mask contradicts the `ich` column; it names the file and the row.
    """
    with _told_with_row(case):
        volume = read_volume(case.image, array_spacing=array_spacing, reference=case.mask)
        if case.mask is None:
            return volume, np.zeros(volume.array.shape, dtype=np.uint8)
        mask = read_mask(case.mask, like=volume)
        if mask.any() != bool(case.ich):
            found = "is empty" if case.ich else f"marks {counted(int(mask.sum()), 'voxel')}"
            raise UserError(f"{case.mask}: ich is {case.ich}, but this mask {found}; correct the row or the mask")
    return volume, mask


def check_case_header(case: Case, *, array_spacing: Spacing | None = None) -> None:
    """Refuse what `load_case` would refuse, as far as `check_header` and the mask's header tell."""
    with _told_with_row(case):
        geometry = check_header(case.image, array_spacing=array_spacing, reference=case.mask)
        mask = None if case.mask is None else read_geometry(case.mask)
        if case.mask is not None and mask is not None and geometry is not None:
            check_fit(case.mask, mask, like=geometry)


@contextlib.contextmanager
def _told_with_row(case: Case) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} ({case.origin})") from error

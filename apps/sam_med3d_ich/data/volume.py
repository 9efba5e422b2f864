"""Volumes and masks: files of five kinds in, float32 voxels with their place in the world out; nothing is executed.

World coordinates are those of NIfTI, "RAS+": millimetres towards the right, the front and the top of the patient.
"""

import gzip
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write
from mlcore.base.reading import check_unpacked, reading
from quartet.apps.sam_med3d_ich.data.arrays import (
    array_shape,
    as_float,
    checked_image,
    load_arrays,
    stored_geometry,
    the_array,
)
from quartet.apps.sam_med3d_ich.data.geometry import (
    LARGEST,
    Geometry,
    Spacing,
    affine_distance,
    affine_spacing,
    by,
    checked_affine,
    checked_spacing,
    file_suffix,
    is_orthogonal,
    mm,
    orthogonal_axes,
    place,
    plain_shape,
    spacings_agree,
    three_axes,
    turn_towards,
    voxel_ml,
)
from quartet.apps.sam_med3d_ich.data.words import counted

__all__ = [
    "AFFINE_TOLERANCE_MM",
    "MASK_SUFFIXES",
    "SUFFIXES",
    "Geometry",
    "Spacing",
    "Volume",
    "check_fit",
    "check_header",
    "fits",
    "mask_affine",
    "read_geometry",
    "read_labels",
    "read_mask",
    "read_volume",
    "volume_name",
    "write_nifti",
]

MASK_SUFFIXES = (".nii", ".nii.gz")
SUFFIXES = (*MASK_SUFFIXES, ".npy", ".npz", ".pkl")
AFFINE_TOLERANCE_MM = 1e-3
_NIFTI: tuple[Any, ...] = (nibabel.Nifti1Header, nibabel.Nifti2Header)
_LATEST = 64 * 2**20  # byte at which voxels begin; before it are extensions
nibabel.imageglobals.logger.setLevel(logging.CRITICAL)  # it remarks on odd headers; what matters is checked here
_NOT_HU = "not HU? "  # how a description begins that `write_nifti` made of remarks


@dataclass(frozen=True, eq=False)
class Volume:
    """One image and where it lies.

    Attributes:
        array: float32 [X, Y, Z] in the file's axis order, HU for CT (the file's slope and intercept are applied).
        affine: float64 [4, 4], voxel index to RAS+ mm.
        remarks: What its source says against its values being HU, such as "Modality is MR, not CT".
        resampled: What was done to the source's grid; empty where nothing was.
        source: Where it is from, for messages.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    remarks: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    source: str = "the volume"

    @cached_property
    def spacing(self) -> Spacing:
        """Millimetres between voxels along each array axis: the affine's column norms."""
        return affine_spacing(self.affine)

    @property
    def geometry(self) -> Geometry:
        """Shape and affine."""
        return Geometry(self.array.shape, self.affine)

    @cached_property
    def voxel_ml(self) -> float:
        """Millilitres of one voxel."""
        return voxel_ml(self.affine)


def volume_name(path: Path) -> str:
    """The file's name without its suffix: "12" of "12.pkl" and of "12.nii.gz"."""
    return path.name[: -len(file_suffix(path))] if file_suffix(path) else path.name


def read_volume(path: Path, *, array_spacing: Spacing | None = None, reference: Path | None = None) -> Volume:
    """Read an image.

    `.nii` and `.nii.gz` carry their geometry. `.npy`, `.npz` and `.pkl` hold an array; `.npz` and pickled dicts name it
    (`array`, `image`, `data` or `volume`; in an `.npz` it may also be the only one) and may hold `spacing` (three mm)
    or `affine` (4 x 4). Where the affine is unknown, it is that of `reference` if shape (and spacing, if known) agree,
    otherwise diagonal with the array's own spacing, otherwise diagonal with `array_spacing`.

    Args:
        path: The file.
        array_spacing: Voxel size in mm for arrays without any.
        reference: The case's mask, a NIfTI file that arrays without affine take theirs from.

    Raises:
        UserError: Missing, damaged or unsafe file, not three-dimensional, NaN, infinities, all voxels equal, or no
            geometry; the message begins with the path.
    """
    if _volume_suffix(path) in MASK_SUFFIXES:
        array, affine, remarks = _read_nifti(path)
        return Volume(checked_image(path, array), affine, remarks=remarks, source=str(path))
    content = load_arrays(path)
    raw, (known_spacing, known_affine) = the_array(path, content), stored_geometry(path, content)
    array = checked_image(path, as_float(path, raw))
    if known_affine is None:
        known_affine = _array_affine(path, array.shape, known_spacing, array_spacing=array_spacing, reference=reference)
    return Volume(array, known_affine, source=str(path))


def check_header(path: Path, *, array_spacing: Spacing | None = None, reference: Path | None = None) -> Geometry | None:
    """Refuse what `read_volume` would refuse, as far as it can be told without reading voxels.

    Of `.nii`, `.nii.gz` and `.npy` that is all but the values, of `.npz` names and geometry, of `.pkl` next to nothing.

    Returns:
        Shape and affine where they are known without reading voxels.

    Raises:
        UserError: As `read_volume`.
    """
    suffix = _volume_suffix(path)
    if suffix in MASK_SUFFIXES:
        geometry = read_geometry(path)
        three_axes(path, geometry.shape)
        return geometry
    if suffix == ".pkl":
        return None
    content = load_arrays(path, header_only=True)
    raw, (spacing, affine) = the_array(path, content), stored_geometry(path, content)
    shape = None if raw is None else array_shape(path, raw)
    if affine is None and (shape is not None or reference is None):
        affine = _array_affine(path, shape or (), spacing, array_spacing=array_spacing, reference=reference)
    return None if shape is None or affine is None else Geometry(shape, affine)


def read_mask(path: Path, *, like: Volume) -> NDArray[np.uint8]:
    """Read a mask that lies on the voxels of `like`.

    Returns:
        uint8 [X, Y, Z], 0 and 1.

    Raises:
        UserError: Not a readable NIfTI file, another shape or affine than `like`, or values beyond 0 and 1.
    """
    array = _read_fitting(path, like)
    target = array > 0.5
    strange = ~(np.abs(array - target) <= 1e-3)  # also true for NaN
    if strange.any():
        values = np.unique(array[strange])
        shown = ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
        raise UserError(
            f"{path}: mask values {shown} in {counted(int(strange.sum()), 'voxel')}; expected 0 (background) and 1 "
            "(bleed) only. prepare.py --labels turns label maps into masks"
        )
    return target.astype(np.uint8)


def read_labels(path: Path, *, like: Volume, labels: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Read a label map that lies on the voxels of `like` as a mask of the given labels (None: all above 0).

    Raises:
        UserError: As `read_mask`, but for NaN and fractions instead of values beyond 0 and 1.
    """
    array = _read_fitting(path, like)
    rounded = np.rint(array)
    if not (np.abs(array - rounded) <= 1e-3).all():
        raise UserError(f"{path}: holds fractions or NaN; expected a label map of whole numbers")
    target = rounded > 0 if labels is None else np.isin(rounded, np.asarray(labels, dtype=np.float32))
    return target.astype(np.uint8)


def read_geometry(path: Path) -> Geometry:
    """Shape (without trailing axes of length 1) and affine of a NIfTI file; the voxels are not read.

    Raises:
        UserError: The file is missing, damaged or no NIfTI file.
    """
    header = _nifti_header(path)
    return Geometry(plain_shape(header.get_data_shape()), _affine(path, header))


def mask_affine(path: Path, *, shape: Sequence[int]) -> NDArray[np.float64] | None:
    """The affine of the NIfTI mask `path` if its shape is `shape`, otherwise None; errors as in `read_geometry`."""
    geometry = read_geometry(path)
    return geometry.affine if geometry.shape == tuple(shape) else None


def check_fit(path: Path, geometry: Geometry, *, like: Geometry) -> None:
    """Refuse a mask file that does not lie on the voxels of `like`, with whatever order and direction of its axes.

    Raises:
        UserError: Shape or affine differ (by more than `AFFINE_TOLERANCE_MM` at a corner voxel).
    """
    turned = turn_towards(geometry, like)[1] if len(geometry.shape) == 3 else geometry
    if turned.shape != like.shape:
        raise UserError(f"{path}: the mask is {by(geometry.shape)} voxels, its image {by(like.shape)}")
    distance = affine_distance(turned.affine, like.affine, shape=turned.shape)
    if distance > AFFINE_TOLERANCE_MM:
        raise UserError(
            f"{path}: mask and image differ in place by up to {distance:.3g} mm at the corner voxels. Mask: "
            f"{place(geometry.affine)}; image: {place(like.affine)}. Resample the mask onto its image's grid "
            "(nearest neighbour) with a program that shows both"
        )


def fits(geometry: Geometry, like: Geometry) -> bool:
    """Whether `check_fit` lets it pass."""
    try:
        check_fit(Path(), geometry, like=like)
    except UserError:
        return False
    return True


def write_nifti(
    path: Path, array: NDArray[Any], *, like_affine: NDArray[np.float64], remarks: Sequence[str] = ()
) -> None:
    """Write `array` [X, Y, Z] as `.nii` or, by the name, `.nii.gz`; the file appears complete or not at all.

    Booleans and uint8 are stored as uint8, int16 as it is, everything else as float32. The same input gives the same
    bytes. A tilted grid is kept exactly in the sform. The qform cannot hold it and has the grid at right angles next to
    it: same voxels, same volume, same centre. ITK (SimpleITK, 3D Slicer, ITK-SNAP), which reads right angles only,
    takes that one. The remarks of a volume go into the description of the header, as far as its 79 characters reach.

    Raises:
        UserError: The name ends otherwise, or the file cannot be written.
    """
    if file_suffix(path) not in MASK_SUFFIXES:
        raise UserError(f"{path}: NIfTI files end in .nii or .nii.gz")
    dtype = np.uint8 if array.dtype in (np.bool_, np.uint8) else np.int16 if array.dtype == np.int16 else np.float32
    image: Any = nibabel.nifti1.Nifti1Image(  # type: ignore[no-untyped-call]
        np.asarray(array, dtype=dtype), like_affine
    )
    image.set_qform(_without_shear(like_affine, array.shape), code=1)  # sets the header's voxel sizes, too
    image.set_sform(like_affine, code=1)
    image.header.set_xyzt_units("mm")
    if remarks:
        image.header["descrip"] = (_NOT_HU + "; ".join(remarks)).encode("ascii", "replace")[:79]
    content = image.to_bytes()
    with atomic_write(path) as file:
        if file_suffix(path) == ".nii":
            file.write(content)
        else:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=5, fileobj=file, mtime=0) as packed:
                packed.write(content)


def _without_shear(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    if is_orthogonal(affine):
        return affine
    straight, centre = affine.copy(), (np.array(shape[:3]) - 1) / 2
    straight[:3, :3] = orthogonal_axes(affine)
    straight[:3, 3] += (affine - straight)[:3, :3] @ centre
    return straight


def _volume_suffix(path: Path) -> str:
    suffix = file_suffix(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: not a volume that can be read; expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return suffix


# ------------------------------------------------------------------------------------------------------------- NIfTI


def _nifti_header(path: Path) -> Any:
    """The header of a NIfTI file that holds numbers, no more of them than the budget allows."""
    if file_suffix(path) not in MASK_SUFFIXES:
        raise UserError(f"{path}: expected a NIfTI file (.nii or .nii.gz)")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    # Not `nibabel.load`: it reads extensions, of which nothing is needed, to any length that they claim.
    with reading(path, "a NIfTI file"), nibabel.openers.Opener(str(path)) as file:
        start = file.read(nibabel.Nifti2Header.sizeof_hdr)
        kind = next((kind for kind in _NIFTI if kind.may_contain_header(start)), None)
        if kind is None:
            raise ValueError("it has no NIfTI header")
        header = kind(start[: kind.sizeof_hdr])
        if not header["magic"].item().startswith(b"n+"):
            raise ValueError("its voxels are in another file")
        if header.get_data_offset() > _LATEST:
            raise ValueError(f"its voxels begin at byte {header.get_data_offset():,}")
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if dtype.kind not in "biuf":
        raise UserError(f"{path}: voxels of type {dtype}; expected one number a voxel")
    check_unpacked(path, unpacked=math.prod(shape) * max(4, dtype.itemsize), stored=path.stat().st_size, always=LARGEST)
    return header


def _read_nifti(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64], tuple[str, ...]]:
    """Voxels, affine and remarks."""
    header = _nifti_header(path)
    shape = three_axes(path, header.get_data_shape())
    affine = _affine(path, header)
    with (
        reading(path, "a complete NIfTI file"),
        nibabel.openers.Opener(str(path)) as file,
        np.errstate(over="ignore", invalid="ignore"),  # what overflows is found as an infinity
    ):
        stored: Any = nibabel.arrayproxy.ArrayProxy(file, header, mmap=False)  # type: ignore[no-untyped-call]
        array = np.asarray(stored, dtype=np.float32)
        file.read(1)  # at its end, gzip compares the checksum
    described = bytes(header["descrip"].item()).decode("ascii", "replace")
    remarks = tuple(described.removeprefix(_NOT_HU).split("; ")) if described.startswith(_NOT_HU) else ()
    return array.reshape(shape, order="F" if array.flags.f_contiguous else "C"), affine, remarks


def _affine(path: Path, header: Any) -> NDArray[np.float64]:
    with reading(path, "a NIfTI file that says how it lies"):
        return checked_affine(path, header.get_best_affine())


def _read_fitting(path: Path, like: Volume) -> NDArray[np.float32]:
    geometry = read_geometry(path)
    check_fit(path, geometry, like=like.geometry)  # before the voxels: a wrong file is told at once
    turn, _ = turn_towards(geometry, like.geometry)
    turned: Any = nibabel.orientations.apply_orientation(_read_nifti(path)[0], turn)  # type: ignore[no-untyped-call]
    return np.asarray(turned)


# ------------------------------------------------------------------------------------------------------------ arrays


def _array_affine(
    path: Path,
    shape: tuple[int, ...],
    spacing: Spacing | None,
    *,
    array_spacing: Spacing | None,
    reference: Path | None,
) -> NDArray[np.float64]:
    if reference is not None:
        affine = mask_affine(reference, shape=shape)
        if affine is not None and spacing is not None and not spacings_agree(spacing, affine_spacing(affine)):
            raise UserError(
                f"{path}: its spacing is {mm(spacing)}, that of its mask {reference} is {mm(affine_spacing(affine))}"
            )
        if affine is not None:
            return affine
    chosen = spacing or array_spacing
    if chosen is None:
        raise UserError(
            f"{path}: the file gives no voxel size"
            + (f" and its mask {reference} is not of its shape {by(shape)}" if reference else "")
            + "; give --array_spacing X Y Z (mm), or store it as 'spacing' or 'affine' in the file"
        )
    return np.diag([*checked_spacing(path, chosen), 1.0])

"""Generated head CTs with bleeds, written in the file formats of real data: for the demo and the tests.

Each head has a scalp, a skull, cerebrospinal fluid in sulci, fissure and ventricles, grey and white matter, and up to
three irregular bleeds with a dark rim of oedema, the first of 4 to 60 mL (trials report medians of 10 to 20), others of
1 to 8 mL. All numbers are HU and mm.
"""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mlcore.base.files import atomic_write, write_text
from mlcore.data.generated import write_once
from quartet.apps.sam_med3d_ich.data.geometry import Spacing
from quartet.apps.sam_med3d_ich.data.volume import write_nifti

__all__ = ["PhantomFiles", "make_head", "write_phantoms"]

Array = NDArray[np.float32]

_FORMAT = 3  # goes up whenever the same arguments give other files
_FIELD_MM = 192.0  # field of view that the sizes below are for; smaller ones get a smaller head
_STORED_AS = (".pkl spacing", ".nii.gz", ".npz", ".pkl affine")  # each says how large its voxels are
_AXES = ("RAS", "LPS", "LAS", "PIR", "SLA")


@dataclass(frozen=True)
class PhantomFiles:
    """Where the generated data are."""

    train_csv: Path
    val_csv: Path
    mask_dir: Path


@dataclass(frozen=True, eq=False)
class Head:
    """One generated scan.

    Attributes:
        image: int16 [X, Y, Z], HU; axes R, A, S.
        mask: uint8 [X, Y, Z], 1 in bleeds.
    """

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Anatomy:
    """What a head is built from, all [X, Y, Z]: HU, depth below the skull in mm, and the world coordinates in mm."""

    hu: Array
    depth: Array
    points: tuple[Array, Array, Array]


def write_phantoms(
    folder: Path,
    *,
    train: int,
    validation: int,
    seed: int,
    shape: tuple[int, int, int] = (96, 96, 32),
    spacing: Spacing = (2.0, 2.0, 5.0),
) -> PhantomFiles:
    """Write images, masks and tables, unless `folder` holds those of the same arguments already.

    About a quarter of the cases have no bleed (and no mask file), every fifth patient has two scans. Images alternate
    between pickles with spacing, NIfTI, `.npz` with affine, and pickles with affine: each can be read by itself. NIfTI
    and the latter are stored along various axes.

    Args:
        folder: Created, or replaced if it holds other phantoms.
        train: Training cases.
        validation: Validation cases.
        seed: Names the data set.
        shape: Voxels along right-left, back-front, bottom-top.
        spacing: Voxel size in mm.

    Returns:
        The tables and the mask folder.

    Raises:
        UserError: `folder` holds something else, or cannot be written to.
    """
    request: dict[str, object] = {"format": _FORMAT, "train": train, "validation": validation, "seed": seed}
    request |= {"shape": list(shape), "spacing": list(spacing)}

    def write(made: Path) -> None:
        (made / "images").mkdir()
        (made / "masks").mkdir()
        for table, first, count in (("train.csv", 1, train), ("val.csv", train + 1, validation)):
            rows = _write_split(made, range(first, first + count), seed=seed, shape=shape, spacing=spacing)
            write_text(made / table, "\n".join(["path,ich,patient_id", *rows]) + "\n")

    write_once(folder, request, write)
    return PhantomFiles(folder / "train.csv", folder / "val.csv", folder / "masks")


def make_head(rng: np.random.Generator, *, bleeds: int, shape: tuple[int, int, int], spacing: Spacing) -> Head:
    """Generate one scan with the given number of bleeds."""
    scale = min(shape[0] * spacing[0], shape[1] * spacing[1]) / _FIELD_MM
    anatomy = _anatomy(rng, shape=shape, spacing=spacing, scale=scale)
    hu, mask = anatomy.hu, np.zeros(shape, dtype=np.uint8)
    for number in range(bleeds):
        smallest, largest = (4.0, 60.0) if number == 0 else (1.0, 8.0)
        volume_ml = float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))) * scale**3
        hu, bleed = _with_bleed(rng, hu, anatomy, millilitres=volume_ml, spacing=spacing, scale=scale)
        mask |= bleed
    hu = hu + rng.normal(0, 3.5, shape).astype(np.float32)
    return Head(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), mask)


# ------------------------------------------------------------------------------------------------------------ anatomy


def _anatomy(rng: np.random.Generator, *, shape: tuple[int, int, int], spacing: Spacing, scale: float) -> _Anatomy:
    x, y, z = points = _head_points(rng, shape=shape, spacing=spacing, scale=scale)
    smooth = _smooth_noise(rng, shape, spacing=spacing, length_mm=14 * scale)
    fine = _smooth_noise(rng, shape, spacing=spacing, length_mm=4 * scale)
    half = rng.uniform([66, 82, 78], [72, 89, 84]) * scale  # half axes of the head
    ray = np.sqrt(x * x + y * y + z * z)
    radius = sum(np.abs(p / h) ** 2.3 for p, h in zip(points, half, strict=True)) ** (1 / 2.3)
    below_skin = (
        ray * (1 - radius) / np.maximum(radius, 1e-3) + 1.2 * scale * smooth
    )  # mm along the ray from the middle
    scalp, bone = rng.uniform(4, 6) * scale, rng.uniform(6, 8) * scale
    depth = below_skin - scalp - bone - 0.8 * scale * fine  # below the inner table

    hu = _over(np.full(shape, -1000, np.float32), -20 + 60 * _step(fine + 0.5, width=1.0), _step(below_skin, width=2.0))
    diploe = np.exp(-(((depth + bone / 2) / (0.22 * bone)) ** 2))
    hu = _over(hu, 1050 - 450 * diploe, _step(below_skin - scalp, width=2.0))
    hu = _over(hu, 9.0, _step(depth, width=1.5))  # fluid under the skull
    hu = _over(
        hu, _brain(points, depth / scale, smooth=smooth, fine=fine, scale=scale), _step(depth - 2 * scale, width=2.0)
    )
    return _Anatomy(hu.astype(np.float32), depth.astype(np.float32), points)


def _brain(points: tuple[Array, Array, Array], depth: Array, *, smooth: Array, fine: Array, scale: float) -> Array:
    """HU of the brain and the fluid in it; `depth` below the skull and all lengths for a head of full size."""
    x, y, z = (p / scale for p in points)
    aside = np.abs(x)
    grey = _step(7 + 3.5 * fine - depth, width=2.0)  # a folded cortex
    for at, half in (((26, 2, 4), (9, 17, 11)), ((11, -12, 4), (8, 12, 9))):  # basal ganglia, thalami
        grey = np.maximum(grey, _ellipsoid(aside, y, z, at=at, half=half))
    hu = 28.5 + 9 * grey + 0.8 * smooth
    sulci = _step(fine - 1.15, width=0.5) * _step(14 - depth, width=4.0)
    fissure = _step(1.3 - np.abs(x + 0.6 * smooth), width=1.5) * _step(np.maximum(26 - depth, z - 30), width=6.0)
    hu = _over(hu, 10.0, np.maximum(0.8 * sulci, fissure))
    bend = 0.006 * (y - 4) ** 2  # lateral ventricles part towards front and back
    fluid = np.maximum(
        _ellipsoid(aside - bend, y, z - 0.15 * y, at=(8, 2, 17), half=(5.5, 33, 8)),
        _ellipsoid(aside, y, z, at=(0, -2, 2), half=(2.5, 13, 9)),
    )
    return _over(hu, 7.0, fluid)


def _head_points(
    rng: np.random.Generator, *, shape: tuple[int, int, int], spacing: Spacing, scale: float
) -> tuple[Array, Array, Array]:
    """Coordinates [X, Y, Z] of every voxel in a head that is slightly turned and shifted."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) + rng.uniform(-4, 4, 3) * scale
    turned = grid @ _rotation(rng.uniform(-1, 1, 3) * np.radians([4, 4, 8]))
    x, y, z = np.moveaxis(turned.astype(np.float32), -1, 0)
    return x, y, z


# ------------------------------------------------------------------------------------------------------------- bleeds


def _with_bleed(
    rng: np.random.Generator, hu: Array, anatomy: _Anatomy, *, millilitres: float, spacing: Spacing, scale: float
) -> tuple[Array, NDArray[np.uint8]]:
    """`hu` with one more bleed, and its mask.

    The bleed is a level set of a deformed ellipsoid's radius, chosen so that it has the wanted volume.
    """
    inside = anatomy.depth > 3 * scale
    places = np.argwhere(anatomy.depth > min(12 * scale, 0.5 * float(anatomy.depth.max())))
    centre = tuple(places[rng.integers(len(places))])
    offset = np.stack([p - p[centre] for p in anatomy.points], axis=-1) @ _rotation(rng.uniform(-np.pi, np.pi, 3))
    half = np.exp(rng.uniform(-0.35, 0.35, 3))
    size = (millilitres * 1000 / 4.19) ** (1 / 3)  # mm, radius of the ball of this volume
    noise = _smooth_noise(rng, hu.shape, spacing=spacing, length_mm=0.7 * size)
    radius = np.linalg.norm(offset / half, axis=-1) / size * np.exp(0.22 * noise)
    count = min(max(1, round(millilitres * 1000 / float(np.prod(spacing)))), int(inside.sum()) // 3)
    level = np.partition(radius[inside], count)[count]
    parts, _ = ndimage.label((radius < level) & inside, structure=np.ones((3, 3, 3)))
    kept = parts == np.argmax(np.bincount(parts[parts > 0]))
    margin = ((level - radius) * size).astype(np.float32)  # mm to the bleed's surface, above 0 inside
    near = ndimage.binary_dilation(kept, iterations=4)
    rim = _step(margin + rng.uniform(3, 7) * scale, width=3.0) * inside * near
    hu = _over(hu, np.minimum(hu, 17.0), 0.85 * rim)
    blood = rng.uniform(64, 80) + 2.5 * noise
    alpha = np.where(kept, np.maximum(_step(margin, width=2.0), 0.5), np.minimum(_step(margin, width=2.0), 0.45) * near)
    return _over(hu, blood, alpha * inside).astype(np.float32), kept.astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- pieces


def _step(value: NDArray[np.floating[Any]], *, width: float) -> Array:
    """From 0 to 1 while `value` goes from -width/2 to width/2: an edge through voxels of that size."""
    result: Array = np.clip(value / width + 0.5, 0, 1).astype(np.float32)
    return result


def _over(below: Array, above: Array | float, alpha: Array) -> Array:
    result: Array = below + alpha * (above - below)
    return result


def _ellipsoid(x: Array, y: Array, z: Array, *, at: Sequence[float], half: Sequence[float]) -> Array:
    radius = np.sqrt(sum(((p - c) / h) ** 2 for p, c, h in zip((x, y, z), at, half, strict=True)))
    return _step((1 - radius) * min(half), width=2.0)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], *, spacing: Spacing, length_mm: float) -> Array:
    """Gaussian noise of mean 0 and standard deviation 1 that changes over about `length_mm`."""
    noise = rng.normal(size=shape).astype(np.float32)
    noise = ndimage.gaussian_filter(
        noise, [min(0.5 * length_mm / s, 0.25 * n) for s, n in zip(spacing, shape, strict=True)]
    )
    result: Array = (noise - noise.mean()) / (noise.std() + 1e-9)
    return result


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix [3, 3] about x, then y, then z, in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


# -------------------------------------------------------------------------------------------------------------- files


def _write_split(
    folder: Path, numbers: range, *, seed: int, shape: tuple[int, int, int], spacing: Spacing
) -> list[str]:
    """Write the cases of one split; returns their rows."""
    order = np.random.default_rng((seed, numbers.start)).permutation(len(numbers))
    healthy = set(order[: round(len(numbers) / 4)].tolist())
    rows = []
    for place, number in enumerate(numbers):
        rng = np.random.default_rng((seed, number))
        bleeds = 0 if place in healthy else int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))
        head = make_head(rng, bleeds=bleeds, shape=shape, spacing=spacing)
        stored_as = _STORED_AS[number % len(_STORED_AS)]
        oriented = stored_as in (".nii.gz", ".pkl affine")
        axes = _AXES[int(rng.integers(len(_AXES)))] if oriented else "RAS"
        image, affine = _oriented(head.image, spacing=spacing, axes=axes)
        path = folder / "images" / f"{number}{stored_as.split()[0]}"
        _write_image(path, image, affine=affine, spacing=spacing if stored_as == ".pkl spacing" else None)
        if bleeds:
            mask, _ = _oriented(head.mask, spacing=spacing, axes=axes)
            suffix = ".nii" if number % 2 else ".nii.gz"
            write_nifti(folder / "masks" / f"{number}{suffix}", mask, like_affine=affine)
        patient = number - 1 if place % 5 == 4 else number
        rows.append(f"images/{path.name},{int(bleeds > 0)},patient_{patient:03d}")
    return rows


def _oriented(array: NDArray[Any], *, spacing: Spacing, axes: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """An R, A, S array stored along other axes, and the affine that says so; the world's origin stays the middle."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(array.shape, spacing, strict=True)]
    turn: Any = nibabel.orientations.axcodes2ornt(axes)  # type: ignore[no-untyped-call]
    start: Any = nibabel.orientations.axcodes2ornt("RAS")  # type: ignore[no-untyped-call]
    change: Any = nibabel.orientations.ornt_transform(start, turn)  # type: ignore[no-untyped-call]
    back: Any = nibabel.orientations.inv_ornt_aff(change, array.shape)  # type: ignore[no-untyped-call]
    stored: Any = nibabel.orientations.apply_orientation(array, change)  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(stored), affine @ back


def _write_image(path: Path, array: NDArray[np.int16], *, affine: NDArray[np.float64], spacing: Spacing | None) -> None:
    """By suffix; a pickle holds the spacing if there is one, otherwise the affine."""
    if path.name.endswith(".nii.gz"):
        write_nifti(path, array, like_affine=affine)
        return
    content = io.BytesIO()
    if path.suffix == ".npz":
        np.savez_compressed(content, array=array, affine=affine)
    else:
        geometry = {"affine": affine} if spacing is None else {"spacing": list(spacing)}
        pickle.dump({"array": array, **geometry}, content, protocol=4)
    with atomic_write(path, size=content.tell()) as file:
        file.write(content.getvalue())

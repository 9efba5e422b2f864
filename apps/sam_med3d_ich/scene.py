"""A case as it is looked at: slices in radiological orientation, and the colours of what was found and missed.

The viewer faces the patient's feet (axial) or face (coronal); sagittal pictures look to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.case_metrics import Mask
from quartet.apps.sam_med3d_ich.data.geometry import affine_spacing, voxel_ml

__all__ = ["CONTOUR", "FILL", "MISSED", "PLANES", "RIGHT", "WRONG"]
__all__ += ["AxialSlices", "Plane", "Scene", "View", "make_scene", "rgb"]

# Apart for every kind of colour vision, and from the greys of a CT.
CONTOUR, RIGHT, WRONG, MISSED = "#f4f72a", "#2f9bff", "#ff7a1a", "#e8308c"
FILL = 0.45  # opacity: the tissue below must stay readable
_SCREEN = 512  # pixels, longer side of a slice on a screen

Plane = Literal["sagittal", "coronal", "axial"]
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")  # by the axis they are perpendicular to


@dataclass(frozen=True)
class View:
    """One slice as it is drawn: row 0 on top, column 0 on the left.

    Attributes:
        image, found, there: ``[H, W]``; `there` is None where nothing was marked.
        pixel: mm per column and row.
        plane: which one.
        words: what stands above it.
    """

    image: NDArray[Any]
    found: NDArray[np.bool_]
    there: NDArray[np.bool_] | None
    pixel: tuple[float, float]
    plane: Plane
    words: str

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height, mm."""
        return self.image.shape[1] * self.pixel[0], self.image.shape[0] * self.pixel[1]


@dataclass(frozen=True)
class Scene:
    """A case in R, A, S order; `levels` are the values shown as black and white, `ml` is the volume of a voxel."""

    image: NDArray[Any]
    found: NDArray[np.bool_]
    there: NDArray[np.bool_] | None
    spacing: tuple[float, float, float]
    ml: float
    levels: tuple[float, float]

    @cached_property
    def lesion(self) -> NDArray[np.bool_]:
        """What the slices are chosen to show: the marked bleed, or where there is none the predicted one."""
        return self.found if self.there is None or not self.there.any() else self.there

    @cached_property
    def error(self) -> NDArray[np.bool_]:
        """Where the two differ."""
        return np.zeros_like(self.found) if self.there is None else self.found ^ self.there

    def widest(self, mask: NDArray[np.bool_], axis: int) -> int:
        """The slice across `axis` with the largest area of `mask`, of equal ones the middle; also where it is empty."""
        area = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
        largest = np.flatnonzero(area == area.max())
        return int(largest[len(largest) // 2])

    def view(self, plane: Plane, index: int, words: str = "") -> View:
        """A slice, with what stands above it."""
        axis = PLANES.index(plane)
        across, down = (size for other, size in enumerate(self.spacing) if other != axis)
        number = f"{plane} {index + 1}/{self.image.shape[axis]}"
        return View(
            image=_turned(self.image, axis, index),
            found=_turned(self.found, axis, index),
            there=None if self.there is None else _turned(self.there, axis, index),
            pixel=(across, down),
            plane=plane,
            words=f"{number} · {words}" if words else number,
        )


def make_scene(
    volume: NDArray[Any],
    predicted: Mask,
    target: Mask | None,
    *,
    affine: NDArray[np.float64],
    window: tuple[float, float] | None,
) -> Scene:
    """A case of a volume ``[X, Y, Z]`` and its masks in R, A, S order.

    Args:
        volume: The image.
        predicted: What was found.
        target: What was marked; None where nothing is known.
        affine: ``[4, 4]``, voxel index to mm.
        window: Level and width that are shown from black to white; None: from the 1st to the 99th percentile.

    Raises:
        UserError: Shapes differ or are not three-dimensional.
    """
    shapes = {"predicted": predicted.shape} | ({} if target is None else {"target": target.shape})
    for name, shape in shapes.items():
        if volume.ndim != 3 or shape != volume.shape:
            raise UserError(f"the volume has shape {volume.shape}, {name} {shape}; expected one [X, Y, Z] for all")
    if window is None:
        low, high = (float(value) for value in np.percentile(volume, [1, 99]))
    else:
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    there = None if target is None else target.astype(bool)
    levels = (low, max(high, low + 1e-6))
    return Scene(volume, predicted.astype(bool), there, affine_spacing(affine), voxel_ml(affine), levels)


def _turned(array: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """A slice in radiological orientation: R, A or S at row or column 0."""
    turned: NDArray[Any] = np.take(array, index, axis=axis)[::-1, ::-1].T
    return turned


class AxialSlices(Sequence[NDArray[np.uint8]]):
    """Axial slices for a screen, in radiological orientation, with square pixels, each drawn when it is asked for.

    Args:
        values: ``[X, Y, Z]`` in R, A, S order: an image, or a mask.
        affine: ``[4, 4]``, voxel index to mm.
        window: level and width that are drawn from black to white; None: from the 1st to the 99th percentile.
        mask: whether `values` is one: slices are then ``[H, W, 4]``, its colour where it is 1 and nothing elsewhere;
            otherwise ``[H, W]``.
    """

    def __init__(
        self,
        values: NDArray[Any],
        *,
        affine: NDArray[np.float64],
        window: tuple[float, float] | None = None,
        mask: bool = False,
    ) -> None:
        empty = np.zeros(values.shape, dtype=np.uint8)
        self._scene = make_scene(values, empty, None, affine=affine, window=(0.5, 1.0) if mask else window)
        self._mask = mask

    def __len__(self) -> int:
        return int(self._scene.image.shape[2])

    def __getitem__(self, index: Any) -> Any:
        view = self._scene.view("axial", range(len(self))[index])
        low, high = self._scene.levels
        grey = np.clip((view.image - low) / (high - low), 0, 1)
        width, height = (max(1, round(side * _SCREEN / max(view.extent))) for side in view.extent)
        how = Image.Resampling.NEAREST if self._mask else Image.Resampling.BILINEAR
        picture = np.asarray(Image.fromarray((255 * grey).astype(np.uint8)).resize((width, height), how))
        if not self._mask:
            return picture
        colour = np.array([round(255 * part) for part in (*rgb(RIGHT), FILL)], dtype=np.uint8)
        return (picture > 0)[..., None] * colour

    @property
    def widest(self) -> int:
        """The slice with the largest area of the mask; the middle one where it is empty."""
        return self._scene.widest(self._scene.image > 0, 2)


def rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue in 0..1 of "#rrggbb"."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue

"""How good the mask of one case is, in the units of a report (mm, mL, lesions), and what that means for a data set.

Policy for empty masks. Nothing there and nothing predicted: Dice, IoU and HD95 are undefined (NaN), there is nothing to
overlap. One of the two empty: Dice and IoU 0, HD95 undefined. Means of overlap and distance are over the cases with a
bleed, where a missed one counts 0; healthy cases (as in nnU-Net) take no part in them, or silence would be rewarded.
What is found in healthy cases is the matter of "specificity" and "false_positives".

"score" weighs both up, and chooses the best checkpoint: Dice x (1 + lesion sensitivity + specificity) / 3. It is 0 for
a model that finds nothing and 1 for one that is always right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, label
from scipy.spatial import KDTree

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, IntArray, as_floats, as_labels
from mlcore.metrics.ranking import auroc
from quartet.apps.sam_med3d_ich.data.geometry import is_orthogonal, voxel_ml
from quartet.apps.sam_med3d_ich.masks import dice_per_case, iou_per_case

__all__ = ["FIELDS", "SIZES_ML", "CaseMetrics", "Mask", "case_metrics", "lesions_by_size", "summarise"]

Mask = NDArray[np.uint8] | NDArray[np.bool_]
"""A mask of 0 and 1, or of booleans."""

_TOUCHING = np.ones((3, 3, 3), dtype=bool)  # 26-connected: voxels that share a corner belong to one lesion
# Surface voxels from which a distance map of the whole box (seconds) is quicker than searching for each: a model that
# has not learned yet predicts noise all over the head.
_MANY = 100_000


SIZES_ML = (0.1, 1.0, 10.0, 30.0)
"""Where sizes of lesions are told apart; from 30 mL on a bleed counts in the ICH score (Hemphill et al. 2001)."""


@dataclass(frozen=True)
class CaseMetrics:
    """One case; all fields are floats, so that it can travel as a row of a tensor.

    Attributes:
        dice: 0..1; NaN where both masks are empty.
        iou: intersection over union, 0..1; NaN where both masks are empty.
        hd95_mm: the larger of the two directed 95th percentiles of the distances between the surfaces, mm; NaN where
            a mask is empty.
        volume_ml: true volume.
        predicted_ml: predicted volume.
        volume_error_ml: predicted minus true.
        lesions: 26-connected components of the true mask.
        found: those of them that the prediction overlaps, by however little.
        false_positives: 26-connected components of the prediction that overlap no lesion.
    """

    dice: float
    iou: float
    hd95_mm: float
    volume_ml: float
    predicted_ml: float
    volume_error_ml: float
    lesions: float
    found: float
    false_positives: float

    def to_row(self) -> list[float]:
        """The values in the order of `FIELDS`."""
        return list(astuple(self))

    @classmethod
    def from_row(cls, values: Iterable[float]) -> CaseMetrics:
        """The inverse of `to_row`; also takes a row ``[9]`` of a tensor or array."""
        return cls(*(float(value) for value in values))


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(CaseMetrics))


def case_metrics(predicted: Mask, *, target: Mask, affine: NDArray[np.float64]) -> CaseMetrics:
    """Measure the mask of one case; the module's docstring states what holds for empty masks.

    HD95 is what MONAI's `compute_hausdorff_distance` gives for the 95th percentile: distances between the centres of
    surface voxels, those with a face neighbour outside the mask or the volume. They are taken in the world, so that
    they hold where the axes are not at right angles (a tilted gantry), too; so do volumes, from the determinant.

    Args:
        predicted: ``[X, Y, Z]``, 0 or 1.
        target: shaped as ``predicted``.
        affine: ``[4, 4]``, voxel index to mm.

    Raises:
        UserError: shapes differ or are not three-dimensional, a mask of probabilities, or an affine that is none.
    """
    axes = _checked(affine)
    if np.ndim(predicted) != 3:
        raise UserError(f"the predicted mask has shape {np.shape(predicted)}, expected [X, Y, Z]")
    dice = dice_per_case(predicted[None], target=target[None])  # also checks shapes and values
    iou = iou_per_case(predicted[None], target=target[None])
    found, there = _cropped(predicted.astype(bool), target.astype(bool))
    lesions, hit, alarms = _count_lesions(found, there)
    true_ml, predicted_ml = (int(np.count_nonzero(mask)) * voxel_ml(axes) for mask in (there, found))
    empty = not (found.any() or there.any())
    return CaseMetrics(
        dice=math.nan if empty else float(dice[0]),
        iou=math.nan if empty else float(iou[0]),
        hd95_mm=_hd95(found, there, axes),
        volume_ml=true_ml,
        predicted_ml=predicted_ml,
        volume_error_ml=predicted_ml - true_ml,
        lesions=float(lesions),
        found=float(hit),
        false_positives=float(alarms),
    )


def summarise(rows: Sequence[CaseMetrics], *, ich_scores: Array, ich_labels: Array) -> dict[str, float]:
    """The figures of a data set, always the same keys; undefined is NaN (`mlcore.base.files.write_json` makes it null).

    - "score": dice x (1 + lesion_sensitivity + specificity) / 3; without healthy cases dice x (1 + lesion_sensitivity)
      / 2; undefined without a case with a lesion.
    - "dice", "iou": means over the cases with a lesion, 0 where it is missed; "dice_lesion" is another name of "dice".
    - "hd95": mean in mm over the cases with a lesion where something is predicted; "hd95_undefined": number of the
      cases with a lesion where nothing is, which is left out of that mean.
    - "volume_error_ml": mean of predicted minus true, "volume_abs_error_ml": mean of its size.
    - "lesion_sensitivity": share found of all lesions of all cases; "false_positives": mean number per case.
    - "specificity": share of the cases without a lesion where nothing is predicted.
    - "auroc": of the image-level score; NaN where only one class is labelled.

    Args:
        rows: N cases.
        ich_scores: ``[N]``, higher means a bleed; any monotonic score.
        ich_labels: ``[N]``, 0 or 1.

    Raises:
        UserError: no cases, or scores or labels that do not fit them.
    """
    table = as_floats([row.to_row() for row in rows], name="the list of cases")
    column = dict(zip(FIELDS, table.T, strict=True))
    scores = as_floats(ich_scores, name="ich_scores", rows=len(table)).reshape(len(table))
    labels = as_labels(ich_labels, name="ich_labels", classes=2)
    if len(labels) != len(table):
        raise UserError(f"ich_labels has {len(labels)} rows, expected {len(table)}, one per case")
    lesion, defined = column["lesions"] > 0, np.isfinite(column["hd95_mm"])
    lesions = float(column["lesions"].sum())
    dice = _mean(column["dice"][lesion])
    sensitivity = float(column["found"].sum()) / lesions if lesions else math.nan
    specificity = _mean((column["predicted_ml"][~lesion] == 0).astype(np.float64))
    return {
        "score": dice * float(np.nanmean([1.0, sensitivity, specificity])),
        "dice": dice,
        "dice_lesion": dice,
        "iou": _mean(column["iou"][lesion]),
        "hd95": _mean(column["hd95_mm"][lesion & defined]),
        "hd95_undefined": int(np.count_nonzero(lesion & ~defined)),  # a count: shown without decimals
        "volume_error_ml": _mean(column["volume_error_ml"]),
        "volume_abs_error_ml": _mean(np.abs(column["volume_error_ml"])),
        "lesion_sensitivity": sensitivity,
        "false_positives": _mean(column["false_positives"]),
        "specificity": specificity,
        "auroc": auroc(labels, scores=scores).value,
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _checked(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The steps between voxels, mm, as columns ``[3, 3]``."""
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or voxel_ml(matrix) == 0:
        raise UserError("the affine is no invertible matrix [4, 4] from voxel index to mm")
    axes: NDArray[np.float64] = matrix[:3, :3]
    return axes


def _cropped(*masks: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], ...]:
    """The masks inside the smallest box that holds them all: a bleed is a few percent of a head."""
    union = np.logical_or.reduce(masks)
    if not union.any():
        return tuple(np.zeros((1, 1, 1), dtype=bool) for _ in masks)
    box = []
    for axis in range(union.ndim):
        others = tuple(other for other in range(union.ndim) if other != axis)
        inside = np.flatnonzero(union.any(axis=others))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(np.ascontiguousarray(mask[tuple(box)]) for mask in masks)


def _count_lesions(found: NDArray[np.bool_], there: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Lesions, lesions found, false positives."""
    lesions, count = label(there, structure=_TOUCHING)
    parts, predicted = label(found, structure=_TOUCHING)
    both = found & there
    return int(count), len(np.unique(lesions[both])), int(predicted) - len(np.unique(parts[both]))


def lesions_by_size(predicted: Mask, *, target: Mask, affine: NDArray[np.float64]) -> IntArray:
    """How many lesions there are, and how many are found, by size between `SIZES_ML`: int64 [2, 5].

    Args:
        predicted: As in `case_metrics`.
        target: As there.
        affine: As there.
    """
    found, there = _cropped(predicted.astype(bool), target.astype(bool))
    lesions, count = label(there, structure=_TOUCHING)
    sizes = np.bincount(lesions.ravel(), minlength=count + 1)[1:] * voxel_ml(_checked(affine))
    place = np.searchsorted(SIZES_ML, sizes, side="right")
    hit = np.unique(lesions[found & there]) - 1
    return np.stack([np.bincount(of, minlength=len(SIZES_ML) + 1) for of in (place, place[hit])])


def _hd95(found: NDArray[np.bool_], there: NDArray[np.bool_], axes: NDArray[np.float64]) -> float:
    if not (found.any() and there.any()):
        return math.nan
    # MONAI's own function warns of a deprecation inside MONAI at every call; the tests hold this one against it.
    first, second = found & ~binary_erosion(found), there & ~binary_erosion(there)  # beyond the box is outside
    return max(_directed(first, second, axes), _directed(second, first, axes))


def _directed(start: NDArray[np.bool_], end: NDArray[np.bool_], axes: NDArray[np.float64]) -> float:
    """95th percentile of the distances in mm from the voxels of one surface to the nearest of the other."""
    if np.count_nonzero(start) > _MANY and is_orthogonal(axes):
        distance = distance_transform_edt(~end, sampling=np.linalg.norm(axes, axis=0))[start]
    else:
        here, there = (np.argwhere(mask).astype(np.float64) @ axes.T for mask in (start, end))
        distance, _ = KDTree(there).query(here)
    return float(np.percentile(distance, 95))

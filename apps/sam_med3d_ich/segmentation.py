"""Whole volumes through the model: the one path that validation, `predict.py` and pictures share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.crops import cut, starts
from quartet.apps.sam_med3d_ich.data.preprocess import EVERYWHERE, Prepared, Preprocessing, prepare, to_native
from quartet.apps.sam_med3d_ich.data.volume import Volume
from quartet.apps.sam_med3d_ich.model.ich import Answer

_NEVER = -20.0  # logit of voxels that no window with a click covers


class WindowModel(Protocol):
    """What answers a window: the network itself, or whatever computes it."""

    @property
    def side(self) -> int:
        """Voxels along each side of a window."""

    @property
    def device(self) -> torch.device:
        """Where windows go."""

    def __call__(self, image: Tensor, /) -> Answer:
        """Answer windows [B, 1, S, S, S]."""

    def after_clicks(self, image: Tensor, positions: Tensor, labels: Tensor) -> Answer:
        """See `IchModel.after_clicks`."""


@dataclass(frozen=True)
class Click:
    """A prompt.

    Attributes:
        voxel: Index in the stored volume.
        inside: Whether the voxel belongs to the mask.
    """

    voxel: tuple[float, float, float]
    inside: bool = True


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the model says of a volume.

    Attributes:
        probability: float32 [X, Y, Z], stored order, 0..1.
        mask: uint8 [X, Y, Z], stored order.
        ich_score: How much speaks for a haemorrhage, 0..1: the score of the most suspicious window. It orders scans of
            one model and is no probability: trained on crops, the maximum over windows is high for healthy heads, too.
    """

    probability: NDArray[np.float32]
    mask: NDArray[np.uint8]
    ich_score: float


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """Segments volumes of any size.

    Attributes:
        model: The network.
        preprocessing: How volumes come to the model's grid.
        overlap: Share of a window that the next one covers again, 0..1.
        threshold: Probability from which a voxel belongs to the mask.
        min_volume_ml: Smaller connected parts (26 neighbours) are left out of the mask.
        windows_per_batch: Windows that go through the model together.
        flips: Axes (0 R, 1 A, 2 S) along which the volume is also seen mirrored: means over all their combinations.
    """

    model: WindowModel
    preprocessing: Preprocessing
    overlap: float = 0.5
    threshold: float = 0.5
    min_volume_ml: float = 0.0
    windows_per_batch: int = 1
    flips: tuple[int, ...] = ()

    def __call__(
        self, volume: Volume, *, clicks: Sequence[Click] | None = None, prepared: Prepared | None = None
    ) -> Segmentation:
        """Segment a volume.

        Args:
            volume: As stored.
            clicks: Prompts; only what lies in a window around a click can then be in the mask. None asks for none.
            prepared: The volume on the model's grid, if that is known already.
        """
        ready = prepared or prepare(volume, self.preprocessing)
        views = [axes for count in range(len(self.flips) + 1) for axes in combinations(self.flips, count)]
        chances, scores = list[Tensor](), list[float]()
        with torch.inference_mode():
            for axes in views:
                view = replace(ready, image=np.flip(ready.image, axes))
                logits, score = self._logits(view) if clicks is None else self._prompted(view, clicks, axes)
                chances.append(torch.sigmoid(logits).flip(axes))
                scores.append(score)
            probability = to_native(torch.stack(chances).mean(dim=0) if len(views) > 1 else chances[0], ready.grid)
        return Segmentation(probability, self.mask(probability, volume.voxel_ml), float(np.mean(scores)))

    def mask(self, probability: NDArray[np.float32], voxel_ml: float) -> NDArray[np.uint8]:
        """What reaches the threshold, uint8 [X, Y, Z], without parts that are too small."""
        inside = probability >= self.threshold
        if self.min_volume_ml > 0:
            parts, count = ndimage.label(inside, structure=EVERYWHERE)
            large = np.bincount(parts.ravel(), minlength=count + 1) * voxel_ml >= self.min_volume_ml
            inside &= large[parts]
        return inside.astype(np.uint8)

    def _tensor(self, image: NDArray[np.float32]) -> Tensor:
        """[1, 1, X, Y, Z] on the model's device."""
        return torch.from_numpy(np.array(image, dtype=np.float32))[None, None].to(self.model.device)

    def _logits(self, prepared: Prepared) -> tuple[Tensor, float]:
        """Mask logits [X', Y', Z'] of overlapping windows, blended with Gaussian weights."""
        scores: list[Tensor] = []

        def predictor(window: Tensor) -> Tensor:
            answer = self.model(window)
            scores.append(answer.ich.float())
            masks: Tensor = answer.masks.float()
            return masks

        from monai.inferers.utils import sliding_window_inference  # seconds to import; trainings start without it

        blended = sliding_window_inference(
            self._tensor(prepared.image),
            (self.model.side,) * 3,
            self.windows_per_batch,
            predictor,
            overlap=self.overlap,
            mode="gaussian",
            cval=prepared.background,
        )
        assert isinstance(blended, Tensor)  # noqa: S101 - one tensor in, one tensor out
        return blended[0, 0], float(torch.sigmoid(torch.cat(scores)).max())

    def _prompted(self, prepared: Prepared, clicks: Sequence[Click], flipped: Sequence[int]) -> tuple[Tensor, float]:
        """Mask logits from windows around clicks; those are of the stored volume, which is `flipped` on the grid."""
        shape = np.array(prepared.grid.shape)
        logits = np.full(shape, _NEVER, dtype=np.float32)
        scores = [0.0]
        for corner, inside in _click_windows(prepared, clicks, side=self.model.side, flipped=flipped):
            window = self._tensor(cut(prepared.image, corner, (self.model.side,) * 3, fill=prepared.background))
            positions = torch.tensor([[position for position, _ in inside]], device=window.device)
            labels = torch.tensor([[int(label) for _, label in inside]], device=window.device)
            found = self.model.after_clicks(window, positions, labels)
            answer = found.masks[0, 0].float().cpu().numpy()
            low, high = np.maximum(corner, 0), np.minimum(corner + self.model.side, shape)
            there = tuple(slice(*ends) for ends in zip(low, high, strict=True))
            here = tuple(slice(*ends) for ends in zip(low - corner, high - corner, strict=True))
            logits[there] = np.maximum(logits[there], answer[here])
            scores.append(float(torch.sigmoid(found.ich.float())))
        return torch.from_numpy(logits), max(scores)


def _click_windows(
    prepared: Prepared, clicks: Sequence[Click], *, side: int, flipped: Sequence[int] = ()
) -> Iterator[tuple[NDArray[np.int64], list[tuple[list[float], bool]]]]:
    """Corners [3] of windows that cover all clicks, with the clicks in each, relative to the corner.

    Raises:
        UserError: A click is outside the volume.
    """
    voxels = np.array([click.voxel for click in clicks], dtype=np.float64).reshape(-1, 3)
    native = prepared.grid.native_shape
    if not ((voxels >= -0.5) & (voxels <= np.array(native) - 0.5)).all():  # NaN is outside
        raise UserError(f"a click lies outside the volume of {' x '.join(map(str, native))} voxels; indices begin at 0")
    # Clipped, because a click on the outer face may come out beyond it by rounding, and no window would hold it.
    points = prepared.grid.from_native(voxels).clip(-0.5, np.array(prepared.grid.shape) - 0.5)
    for axis in flipped:
        points[:, axis] = prepared.grid.shape[axis] - 1 - points[:, axis]
    allowed = starts(prepared.grid.shape, size=side)
    left = list(range(len(clicks)))
    while left:
        corner = np.clip(np.round(points[left[0]] - side / 2).astype(np.int64), allowed[:, 0], allowed[:, 1])
        relative = points - corner
        covered = [i for i, point in enumerate(relative) if (point >= -0.5).all() and (point <= side - 0.5).all()]
        yield corner, [(relative[i].tolist(), clicks[i].inside) for i in covered]
        left = [i for i in left if i not in covered]


def clicks_from_mask(mask: NDArray[np.uint8], affine: NDArray[np.float64]) -> list[Click]:
    """One click in each lesion (26 neighbours), at the voxel farthest from its surface.

    Args:
        mask: [X, Y, Z], stored order.
        affine: Voxel index to RAS+ mm; ties are broken in R, A, S order, so that they do not depend on the storage.
    """
    axes: Any = io_orientation(affine)  # type: ignore[no-untyped-call]
    back: Any = inv_ornt_aff(axes, mask.shape)  # type: ignore[no-untyped-call]
    canonical: Any = apply_orientation(mask, axes)  # type: ignore[no-untyped-call]
    labels, count = ndimage.label(canonical, structure=EVERYWHERE)
    clicks = []
    for index, box in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        depth = ndimage.distance_transform_edt(np.pad(labels[box] == index, 1))[1:-1, 1:-1, 1:-1]
        deepest = np.unravel_index(int(depth.argmax()), depth.shape)
        place = [start.start + offset for start, offset in zip(box, deepest, strict=True)]
        x, y, z, _ = (back @ [*place, 1]).tolist()
        clicks.append(Click((x, y, z)))
    return clicks

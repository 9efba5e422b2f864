"""Whole volumes through the model: the one path that validation, `predict.py` and pictures share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from apps.sam_med3d_ich.data.preprocess import EVERYWHERE, Prepared, Preprocessing, prepare, to_native
from apps.sam_med3d_ich.data.volume import Volume
from apps.sam_med3d_ich.model.ich import IchModel

_NEVER = -20.0  # logit of voxels that no window with a click covers


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
        ich_score: Probability of "there is a haemorrhage": that of the most suspicious window.
    """

    probability: NDArray[np.float32]
    mask: NDArray[np.uint8]
    ich_score: float


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """Segments volumes of any size.

    Attributes:
        model: The network; it runs on the device its parameters are on.
        preprocessing: How volumes come to the model's grid.
        overlap: Share of a window that the next one covers again, 0..1.
        threshold: Probability from which a voxel belongs to the mask.
        windows_per_batch: Windows that go through the model together.
    """

    model: IchModel
    preprocessing: Preprocessing
    overlap: float = 0.5
    threshold: float = 0.5
    windows_per_batch: int = 1

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
        with torch.inference_mode():
            logits, score = self._logits(ready) if clicks is None else self._prompted(ready, clicks)
            probability = to_native(torch.sigmoid(logits), ready.grid)
        return Segmentation(probability, (probability >= self.threshold).astype(np.uint8), score)

    @property
    def _side(self) -> int:
        return self.model.sam.shape.image_size

    def _tensor(self, prepared: Prepared) -> Tensor:
        device = next(self.model.parameters()).device
        return torch.from_numpy(np.array(prepared.image, dtype=np.float32))[None, None].to(device)

    def _logits(self, prepared: Prepared) -> tuple[Tensor, float]:
        """Mask logits [X', Y', Z'] of overlapping windows, blended with Gaussian weights."""
        scores: list[Tensor] = []

        def predictor(window: Tensor) -> Tensor:
            answer = self.model(window)
            scores.append(answer.ich.float())
            return answer.masks.float()

        blended = sliding_window_inference(
            self._tensor(prepared),
            (self._side,) * 3,
            self.windows_per_batch,
            predictor,
            overlap=self.overlap,
            mode="gaussian",
            cval=prepared.background,
        )
        assert isinstance(blended, Tensor)  # noqa: S101 - one tensor in, one tensor out
        return blended[0, 0], float(torch.sigmoid(torch.cat(scores)).max())

    def _prompted(self, prepared: Prepared, clicks: Sequence[Click]) -> tuple[Tensor, float]:
        """Mask logits from windows around clicks, each answered and then refined once, as in training."""
        image = self._tensor(prepared)
        logits = torch.full_like(image, _NEVER)
        scores = [0.0]
        for corner, inside in _click_windows(prepared, clicks, side=self._side):
            box, padding = _box(corner, prepared.grid.shape, side=self._side)
            window = F.pad(image[box], padding, value=prepared.background)
            positions = torch.tensor([[position for position, _ in inside]], device=image.device)
            labels = torch.tensor([[int(label) for _, label in inside]], device=image.device)
            embedding = self.model.encode(window)
            _, ich = self.model.head(embedding)
            blank = embedding.new_zeros(1, 1, *(4 * size for size in embedding.shape[2:]))
            first = self.model.segment(embedding, points=(positions, labels), mask=blank)
            answer = self.model.enlarge(self.model.segment(embedding, mask=first)).float()
            there = logits[box]
            logits[box] = torch.maximum(there, answer[(..., *(slice(0, n) for n in there.shape[2:]))])
            scores.append(float(torch.sigmoid(ich.float())))
        return logits[0, 0], max(scores)


def _click_windows(
    prepared: Prepared, clicks: Sequence[Click], *, side: int
) -> Iterator[tuple[tuple[int, ...], list[tuple[list[float], bool]]]]:
    """Corners of windows that cover all clicks, with the clicks in each, relative to the corner."""
    points = prepared.grid.from_native(np.array([click.voxel for click in clicks], dtype=np.float64).reshape(-1, 3))
    left = list(range(len(clicks)))
    while left:
        centre = points[left[0]]
        corner = tuple(
            int(np.clip(round(c - side / 2), 0, max(0, n - side)))
            for c, n in zip(centre, prepared.grid.shape, strict=True)
        )
        relative = points - np.array(corner)
        covered = [i for i in range(len(clicks)) if (relative[i] > -0.5).all() and (relative[i] < side - 0.5).all()]
        yield corner, [(relative[i].tolist(), clicks[i].inside) for i in covered]
        left = [i for i in left if i not in covered and i != left[0]]


def _box(
    corner: Sequence[int], shape: Sequence[int], *, side: int
) -> tuple[tuple[slice, ...], list[int]]:
    """Index of a window in [1, 1, X', Y', Z'], and what `F.pad` must add at the far ends."""
    stops = [min(start + side, size) for start, size in zip(corner, shape, strict=True)]
    missing = [side - (stop - start) for start, stop in zip(corner, stops, strict=True)]
    index = (slice(None), slice(None), *(slice(start, stop) for start, stop in zip(corner, stops, strict=True)))
    return index, [value for amount in reversed(missing) for value in (0, amount)]


def clicks_from_mask(mask: NDArray[np.uint8]) -> list[Click]:
    """One click in each lesion (26 neighbours) of a mask [X, Y, Z], at the voxel farthest from its surface."""
    labels, count = ndimage.label(mask, structure=EVERYWHERE)
    clicks = []
    for index, box in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        depth = ndimage.distance_transform_edt(np.pad(labels[box] == index, 1))[1:-1, 1:-1, 1:-1]
        deepest = np.unravel_index(int(depth.argmax()), depth.shape)
        x, y, z = (float(start.start + offset) for start, offset in zip(box, deepest, strict=True))
        clicks.append(Click((x, y, z)))
    return clicks

"""Training crops that leave no lesion out, and whole cases for evaluation.

A dataset's item only says what to cut; `CropTransform`, which the loader calls with a generator keyed by seed, epoch
and sample, places the crop, cuts and changes it: other crops each epoch, the same ones on any number of workers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.augment import Augmentation, plain_crop
from quartet.apps.sam_med3d_ich.data.cache import Cache, CachedCase, open_entry
from quartet.apps.sam_med3d_ich.data.case import Case, load_case
from quartet.apps.sam_med3d_ich.data.crops import Target, cover, place, starts

__all__ = ["CaseDataset", "CropDataset", "CropTransform", "missed_components"]


class CropDataset:
    """What to cut in an epoch: crops around all lesions, and some anywhere.

    Every connected component of every mask is in at least one crop. Those that fit into a crop lie in it entirely; one
    larger than the crop gets a crop centred on a random voxel of it.

    Items are dicts for `CropTransform`: `index` (of the case), `case` (`CachedCase`, memory maps), `target` (what the
    crop must hold, or None for a crop anywhere).

    Args:
        cases: What to train on; those not in the cache yet are prepared now.
        cache: Where prepared cases are.
        crop_size: Side of the cubic crop in voxels of the target grid.
        random_crops: Crops anywhere, per case, besides those around lesions.

    Raises:
        UserError: There are no crops, or a case cannot be prepared.
    """

    def __init__(self, cases: Sequence[Case], *, cache: Cache, crop_size: int, random_crops: int = 1) -> None:
        self.crop_size = crop_size
        self.components: list[int] = []  # of each case
        self._items: list[tuple[int, Target | None]] = []
        for index, case in enumerate(cases):
            boxes = cache.read(case).boxes
            self.components.append(len(boxes))
            self._items += [(index, target) for target in cover(boxes, size=crop_size)]
            self._items += [(index, None)] * random_crops
        self._entries = [cache.entry(case) for case in cases]
        if not self._items:
            raise UserError("no training crops: no case has a lesion and random_crops is 0; set it to 1 or more")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case, target = self._items[index]
        # Mapped anew for each crop, in well under a millisecond: maps kept open use up the process's open files.
        return {"index": case, "case": open_entry(self._entries[case]), "target": target}


@dataclass(frozen=True, kw_only=True)
class CropTransform:
    """Makes a training sample of an item of `CropDataset`.

    The sample: `image` float32 [1, S, S, S]; `mask` uint8 [1, S, S, S] of 0 and 1; `label` float32 [], 1 if the crop
    holds a mask voxel; `draws` float32 [n_draws], uniform in [0, 1), where asked for.

    Attributes:
        crop_size: Side S of the crop, that of the dataset.
        augmentation_prob: Probability of each change of `Augmentation`; 0 only places crops at random.
        n_draws: Random numbers to hand on, for steps that are random but must not depend on workers or ranks.
        trace: Also give `index` (of the case) and `components` int32 [1, S, S, S], for `missed_components`.
    """

    crop_size: int
    augmentation_prob: float = 0.0
    n_draws: int = 0
    trace: bool = False

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A function of its arguments only."""
        case, target = sample["case"], sample["target"]
        draws = rng.random(self.n_draws, dtype=np.float32)
        start = _start(case, target, size=self.crop_size, rng=rng)
        image, components = self._crop(case, start, keep=() if target is None else target.components, rng=rng)
        mask = (components > 0).astype(np.uint8)
        made: dict[str, Any] = {
            "image": torch.from_numpy(np.ascontiguousarray(image))[None],
            "mask": torch.from_numpy(np.ascontiguousarray(mask))[None],
            "label": torch.tensor(float(mask.any())),
        }
        if self.n_draws:
            made["draws"] = torch.from_numpy(draws)
        if self.trace:
            made["index"] = sample["index"]
            made["components"] = torch.from_numpy(components.astype(np.int32))[None]
        return made

    def _crop(
        self, case: CachedCase, start: NDArray[np.int64], *, keep: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.unsignedinteger[Any]]]:
        if self.augmentation_prob == 0:
            return plain_crop(case, start, size=self.crop_size)
        changes = Augmentation(probability=self.augmentation_prob)
        image, components = changes.spatial(case, start, size=self.crop_size, keep=keep, rng=rng)
        return changes.intensity(image, rng), components


class CaseDataset:
    """Whole cases as stored, for evaluation: dicts of `volume`, `mask` (uint8, stored order), `ich`, `name`, `index`.

    Args:
        cases: Which.
        array_spacing: Voxel size in mm of images that carry none, see `read_volume`.
    """

    def __init__(self, cases: Sequence[Case], *, array_spacing: tuple[float, float, float] | None = None) -> None:
        self.cases = tuple(cases)
        self.array_spacing = array_spacing

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        volume, mask = load_case(case, array_spacing=self.array_spacing)
        return {"volume": volume, "mask": mask, "ich": case.ich, "name": case.name, "index": index}


def missed_components(dataset: CropDataset, batches: Iterable[Mapping[str, Any]]) -> set[tuple[int, int]]:
    """Lesions that the crops of an epoch did not show; it should be empty.

    Args:
        dataset: Where the crops come from.
        batches: Those of a whole epoch, made by a `CropTransform` with `trace`.

    Returns:
        Case index and component number (from 1) of each lesion without a voxel in any crop.
    """
    missed = {(case, number + 1) for case, count in enumerate(dataset.components) for number in range(count)}
    for batch in batches:
        for case, components in zip(batch["index"].tolist(), batch["components"], strict=True):
            missed -= {(case, number) for number in components.unique().tolist()}
    return missed


def _start(case: CachedCase, target: Target | None, *, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the corner of a crop."""
    shape = case.image.shape
    allowed = starts(shape, size=size)
    if target is None:
        return rng.integers(allowed[:, 0], allowed[:, 1] + 1)
    if (target.box[:, 1] - target.box[:, 0]).max() <= size:
        return place(target.box, shape, size=size, rng=rng)
    (number,) = target.components
    box = tuple(slice(first, last) for first, last in target.box.tolist())
    voxels = np.argwhere(case.components[box] == number)
    centre = voxels[rng.integers(len(voxels))] + target.box[:, 0]
    start: NDArray[np.int64] = np.clip(centre - size // 2, allowed[:, 0], allowed[:, 1])
    return start

"""Random changes of training pages through albumentations: what scanners, copiers and cameras do to paper.

Nothing is mirrored: pages are full of letters. Every number comes from the given generator, so that a page's pixels in
an epoch are the same whichever worker makes them.
"""

import os
import random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from albumentations import Compose

__all__ = ["PageAugmentation"]

_SMALLEST = 8  # pixels; OpenCV drops axes of length 1, and there is nothing to vary


class PageAugmentation:
    """`augmentation(sample, rng)` returns the sample with its `image` (uint8 [H, W, 1 or 3], same size) changed.

    It also gets a `key` for `mixing.Mixing`: a random number that belongs to this page in this epoch.

    light: a degree or two and a few percent of turn, size and place, a little light. page: more of these, and now and
    then thicker or thinner ink, uneven light, noise, blur, compression, and hidden parts.

    Args:
        name: How much; "none" adds the key only.
    """

    def __init__(self, name: Literal["none", "light", "page"]) -> None:
        self.name = name
        self._changes: Compose | None = None

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A function of its arguments only."""
        sample = {**sample, "key": int(rng.integers(2**63))}
        image = sample["image"]
        if self.name == "none" or min(image.shape[:2]) < _SMALLEST:
            return sample
        if self._changes is None:
            self._changes = _changes(self.name)
        # Both generators that albumentations draws from; its own seeds would differ between workers.
        self._changes.set_random_state(rng, random.Random(int(rng.integers(2**63))))  # noqa: S311 - not a secret
        changed = self._changes(image=image)["image"]
        return {**sample, "image": changed.reshape(image.shape)}

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_changes": None}  # made anew in each worker


def _changes(name: Literal["light", "page"]) -> "Compose":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would otherwise ask the network
    import albumentations as A  # noqa: N812 - heavy, and only for runs that augment
    import cv2

    cv2.setNumThreads(0)  # loader workers share the cores already
    edge = {"border_mode": cv2.BORDER_CONSTANT, "fill": 255}  # more paper
    if name == "light":
        return A.Compose(
            [
                A.Affine(scale=(0.95, 1.05), translate_percent=(-0.03, 0.03), rotate=(-1.5, 1.5), **edge, p=0.8),
                A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=0.5),
            ]
        )
    return A.Compose(
        [
            A.Affine(
                scale={"x": (0.85, 1.15), "y": (0.85, 1.15)},
                translate_percent=(-0.06, 0.06),
                rotate=(-4, 4),
                shear=(-2, 2),
                **edge,
                p=0.9,
            ),
            A.OneOf([A.Morphological(scale=(2, 2), operation=kind) for kind in ("erosion", "dilation")], p=0.15),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.6),
            A.Illumination(intensity_range=(0.05, 0.2), p=0.2),
            A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.2)), A.GaussNoise(std_range=(0.02, 0.08))], p=0.3),
            A.ImageCompression(quality_range=(30, 90), p=0.3),
            A.CoarseDropout(
                num_holes_range=(1, 4), hole_height_range=(0.04, 0.15), hole_width_range=(0.04, 0.2), fill=255, p=0.3
            ),
        ]
    )

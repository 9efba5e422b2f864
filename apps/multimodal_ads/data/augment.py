"""Random changes of training samples; those of pictures through albumentations.

Nothing is mirrored: ads are full of letters. Every number comes from the given generator, so that a sample's pixels in
an epoch are the same whichever worker makes them.
"""

import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlcore.data.loader import Transform

if TYPE_CHECKING:
    from albumentations import Compose

__all__ = ["Augmentation", "InTurn", "TextDropout"]

_SMALLEST = 8  # pixels; OpenCV drops axes of length 1, and there is nothing to vary


class Augmentation:
    """`augmentation(sample, rng)` returns the sample with its `image` (uint8 [H, W, 3], same size) changed.

    weak: a few degrees and percent of turn, size and place, a little light. strong: more of these, a change of
    perspective and colour, sometimes grey, blurred, noisy or badly compressed, with small parts hidden.

    Args:
        name: How much.
    """

    def __init__(self, name: Literal["weak", "strong"]) -> None:
        self.name = name
        self._changes: Compose | None = None

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A function of its arguments only."""
        image = sample["image"]
        if min(image.shape[:2]) < _SMALLEST:
            return sample
        if self._changes is None:
            self._changes = _changes(self.name)
        # Both generators that albumentations draws from; its own seeds would differ between workers.
        self._changes.set_random_state(rng, random.Random(int(rng.integers(2**63))))  # noqa: S311 - not a secret
        return {**sample, "image": self._changes(image=image)["image"]}

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_changes": None}  # made anew in each worker


class TextDropout:
    """`dropout(sample, rng)` adds `hide_text`, now and then true: the model is then told that the text is missing.

    Without it the texts of a small training set are learned by heart before the picture has been looked at (modality
    dropout, Neverova et al. 2016).

    Args:
        probability: How often, 0..1.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A function of its arguments only."""
        return {**sample, "hide_text": bool(rng.random() < self.probability)}


class InTurn:
    """Several changes, one after the other.

    Args:
        changes: Each `(sample, rng) -> sample`.
    """

    def __init__(self, changes: Sequence[Transform]) -> None:
        self.changes = tuple(changes)

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A function of its arguments only."""
        for change in self.changes:
            sample = change(sample, rng)
        return sample


def _changes(name: Literal["weak", "strong"]) -> "Compose":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would otherwise ask the network
    import albumentations as A  # noqa: N812 - heavy, and only for runs that augment
    import cv2

    cv2.setNumThreads(0)  # loader workers share the cores already
    edge = cv2.BORDER_REPLICATE
    if name == "weak":
        return A.Compose(
            [
                A.Affine(scale=(0.95, 1.05), translate_percent=(-0.04, 0.04), rotate=(-3, 3), border_mode=edge, p=0.8),
                A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=0.8),
            ]
        )
    return A.Compose(
        [
            A.Affine(
                scale=(0.8, 1.2),
                translate_percent=(-0.1, 0.1),
                rotate=(-10, 10),
                shear=(-5, 5),
                border_mode=edge,
                p=0.9,
            ),
            A.Perspective(scale=(0.02, 0.06), border_mode=edge, p=0.3),
            A.ColorJitter(brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.6, 1.4), hue=(-0.04, 0.04), p=0.8),
            A.ToGray(p=0.05),
            A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.5)), A.GaussNoise(std_range=(0.02, 0.08))], p=0.3),
            A.ImageCompression(quality_range=(35, 90), p=0.4),
            A.CoarseDropout(
                num_holes_range=(1, 4), hole_height_range=(0.05, 0.15), hole_width_range=(0.05, 0.15), fill=127, p=0.3
            ),
        ]
    )

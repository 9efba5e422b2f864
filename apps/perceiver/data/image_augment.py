"""Augmentation of images that were cut into patches: put together, changed as uint8, cut again."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.rand_augment import rand_augment

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation:
    """Flip, shift, colour change, erasing and RandAugment; ``transform(sample, rng)``.

    A sample also gets a `key` for `mlcore.data.mixing`: a random number that belongs to this picture in this epoch.

    Attributes:
        layout: How the dataset cut its images (``ImagePatches.layout``).
        flip: Mirror left and right with probability a half.
        shift: Shift by up to this many pixels either way (pad with the edge, then crop).
        colour: Brightness, contrast and saturation change by up to this share, in [0, 1).
        erase: Paint one rectangle of up to this share of each side with noise, in [0, 1).
        randaugment: Strength of ``rand_augment``, in [0, 10].
    """

    layout: PatchLayout
    flip: bool = True
    shift: int = 4
    colour: float = 0.0
    erase: float = 0.0
    randaugment: float = 0.0

    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        """Transforms a sample."""
        image = self.changed(self.layout.image(np.asarray(sample["input"])), rng)
        return {**sample, "input": self.layout.sequence(image), "key": int(rng.integers(2**63))}

    def changed(self, image: Image, rng: np.random.Generator) -> Image:
        """A picture uint8 ``[H, W, 3]``, changed, of the same size."""
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        if self.shift:
            image = _shift(image, self.shift, rng)
        if self.colour:
            image = _change_colour(image, self.colour, rng)
        if self.erase:
            image = _erase(image, self.erase, rng)
        if self.randaugment:
            image = rand_augment(image, rng, magnitude=self.randaugment)
        return image


def image_augmentation(
    layout: PatchLayout,
    *,
    strength: Literal["none", "strong", "weak"],
    randaugment: float = 0.0,
    keyed: bool = False,
) -> ImageAugmentation | None:
    """Named strengths: weak flips and shifts by an eighth; strong also changes colours and erases.

    None if nothing is to be done; `keyed` asks for the keys alone, if nothing else.
    """
    if strength == "none":
        nothing = ImageAugmentation(layout=layout, flip=False, shift=0, randaugment=randaugment)
        return nothing if randaugment or keyed else None
    much = 0.4 if strength == "strong" else 0.0
    shift = max(1, layout.height // 8)
    return ImageAugmentation(layout=layout, shift=shift, colour=much, erase=much, randaugment=randaugment)


def _shift(image: Image, pixels: int, rng: np.random.Generator) -> Image:
    height, width, _ = image.shape
    top, left = rng.integers(0, 2 * pixels + 1, size=2)
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    shifted: Image = padded[top : top + height, left : left + width]
    return shifted


def _change_colour(image: Image, share: float, rng: np.random.Generator) -> Image:
    brightness, contrast, saturation = rng.uniform(1 - share, 1 + share, size=3)
    pixels = image.astype(np.float32) * brightness
    pixels = pixels.mean() + contrast * (pixels - pixels.mean())
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 luma
    pixels = grey[..., None] + saturation * (pixels - grey[..., None])
    changed: Image = np.rint(pixels.clip(0, 255)).astype(np.uint8)
    return changed


def _erase(image: Image, share: float, rng: np.random.Generator) -> Image:
    height, width = (int(rng.integers(0, int(share * side) + 1)) for side in image.shape[:2])
    top = int(rng.integers(0, image.shape[0] - height + 1))
    left = int(rng.integers(0, image.shape[1] - width + 1))
    changed = image.copy()
    changed[top : top + height, left : left + width] = rng.integers(0, 256, size=(height, width, 3))
    return changed

"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719): some of 14 changes of a picture, all of one strength.

torchvision and timm have it, too, but draw from generators of the process; here a picture's changes follow from the
generator given, so that a run that goes on sees the same pixels.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

__all__ = ["OPERATIONS", "rand_augment"]

_GREY = (128, 128, 128)  # where a moved picture leaves nothing

Change = Callable[[Image.Image, float], Image.Image]


def _moved(image: Image.Image, strength: float, *, matrix: tuple[float, float, float, float]) -> Image.Image:
    """Sheared and shifted: of columns, then of rows, what the other axis adds and a share of the picture's side."""
    x, right, y, down = (strength * number for number in matrix)
    affine = (1, x, right * image.width, y, 1, down * image.height)
    return image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=_GREY)


def _rotated(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=_GREY)


def _enhanced(image: Image.Image, strength: float, *, what: Callable[[Image.Image], Any]) -> Image.Image:
    changed: Image.Image = what(image).enhance(1 + 0.9 * strength)
    return changed


OPERATIONS: Mapping[str, Change] = {
    "identity": lambda image, _: image,
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": _rotated,
    "solarize": lambda image, strength: ImageOps.solarize(image, round(256 * (1 - abs(strength)))),
    "posterize": lambda image, strength: ImageOps.posterize(image, round(8 - 4 * abs(strength))),
    "colour": partial(_enhanced, what=ImageEnhance.Color),
    "contrast": partial(_enhanced, what=ImageEnhance.Contrast),
    "brightness": partial(_enhanced, what=ImageEnhance.Brightness),
    "sharpness": partial(_enhanced, what=ImageEnhance.Sharpness),
    "shear_x": partial(_moved, matrix=(0.3, 0.0, 0.0, 0.0)),
    "shear_y": partial(_moved, matrix=(0.0, 0.0, 0.3, 0.0)),
    "translate_x": partial(_moved, matrix=(0.0, 0.45, 0.0, 0.0)),
    "translate_y": partial(_moved, matrix=(0.0, 0.0, 0.0, 0.45)),
}
"""Each takes a picture and a strength in [-1, 1], of which 0 changes nothing where there is a strength."""


def rand_augment(
    image: NDArray[np.uint8], rng: np.random.Generator, *, magnitude: float, operations: int = 2
) -> NDArray[np.uint8]:
    """Changes a picture.

    Args:
        image: uint8 ``[H, W, 3]``.
        rng: Draws which changes, and which way each goes.
        magnitude: Strength in [0, 10].
        operations: Number of changes, one after another.
    """
    changes = list(OPERATIONS.values())
    picture = Image.fromarray(image)
    for number in rng.integers(len(changes), size=operations):
        picture = changes[number](picture, magnitude / 10 * (1 if rng.random() < 0.5 else -1))
    return np.asarray(picture, dtype=np.uint8)

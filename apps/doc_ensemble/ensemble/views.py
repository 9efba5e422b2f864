"""Views of a page for test-time augmentation: fixed functions of the pixels, nothing random.

Where a training pipeline would apply an augmentation with some probability, here its views always count, and the
probability is their weight in the mean beside the page as it is, whose weight is 1: a horizontal flip of probability
0.5 gives (page + 0.5 flip) / 1.5. A kind with several views gives each of them that weight.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as pixels_of

from mlcore.base.errors import UserError

__all__ = ["IDENTITY", "View", "ViewKind", "with_identity"]


_PAPER = 1.0  # white, as in training, where rotated and scaled pages get more of it, too


@dataclass(frozen=True)
class View:
    """One way to look at pages.

    Attributes:
        name: Such as "rotation_90".
        weight: In the mean over views, above 0; the page as it is has 1.
        apply: Pixels float32 [B, C, H, W] in 0..1 to pixels of the same shape, range and layout.
    """

    name: str
    weight: float
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ViewKind:
    """One entry of a list of augmentations; the fields that its type does not name are without effect.

    Attributes:
        type: "horizontal_flip"; "vertical_flip"; "rotation", a view per angle; "color_jitter", a view with more and one
            with less of brightness and contrast each; "multi_scale", a view per scale.
        probability: The views' weight, above 0 up to 1.
        degrees: "rotation": counter-clockwise, of 90, 180 and 270. A page that is not square is squeezed back into its
            shape after a quarter turn.
        brightness: "color_jitter": by which share, 0 (none) up to 1.
        contrast: "color_jitter": likewise.
        scales: "multi_scale": above 0; a larger page loses its margins, a smaller one gets wider margins.
    """

    type: Literal["horizontal_flip", "vertical_flip", "rotation", "color_jitter", "multi_scale"]
    probability: float = 1.0
    degrees: Sequence[int] = (90, 180, 270)
    brightness: float = 0.1
    contrast: float = 0.1
    scales: Sequence[float] = (0.8, 1.2)

    def views(self) -> list[View]:
        """Its views, in the order in which they are written above.

        Raises:
            UserError: An angle is none of the three.
        """
        odd = sorted(set(self.degrees) - {90, 180, 270})
        if odd:
            raise UserError(f"rotation by {odd[0]} degrees: only 90, 180 and 270 are views")
        match self.type:
            case "horizontal_flip":
                found = [("horizontal_flip", pixels_of.horizontal_flip)]
            case "vertical_flip":
                found = [("vertical_flip", pixels_of.vertical_flip)]
            case "rotation":
                found = [(f"rotation_{angle}", partial(_rotate, degrees=angle)) for angle in self.degrees]
            case "color_jitter":
                found = [
                    (f"{name}_{factor:g}", partial(change, **{f"{name}_factor": factor}))
                    for name, amount, change in (
                        ("brightness", self.brightness, pixels_of.adjust_brightness),
                        ("contrast", self.contrast, pixels_of.adjust_contrast),
                    )
                    if amount
                    for factor in (1 + amount, 1 - amount)
                ]
            case "multi_scale":
                found = [(f"scale_{scale:g}", partial(_scale, factor=scale)) for scale in self.scales if scale != 1]
        return [View(name, self.probability, apply) for name, apply in found]


IDENTITY = View("original", 1.0, lambda pixels: pixels)
"""The page as it is."""


def with_identity(kinds: Sequence[ViewKind]) -> tuple[View, ...]:
    """The views of all kinds, behind the page as it is.

    Raises:
        UserError: A kind changes nothing, or one view is there twice (which would only add to its weight).
    """
    views = [IDENTITY]
    for kind in kinds:
        found = kind.views()
        if not found:
            raise UserError(f"the augmentation {kind.type} changes nothing: give it values, or leave it out")
        views += found
    repeated = [name for name, count in Counter(view.name for view in views).items() if count > 1]
    if repeated:
        raise UserError(f"the view {repeated[0]!r} is listed twice in the augmentations; raise its probability instead")
    return tuple(views)


def _rotate(pixels: Tensor, *, degrees: int) -> Tensor:
    turned = torch.rot90(pixels, degrees // 90, dims=(2, 3))
    return turned if turned.shape == pixels.shape else _resize(turned, pixels.shape[2], pixels.shape[3])


def _scale(pixels: Tensor, *, factor: float) -> Tensor:
    height, width = pixels.shape[2:]
    scaled = _resize(pixels, max(1, round(height * factor)), max(1, round(width * factor)))
    if factor > 1:
        cropped: Tensor = pixels_of.center_crop(scaled, [height, width])
        return cropped
    canvas = torch.full_like(pixels, _PAPER)
    top, left = (height - scaled.shape[2]) // 2, (width - scaled.shape[3]) // 2
    canvas[:, :, top : top + scaled.shape[2], left : left + scaled.shape[3]] = scaled
    return canvas


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)

"""A small picture with its caption, for a sheet of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        image: ``[H, W, 3]`` uint8; None is drawn as an empty frame (unreadable).
        caption: what matters, in lines.
        text: a line of small print, such as text found in the picture; not drawn where no font has its glyphs.
        alarm: whether the caption is set in the colour of mistakes.
    """

    image: NDArray[np.uint8] | None
    caption: str
    text: str = ""
    alarm: bool = False

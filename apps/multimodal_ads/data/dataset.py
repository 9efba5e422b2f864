"""Rows of a table as samples for the loader."""

from collections.abc import Sequence
from typing import Any

from mlcore.data.images import read_image
from quartet.apps.multimodal_ads.data.table import AdRow

__all__ = ["AdDataset"]


class AdDataset:
    """Samples are dicts of `index` (of the row), `label` (1: ad), `has_text` (bool) and `image` uint8 [H, W, 3], RGB.

    Args:
        rows: What to read.
        max_pixels: Larger images are refused before they are decoded.
        with_images: Without it samples have no `image` and no file is opened.
    """

    def __init__(self, rows: Sequence[AdRow], *, max_pixels: int, with_images: bool = True) -> None:
        self.rows = tuple(rows)
        self.max_pixels = max_pixels
        self.with_images = with_images

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        sample: dict[str, Any] = {"index": index, "label": row.label, "has_text": bool(row.text)}
        if self.with_images:
            sample["image"] = read_image(row.image, max_pixels=self.max_pixels)
        return sample

"""Data sets for `--check_data`: what reading an item raises is what is wrong with its file."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from quartet.apps.perceiver.config import DataConfig
from quartet.apps.perceiver.data.images import decode_image
from quartet.apps.perceiver.data.inspection import Needs, check_sample
from quartet.apps.perceiver.data.samples import SampleDataset, origin_of, prevailing

__all__ = ["CheckedSamples", "ImageFiles"]


class ImageFiles:
    """Image files, which must have the size that most of them have; items are their shapes.

    Args:
        files: Where they are.
        image_size: Side to which they are resized, in pixels; None: not at all.
        max_pixels: Larger ones are refused before they are decoded.
    """

    def __init__(self, files: Sequence[Path], *, image_size: int | None, max_pixels: int) -> None:
        self._files, self._image_size, self._max_pixels = files, image_size, max_pixels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        shape = self._shape(index)
        if shape != self._expected:
            sizes = [f"{height} x {width}" for height, width, _ in (shape, self._expected)]
            raise UserError(f"{self._files[index]}: {sizes[0]} pixels where others have {sizes[1]}; set image_size")
        return shape

    @cached_property
    def _expected(self) -> tuple[int, ...]:
        return prevailing(self._shapes()) or ()

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        """Of those that can be read."""
        for index in range(len(self)):
            with suppress(UserError):
                yield self._shape(index)

    def _shape(self, index: int) -> tuple[int, ...]:
        path = self._files[index]
        picture = decode_image(path, origin=str(path), image_size=self._image_size, max_pixels=self._max_pixels)
        return picture.shape


class CheckedSamples:
    """Samples, checked as before a training.

    Args:
        dataset: The samples.
        num_classes: How many classes there are.
        settings: Which lengths are allowed.
        known: Why files were left out before; each message counts as an item after the samples.
    """

    def __init__(self, dataset: SampleDataset, *, num_classes: int, settings: DataConfig, known: Sequence[str]) -> None:
        self._dataset, self._num_classes, self._settings, self._known = dataset, num_classes, settings, known

    def __len__(self) -> int:
        return len(self._dataset) + len(self._known)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self._dataset):
            raise UserError(self._known[index - len(self._dataset)])
        origin = origin_of(self._dataset, index)
        try:
            return check_sample(
                self._dataset[index],
                num_classes=self._num_classes,
                max_seq_len=self._settings.max_seq_len,
                on_too_long=self._settings.on_too_long,
                needs=Needs(names=getattr(self._dataset, "channels", ())),
            )[2]
        except UserError as error:
            raise UserError(str(error) if str(error).startswith(origin) else f"{origin}: {error}") from None

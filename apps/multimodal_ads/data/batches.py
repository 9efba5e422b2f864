"""Samples with pixels or features, texts or embeddings, and batches as the classifier takes them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlcore.data.images import read_image
from quartet.apps.multimodal_ads.data.table import AdRow
from quartet.apps.multimodal_ads.features import FeatureStore
from quartet.apps.multimodal_ads.text.encoder import AnyTextEncoder
from quartet.apps.multimodal_ads.text.facts import text_facts
from quartet.apps.multimodal_ads.vision.interface import Processor, Tokens

__all__ = ["KnownFeatures", "Pixels", "SampleSource", "collate"]

KnownFeatures = tuple[FeatureStore, Sequence[str]]
"""A store, and the digest of each sample's content."""


class SampleSource:
    """The rows of a table as samples, which carry their features where these are known.

    Samples are dicts of "label" (1: ad), "has_text" (bool), "image" uint8 [H, W, 3], RGB, or in its place "features"
    (the store's row) where picture features are known, "embedding" float [Dt] where text features are, else "text"; and
    perhaps "facts".

    Args:
        rows: What to read.
        max_pixels: Larger images are refused before they are decoded.
        decode_side: See `read_image`.
        with_images: Without it, and where their features are known, no image is opened.
        pictures: Features of the pictures.
        texts: Features of the texts.
        with_texts: Whether texts are looked at.
        with_facts: Whether `text_facts` are told.
    """

    def __init__(
        self,
        rows: Sequence[AdRow],
        *,
        max_pixels: int,
        decode_side: int | None = None,
        with_images: bool = True,
        pictures: KnownFeatures | None = None,
        texts: KnownFeatures | None = None,
        with_texts: bool = True,
        with_facts: bool = False,
    ) -> None:
        self.rows = tuple(rows)
        self._read = partial(read_image, max_pixels=max_pixels, decode_side=decode_side)
        self._with_images = with_images and pictures is None
        self._pictures = pictures
        self._texts = texts
        self._with_texts = with_texts
        self._with_facts = with_facts

    @property
    def knows_pictures(self) -> bool:
        """Whether samples carry picture features."""
        return self._pictures is not None

    @property
    def knows_texts(self) -> bool:
        """Whether samples carry text features."""
        return self._texts is not None

    def count_tokens(self, encoder: AnyTextEncoder) -> Tensor:
        """See `TextEncoder.count_tokens`, int64 [N]; known features know it."""
        if self._texts is None:
            return encoder.count_tokens([row.text for row in self.rows])
        store, digests = self._texts
        return torch.tensor([int(store[digest]["tokens"]) for digest in digests])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        sample: dict[str, Any] = {"label": row.label, "has_text": bool(row.text)}
        if self._with_images:
            sample["image"] = self._read(row.image)
        if self._pictures is not None:
            store, digests = self._pictures
            sample["features"] = store[digests[index]]
        if self._texts is not None:
            store, digests = self._texts
            sample["embedding"] = store[digests[index]]["embedding"]
        elif self._with_texts:
            sample["text"] = row.text
        if self._with_facts:
            sample["facts"] = text_facts(row.text)
        return sample


class Pixels:
    """Puts the backbone's input in place of a sample's image.

    Args:
        processor: From images to that input.
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with "pixels", the processor's tensors without their batch dimension."""
        rest = {key: value for key, value in sample.items() if key != "image"}
        return {**rest, "pixels": {key: value[0] for key, value in self._processor([sample["image"]]).items()}}


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch for `AdClassifier` of a list of samples.

    Returns:
        "label" int64 [B], "has_text" bool [B] (what the model is told), "real_text" bool [B] (hidden ones, too); and,
        by what the samples carry, "pixels", "pooled" [B, D] or "tokens" (`Tokens`), and "text" [B, Dt] or "texts" (a
        list), and "text_facts" [B, F].
    """
    batch: dict[str, Any] = {
        "label": torch.tensor([sample["label"] for sample in samples]),
        "has_text": torch.tensor([sample["has_text"] and not sample.get("hide_text") for sample in samples]),
        "real_text": torch.tensor([sample["has_text"] for sample in samples]),
    }
    first = samples[0]
    if "pixels" in first:
        batch["pixels"] = {key: torch.stack([sample["pixels"][key] for sample in samples]) for key in first["pixels"]}
    if "features" in first:
        rows = {key: _stack([sample["features"][key] for sample in samples]) for key in first["features"]}
        batch.update(as_inputs(rows))
    if "embedding" in first:
        batch["text"] = _stack([sample["embedding"] for sample in samples])
    if "text" in first:
        batch["texts"] = [sample["text"] for sample in samples]
    if "facts" in first:
        batch["text_facts"] = torch.tensor([sample["facts"] for sample in samples])
    return batch


def as_inputs(rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """Stored picture features, "pooled" [B, D] or "values" [B, T, D] with "mask" [B, T], as the classifier's inputs."""
    if "pooled" in rows:
        return {"pooled": rows["pooled"]}
    return {"tokens": Tokens(rows["values"], rows.get("mask"), None)}


def _stack(arrays: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))

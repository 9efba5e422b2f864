"""Raw samples before and in a training: looked at once, varied at random, put together to batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quartet.apps.perceiver.data.augment import Pipeline
from quartet.apps.perceiver.data.image_augment import ImageAugmentation
from quartet.apps.perceiver.data.inspection import Tally, check_classes, look_at
from quartet.apps.perceiver.data.raw import Modality, Raw
from quartet.apps.perceiver.data.samples import SampleDataset

__all__ = ["RawAugmentation", "RawCollate", "RawInspection", "inspect_raw"]


@dataclass(frozen=True, kw_only=True)
class RawInspection:
    """What a dataset of raw samples holds.

    Attributes:
        kept: Indices of the samples that can be used, int64 ``[N]``.
        lengths: Their tokens, int64 ``[N]``.
        problems: One message for each sample left out.
        class_counts: Samples of each class.
        longest: Most tokens of a value, by modality.
        scales: Means and deviations of the channels of each series, by modality.
        rows: Label and value of each line of a table.
    """

    kept: NDArray[np.int64]
    lengths: NDArray[np.int64]
    problems: Sequence[str]
    class_counts: Sequence[int]
    longest: Mapping[str, int]
    scales: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    rows: Sequence[tuple[str, str]]


def inspect_raw(
    dataset: SampleDataset,
    *,
    classes: Sequence[str],
    modalities: Sequence[Modality],
    name: str,
    on_bad_sample: Literal["error", "skip"] = "error",
    every_class: bool = False,
) -> RawInspection:
    """Reads every sample once; as ``inspect_dataset``."""
    kept, labels, lengths = list[int](), list[int](), list[int]()
    sizes: dict[str, list[int]] = {modality.name: [] for modality in modalities}
    longest = dict.fromkeys(sizes, 1)
    one: Mapping[str, Any] = {"classes": ("",), "limit": None, "on_too_long": "error"}
    tallies = {modality.name: Tally(**one) for modality in modalities if modality.kind == "series"}

    def add(index: int, sample: Any) -> None:
        tokens = 0
        for modality in modalities:
            if (value := sample["input"].get(modality.name)) is not None:
                tokens += (own := modality.tokens(value))
                sizes[modality.name].append(len(value))
                longest[modality.name] = max(longest[modality.name], own)
                if modality.name in tallies:
                    tallies[modality.name].add(index, {"input": value, "label": 0})
        kept.append(index)
        labels.append(sample["label"])
        lengths.append(tokens)

    problems = look_at(dataset, add, name=name, on_bad_sample=on_bad_sample)
    check_classes(labels, classes, name=name, every_class=every_class)
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    found = {key: tally.result(name, ()).statistics for key, tally in tallies.items() if tally.kept}
    named = ", ".join(f"{label} {count}" for label, count in zip(classes, counts, strict=True))
    return RawInspection(
        kept=np.array(kept),
        lengths=np.array(lengths),
        problems=problems,
        class_counts=counts,
        longest=longest,
        scales={key: (statistics.mean, statistics.std) for key, statistics in found.items()},
        rows=[
            ("samples", f"{len(kept)} ({len(problems)} skipped)"),
            ("classes", f"{len(classes)}: {named}"),
            *((modality.name, _spread(modality, sizes[modality.name])) for modality in modalities),
            ("tokens", f"{min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}"),
        ],
    )


def _spread(modality: Modality, sizes: Sequence[int]) -> str:
    if not sizes:
        return "none"
    if modality.kind == "image":
        return f"{len(sizes)} have it, {' x '.join(map(str, modality.size))} pixels"
    unit = "bytes" if modality.kind == "text" else f"steps of {modality.size[0]} channels"
    return f"{len(sizes)} have it, {min(sizes)} to {max(sizes)} {unit}, mean {np.mean(sizes):.0f}"


@dataclass(frozen=True, kw_only=True)
class RawAugmentation:
    """Varies a training sample, and hides modalities; ``transform(sample, rng)``.

    Without the latter a model learns to look at the modality that is learned first, and at little else (modality
    dropout, Neverova et al. 2016, arXiv 1501.00102).

    Attributes:
        pictures: Changes of pictures, by modality.
        series: Changes of all series.
        dropout: How often each modality is hidden, in [0, 1); one always stays.
    """

    pictures: Mapping[str, ImageAugmentation] = field(default_factory=dict)
    series: Pipeline | None = None
    dropout: float = 0.0

    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        """Transforms a sample."""
        values: dict[str, Raw] = dict(sample["input"])
        if self.dropout:
            hidden = rng.random(len(values)) < self.dropout
            hidden[rng.integers(len(values))] &= not hidden.all()
            values = {name: value for (name, value), gone in zip(values.items(), hidden, strict=True) if not gone}
        for name, value in values.items():
            if name in self.pictures:
                values[name] = self.pictures[name].changed(value, rng)
            elif self.series is not None and value.dtype == np.float32:
                values[name] = self.series({"input": value}, rng)["input"]
        return {**sample, "input": values}


@dataclass(frozen=True, kw_only=True)
class RawCollate:
    """Makes a batch; absent modalities take no place in it.

    Attributes:
        modalities: Those of the model, in its order.
    """

    modalities: Sequence[Modality]

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Makes a batch of B samples.

        Returns:
            ``input``: by modality the values of those n samples that have it, one after another, at least one (of
            nothing): text uint8 ``[n, L, patch]``, 0 where padded; image uint8 ``[n, H, W, 3]``; series float32
            ``[n, L, patch, C]``, NaN where padded. And of each sample and modality, int64 ``[B, K]``: ``length``, its
            tokens, and ``row``, its place among the n. ``mask`` bool ``[B, M]``: true for as many tokens as a sample
            has in all; ``label`` int64 ``[B]``.
        """
        found: dict[str, Tensor] = {}
        length = np.zeros((len(samples), len(self.modalities)), dtype=np.int64)
        row = np.zeros_like(length)
        for number, modality in enumerate(self.modalities):
            values = [sample["input"][modality.name] for sample in samples if modality.name in sample["input"]]
            there = np.array([modality.name in sample["input"] for sample in samples])
            length[there, number] = [modality.tokens(value) for value in values]
            row[there, number] = np.arange(len(values))
            found[modality.name] = torch.from_numpy(_stacked(modality, values))
        total = torch.from_numpy(length.sum(axis=1, keepdims=True))
        return {
            "input": {**found, "length": torch.from_numpy(length), "row": torch.from_numpy(row)},
            "mask": torch.arange(int(total.max())) < total,
            "label": torch.tensor([int(sample["label"]) for sample in samples], dtype=torch.int64),
        }


def _stacked(modality: Modality, values: Sequence[Raw]) -> Raw:
    count, size = max(len(values), 1), tuple(modality.size)
    if modality.kind == "image":
        return np.stack(values) if values else np.zeros((1, *size, 3), dtype=np.uint8)
    tokens = max((modality.tokens(value) for value in values), default=1)
    text = modality.kind == "text"
    stacked = np.full((count, tokens * modality.patch, *size), 0 if text else np.nan, np.uint8 if text else np.float32)
    for place, value in enumerate(values):
        stacked[place, : len(value)] = value
    return stacked.reshape(count, tokens, modality.patch, *size)

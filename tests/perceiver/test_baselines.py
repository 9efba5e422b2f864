"""Plain models beside the network: what they are given, and that they learn from it."""

from typing import Any

import numpy as np
import torch

from quartet.apps.perceiver.baselines import baselines
from quartet.apps.perceiver.data.images import LabelledImages
from quartet.apps.perceiver.data.patches import ImagePatches
from quartet.apps.perceiver.data.samples import SequenceDataset, Subset
from tests.perceiver.test_mini_rocket import waves


def judged(found: Any) -> dict[str, float]:
    """Accuracy by split, after a look at the rows."""
    accuracies = {}
    for name, rows in found.items():
        torch.testing.assert_close(rows["probabilities"].sum(dim=1), torch.ones(len(rows["label"])))
        accuracies[name] = float((rows["probabilities"].argmax(dim=1) == rows["label"]).float().mean())
    return accuracies


def test_series_of_any_length_with_hidden_positions() -> None:
    parts = {}
    for seed, name in enumerate(("train", "val", "test")):
        series, labels = waves(40, seed=seed)
        junk = [np.concatenate([one, np.full((3, 2), np.nan, dtype=np.float32)]) for one in series]
        masks = [np.arange(len(one)) < len(one) - 3 for one in junk]
        parts[name] = SequenceDataset(junk, labels=labels * 2, classes="abc", masks=masks)
    (baseline,) = baselines(parts, classes=3, layout=None, max_seq_len=60)
    assert "MiniRocket" in baseline.name
    found = judged(baseline.predict())
    assert found.keys() == {"val", "test"}
    assert min(found.values()) > 0.9
    assert baseline.predict()["val"]["probabilities"][:, 1].max() == 0, "a class that nobody has"


def test_pictures() -> None:
    labels = np.arange(40) % 2
    pixels = np.random.default_rng(0).integers(0, 128, (40, 8, 16, 3)) + 64 * labels[:, None, None, None]
    images = pixels.astype(np.uint8)
    data = LabelledImages(images=images, labels=labels, classes=("dark", "light"), origins=("",) * 40)
    patches = ImagePatches(data, patch_size=4)
    parts = {"train": Subset(patches, indices=range(30)), "val": Subset(patches, indices=range(30, 40))}
    (baseline,) = baselines(parts, classes=2, layout=patches.layout)
    assert judged(baseline.predict()) == {"val": 1.0}

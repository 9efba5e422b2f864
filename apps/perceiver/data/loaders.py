"""Ready-made torch data loaders, for notebooks and examples; training itself uses ``mlcore.data``."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from quartet.apps.perceiver.data.cifar import load_cifar10
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.patches import ImagePatches
from quartet.apps.perceiver.data.synthetic import SyntheticPatterns


def create_synthetic_sequence_dataloader(
    batch_size: int = 32,
    *,
    num_samples: int = 1000,
    seq_len_range: tuple[int, int] = (50, 200),
    feature_dim: int = 64,
    num_classes: int = 5,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader[Any]:
    """Loads ``SyntheticPatterns``.

    Args:
        batch_size: Samples of a batch.
        num_samples: Number of sequences.
        seq_len_range: Shortest and longest sequence in positions.
        feature_dim: Channels.
        num_classes: Number of classes.
        shuffle: New order in each epoch.
        seed: Names data and order.

    Returns:
        Batches ``{"input": float32 [B, M, C], "label": int64 [B], "mask": bool [B, M]}``.
    """
    dataset = SyntheticPatterns(
        num_samples, seq_len_range=seq_len_range, feature_dim=feature_dim, num_classes=num_classes, seed=seed
    )
    order = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, collate_fn=PadCollate(), generator=order)


def create_cifar10_sequence_dataset(
    batch_size: int = 32,
    *,
    patch_size: int = 8,
    data_dir: str | Path = "data",
    split: Literal["train", "test"] = "train",
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader[Any]:
    """Loads CIFAR-10 as patch sequences.

    Args:
        batch_size: Samples of a batch.
        patch_size: Side of the square patches in pixels; divides 32.
        data_dir: Where ``cifar-10-python.tar.gz`` or ``cifar-10-batches-py`` is.
        split: Which images.
        shuffle: New order in each epoch.
        seed: Names the order.

    Returns:
        Batches ``{"input": float32 [B, M, C], "label": int64 [B], "mask": bool [B, M]}``; M = (32 / patch_size)².

    Raises:
        UserError: If CIFAR-10 is not there; nothing is downloaded.
    """
    dataset = ImagePatches(load_cifar10(Path(data_dir), split), patch_size=patch_size)
    order = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, collate_fn=PadCollate(), generator=order)

"""The loaders under the name that they had as one file, for scripts in this folder: `import data_utils`."""

from quartet.apps.perceiver.data import create_cifar10_sequence_dataset, create_synthetic_sequence_dataloader

__all__ = ["create_cifar10_sequence_dataset", "create_synthetic_sequence_dataloader"]

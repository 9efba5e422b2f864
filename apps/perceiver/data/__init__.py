"""Sequences with classes: generated patterns, images, ``.ts`` and ``.npz`` files, and any dataset of such samples."""

from quartet.apps.perceiver.data.arrays import read_npz
from quartet.apps.perceiver.data.augment import Pipeline, series_augmentation
from quartet.apps.perceiver.data.cifar import load_cifar10
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.image_augment import ImageAugmentation, image_augmentation
from quartet.apps.perceiver.data.images import ImageSource, LabelledImages
from quartet.apps.perceiver.data.inspection import DatasetStatistics, Inspection, inspect_dataset
from quartet.apps.perceiver.data.loaders import create_cifar10_sequence_dataset, create_synthetic_sequence_dataloader
from quartet.apps.perceiver.data.modalities import UnifiedPreprocessor
from quartet.apps.perceiver.data.patches import ImagePatches, PatchLayout
from quartet.apps.perceiver.data.samples import SampleDataset, SequenceDataset, Subset
from quartet.apps.perceiver.data.splits import stratified_split
from quartet.apps.perceiver.data.synthetic import SyntheticPatterns
from quartet.apps.perceiver.data.ts_files import find_ts_files, read_ts

__all__ = [
    "DatasetStatistics",
    "ImageAugmentation",
    "ImagePatches",
    "ImageSource",
    "Inspection",
    "LabelledImages",
    "PadCollate",
    "PatchLayout",
    "Pipeline",
    "SampleDataset",
    "SequenceDataset",
    "Subset",
    "SyntheticPatterns",
    "UnifiedPreprocessor",
    "create_cifar10_sequence_dataset",
    "create_synthetic_sequence_dataloader",
    "find_ts_files",
    "image_augmentation",
    "inspect_dataset",
    "load_cifar10",
    "read_npz",
    "read_ts",
    "series_augmentation",
    "stratified_split",
]

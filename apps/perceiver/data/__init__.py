"""Sequences with classes: generated patterns, images, ``.ts`` and ``.npz`` files, and any dataset of such samples."""

from apps.perceiver.data.arrays import read_npz
from apps.perceiver.data.augment import Pipeline, series_augmentation
from apps.perceiver.data.cifar import load_cifar10
from apps.perceiver.data.collate import PadCollate
from apps.perceiver.data.image_augment import ImageAugmentation, image_augmentation
from apps.perceiver.data.images import ImageSource, LabelledImages
from apps.perceiver.data.inspection import DatasetStatistics, Inspection, inspect_dataset
from apps.perceiver.data.loaders import create_cifar10_sequence_dataset, create_synthetic_sequence_dataloader
from apps.perceiver.data.modalities import UnifiedPreprocessor
from apps.perceiver.data.patches import ImagePatches, PatchLayout
from apps.perceiver.data.samples import SampleDataset, SequenceDataset, Subset
from apps.perceiver.data.splits import stratified_split
from apps.perceiver.data.synthetic import SyntheticPatterns
from apps.perceiver.data.ts_files import find_ts_files, read_ts

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

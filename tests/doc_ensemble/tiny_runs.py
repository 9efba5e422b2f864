"""Runs, snapshots and cross-validations of tiny networks, written as training would leave them but never trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from apps.doc_ensemble.config import DataConfig, DocConfig, ModelConfig
from apps.doc_ensemble.data.folders import read_folders
from apps.doc_ensemble.ensemble.stacking import OutOfFold
from apps.doc_ensemble.model.classifier import create_model
from mlcore.checkpoint import save_checkpoint
from mlcore.config.dump import to_values


def write_checkpoint(
    path: Path, *, seed: int, classes: Sequence[str], data_dir: Path, name: str = "tiny", channels: int = 1
) -> Path:
    """A checkpoint with random weights, which are a function of the seed."""
    size = (64, 48)
    config = DocConfig(
        data=DataConfig(data_dir=data_dir),
        model=ModelConfig(name=name, model_name="test_resnet", pretrained=False, image_size=size, in_channels=channels),
    )
    torch.manual_seed(seed)
    model = create_model(
        "test_resnet", class_names=classes, pretrained=False, image_size=size, in_channels=channels
    ).eval()
    for parameter in model.parameters():  # as they come, all pages look alike to them
        parameter.data = parameter.data * 3
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        path,
        {
            "app": "doc_ensemble",
            "config": to_values(config),
            "model": model.state_dict(),
            "engine": {"ema": {}},
            "task": {"class_names": list(classes), "model": dict(model.facts)},
            "progress": {"step": 1},
        },
    )
    return path


def write_job(
    folder: Path, *, seed: int, classes: Sequence[str], data_dir: Path, name: str = "tiny", folds: int = 2
) -> Path:
    """A finished cross-validation, whose out-of-fold predictions favour the right class."""
    for fold in range(1, folds + 1):
        write_checkpoint(
            folder / "folds" / f"fold_{fold}" / "checkpoints" / "best_model.pth",
            seed=100 * seed + fold, classes=classes, data_dir=data_dir, name=name,
        )  # fmt: skip
    pages = read_folders(data_dir).train
    labels = np.array([page.label for page in pages])
    chances = np.random.default_rng(seed).random((len(pages), len(classes))) + 0.5 * np.eye(len(classes))[labels]
    numbers = np.arange(len(pages)) % folds + 1
    OutOfFold(
        probabilities=(chances / chances.sum(axis=1, keepdims=True))[None],
        labels=labels,
        folds=numbers,
        left_out=numbers[None],
        pages=tuple(page.key for page in pages),
        class_names=tuple(classes),
        member_names=(name,),
    ).save(folder / "out_of_fold.npz")
    return folder

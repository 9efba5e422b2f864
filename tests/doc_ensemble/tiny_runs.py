"""Runs, snapshots and cross-validations of tiny networks, written as training would leave them but never trained."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlcore.config.dump import to_values
from mlcore.config.sections import RunConfig
from mlcore.training.checkpoint import save_checkpoint
from quartet.apps.doc_ensemble.config import DataConfig, DocConfig, ModelConfig
from quartet.apps.doc_ensemble.data.dataset import Fit, PageDataset
from quartet.apps.doc_ensemble.data.folders import read_folders
from quartet.apps.doc_ensemble.ensemble.out_of_fold import OutOfFold
from quartet.apps.doc_ensemble.model.classifier import create_model


def write_checkpoint(
    path: Path,
    *,
    seed: int,
    classes: Sequence[str],
    data_dir: Path,
    name: str = "tiny",
    channels: int = 1,
    trained_on: Sequence[str] | None = None,
    run_seed: int = 0,
    fit: Literal["letterbox", "resize"] = "resize",
) -> Path:
    """A checkpoint with random weights, which are a function of the seed; without `trained_on` an older one."""
    size = (64, 48)
    config = DocConfig(
        data=DataConfig(data_dir=data_dir, fit=fit),
        run=RunConfig(seed=run_seed),
        model=ModelConfig(name=name, model_name="test_resnet", pretrained=False, image_size=size, in_channels=channels),
    )
    torch.manual_seed(seed)
    model = create_model(
        "test_resnet", class_names=classes, pretrained=False, image_size=size, in_channels=channels
    ).eval()
    _spread(model, _some_pages(data_dir, size, channels))
    values = to_values(config)
    if trained_on is None:
        del values["data"]["split_seed"]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        path,
        {
            "app": "doc_ensemble",
            "config": values,
            "model": model.state_dict(),
            "engine": {"ema": {}},
            "task": {
                "class_names": list(classes),
                "model": dict(model.metadata),
                **({} if trained_on is None else {"trained_on": list(trained_on)}),
            },
            "progress": {"step": 1},
        },
    )
    return path


def _spread(model: nn.Module, pixels: Tensor) -> None:
    """Let norms and the last layer fit the pages; as they are made, networks say the same of all of them."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the plain mean over what they see
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        model.train()(pixels)
        logits = model.eval()(pixels)
        last.weight.mul_(2 / logits.std(dim=0, keepdim=True).T)
        last.bias.sub_(last.bias + (model(pixels) - last.bias).mean(dim=0))


@lru_cache
def _some_pages(data_dir: Path, size: tuple[int, int], channels: int) -> Tensor:
    found = read_folders(data_dir).train[:51]
    data = PageDataset(found, max_pixels=10**8, grey=channels == 1, fit=Fit(size, "resize"))
    pixels = [torch.from_numpy(data[row]["image"]).permute(2, 0, 1).float() / 255 for row in range(len(data))]
    return torch.stack(pixels)


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

"""From a checkpoint back to a classifier: what ensembles begin with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from mlcore.run.restore import RunCheckpoint, load_run_checkpoint, of_this_version, outline, rebuild
from quartet.apps.doc_ensemble.config import TEXT, DocConfig
from quartet.apps.doc_ensemble.data.upright import Upright
from quartet.apps.doc_ensemble.model.classifier import DocClassifier, make_model

__all__ = ["CheckpointMember", "fit_of", "restore", "upright_of"]


def fit_of(run: RunCheckpoint[DocConfig]) -> Literal["letterbox", "resize", "text"]:
    """How pages get the size of a run's input; text: it reads their texts."""
    return "text" if run.metadata["model"]["architecture"] == TEXT else run.config.data.fit


def upright_of(run: RunCheckpoint[DocConfig]) -> Upright | None:
    """What rights a run's pages; None: nothing does.

    Raises:
        CheckpointError: What the checkpoint notes of it is none.
    """
    values = run.metadata.get("upright")  # older checkpoints have none
    with of_this_version(run.path):
        return None if values is None else Upright.of(values)


def restore(path: Path, *, device: torch.device) -> DocClassifier:
    """The classifier of a checkpoint of this app, in evaluation mode.

    Args:
        path: `best_model.pth` or any other checkpoint of a run.
        device: Where the model goes.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or no checkpoint of this app.
    """
    read = load_run_checkpoint(path, app="doc_ensemble", config_cls=DocConfig)
    return rebuild(lambda: make_model(read.metadata["model"]), read.weights, source=path).to(device)


class CheckpointMember:
    """A checkpoint as a member of an ensemble (`ensemble.members.Member`); its weights are read when it is loaded.

    `trained_on` are the digests (`Page.digest`) of the pages that it was trained on; None: it is older than these.

    Args:
        name: What it is called in files and tables.
        path: The checkpoint.

    Raises:
        CheckpointError: As `restore`.
    """

    def __init__(self, name: str, path: Path) -> None:
        read = load_run_checkpoint(path, app="doc_ensemble", config_cls=DocConfig)
        model = outline(lambda: make_model(read.metadata["model"]), read.weights, source=path)
        self.name = name
        self.path = path
        self.digest = read.digest
        self.config = read.config
        digests = read.metadata.get("trained_on")
        self.trained_on: frozenset[str] | None = None if digests is None else frozenset(map(str, digests))
        self.class_names: Sequence[str] = tuple(read.metadata["class_names"])
        height, width = model.metadata["image_size"]
        self.image_size: tuple[int, int] = (height, width)
        self.in_channels: int = model.metadata["in_channels"]
        self.fit, self.upright = fit_of(read), upright_of(read)

    def load(self, device: torch.device) -> DocClassifier:
        """The network, ready to predict."""
        return restore(self.path, device=device)

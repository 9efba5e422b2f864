"""From a checkpoint back to a classifier: what ensembles begin with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mlcore.run.restore import load_run_checkpoint, outline, rebuild
from quartet.apps.doc_ensemble.config import DocConfig
from quartet.apps.doc_ensemble.model.classifier import DocClassifier, make_model

__all__ = ["CheckpointMember", "Restored", "restore"]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A trained classifier with what belongs to it.

    Attributes:
        model: Ready to use, in evaluation mode on the chosen device.
        class_names: In the order of the logits.
        config: The training run's configuration.
        step: Training step of the checkpoint.
    """

    model: DocClassifier
    class_names: tuple[str, ...]
    config: DocConfig
    step: int


def restore(path: Path, *, device: torch.device) -> Restored:
    """Load a checkpoint of this app.

    Args:
        path: `best_model.pth` or any other checkpoint of a run.
        device: Where the model goes.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or no checkpoint of this app.
    """
    read = load_run_checkpoint(path, app="doc_ensemble", config_cls=DocConfig)
    model = rebuild(lambda: make_model(read.metadata["model"]), read.weights, source=path).to(device)
    return Restored(model=model, class_names=tuple(read.metadata["class_names"]), config=read.config, step=read.step)


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
        self.fit = read.config.data.fit

    def load(self, device: torch.device) -> DocClassifier:
        """The network, ready to predict."""
        return restore(self.path, device=device).model

"""From a checkpoint back to a model that predicts: what `inference.py`, `predict.py` and `export.py` share."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mlcore.run.restore import RunCheckpoint, load_run_checkpoint, of_this_version, rebuild
from mlcore.training.engine import autocast
from quartet.apps.perceiver.config import ModelConfig, PerceiverConfig
from quartet.apps.perceiver.model import SIZES, PerceiverModel, PerceiverOptions


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A model with what belongs to it.

    Attributes:
        model: In evaluation mode, on the CPU, with the averaged weights where the run kept an average.
        class_names: In the order of the logits.
        metadata: What the training run noted for its users: "model" (constructor arguments), "preprocessing".
        config: The training run's configuration.
        step: Training step of the checkpoint.
    """

    model: PerceiverModel
    class_names: Sequence[str]
    metadata: Mapping[str, Any]
    config: PerceiverConfig
    step: int

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The arithmetic that the run was evaluated in, on `device`."""
        return autocast(self.config.train.precision, device)


def model_settings(config: ModelConfig, *, input_dim: int, num_classes: int, max_seq_len: int) -> dict[str, Any]:
    """Plain constructor arguments of the configured model; `make_model` takes them.

    Args:
        config: The model section; what it leaves open follows from its size.
        input_dim: Channels of a token.
        num_classes: Number of classes.
        max_seq_len: Longest sequence in tokens.
    """
    widths = asdict(SIZES[config.model_size])
    widths.update({key: getattr(config, key) for key in widths if getattr(config, key) is not None})
    options = {
        "position": config.position,
        "position_channels": config.position_channels,
        "max_seq_len": max_seq_len,
        "widening_factor": config.widening_factor,
        "dropout": config.dropout,
        "share_weights": config.share_weights,
        "pooling": config.pooling,
    }
    return {"input_dim": input_dim, "num_classes": num_classes, **widths, "options": options}


def make_model(settings: Mapping[str, Any], *, gradient_checkpointing: bool = False) -> PerceiverModel:
    """The model that `model_settings` describes."""
    arguments = {key: value for key, value in settings.items() if key != "options"}
    options = PerceiverOptions(**settings["options"], gradient_checkpointing=gradient_checkpointing)
    return PerceiverModel(**arguments, options=options)


def restore(path: Path) -> Restored:
    """Load a checkpoint of this app.

    Args:
        path: `best_model.pth` or any other checkpoint of a run.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or no checkpoint of this app.
    """
    return restored(load_run_checkpoint(path, app="perceiver", config_cls=PerceiverConfig))


def restored(read: RunCheckpoint[PerceiverConfig]) -> Restored:
    """The model of a checkpoint that is read."""
    model = rebuild(lambda: make_model(read.metadata["model"]), read.weights, source=read.path)
    with of_this_version(read.path):
        class_names = list(read.metadata["class_names"])
    return Restored(model=model, class_names=class_names, metadata=read.metadata, config=read.config, step=read.step)

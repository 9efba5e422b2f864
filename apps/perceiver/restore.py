"""From a checkpoint back to a model that predicts: what `inference.py`, `predict.py` and `export.py` share."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from apps.perceiver.config import ModelConfig, PerceiverConfig
from apps.perceiver.model import SIZES, PerceiverModel, PerceiverOptions
from mlcore.checkpoint import CheckpointError, inference_weights, load_checkpoint, load_model_weights


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A model with what belongs to it.

    Attributes:
        model: In evaluation mode, on the CPU, with the averaged weights where the run kept an average.
        class_names: In the order of the logits.
        facts: What the training run noted for its users: "model" (constructor arguments), "preprocessing".
        config: The training run's configuration.
        step: Training step of the checkpoint.
    """

    model: PerceiverModel
    class_names: Sequence[str]
    facts: Mapping[str, Any]
    config: PerceiverConfig
    step: int

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The arithmetic that the run was evaluated in, on `device`."""
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.train.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def run_folder(model_path: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; the checkpoint's own folder where it lies elsewhere."""
    folder = model_path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


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
    state = load_checkpoint(path)
    weights = inference_weights(state, source=path)
    if state.get("app") != "perceiver":
        raise CheckpointError(f"{path}: a checkpoint of the app '{state.get('app')}', not of perceiver")
    try:
        facts = state["task"]
        config = PerceiverConfig.model_validate(state["config"], strict=False)
        model = make_model(facts["model"])
        class_names, step = list(facts["class_names"]), int(state["progress"]["step"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not written by this version of the app ({reason})") from None
    load_model_weights(model, weights, source=path)
    return Restored(model=model.eval(), class_names=class_names, facts=facts, config=config, step=step)

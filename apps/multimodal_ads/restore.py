"""From a checkpoint back to a classifier with its encoders: what test.py, predict.py and export.py begin with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlcore.run.restore import another_version, load_run_checkpoint
from mlcore.training.checkpoint import CheckpointError, load_model_weights
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.batches import Pixels
from quartet.apps.multimodal_ads.model.build import Parts, describe, make_parts
from quartet.apps.multimodal_ads.model.classifier import AdClassifier
from quartet.apps.multimodal_ads.outputs import RESULTS
from quartet.apps.multimodal_ads.task import AdTask, Objective

__all__ = ["Restored", "chosen_threshold", "restore"]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A trained classifier with what belongs to it.

    Attributes:
        model: Ready to use, in evaluation mode on the chosen device.
        parts: Its encoders.
        config: The training run's configuration.
        step: Training step of the checkpoint.
    """

    model: AdClassifier
    parts: Parts
    config: AdsConfig
    step: int

    @property
    def task(self) -> AdTask:
        """For `mlcore.training.evaluator`; losses are plain binary cross entropy."""
        return AdTask(model=self.model, objective=Objective(loss_type="bce"), text_encoder=self.parts.text)

    @property
    def prepare(self) -> Pixels | None:
        """Makes the backbone's input of a sample's image; None where pictures are not looked at."""
        return None if self.parts.vision is None else Pixels(self.parts.vision.processor)


def restore(path: Path, *, device: torch.device) -> Restored:
    """Load a checkpoint of this app; the frozen encoders come from where the run had them from.

    Args:
        path: `checkpoint_best.ckpt` or any other checkpoint of a run.
        device: Where the model goes.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or no checkpoint of this app, or was trained on other
            encoders than those that are found now.
        UserError: An encoder's weights cannot be had.
    """
    read = load_run_checkpoint(path, app="multimodal_ads", config_cls=AdsConfig)
    parts = make_parts(read.config, device=device)
    try:
        _compare(read.metadata["frozen_weights"], describe(read.config, parts)["frozen_weights"], path)
    except KeyError as error:
        raise another_version(path, error) from None
    model = parts.classifier()
    load_model_weights(model, read.weights, source=path)
    model.eval().to(device)
    return Restored(model=model, parts=parts, config=read.config, step=read.step)


def _compare(kept: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    for key, what in (("vision_weights", "vision backbone"), ("text_fingerprint", "text encoder")):
        if kept[key] != found[key]:
            raise CheckpointError(
                f"{path}: was trained on another {what} than the one that is found now under the same name; "
                "put the weights back that the run was trained with"
            )


def chosen_threshold(folder: Path) -> tuple[float, str | None] | None:
    """A run's threshold, and the split it was chosen on (None: there was nothing to choose by).

    None where the folder has no results.
    """
    try:
        about = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["threshold"]
        return float(about["value"]), about["chosen_on"]
    except (OSError, ValueError, KeyError, TypeError):
        return None

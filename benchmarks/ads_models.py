"""A SigLIP 2 vision tower with random weights, as a folder in the hub's format; what the ad benchmarks begin with."""

from pathlib import Path
from typing import Any

import torch

from quartet.apps.multimodal_ads.loading import quiet_loading
from quartet.apps.multimodal_ads.vision.published import PUBLISHED

BASE = "google/siglip2-base-patch16-224"


def architecture(*, layers: int, side: int) -> dict[str, Any]:
    """Arguments of transformers' `SiglipVisionConfig`: SigLIP 2 Base, but for these.

    Args:
        layers: Transformer layers (Base has 12).
        side: Height and width of the input, pixels.
    """
    return {**PUBLISHED[BASE].architecture, "num_hidden_layers": layers, "image_size": side}


def write_tower(folder: Path, *, layers: int, side: int) -> Path:
    """Save a tower drawn at random, always the same, with its processor; returns `folder`."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**architecture(layers=layers, side=side)))
    with quiet_loading():
        model.save_pretrained(folder)
    settings = {**PUBLISHED[BASE].processor, "size": {"height": side, "width": side}}
    SiglipImageProcessor(**settings).save_pretrained(folder)
    return folder

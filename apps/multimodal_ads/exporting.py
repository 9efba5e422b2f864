"""What `export.py` does: one file with all weights, one program, and the comparison of both with the checkpoint."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.export import Dim

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, ensure_folder, write_json
from mlcore.remote.hub import find_model
from mlcore.training.checkpoint import load_model_weights
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.model.build import make_parts
from quartet.apps.multimodal_ads.model.classifier import AdClassifier
from quartet.apps.multimodal_ads.restore import Restored, restore
from quartet.apps.multimodal_ads.vision.lora import merge_adapters

TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the largest logit."""

_BATCHES = (2, 1, 3)


class Program(nn.Module):
    """The classifier with plain tensors as its inputs, those that its modality needs.

    Args:
        model: The classifier.
        inputs: Names of the inputs, in order.
    """

    def __init__(self, model: AdClassifier, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits [B]."""
        given = dict(zip(self.inputs, tensors, strict=True))
        pixels = {key: value for key, value in given.items() if key.startswith(("pixel", "spatial"))}
        texts = {key: value for key, value in given.items() if key not in pixels}
        logits: Tensor = self.model({"pixels": pixels, **texts}).logits
        return logits


def export(model_path: Path, folder: Path) -> None:
    """Write `model.safetensors`, `model.json` and, where there can be one, `model.pt2`.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    restored = restore(model_path, device=torch.device("cpu"))
    merged = merge(restored)
    ensure_folder(folder)
    with atomic_write(folder / "model.safetensors") as file:
        file.write(save({key: value.contiguous() for key, value in merged.state_dict().items()}))
    example = example_inputs(restored, _BATCHES[0])
    about = {
        "inputs": {name: ["batch", *value.shape[1:]] for name, value in example.items()},
        "output": {"logits": ["batch"]},
        "text_encoder": restored.config.text_encoder.model_dump(),
        "vision_encoder": restored.config.vision_encoder.model_dump(),
    }
    write_json(folder / "model.json", about)
    (folder / "model.pt2").unlink(missing_ok=True)
    if _can_trace(restored.config):
        batch = Dim("batch")
        shapes = (tuple({0: batch} for _ in example),)
        program = torch.export.export(Program(merged, list(example)), tuple(example.values()), dynamic_shapes=shapes)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        with atomic_write(folder / "model.pt2") as file:
            file.write(buffer.getvalue())


def merge(restored: Restored) -> AdClassifier:
    """The classifier with adapters merged; its state dict then holds every weight."""
    model = restored.model
    if model.vision is not None:
        merge_adapters(model.vision)
    return model.requires_grad_().eval()


def verify(model_path: Path, folder: Path) -> int:
    """Compare both files with the checkpoint's model.

    Raises:
        UserError: They differ.
    """
    eager = restore(model_path, device=torch.device("cpu"))
    rebuilt = _rebuilt(eager.config, folder)
    models: dict[str, Any] = {"model.safetensors": Program(rebuilt, list(example_inputs(eager, 1)))}
    if _can_trace(eager.config):
        models["model.pt2"] = torch.export.load(folder / "model.pt2").module()
    worst = 0.0
    with torch.inference_mode():
        for batch in _BATCHES:
            inputs = example_inputs(eager, batch)
            expected = Program(eager.model, list(inputs))(*inputs.values())
            for name, model in models.items():
                found = model(*inputs.values())
                error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
                worst = max(worst, error)
                if error > TOLERANCE:
                    raise UserError(f"{folder / name}: differs from {model_path} by {error:.2e} (relative)")
    print(f"exported to {folder}: {', '.join(models)}; largest relative difference {worst:.1e}")
    return 0


def example_inputs(restored: Restored, batch: int) -> dict[str, Tensor]:
    """Random inputs of the shapes that the classifier takes."""
    rng = np.random.default_rng(batch)
    inputs: dict[str, Tensor] = {}
    if restored.parts.vision is not None:
        images = [rng.integers(0, 256, (64, 48 + 16 * i, 3), dtype=np.uint8) for i in range(batch)]
        inputs |= restored.parts.vision.processor(images)
    if restored.parts.text_width is not None:
        text = rng.standard_normal((batch, restored.parts.text_width)).astype(np.float32)
        inputs |= {"text": torch.from_numpy(text), "has_text": torch.arange(batch) != 1}
    return inputs


def _rebuilt(config: AdsConfig, folder: Path) -> AdClassifier:
    """The classifier from the exported file alone: no checkpoint, no published weights, no adapters."""
    train = config.train.model_copy(
        update={
            "freeze_backbone": False,
            "finetune_layers": -1,
            "lora": config.train.lora.model_copy(update={"enabled": False}),
        }
    )
    vision = config.vision_encoder
    if vision.pretrained and vision.kind != "timm":  # the architecture as the weights' own folder describes it
        vision = vision.model_copy(update={"model": str(find_model(vision.model, setting="vision_encoder.model"))})
    vision = vision.model_copy(update={"pretrained": False})
    parts = make_parts(config.model_copy(update={"train": train, "vision_encoder": vision}), device=torch.device("cpu"))
    model = parts.classifier().requires_grad_().eval()
    load_model_weights(model, load_file(folder / "model.safetensors"), source=folder / "model.safetensors")
    return model


def _can_trace(config: AdsConfig) -> bool:
    return config.vision_encoder.kind != "siglip2_naflex" or config.train.modality == "text_only"

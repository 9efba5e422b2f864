"""The apps' networks at their real sizes with random weights, and batches: what `benchmarks/gpu.py` measures."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ads_models import write_tower
from mlcore.training.engine import StepOutput
from quartet.apps.doc_ensemble.data.generated import TYPES
from quartet.apps.doc_ensemble.model.classifier import create_model
from quartet.apps.doc_ensemble.task import DocTask
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.model.build import make_parts
from quartet.apps.multimodal_ads.task import AdTask, Objective
from quartet.apps.perceiver.model import create_perceiver_model
from quartet.apps.sam_med3d_ich.losses import dice_cross_entropy
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.sam import PRESETS

Forward = Callable[[nn.Module, Any], StepOutput]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One network and its training step.

    Attributes:
        name: For the tables.
        make: The network on a device, always with the same weights, and its training step.
        batch: So many samples on the host.
        size: Samples of the batch that is measured.
    """

    name: str
    make: Callable[[torch.device], tuple[nn.Module, Forward]]
    batch: Callable[[int], Any]
    size: int


def workloads(*, quick: bool) -> list[Workload]:
    """All of them; the quick ones are small and show that the benchmark works."""
    if quick:
        return [_sam("vit_tiny", 2), _ads(layers=1, side=32, lora=False, size=2), _documents("test_convnext", 64, 2),
                _perceiver("small", 32, 66, 4)]  # fmt: skip
    return [
        _sam("vit_b_ori", 2),
        _ads(layers=12, side=224, lora=False, size=64),
        _ads(layers=12, side=224, lora=True, size=64),
        _documents("convnext_base", 224, 64),
        _perceiver("base", 64, 66, 256),
        _perceiver("base", 2048, 64, 64),
    ]


def _sam(preset: str, size: int) -> Workload:
    side = PRESETS[preset].image_size

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> StepOutput:
        image, target = batch
        return StepOutput(dice_cross_entropy(model(image).masks, target).sum(), len(image))

    def make(device: torch.device) -> tuple[nn.Module, Forward]:
        torch.manual_seed(0)
        return IchModel(PRESETS[preset]).to(device), forward

    def batch(count: int) -> tuple[Tensor, Tensor]:
        image = torch.randn(count, 1, side, side, side, generator=torch.Generator().manual_seed(0))
        return image, (image > 2).to(torch.uint8)

    return Workload(name=f"SAM-Med3D {preset}, {side}^3 voxels", make=make, batch=batch, size=size)


def _ads(*, layers: int, side: int, lora: bool, size: int) -> Workload:
    backbone = {"lora": {"enabled": True}} if lora else {"finetune_layers": -1}

    def make(device: torch.device) -> tuple[nn.Module, Forward]:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "vision_encoder": {
                    "kind": "siglip2",
                    "model": str(write_tower(Path(folder), layers=layers, side=side)),
                },
                "pooling": {"name": "mean"},
                "train": {"modality": "vision_only", "freeze_backbone": False, **backbone},
            }
            model = make_parts(AdsConfig.model_validate(settings), device=device).classifier().to(device)
        task = AdTask(model=model, objective=Objective(loss_type="bce"))
        return model, task.training_step

    def batch(count: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(count, 3, side, side, generator=generator)
        return {"pixels": {"pixel_values": pixels}, "label": torch.randint(0, 2, (count,), generator=generator)}

    return Workload(
        name=f"SigLIP 2, {layers} layers, {side}^2 pixels, {'LoRA' if lora else 'full'}",
        make=make,
        batch=batch,
        size=size,
    )


def _documents(name: str, side: int, size: int) -> Workload:
    def make(device: torch.device) -> tuple[nn.Module, Forward]:
        torch.manual_seed(0)
        model = create_model(name, class_names=TYPES, pretrained=False, image_size=(side, side))
        model = model.to(device).to(memory_format=torch.channels_last)
        return model, DocTask(model=model, class_names=TYPES).training_step

    def batch(count: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(count, 3, side, side, generator=generator)
        return {"pixels": pixels, "label": torch.randint(0, len(TYPES), (count,), generator=generator)}

    return Workload(name=f"{name}, {side}^2 pixels", make=make, batch=batch, size=size)


def _perceiver(model_size: Any, length: int, features: int, size: int) -> Workload:
    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> StepOutput:
        x, label = batch
        return StepOutput(F.cross_entropy(model(x).float(), label, reduction="sum"), len(x))

    def make(device: torch.device) -> tuple[nn.Module, Forward]:
        torch.manual_seed(0)
        return create_perceiver_model(features, 10, model_size).to(device), forward

    def batch(count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(count, length, features, generator=generator)
        return x, torch.randint(0, 10, (count,), generator=generator)

    return Workload(name=f"Perceiver {model_size}, {length} x {features}", make=make, batch=batch, size=size)

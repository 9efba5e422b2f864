"""Low-rank adapters on an encoder's attention, by PEFT (LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import nn

from mlcore.base.errors import UserError

__all__ = ["Adaptable", "adapter_names", "add_adapters", "merge_adapters", "set_training"]

_WAYS_OUT = {
    "backbone": "take one of kind siglip2, siglip2_naflex or vit, or train its last layers with "
    "train.freeze_backbone=false train.finetune_layers=N",
    "text encoder": "take another, such as text_encoder=labse, or train.lora.target=vision",
}


class Adaptable(Protocol):
    """An encoder, of pictures or texts, whose attention can get adapters; a module."""

    @property
    def kind(self) -> Literal["backbone", "text encoder"]:
        """What it is, for messages."""
        ...

    @property
    def backbone(self) -> nn.Module:
        """The library's module, which `projections` are named below."""
        ...

    @property
    def projections(self) -> Sequence[Sequence[str]]:
        """Names of the query, key and value projections of each layer, bottom first."""
        ...


def add_adapters(encoder: Adaptable, *, rank: int, alpha: float, dropout: float, target_layers: int) -> list[str]:
    """Put adapters on the query, key and value projections of the last layers; only they train afterwards.

    An adapter starts as zero: the encoder computes what it did before. Its weights are called `...lora_A...` and
    `...lora_B...` and count `rank * (inputs + outputs)`.

    Args:
        encoder: One with separate query, key and value projections.
        rank: Of an adapter.
        alpha: Adapters' outputs are scaled by `alpha / rank`.
        dropout: Before an adapter, while it trains.
        target_layers: How many of the last layers.

    Returns:
        Names of the adapted projections below `encoder.backbone`, bottom first.

    Raises:
        UserError: The encoder has no such projections (CNNs), or fewer layers.
    """
    layers = encoder.projections
    if not any(layers):
        raise UserError(
            f"train.lora.enabled: this {encoder.kind} has no query, key and value projections for adapters; "
            f"{_WAYS_OUT[encoder.kind]}"
        )
    if target_layers > len(layers):
        raise UserError(f"train.lora.target_layers={target_layers}, but this {encoder.kind} has {len(layers)} layers")
    from peft import LoraConfig, inject_adapter_in_model  # late: it takes seconds, and few runs need it

    names = [name for layer in layers[-target_layers:] for name in layer]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)  # type: ignore[arg-type]
    encoder.backbone.requires_grad_(requires_grad=False)
    inject_adapter_in_model(config, encoder.backbone)
    set_training(encoder.backbone, mode=encoder.backbone.training)
    return names


def adapter_names(encoder: nn.Module) -> list[str]:
    """Names of the adapters' weights in `encoder.state_dict()`."""
    return [name for name, _ in encoder.named_parameters() if ".lora_" in name]


def merge_adapters(encoder: Adaptable) -> None:
    """Add the adapters to the weights below them, in place: plain projections again, named as in the original."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(encoder.backbone.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            encoder.backbone.set_submodule(name, module.get_base_layer())


def set_training(module: nn.Module, *, mode: bool) -> None:
    """Set the training mode; parts without a trainable weight stay in evaluation mode.

    A frozen part must be a fixed function: no dropout, and batch norms that keep their published statistics.
    """
    weights = list(module.parameters())
    module.training = mode and (not weights or any(weight.requires_grad for weight in weights))
    for child in module.children():
        set_training(child, mode=module.training)

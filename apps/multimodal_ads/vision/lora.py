"""Low-rank adapters on a backbone's attention, by PEFT (LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.vision.interface import VisionEncoder

__all__ = ["adapter_names", "add_adapters", "merge_adapters"]


def add_adapters(encoder: VisionEncoder, *, rank: int, alpha: float, dropout: float, target_layers: int) -> list[str]:
    """Put adapters on the query, key and value projections of the last layers; only they train afterwards.

    An adapter starts as zero: the backbone computes what it did before. Its weights are called `...lora_A...` and
    `...lora_B...` and count `rank * (inputs + outputs)`.

    Args:
        encoder: A backbone with separate query, key and value projections.
        rank: Of an adapter.
        alpha: Adapters' outputs are scaled by `alpha / rank`.
        dropout: Before an adapter, while it trains.
        target_layers: How many of the last layers.

    Returns:
        Names of the adapted projections below `encoder.backbone`, bottom first.

    Raises:
        UserError: The backbone has no such projections (CNNs), or fewer layers.
    """
    if not any(encoder.projections):
        raise UserError(
            "train.lora.enabled: this backbone has no query, key and value projections for adapters; take one of kind "
            "siglip2, siglip2_naflex or vit, or train its last layers with train.freeze_backbone=false "
            "train.finetune_layers=N"
        )
    if target_layers > len(encoder.blocks):
        raise UserError(f"train.lora.target_layers={target_layers}, but this backbone has {len(encoder.blocks)} layers")
    from peft import LoraConfig, inject_adapter_in_model  # late: it takes seconds, and few runs need it

    names = [name for block in encoder.projections[-target_layers:] for name in block]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)  # type: ignore[arg-type]
    encoder.requires_grad_(requires_grad=False)
    inject_adapter_in_model(config, encoder.backbone)
    encoder.train(encoder.training)
    return names


def adapter_names(encoder: VisionEncoder) -> list[str]:
    """Names of the adapters' weights in `encoder.state_dict()`."""
    return [name for name, _ in encoder.named_parameters() if ".lora_" in name]


def merge_adapters(encoder: VisionEncoder) -> None:
    """Add the adapters to the weights below them, in place: plain projections again, named as in the original."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(encoder.backbone.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            encoder.backbone.set_submodule(name, module.get_base_layer())

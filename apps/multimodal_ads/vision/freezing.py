"""Which weights of a backbone train."""

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.vision.interface import VisionEncoder

__all__ = ["freeze"]


def freeze(encoder: VisionEncoder, *, layers: int) -> None:
    """Let the last `layers` blocks, and what comes after them, train; freeze the rest.

    Frozen parts stay in evaluation mode, also under `train()`: no dropout, and batch norms keep their statistics.

    Args:
        encoder: The backbone.
        layers: 0: all frozen; -1: all trains.

    Raises:
        UserError: The backbone has fewer blocks.
    """
    if layers > len(encoder.blocks):
        raise UserError(
            f"train.finetune_layers={layers}, but this backbone has {len(encoder.blocks)} layers; -1 trains all of it"
        )
    encoder.requires_grad_(requires_grad=layers == -1)
    if layers > 0:
        for module in [*encoder.blocks[-layers:], *encoder.tail]:
            module.requires_grad_(requires_grad=True)
    encoder.train(encoder.training)

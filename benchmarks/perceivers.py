"""Perceiver classifiers of three projects with the same widths and depth, fed with the same tokens.

All take `x` [B, M, C] whose last `position` channels are position features made beforehand, so that nobody is charged
for how they are computed, and return logits.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quartet.apps.perceiver.model import SIZES, PerceiverModel, PerceiverOptions


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides the size of a Perceiver classifier.

    Attributes:
        channels: Channels of a token, position features included.
        width: Channels of a latent.
        heads: Heads of every attention, each `width / heads` wide.
        latents: Number of latents.
        layers: Self-attention layers after the one cross-attention.
        classes: Number of classes.
        widening: Hidden width of the perceptrons in units of `width`.
    """

    channels: int
    width: int
    heads: int
    latents: int
    layers: int
    classes: int = 10
    widening: int = 1


def shape_of(size: str, *, channels: int, classes: int = 10, widening: int = 1) -> Shape:
    """The widths of one of mlcore's named sizes that has one cross-attention (small, base)."""
    named = SIZES[size]
    if named.num_cross_attention_layers != 1:
        raise ValueError(f"size {size} looks at its input more than once, which transformers' Perceiver does not")
    return Shape(
        channels=channels,
        width=named.d_model,
        heads=named.num_heads,
        latents=named.num_latents,
        layers=named.num_self_attention_layers,
        classes=classes,
        widening=widening,
    )


def ours(shape: Shape, *, pooling: Literal["mean", "query"] = "mean") -> nn.Module:
    """`quartet.apps.perceiver.model.PerceiverModel` without position features of its own."""
    return PerceiverModel(
        shape.channels,
        d_model=shape.width,
        num_heads=shape.heads,
        num_latents=shape.latents,
        num_cross_attention_layers=1,
        num_self_attention_layers=shape.layers,
        num_classes=shape.classes,
        options=PerceiverOptions(position="none", widening_factor=shape.widening, pooling=pooling),
    )


def of_transformers(shape: Shape) -> nn.Module:
    """Transformers' `PerceiverModel` with its classification decoder, put together as its documentation does."""
    library: Any = importlib.import_module("transformers.models.perceiver.modeling_perceiver")
    config_type: Any = importlib.import_module("transformers").PerceiverConfig
    config = config_type(
        num_latents=shape.latents,
        d_latents=shape.width,
        d_model=shape.channels,
        num_blocks=1,
        num_self_attends_per_block=shape.layers,
        num_self_attention_heads=shape.heads,
        num_cross_attention_heads=shape.heads,
        qk_channels=shape.width,
        v_channels=shape.width,
        self_attention_widening_factor=shape.widening,
        cross_attention_widening_factor=shape.widening,
        attention_probs_dropout_prob=0.0,
        num_labels=shape.classes,
    )
    decoder = library.PerceiverClassificationDecoder(
        config,
        num_channels=shape.width,
        num_heads=shape.heads,
        widening_factor=shape.widening,
        trainable_position_encoding_kwargs={"num_channels": shape.width, "index_dims": 1},
        use_query_residual=True,
    )
    return _Logits(library.PerceiverModel(config, decoder=decoder))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.model(inputs=x, attention_mask=mask).logits
        return logits


def of_perceiver_pytorch(shape: Shape) -> nn.Module:
    """perceiver-pytorch's `Perceiver`; its perceptrons are gated and always four times as wide."""
    if shape.widening != 4:
        raise ValueError("perceiver-pytorch has a widening factor of 4 and no other")
    library: Any = importlib.import_module("perceiver_pytorch")
    model: nn.Module = library.Perceiver(
        num_freq_bands=0,
        depth=1,
        max_freq=1.0,
        input_channels=shape.channels,
        input_axis=1,
        num_latents=shape.latents,
        latent_dim=shape.width,
        cross_heads=shape.heads,
        latent_heads=shape.heads,
        cross_dim_head=shape.width // shape.heads,
        latent_dim_head=shape.width // shape.heads,
        num_classes=shape.classes,
        fourier_encode_data=False,
        self_per_cross_attn=shape.layers,
    )
    return model


def parameter_count(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def tokens(shape: Shape, *, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Random tokens [B, M, C] and labels [B]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, shape.channels, generator=generator)
    return x, torch.randint(0, shape.classes, (batch,), generator=generator)

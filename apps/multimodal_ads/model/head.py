"""The classifier on top of the fused vector."""

from collections.abc import Sequence

from torch import nn


def make_head(width: int, *, hidden_dims: Sequence[int], dropout: float) -> nn.Sequential:
    """A perceptron with GELU between its layers, [B, width] to one logit [B, 1].

    Args:
        width: Of the input.
        hidden_dims: Widths of the hidden layers; none gives a linear classifier.
        dropout: Before each layer.
    """
    layers: list[nn.Module] = []
    for inner in hidden_dims:
        layers += [nn.Dropout(dropout), nn.Linear(width, inner), nn.GELU()]
        width = inner
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, 1))

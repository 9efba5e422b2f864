"""Perceiver models; ``create_perceiver_model`` builds a classifier of a named size."""

from quartet.apps.perceiver.model.attention import CrossAttentionBlock, MultiHeadAttention, SelfAttentionBlock
from quartet.apps.perceiver.model.decoder import PerceiverDecoder
from quartet.apps.perceiver.model.encoder import PerceiverEncoder, PerceiverOptions
from quartet.apps.perceiver.model.perceiver import (
    SIZES,
    PerceiverIO,
    PerceiverModel,
    PerceiverSize,
    create_perceiver_model,
)
from quartet.apps.perceiver.model.published import from_transformers, to_transformers
from quartet.apps.perceiver.model.queries import PerceiverQueries

__all__ = [
    "SIZES",
    "CrossAttentionBlock",
    "MultiHeadAttention",
    "PerceiverDecoder",
    "PerceiverEncoder",
    "PerceiverIO",
    "PerceiverModel",
    "PerceiverOptions",
    "PerceiverQueries",
    "PerceiverSize",
    "SelfAttentionBlock",
    "create_perceiver_model",
    "from_transformers",
    "to_transformers",
]

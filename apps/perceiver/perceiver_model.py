"""The models under the name that they had as one file, for scripts in this folder: `import perceiver_model`."""

from quartet.apps.perceiver.model import (
    CrossAttentionBlock,
    MultiHeadAttention,
    PerceiverEncoder,
    PerceiverModel,
    SelfAttentionBlock,
    create_perceiver_model,
)

__all__ = [
    "CrossAttentionBlock",
    "MultiHeadAttention",
    "PerceiverEncoder",
    "PerceiverModel",
    "SelfAttentionBlock",
    "create_perceiver_model",
]

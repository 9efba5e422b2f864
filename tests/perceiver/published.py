"""A folder as transformers leaves one of its Perceivers, made without transformers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from quartet.apps.perceiver.model import PerceiverEncoder, PerceiverOptions, to_transformers


def write_published(folder: Path, *, longest: int = 64) -> PerceiverEncoder:
    """Writes a small encoder of texts, with a decoder's weight beside it, and returns it."""
    torch.manual_seed(0)
    text = {"name": "text", "kind": "text", "patch": 1, "size": [], "longest": longest}
    encoder = PerceiverEncoder(
        0,
        d_model=16,
        num_heads=4,
        num_cross_attention_layers=1,
        num_self_attention_layers=1,
        num_latents=3,
        options=PerceiverOptions(
            modalities=[text], stem_channels=8, position="added", latent_repeats=2, cross_widths={"num_heads": 2}
        ),
    )
    weights, config = to_transformers(encoder)
    named = {f"perceiver.{name}": value.contiguous() for name, value in weights.items()}
    folder.mkdir(parents=True)
    save_file({**named, "embedding_decoder.bias": torch.zeros(262)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "perceiver", **config}))
    return encoder

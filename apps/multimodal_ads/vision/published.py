"""Configurations of published backbones of transformers, so that they can be built without network.

Sources: the `config.json` and `preprocessor_config.json` of the models' pages on the Hugging Face hub; SigLIP 2 sizes
also in Tschannen et al. 2025 (https://arxiv.org/abs/2502.14786), SO400M in Alabdulmohsin et al. 2023
(https://arxiv.org/abs/2305.13035), ViT in Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """One published model.

    Attributes:
        kind: Its family, as in `vision_encoder.kind`.
        architecture: Arguments of the vision configuration class.
        processor: Arguments of the image processor.
    """

    kind: str
    architecture: Mapping[str, Any]
    processor: Mapping[str, Any]


def _transformer(width: int, hidden: int, *, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


_BASE = _transformer(768, 3072, layers=12, heads=12)
_LARGE = _transformer(1024, 4096, layers=24, heads=16)
_SO400M = _transformer(1152, 4304, layers=27, heads=16)

_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2}  # 2: bilinear, as Pillow counts


def _fixed(kind: str, size: Mapping[str, int], *, patch: int, pixels: int) -> Published:
    return Published(
        kind,
        {**size, "patch_size": patch, "image_size": pixels},
        {**_HALF, "size": {"height": pixels, "width": pixels}},
    )


def _naflex(size: Mapping[str, int]) -> Published:
    return Published(
        "siglip2_naflex",
        {**size, "patch_size": 16, "num_patches": 256},
        {**_HALF, "patch_size": 16, "max_num_patches": 256},
    )


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        **{
            f"google/siglip2-{name}-patch{patch}-{pixels}": _fixed("siglip2", size, patch=patch, pixels=pixels)
            for name, size, patch, choices in (
                ("base", _BASE, 16, (224, 256, 384, 512)),
                ("base", _BASE, 32, (256,)),
                ("large", _LARGE, 16, (256, 384, 512)),
                ("so400m", _SO400M, 14, (224, 384)),
                ("so400m", _SO400M, 16, (256, 384, 512)),
            )
            for pixels in choices
        },
        "google/siglip2-base-patch16-naflex": _naflex(_BASE),
        "google/siglip2-so400m-patch16-naflex": _naflex(_SO400M),
        "google/vit-base-patch16-224": _fixed("vit", _BASE, patch=16, pixels=224),
        "google/vit-large-patch16-224": _fixed("vit", _LARGE, patch=16, pixels=224),
    }
)

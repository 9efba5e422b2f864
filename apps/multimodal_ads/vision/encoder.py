"""From the configuration to a vision backbone.

timm and transformers are imported by the functions that need them: each takes seconds, and a run needs at most one.
"""

from collections.abc import Mapping
from typing import Any

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.vision.interface import Processor, Tokens, VisionEncoder
from quartet.apps.multimodal_ads.vision.published import PUBLISHED

__all__ = ["Processor", "Tokens", "VisionEncoder", "load_vision", "make_processor", "make_vision", "meta_vision"]
__all__ += ["outline_vision"]

_LARGEST = 8192
_WAYS_OUT = (
    "Or take vision_encoder=efficientnet_lite0, whose weights come with the requirements, or set "
    "vision_encoder.pretrained=false to start from random weights (weaker with few pictures)."
)


def load_vision(config: VisionEncoderConfig) -> VisionEncoder:
    """Build the backbone, with its processor.

    Weights come from `config.model` if it is a folder (`config.json`, `preprocessor_config.json` and weights as the hub
    has them; timm's have no processor file), else from the hub. With `pretrained=false` they are drawn at random from
    torch's generator; no network is needed then for names in `published.py` and in timm.

    Returns:
        The backbone on the CPU, every weight trainable; see `freezing.freeze`.

    Raises:
        UserError: The model is not known, its weights cannot be had, or they are not exactly those of the model.
    """
    if config.kind == "timm":
        from quartet.apps.multimodal_ads.vision.timm_models import load_timm

        return load_timm(config, ways_out=_WAYS_OUT)
    from quartet.apps.multimodal_ads.vision.transformer_models import load_transformer

    return load_transformer(config, ways_out=_WAYS_OUT)


def outline_vision(config: VisionEncoderConfig) -> dict[str, Any]:
    """Plain values from which `make_vision` makes the backbone again, wherever its files are not.

    Raises:
        UserError: As `load_vision`.
    """
    if config.kind == "timm":
        from quartet.apps.multimodal_ads.vision.timm_models import outline_timm

        return outline_timm(config)
    from quartet.apps.multimodal_ads.vision.transformer_models import outline_transformer

    return outline_transformer(config, ways_out=_WAYS_OUT)


def make_vision(outline: Mapping[str, Any]) -> VisionEncoder:
    """The backbone of `outline_vision`, with random weights."""
    if outline["kind"] == "timm":
        from quartet.apps.multimodal_ads.vision.timm_models import make_timm

        return make_timm(outline)
    from quartet.apps.multimodal_ads.vision.transformer_models import make_transformer

    return make_transformer(outline)


def make_processor(outline: Mapping[str, Any]) -> Processor:
    """What prepares its pictures.

    Raises:
        UserError: They would be larger than any backbone takes.
    """
    if any(side > _LARGEST for side in outline["processor"].get("size", {}).values()):
        raise UserError(f"pictures of more than {_LARGEST} pixels a side; no backbone takes such")
    if outline["kind"] == "timm":
        from quartet.apps.multimodal_ads.vision.timm_models import timm_processor

        return timm_processor(outline["processor"])
    from quartet.apps.multimodal_ads.vision.processors import HubProcessor

    return HubProcessor(outline["kind"], outline["processor"])


def meta_vision(name: str) -> VisionEncoder:
    """A published backbone at full size on the meta device, for counting and for plans; it computes nothing.

    Args:
        name: A name in `published.py`, or one in timm.
    """
    if name in PUBLISHED:
        from quartet.apps.multimodal_ads.vision.transformer_models import meta_transformer

        return meta_transformer(name)
    from quartet.apps.multimodal_ads.vision.timm_models import meta_timm

    return meta_timm(name)

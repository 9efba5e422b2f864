"""From the configuration to a vision backbone.

timm and transformers are imported by the functions that need them: each takes seconds, and a run needs at most one.
"""

from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.vision.interface import Processor, Tokens, VisionEncoder
from quartet.apps.multimodal_ads.vision.published import PUBLISHED

__all__ = ["Processor", "Tokens", "VisionEncoder", "load_vision", "meta_vision"]

_WAYS_OUT = "Or set vision_encoder.pretrained=false to start from random weights (weaker with few pictures)."


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

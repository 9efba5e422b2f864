"""From the configuration to the parts of a classifier: what training and prediction both begin with."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.adapters import Adaptable, add_adapters
from quartet.apps.multimodal_ads.config import AdsConfig, LoraConfig, PoolingConfig
from quartet.apps.multimodal_ads.features import text_digest, weights_digest
from quartet.apps.multimodal_ads.model.classifier import AdClassifier, given
from quartet.apps.multimodal_ads.model.fusion import ConcatFusion, GatedFusion, LateFusion, Single
from quartet.apps.multimodal_ads.model.head import make_head
from quartet.apps.multimodal_ads.model.pooling import AttentionPooling, MeanPooling, SummaryPooling
from quartet.apps.multimodal_ads.text.encoder import AnyTextEncoder, TextEncoder, load_text
from quartet.apps.multimodal_ads.text.facts import FACTS
from quartet.apps.multimodal_ads.text.network import TextNetwork
from quartet.apps.multimodal_ads.text.ngrams import NGRAMS, NgramEmbedding
from quartet.apps.multimodal_ads.vision.encoder import load_vision
from quartet.apps.multimodal_ads.vision.freezing import freeze
from quartet.apps.multimodal_ads.vision.interface import VisionEncoder


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A classifier in parts.

    Attributes:
        config: What they were made from.
        vision: The backbone, frozen and with adapters as configured; None where pictures are not looked at.
        base_digest: Digest of the backbone's architecture and published weights; None without a backbone, and where it
            starts at random.
        pooling: From tokens to a vector; None without a backbone.
        text: The text encoder, as it is published, or what reads n-grams; None where texts are not looked at.
        text_width: Width of what the classifier is told of a text; None without it.
        text_network: The text encoder's network with adapters; None where it is frozen.
    """

    config: AdsConfig
    vision: VisionEncoder | None
    base_digest: str | None
    pooling: nn.Module | None
    text: AnyTextEncoder | None
    text_width: int | None
    text_network: TextNetwork | None = None

    @property
    def vision_is_frozen(self) -> bool:
        """Whether nothing in the backbone trains."""
        return self.vision is None or not any(weight.requires_grad for weight in self.vision.parameters())

    @property
    def tells_facts(self) -> bool:
        """Whether a gate is told facts of texts."""
        return self.config.fusion.text_facts and self.vision is not None and self.text_width is not None

    def classifier(self, *, with_vision: bool = True) -> AdClassifier:
        """The classifier.

        Args:
            with_vision: Without it the backbone stays outside, because its features come with the batches.
        """
        config = self.config
        head = partial(make_head, hidden_dims=config.head.hidden_dims, dropout=config.head.dropout)
        text, seen = config.text_encoder, None if self.vision is None else self.vision.width
        ngrams = None
        read = self.text_width  # without the shortcut's logit
        if read is not None and text.model == NGRAMS:
            ngrams, read = NgramEmbedding(text.buckets, text.width), text.width
        fusion = self._fusion(seen, read)
        branches = None
        if isinstance(fusion, LateFusion) or (config.train.modality_loss and seen and read):
            branches = nn.ModuleList([head(given(seen)), head(given(read))])
        return AdClassifier(
            vision=self.vision if with_vision else None,
            pooling=self.pooling,
            fusion=fusion,
            head=nn.Identity() if isinstance(fusion, LateFusion) else head(fusion.width),
            branches=branches,
            text_width=self.text_width,
            ngrams=ngrams,
            text=self.text_network,
            imagine=nn.Linear(given(seen), given(read)) if config.train.align_weight else None,
        )

    def _fusion(self, seen: int | None, read: int | None) -> GatedFusion | ConcatFusion | LateFusion | Single:
        """Of vectors of these widths."""
        if seen is None or read is None:
            return Single(given(read) if seen is None else seen, projection_dim=self.config.head.projection_dim)
        if self.config.fusion.name == "late":
            return LateFusion()
        if self.config.fusion.name == "gated":
            facts = FACTS if self.config.fusion.text_facts else 0
            return GatedFusion(seen, read, width=self.config.fusion.hidden_dim, facts=facts)
        return ConcatFusion(seen, read)


def make_parts(config: AdsConfig, *, device: torch.device) -> Parts:
    """Load the encoders that the configuration names.

    Args:
        config: The run's.
        device: Where the text encoder computes.

    Raises:
        UserError: Weights cannot be had, or settings do not fit together.
    """
    modality = config.train.modality
    if modality == "text_only" and config.text_encoder.model is None:
        raise UserError("train.modality=text_only needs a text encoder; text_encoder=none has none")
    text: AnyTextEncoder | None = None
    if modality != "vision_only" and config.text_encoder.model is not None:
        text = load_text(config.text_encoder).to(device)
    vision = None if modality == "text_only" else load_vision(config.vision_encoder)
    digest = None
    if vision is not None and config.vision_encoder.pretrained:
        digest = text_digest(f"{vision.architecture} {weights_digest(vision)}")
    return Parts(
        config=config,
        vision=vision if vision is None else _prepare(vision, config),
        base_digest=digest,
        pooling=None if vision is None else _pooling(config.pooling, vision),
        text=text,
        text_width=None if text is None else text.width,
        text_network=_trained_text(text, config) if isinstance(text, TextEncoder) else None,
    )


def bare_parts(config: AdsConfig, *, vision: VisionEncoder | None, text_width: int | None) -> Parts:
    """Parts of a classifier whose weights, frozen ones and merged adapters too, are all loaded afterwards.

    Args:
        config: Sections of the classifier.
        vision: With any weights; None where pictures are not looked at.
        text_width: Width of the text embeddings; None where texts are not looked at.
    """
    if vision is not None and config.pooling.name != "cls":
        vision.drop_summary()
    pooling = None if vision is None else _pooling(config.pooling, vision)
    return Parts(config=config, vision=vision, base_digest=None, pooling=pooling, text=None, text_width=text_width)


def describe(config: AdsConfig, parts: Parts) -> dict[str, Any]:
    """Plain values that a checkpoint carries, so that it is only used with the encoders that it was trained with."""
    return {
        "class_names": ["not_ad", "ad"],
        "frozen_weights": {
            "vision_weights": parts.base_digest if config.vision_encoder.pretrained else None,
            "text_fingerprint": None if parts.text is None else parts.text.fingerprint(),
        },
        "text_width": parts.text_width,
    }


def describe_as_before(config: AdsConfig, parts: Parts) -> dict[str, Any]:
    """`describe` as checkpoints had it when the text encoder was known by all files of its folder."""
    described = describe(config, parts)
    if parts.text is not None:
        described["frozen_weights"]["text_fingerprint"] = parts.text.former_fingerprint()
    return described


def _prepare(vision: VisionEncoder, config: AdsConfig) -> VisionEncoder:
    """Freeze and adapt the backbone."""
    settings = config.train
    if config.pooling.name != "cls":
        vision.drop_summary()
    layers = 0 if settings.freeze_backbone or settings.lora.on_vision else settings.finetune_layers
    if not config.vision_encoder.pretrained and layers != -1:
        raise UserError(
            "vision_encoder.pretrained=false starts at random, so the whole backbone has to be trained: "
            "train.freeze_backbone=false train.finetune_layers=-1"
        )
    freeze(vision, layers=layers)
    if settings.lora.on_vision:
        _adapt(vision, settings.lora)
    if settings.gradient_checkpointing and (layers != 0 or settings.lora.on_vision):
        vision.enable_gradient_checkpointing()
    return vision


def _trained_text(encoder: TextEncoder, config: AdsConfig) -> TextNetwork | None:
    """The text encoder's network, if adapters of it train."""
    if not config.train.lora.on_text:
        return None
    network = encoder.network()
    _adapt(network, config.train.lora)
    if config.train.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


def _adapt(encoder: Adaptable, lora: LoraConfig) -> None:
    add_adapters(encoder, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, target_layers=lora.target_layers)


def _pooling(config: PoolingConfig, vision: VisionEncoder) -> nn.Module:
    if config.name == "attention":
        return AttentionPooling(vision.width, num_heads=config.num_heads)
    return MeanPooling() if config.name == "mean" else SummaryPooling(has_summary=vision.has_summary)

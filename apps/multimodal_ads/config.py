"""Typed configuration of the ad classifier; `quartet.apps.multimodal_ads.build` turns it into objects."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mlcore.config.decision import DecisionConfig
from mlcore.config.protocol import ProtocolConfig
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.section import BEST, Section, field, reject
from mlcore.config.sections import DECODE_SIDE, CheckpointConfig, RunConfig, TrackingConfig, TrainConfig

__all__ = [
    "AdsConfig",
    "AdsTrainConfig",
    "AugmentationConfig",
    "DataConfig",
    "FeaturesConfig",
    "FusionConfig",
    "HeadConfig",
    "LoraConfig",
    "PoolingConfig",
    "TextEncoderConfig",
    "VisionEncoderConfig",
]


class DataConfig(Section):
    """The images, their texts and labels, and the splits."""

    source: Literal["csv", "generated"] = field(
        "csv", "csv: own files, listed in tables; generated: drawn pictures with texts, for the demo"
    )
    base_dir: Path | None = field(
        None,
        "Folder that image paths are relative to and must stay in, and where train.csv, val.csv and test.csv are "
        "looked for; null: each table's own folder",
        env="DATA_DIR",
        continued="applied",
    )
    train_csv: Path | None = field(
        None, "Training table: columns local_image_path, label, text_info", continued="applied"
    )
    val_csv: Path | None = field(
        None, "Validation table; without it a part of the training table is held out", continued="applied"
    )
    test_csv: Path | None = field(
        None, "Test table, evaluated once after training; without both: another part", continued="applied"
    )
    encoding: str = field("utf-8", "Encoding of the tables, such as cp949 or utf-16", min_length=1, continued="applied")
    unmask_text: bool = field(
        default=False,
        description="Undo in texts what hides words from filters: letters of other widths and fonts, invisible "
        "characters, and letters of other scripts that look like Latin ones; predictions do the same",
    )
    val_fraction: float = field(0.15, "Part held out for validation where there is no table for it", gt=0, lt=1)
    test_fraction: float = field(0.15, "Part held out for the test where only the training table is given", ge=0, lt=1)
    split_seed: int = field(
        0, "Names the draw of what is held out; not the training's seed, so that several seeds share one split", ge=0
    )
    allow_duplicates: bool = field(
        default=False, description="Let the same picture be in more than one split, with a warning", continued="applied"
    )
    max_megapixels: float = field(
        100.0, "Larger images are refused before they are decoded", unit="megapixels", gt=0, continued="applied"
    )
    decode_side: int | None = DECODE_SIDE
    num_train: int = field(1200, "generated: training samples", unit="samples", ge=8)
    num_val: int = field(400, "generated: validation samples", unit="samples", ge=8)
    num_test: int = field(400, "generated: test samples", unit="samples", ge=8)
    generated_dir: Path | None = field(
        None, "generated: where they are written; null: outputs/multimodal_ads/generated", continued="applied"
    )


class FeaturesConfig(Section):
    """Outputs of frozen encoders, computed once and kept on the disk."""

    cache: Literal["auto", "off"] = field(
        "auto",
        "auto: texts where their encoder is frozen, pictures where the backbone is and nothing augments them; off: "
        "compute them anew at every step",
        continued="applied",
    )
    cache_dir: Path | None = field(
        None, "Where they are kept, for all runs; null: outputs/multimodal_ads/features", continued="applied"
    )
    encode_batch_size: int = field(
        32,
        "Samples that go through an encoder together when the cache is filled",
        unit="samples",
        ge=1,
        continued="applied",
    )


class VisionEncoderConfig(Section):
    """The vision backbone."""

    kind: Literal["siglip2", "siglip2_naflex", "vit", "timm"] = field(
        "siglip2",
        "Family: SigLIP 2, SigLIP 2 with native aspect ratio, ViT (all three of transformers), or any timm model",
    )
    model: str = field(
        "google/siglip2-so400m-patch14-384",
        "Name on the Hugging Face hub or in timm, or a folder with the weights",
        min_length=1,
    )
    arguments: dict[str, int | float | bool | str | list[int]] = field(
        {}, "timm: further arguments of the architecture, such as {channels: [32, 64, 128, 256]} of a narrower ResNet"
    )
    pretrained: bool = field(default=True, description="Load the published weights; otherwise start at random")
    image_size: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] | None = field(
        None, "Height and width of the input; null: the model's own", unit="pixels"
    )
    max_patches: int = field(256, "siglip2_naflex: most patches of a picture", unit="patches", ge=4)


class TextEncoderConfig(Section):
    """The text encoder: a frozen sentence encoder, or n-grams that are trained with the classifier."""

    model: str | None = field(
        "sentence-transformers/LaBSE",
        "A sentence-transformers model: name on the Hugging Face hub, a folder, or an installed package that carries "
        "one; ngrams: hashed n-grams of words and characters, trained here; null: no text",
    )
    buckets: int = field(65536, "ngrams: what they are hashed to, half for words and half for characters", ge=2)
    width: int = field(32, "ngrams: width of a text's embedding", unit="features", ge=1)
    prefix: str = field("", "Put before every text, as some encoders were trained")
    max_length: int | None = field(
        None,
        "Texts are cut to this, at most as many as the model has positions for; null: the model's own limit",
        unit="tokens",
        ge=8,
    )
    chunks: int = field(
        1,
        "Texts that are longer are read in up to this many overlapping chunks of that length, whose embeddings are "
        "averaged by tokens; 1: they are cut",
        unit="chunks",
        ge=1,
        le=64,
    )


class PoolingConfig(Section):
    """From the backbone's tokens to one vector."""

    name: Literal["mean", "cls", "attention"] = field(
        "attention", "mean of all tokens; cls: the backbone's own summary; attention: learned weights"
    )
    num_heads: int = field(8, "attention: heads", unit="heads", ge=1)


class FusionConfig(Section):
    """How picture and text come together."""

    name: Literal["gated", "concat", "late"] = field(
        "gated",
        "gated: gated multimodal unit (GMU); concat: both vectors at unit length, side by side; late: a logit of each, "
        "added with learned weights",
    )
    hidden_dim: int = field(512, "gated: width", unit="features", ge=1)
    text_facts: bool = field(
        default=False,
        description="gated: tell the gate how long a text is, and its shares of letters, digits and other signs",
    )

    @model_validator(mode="after")
    def _check_facts(self) -> Self:
        if self.text_facts and self.name != "gated":
            reject("text_facts", "needs fusion=gated; there is no gate without it")
        return self


class HeadConfig(Section):
    """The classifier on top."""

    hidden_dims: tuple[Annotated[int, Field(ge=1)], ...] = field((256,), "Widths of the hidden layers", unit="features")
    dropout: float = field(0.1, "Dropout before each layer", ge=0, lt=1, continued="applied")
    projection_dim: int | None = field(
        None, "vision_only, text_only: project to this width first; null: no projection", unit="features", ge=1
    )


class AugmentationConfig(Section):
    """Random variation of training pictures."""

    name: Literal["none", "weak", "strong"] = field("none", "How much training pictures vary", continued="applied")


class LoraConfig(Section):
    """Low-rank adapters on the encoders' attention."""

    enabled: bool = field(default=False, description="Train adapters on the query, key and value projections")
    target: Literal["vision", "text", "both"] = field(
        "vision", "vision: those of the backbone; text: those of the text encoder, which is frozen otherwise; both"
    )
    rank: int = field(16, "Rank of an adapter", ge=1)
    alpha: float = field(8.0, "An adapter's output is scaled by alpha / rank", gt=0)
    dropout: float = field(0.0, "Dropout before an adapter", ge=0, lt=1, continued="applied")
    target_layers: int = field(6, "How many of the last layers get adapters", unit="layers", ge=1)

    @property
    def on_vision(self) -> bool:
        """Whether the backbone gets adapters."""
        return self.enabled and self.target != "text"

    @property
    def on_text(self) -> bool:
        """Whether the text encoder gets adapters."""
        return self.enabled and self.target != "vision"


class AdsTrainConfig(TrainConfig):
    """The optimisation, and which parts of the model take part in it."""

    modality: Literal["multimodal", "vision_only", "text_only"] = field("multimodal", "What the model sees")
    freeze_backbone: bool = field(default=True, description="Keep the backbone as it is (adapters may still be added)")
    finetune_layers: int = field(
        0, "Without freeze_backbone: train this many of the last layers; -1: all of the backbone", unit="layers", ge=-1
    )
    backbone_lr: float | None = field(
        None,
        "Learning rate of the backbone; null: a tenth of lr, or lr where it starts at random",
        gt=0,
        continued="applied",
    )
    lora_lr: float | None = field(None, "Learning rate of the adapters; null: lr", gt=0, continued="applied")
    lora: LoraConfig = field(LoraConfig(), "Adapters")
    loss_type: Literal["focal", "bce"] = field(
        "focal", "focal: focal loss; bce: binary cross entropy", continued="reset", resets=BEST
    )
    focal_gamma: float = field(
        2.0, "focal: how strongly easy samples are discounted", ge=0, continued="reset", resets=BEST
    )
    focal_alpha: float | None = field(
        None,
        "focal: weight of the ads, 1 - alpha that of the others; null: both 1",
        ge=0,
        le=1,
        continued="reset",
        resets=BEST,
    )
    pos_weight: Literal["auto"] | Annotated[float, Field(gt=0)] | None = field(
        None, "bce: weight of the ads; auto: others / ads in the training data; null: 1", continued="reset", resets=BEST
    )
    label_smoothing: float = field(
        0.0, "How far targets are moved towards one half", ge=0, lt=1, continued="reset", resets=BEST
    )
    text_dropout: float = field(
        0.0,
        "Probability of hiding a training sample's text, so that the picture has to do without it",
        ge=0,
        lt=1,
        continued="applied",
    )
    align_weight: float = field(
        0.0,
        "Weight of a second loss, 1 - cosine between the text's embedding and one that is predicted from the picture; "
        "teaches a backbone much that a label alone does not, where pictures are few",
        ge=0,
    )
    modality_loss: float = field(
        0.0,
        "Weight of a loss of each modality's own logit, so that neither starves beside the other; fusions other than "
        "late get these logits for it",
        ge=0,
    )
    ablations: bool = field(
        default=False,
        description="Train each modality alone and the other fusion, too, with the same settings, and compare",
        continued="applied",
    )

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.freeze_backbone and self.finetune_layers != 0:
            reject("finetune_layers", "needs train.freeze_backbone=false")
        if not self.freeze_backbone and self.lora.on_vision and self.finetune_layers != 0:
            reject("finetune_layers", "cannot be combined with train.lora.enabled=true, but for train.lora.target=text")
        if not self.freeze_backbone and not self.lora.on_vision and self.finetune_layers == 0:
            reject("freeze_backbone", "false needs train.finetune_layers (-1: all layers) or train.lora.enabled=true")
        if self.backbone_lr is not None and self.finetune_layers == 0:
            reject("backbone_lr", "needs train.finetune_layers; train.lora_lr is the rate of adapters")
        if self.lora_lr is not None and not self.lora.enabled:
            reject("lora_lr", "needs train.lora.enabled=true")
        if self.align_weight and (self.modality != "multimodal" or (self.freeze_backbone and not self.lora.on_vision)):
            reject("align_weight", "needs train.modality=multimodal and a backbone that is trained")
        if self.modality_loss and self.modality != "multimodal":
            reject("modality_loss", "needs train.modality=multimodal")
        if self.loss_type != "bce" and self.pos_weight is not None:
            reject("pos_weight", "is for train.loss_type=bce; focal takes focal_alpha")
        return self


class AdsConfig(Section):
    """Everything the ad classifier can be told."""

    data: DataConfig = field(DataConfig(), "Data")
    features: FeaturesConfig = field(FeaturesConfig(), "Frozen features")
    vision_encoder: VisionEncoderConfig = field(VisionEncoderConfig(), "Vision backbone")
    text_encoder: TextEncoderConfig = field(TextEncoderConfig(), "Text encoder")
    pooling: PoolingConfig = field(PoolingConfig(), "Pooling")
    fusion: FusionConfig = field(FusionConfig(), "Fusion")
    head: HeadConfig = field(HeadConfig(), "Head")
    augmentation: AugmentationConfig = field(AugmentationConfig(), "Augmentation")
    train: AdsTrainConfig = field(AdsTrainConfig(), "Training")
    scheduler: SchedulerConfig = field(SchedulerConfig(), "Learning-rate schedule")
    decision: DecisionConfig = field(DecisionConfig(rule="f1"), "Decision")
    protocol: ProtocolConfig = field(ProtocolConfig(), "Protocol: folds, seeds, a last run on all data")
    run: RunConfig = field(RunConfig(), "Run")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "Checkpoints")
    tracking: TrackingConfig = field(TrackingConfig(), "Tracking")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        lora, unread = self.train.lora, self.train.modality == "vision_only"
        if lora.on_text and (self.text_encoder.model in (None, "ngrams") or (lora.target == "text" and unread)):
            reject("train.lora.target", f"{lora.target} needs texts, and a sentence encoder that reads them")
        asked = self.train.ablations and self.data.source != "generated"  # the demo's preset asks by itself
        if asked and (self.train.modality != "multimodal" or self.text_encoder.model is None):
            reject("train.ablations", "needs both modalities: train.modality=multimodal and a text encoder")
        return self

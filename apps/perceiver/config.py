"""Typed configuration of the Perceiver app; `quartet.apps.perceiver.build` turns it into objects."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mlcore.config.decision import DecisionConfig
from mlcore.config.protocol import ProtocolConfig
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.section import BEST, Section, field, reject
from mlcore.config.sections import CheckpointConfig, RunConfig, TrackingConfig, TrainConfig

__all__ = ["DataConfig", "ModelConfig", "ObjectiveConfig", "PerceiverConfig", "TaskConfig", "TaskKind"]

TaskKind = Literal["classification", "multilabel", "regression", "per_step", "forecast", "masked"]

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Channel = Annotated[int, Field(ge=0)]


class DataConfig(Section):
    """The samples: where they come from, how they become sequences, how they are varied."""

    dataset: Literal["synthetic", "cifar10", "image_folder", "ts", "custom", "long", "manifest", "text"] | None = field(
        None,
        "synthetic: generated patterns; cifar10: the official python archive; image_folder: one folder per class; "
        "ts: UEA/UCR .ts files; custom: .npz files, or folders of .npy files; long: tables with a row for each time of "
        "each series; manifest: a table with texts, images and series; text: a folder of "
        ".txt files per class, or a table; null: nothing chosen, the demo runs",
        aliases=("dataset_type",),
    )
    data_dir: Path | None = field(
        None,
        "Folder with the data: CIFAR-10's (or its .tar.gz), an image folder with or without train/val/test, .ts files",
        continued="applied",
    )
    train_path: Path | None = field(
        None,
        "Training file or folder (ts, custom, long, image_folder, manifest, text) instead of data_dir",
        continued="applied",
    )
    val_path: Path | None = field(
        None, "Validation file or folder; null: val_fraction of the training data", continued="applied"
    )
    test_path: Path | None = field(None, "Test file or folder, evaluated once after training", continued="applied")
    val_fraction: float = field(
        0.2,
        "Share of the training data set aside, by class, where no validation data is given; 0: train on all of it and "
        "keep the last weights",
        ge=0,
        lt=1,
    )
    split_seed: int = field(
        0, "Names the draw of what is set aside; not the training's seed, so that several seeds share one split", ge=0
    )
    num_samples: int = field(
        5000, "synthetic: number of sequences, training and validation together", unit="samples", ge=2
    )
    seq_len_range: tuple[Positive, Positive] = field(
        (50, 200), "synthetic: shortest and longest sequence", unit="positions"
    )
    feature_dim: int = field(64, "synthetic: features per position", unit="features", ge=1)
    num_classes: int = field(5, "synthetic: number of patterns to tell apart", unit="classes", ge=2)
    patch_size: int = field(8, "Images: side of the square patches", unit="pixels", ge=1)
    text_patch: int = field(
        1, "manifest, text: bytes that become one token; with stem=conv a power of two", unit="bytes", ge=1
    )
    series_patch: int = field(
        1,
        "Series: time steps that become one token, stem_channels wide, so that long ones cost less; of manifests with "
        "stem=conv a power of two",
        unit="steps",
        ge=1,
    )
    id_column: str = field("id", "long: column that says which series a row belongs to")
    time_column: str | None = field(
        "time", "long: column of time stamps, numbers or dates, rising within a series; null: rows are equal steps"
    )
    label_column: str = field("label", "long: column of the class, or of the target, here or in label_path")
    label_path: Path | None = field(
        None,
        "long: table with id_column and label_column, a row for each series; null: labels are in the rows",
        continued="applied",
    )
    channels: list[str] = field([], "long: columns of values; none named: all others")
    modality_dropout: float = field(
        0.0,
        "manifest: how often each modality of a training sample is hidden; one always stays",
        ge=0,
        lt=1,
        continued="applied",
    )
    image_size: int | None = field(
        None,
        "image_folder, manifest: images are resized to this side; null: all images must have one size already",
        unit="pixels",
        ge=1,
    )
    max_megapixels: float = field(
        100.0,
        "image_folder, manifest: larger images are refused before they are decoded",
        unit="megapixels",
        gt=0,
        continued="applied",
    )
    max_seq_len: int | None = field(
        None,
        "Longest sequence accepted, of manifests each text in bytes and each series in steps; null: no limit",
        unit="positions",
        ge=1,
    )
    on_too_long: Literal["error", "truncate"] = field("error", "What to do with a sequence longer than max_seq_len")
    on_bad_sample: Literal["error", "skip"] = field(
        "error", "What to do with a sample that cannot be used; skipped ones are counted and named"
    )
    on_missing: Literal["error", "mask", "interpolate"] = field(
        "error",
        "ts, custom, long, manifest: what to do with NaN (in .ts files ?) before the end of a sequence; error: it is a "
        "bad sample; mask (not of manifests): hide these positions; interpolate: draw lines between a channel's values",
    )
    normalize: bool = field(
        default=True, description="Standardise features with the training data's mean and deviation"
    )
    group_by_length: bool = field(
        default=True, description="Put sequences of similar length in one batch, so that little is spent on padding"
    )
    augment: Literal["none", "weak", "strong"] = field(
        "none",
        "Images: weak flips and shifts, strong also changes colours and erases; sequences use the strengths below",
        aliases=("augmentation",),
        continued="applied",
    )
    randaugment: float = field(
        0.0,
        "Images: strength, 0 to 10, of two changes drawn for each picture, of shape, colours and light (RandAugment); "
        "after those of augment",
        ge=0,
        le=10,
        continued="applied",
    )
    mixup: float = field(
        0.0,
        "Images: parameter of the Beta distribution of a picture's share in its mixture with another one; 0: no mixup",
        ge=0,
        continued="applied",
    )
    jitter: float = field(
        0.0,
        "Sequences: deviation of added noise, in deviations of the feature",
        unit="sigma",
        ge=0,
        continued="applied",
    )
    scaling: float = field(
        0.0, "Sequences: deviation of a random factor per feature around 1", ge=0, continued="applied"
    )
    time_warp: float = field(
        0.0, "Sequences: largest relative stretch or squeeze of time", ge=0, lt=1, continued="applied"
    )
    window_slice: float = field(0.0, "Sequences: largest share of positions cut off", ge=0, lt=1, continued="applied")
    time_mask: float = field(
        0.0, "Sequences: largest share of positions hidden in one block", ge=0, lt=1, continued="applied"
    )

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        low, high = self.seq_len_range
        if low > high:
            reject("seq_len_range", "the shortest length must not exceed the longest")
        return self


class ModelConfig(Section):
    """The network; a size fixes all widths, and each may be overridden."""

    model_size: Literal["small", "base", "large"] = field(
        "base", "small: width 256, 4 heads, 128 latents, 1+3 layers; base: 512, 8, 256, 1+6; large: 768, 12, 512, 2+8"
    )
    d_model: int | None = field(None, "Width of the latents; null: by size", unit="features", ge=1)
    num_heads: int | None = field(None, "Attention heads; must divide d_model; null: by size", unit="heads", ge=1)
    num_latents: int | None = field(None, "Number of latents; null: by size", unit="latents", ge=1)
    num_cross_attention_layers: int | None = field(
        None, "Times that the latents read the input; null: by size", unit="layers", ge=1
    )
    num_self_attention_layers: int | None = field(
        None, "Self-attention layers over the latents; null: by size", unit="layers", ge=0
    )
    stem: Literal["none", "linear", "conv"] = field(
        "none",
        "Before the first cross-attention; linear: an embedding of each token (of manifests none, too); conv: of "
        "pictures, and of all in manifests, a convolution, pooling and norm for each halving of the patch, which look "
        "across the borders of patches",
    )
    stem_channels: int = field(64, "Channels of the stem's tokens", unit="features", ge=1)
    widening_factor: int = field(1, "Hidden width of the feed-forward blocks, in units of d_model", ge=1)
    dropout: float = field(0.0, "Share of elements dropped in each residual branch", ge=0, lt=1, continued="applied")
    share_weights: bool = field(default=False, description="Repeated blocks use the same weights")
    position: Literal["sinusoidal", "fourier", "learned", "added", "none"] = field(
        "sinusoidal",
        "Position features of each token; added: learned ones, added to the token; fourier, learned and added know no "
        "sequence longer than the longest seen",
    )
    position_channels: int = field(
        32, "Width of the position features; even for sines and cosines", unit="features", ge=1
    )
    pooling: Literal["mean", "query"] = field(
        "mean", "How latents become one output: their mean, or a learned output query (Perceiver IO)"
    )


class ObjectiveConfig(Section):
    """The training objective."""

    loss: Literal["cross_entropy", "focal"] = field(
        "cross_entropy", "Loss per sample", aliases=("loss_type",), continued="reset", resets=BEST
    )
    label_smoothing: float = field(
        0.0, "Share of the target spread over all classes", ge=0, lt=1, continued="reset", resets=BEST
    )
    focal_gamma: float = field(
        2.0, "focal: how strongly easy samples are discounted; 0 is cross entropy", ge=0, continued="reset", resets=BEST
    )
    class_weights: Literal["none", "balanced"] | list[Weight] = field(
        "none",
        "Weight of each class: none, balanced (inverse frequency in the training data), or a list",
        continued="reset",
        resets=BEST,
    )


class TaskConfig(Section):
    """What the model answers; all but classification take series."""

    kind: TaskKind = field(
        "classification",
        "classification: a class; multilabel: yes or no for each label; regression: numbers; per_step: a class or "
        "numbers for each position; forecast: the positions to come; masked: hidden positions, as a start for "
        "init_from; all but the first watch val_loss where val_accuracy is set",
        aliases=("task",),
    )
    horizon: int | None = field(None, "forecast: positions to predict", unit="positions", ge=1)
    context: int | None = field(None, "forecast: last positions that the model sees; null: all", unit="positions", ge=1)
    covariates: list[Channel] = field(
        [], "forecast: channels, from 0, that are known ahead: not predicted, but seen at the positions to predict"
    )
    masked_share: float = field(0.5, "masked: share of a sequence that is hidden", gt=0, lt=1)
    masked_block: int = field(4, "masked: positions hidden in a row", unit="positions", ge=1)
    init_from: str | None = field(
        None,
        "A run, or a checkpoint of one, of such a model: encoder weights and input statistics to begin with; of texts "
        "also a folder of transformers' Perceiver, whose widths are then the model's",
    )

    @model_validator(mode="after")
    def _check_forecast(self) -> Self:
        forecast = self.kind == "forecast"
        if forecast and self.horizon is None:
            reject("horizon", "a forecast needs the number of positions to predict")
        for key in ("horizon", "context", "covariates"):
            if not forecast and getattr(self, key):
                reject(key, f"it is of task.kind=forecast, not of {self.kind}")
        return self


_MOVING = ("time_warp", "window_slice")


class PerceiverConfig(Section):
    """Everything the Perceiver app can be told."""

    data: DataConfig = field(DataConfig(), "Data")
    task: TaskConfig = field(TaskConfig(), "Task")
    model: ModelConfig = field(ModelConfig(), "Model")
    objective: ObjectiveConfig = field(ObjectiveConfig(), "Training objective")
    train: TrainConfig = field(TrainConfig(), "Training")
    scheduler: SchedulerConfig = field(SchedulerConfig(), "Learning-rate schedule")
    decision: DecisionConfig = field(DecisionConfig(), "Decision")
    protocol: ProtocolConfig = field(ProtocolConfig(), "Protocol: folds, seeds, a last run on all data")
    run: RunConfig = field(RunConfig(), "Run")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "Checkpoints")
    tracking: TrackingConfig = field(TrackingConfig(), "Tracking")

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        """A task has its own loss and no decision; its accuracy cannot be watched where there is none."""
        kind, data = self.task.kind, self.data
        if kind == "classification":
            return self
        if data.dataset not in (None, "ts", "custom", "long", "synthetic"):
            reject("task.kind", f"{kind} takes series: --dataset ts, custom, long or synthetic, not {data.dataset}")
        if self.objective != ObjectiveConfig():
            reject("objective", f"its settings are of task.kind=classification; {kind} has its own loss")
        if self.decision != DecisionConfig():
            reject("decision", f"only task.kind=classification has one, not {kind}")
        if kind == "forecast" and data.on_too_long == "truncate":
            reject("data.on_too_long", "a forecast is of the end of a series; task.context cuts what it looks back to")
        if kind == "per_step" and any(getattr(data, name) for name in _MOVING):
            reject("task.kind", f"per_step keeps every position where it is: leave out {' and '.join(_MOVING)}")
        stopping = self.train.early_stopping
        if stopping.monitored != "accuracy":
            return self
        watching = self.train.model_copy(update={"early_stopping": stopping.model_copy(update={"metric": "val_loss"})})
        return self.model_copy(update={"train": watching})

"""Typed configuration of the document classifier; `quartet.apps.doc_ensemble.build` turns it into objects."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mlcore.config.decision import DecisionConfig
from mlcore.config.protocol import ProtocolConfig
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.section import BEST, Section, field, reject
from mlcore.config.sections import DECODE_SIDE, CheckpointConfig, RunConfig, TrackingConfig, TrainConfig

__all__ = [
    "LAYOUT",
    "TEXT",
    "AugmentationConfig",
    "DataConfig",
    "DistillConfig",
    "DocConfig",
    "EnsembleConfig",
    "KFoldConfig",
    "LossConfig",
    "MemberConfig",
    "ModelConfig",
    "TtaConfig",
    "UnaskedConfig",
    "ViewConfig",
]

LAYOUT, TEXT = "layout", "text"
"""Names of models that are no networks."""

Pixels = Annotated[int, Field(ge=16)]


class DataConfig(Section):
    """The pages, their classes, and the splits."""

    source: Literal["files", "generated"] = field(
        "files", "files: own pages, in class folders or tables; generated: drawn pages of 17 types, for the demo"
    )
    data_dir: Path | None = field(
        None,
        "Folder with train/, val/ and perhaps test/, each with a folder per class; or with one folder per class",
        continued="applied",
    )
    base_dir: Path | None = field(
        None,
        "Folder that the tables' paths are relative to and must stay in; null: each table's own folder",
        continued="applied",
    )
    train_csv: Path | None = field(
        None, "Training table instead of folders: columns image, label (and group)", continued="applied"
    )
    val_csv: Path | None = field(
        None, "Validation table; without it a part of the training pages is held out", continued="applied"
    )
    test_csv: Path | None = field(None, "Test table, evaluated once after training", continued="applied")
    val_fraction: float = field(0.2, "Part held out for validation where there is no split for it", gt=0, lt=1)
    split_seed: int = field(
        0,
        "Names the draw of held-out pages and folds; not the training's seed, so that several seeds share one split",
        ge=0,
    )
    allow_duplicates: bool = field(
        default=False, description="Let the same page be in more than one split, with a warning", continued="applied"
    )
    fit: Literal["resize", "letterbox"] = field(
        "resize", "How a page gets the network's size; letterbox: its aspect stays, the rest is white"
    )
    orientation: Literal["as_is", "auto"] = field(
        "as_is",
        "auto: pages that surely do not stand upright are turned, by a small head that learns from the training pages "
        "which way is up",
    )
    max_megapixels: float = field(
        100.0, "Larger pages are refused before they are decoded", unit="megapixels", gt=0, continued="applied"
    )
    decode_side: int | None = DECODE_SIDE
    num_train: int = field(1020, "generated: training pages", unit="pages", ge=17)
    num_val: int = field(340, "generated: validation pages", unit="pages", ge=17)
    num_test: int = field(340, "generated: test pages", unit="pages", ge=17)
    generated_dir: Path | None = field(
        None, "generated: where they are written; null: outputs/doc_ensemble/generated", continued="applied"
    )


class ModelConfig(Section):
    """The network."""

    name: str = field(
        "",
        "What the model is called in files and tables; empty: as model_name",
        describes="model_name",
        continued="applied",
    )
    model_name: str = field(
        "resnet50",
        "Name in timm, or a folder with config.json and weights; or what learns of computed features: layout (of the "
        "page's ink), text (of the words in the tables' column text)",
        min_length=1,
    )
    arguments: dict[str, int | float | bool | str | list[int]] = field(
        {}, "Further arguments of timm's architecture, such as {channels: [32, 64, 128, 256]} of a narrower ResNet"
    )
    pretrained: bool = field(default=True, description="Load the published weights; otherwise start at random")
    image_size: tuple[Pixels, Pixels] = field((224, 224), "Height and width of the input", unit="pixels")
    in_channels: Literal[1, 3] = field(3, "1: grey pages; 3: colour", unit="channels")
    dropout_rate: float = field(0.1, "Dropout before the classifier", ge=0, lt=1, continued="applied")
    drop_path_rate: float = field(0.0, "Stochastic depth, where the network has it", ge=0, lt=1, continued="applied")
    frozen_stages: int = field(
        0,
        "How many of the network's first stages (as timm divides it; the stem is one) keep the published weights: less "
        "work, and less to overfit",
        unit="stages",
        ge=0,
    )
    layer_decay: float = field(
        1.0, "Each stage's learning rate is this part of that of the stage behind it", gt=0, le=1, continued="applied"
    )
    use_attention: bool = field(default=False, description="Attention over the last feature map's cells")
    attention_dim: int = field(256, "use_attention: width", unit="features", ge=1)
    use_focal_loss: bool = field(
        default=False, description="Train with the focal loss of alpha and gamma below", continued="reset", resets=BEST
    )
    alpha: float = field(1.0, "use_focal_loss: factor of the loss", gt=0, continued="reset", resets=BEST)
    gamma: float = field(
        2.0, "use_focal_loss: how strongly easy samples are discounted", ge=0, continued="reset", resets=BEST
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.frozen_stages and not self.pretrained:
            reject("frozen_stages", "expected 0 without model.pretrained: weights that stay must be worth it")
        return self

    @property
    def title(self) -> str:
        """What the model is called in files and tables."""
        return self.name or Path(self.model_name).name


class LossConfig(Section):
    """The training loss."""

    name: Literal["cross_entropy", "focal"] = field(
        "cross_entropy", "Training loss", aliases=("loss_type",), continued="reset", resets=BEST
    )
    focal_gamma: float = field(
        2.0, "focal: how strongly easy samples are discounted", ge=0, continued="reset", resets=BEST
    )
    label_smoothing: float = field(
        0.0, "Share of the target spread over all classes", ge=0, lt=1, continued="reset", resets=BEST
    )
    class_weights: bool = field(
        default=False, description="Weigh classes by the inverse of their frequency", continued="reset", resets=BEST
    )
    balanced_sampling: bool = field(default=False, description="Draw every class equally often")


class AugmentationConfig(Section):
    """Random variation of training pages."""

    name: Literal["none", "light", "page"] = field("page", "How much single pages vary", continued="applied")
    mixup: float = field(0.0, "Beta parameter of mixup; 0: none", ge=0, continued="applied")
    cutmix: float = field(0.0, "Beta parameter of cutmix; 0: none", ge=0, continued="applied")


class ViewConfig(Section):
    """One kind of test-time augmentation."""

    type: Literal["horizontal_flip", "vertical_flip", "rotation", "color_jitter", "multi_scale"] = field(
        "horizontal_flip", "Kind"
    )
    probability: float = field(1.0, "Weight of these views beside the original's, which is 1", gt=0, le=1)
    degrees: tuple[Literal[90, 180, 270], ...] = field((90, 180, 270), "rotation: each is a view", unit="degrees")
    brightness: float = field(0.1, "color_jitter: views this much brighter and darker", ge=0, lt=1)
    contrast: float = field(0.1, "color_jitter: views of this much more and less contrast", ge=0, lt=1)
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = field((0.8, 1.2), "multi_scale: each is a view")


class TtaConfig(Section):
    """Test-time augmentation."""

    enabled: bool = field(default=False, description="Average over views of each page", continued="applied")
    augmentations: tuple[ViewConfig, ...] = field((), "Kinds of views, besides the page as it is", continued="applied")
    choose: bool = field(
        default=True,
        description="Take only the views that help on the validation pages; otherwise all",
        continued="applied",
    )


class MemberConfig(Section):
    """One member of an ensemble."""

    name: str = field("", "What it is called in files and tables; empty: as its model")
    checkpoint_path: str = field(
        description="Its checkpoint (a path or s3://bucket/key), or the folder of a run, or of a cross-validation: the "
        "mean of its models",
        min_length=1,
    )
    weight: float = field(1.0, "weighted: its weight", ge=0)


class EnsembleConfig(Section):
    """How the predictions of several models are combined."""

    enabled: bool = field(
        default=True, description="Combine the members; otherwise each is evaluated alone", continued="applied"
    )
    method: Literal["voting", "averaging", "weighted", "stacking"] = field(
        "averaging", "How votes are put together", continued="applied"
    )
    average: Literal["probabilities", "logits"] = field(
        "probabilities", "averaging, weighted: what is averaged", continued="applied"
    )
    fit_weights: bool = field(
        default=False, description="weighted: fit the weights on the validation pages", continued="applied"
    )
    models: tuple[MemberConfig, ...] = field((), "The members", continued="applied")
    run: Path | None = field(
        None,
        "Folder of a finished run instead of models: the folds of its cross-validation (stacking: their mean is one "
        "member), or its snapshots; without either, kfold.folds models are trained first",
        continued="applied",
    )
    low_memory: bool = field(default=False, description="Hold one member in memory at a time", continued="applied")
    tta: TtaConfig = field(TtaConfig(), "Test-time augmentation")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.models and self.run is not None:
            reject("run", "expected null beside ensemble.models: the members come from one of the two")
        return self


class DistillConfig(Section):
    """Learning from a teacher's answers beside the labels."""

    asked: ClassVar[bool] = True
    teacher: str | None = field(
        None,
        "A run or an ensemble whose answers are learned, too: its folder, a checkpoint, s3://bucket/key",
        continued="applied",
    )
    temperature: float = field(
        2.0, "By which the logits of teacher and student are divided", gt=0, continued="reset", resets=BEST
    )
    weight: float = field(
        0.7, "Share of the teacher's answers in the loss; the labels have the rest", ge=0, le=1, continued="reset",
        resets=BEST,
    )  # fmt: skip
    unlabelled: Path | None = field(
        None, "Folder or table of further pages, of which only the teacher's answers are learned", continued="applied"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.unlabelled is not None and self.teacher is None:
            reject("unlabelled", "expected null without distill.teacher, whose answers are what is learned of them")
        return self


class UnaskedConfig(DistillConfig):
    """The same for a dry run, which opens the teacher and asks it nothing."""

    asked: ClassVar[bool] = False


class KFoldConfig(Section):
    """Cross-validation over the training pages; the validation and test pages stay apart."""

    folds: int = field(0, "Number of folds; 0: no cross-validation", unit="folds", ge=0)
    fold: int | None = field(
        None,
        "Train only this fold's model, which is evaluated on the fold's pages; null: all, one after the other",
        ge=1,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folds == 1:
            reject("folds", "expected at least 2, or 0 for no cross-validation")
        if self.fold is not None and self.fold > self.folds:
            reject("fold", f"expected one of the {self.folds} folds, which are counted from 1")
        return self


class DocConfig(Section):
    """Everything the document classifier can be told."""

    data: DataConfig = field(DataConfig(), "Data")
    model: ModelConfig = field(ModelConfig(), "Model")
    loss: LossConfig = field(LossConfig(), "Loss")
    distill: DistillConfig = field(DistillConfig(), "Distillation")
    augmentation: AugmentationConfig = field(AugmentationConfig(), "Augmentation")
    train: TrainConfig = field(TrainConfig(), "Training")
    scheduler: SchedulerConfig = field(SchedulerConfig(), "Learning-rate schedule")
    kfold: KFoldConfig = field(KFoldConfig(), "Cross-validation")
    ensemble: EnsembleConfig = field(EnsembleConfig(), "Ensemble")
    decision: DecisionConfig = field(DecisionConfig(), "Decision")
    protocol: ProtocolConfig = field(ProtocolConfig(), "Protocol: folds, seeds, a last run on all data")
    run: RunConfig = field(RunConfig(), "Run")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "Checkpoints")
    tracking: TrackingConfig = field(TrackingConfig(), "Tracking")

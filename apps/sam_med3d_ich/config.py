"""Typed configuration of the SAM-Med3D app; `quartet.apps.sam_med3d_ich.build` turns it into objects."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mlcore.config.protocol import ProtocolConfig
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.section import BEST, Section, field, reject
from mlcore.config.sections import CheckpointConfig, RunConfig, TrackingConfig, TrainConfig

__all__ = ["DataConfig", "InferenceConfig", "ModelConfig", "ObjectiveConfig", "SamMed3DConfig"]

Millimetres = Annotated[float, Field(gt=0)]


class DataConfig(Section):
    """The volumes, how they come to one grid, and which crops are trained on."""

    source: Literal["csv", "phantoms"] = field(
        "csv", "csv: own files, listed in train_csv and val_csv; phantoms: generated head CTs with bleeds"
    )
    train_csv: Path | None = field(
        None, "Training cases: columns path, ich, patient_id; without it the demo runs", continued="applied"
    )
    val_csv: Path | None = field(None, "Validation cases, the same columns", continued="applied")
    test_csv: Path | None = field(None, "Test cases, evaluated once after training", continued="applied")
    mask_dir: Path | None = field(
        None, "Folder of the masks, {file name of the image}.nii or .nii.gz", continued="applied"
    )
    num_train: int = field(24, "phantoms: training cases", unit="cases", ge=1)
    num_val: int = field(8, "phantoms: validation cases", unit="cases", ge=1)
    phantom_dir: Path | None = field(
        None, "phantoms: where they are written; null: outputs/sam_med3d_ich/phantoms", continued="applied"
    )
    allow_shared_patients: bool = field(
        default=False, description="Let patients be in more than one of the splits, with a warning", continued="applied"
    )
    array_spacing: tuple[Millimetres, Millimetres, Millimetres] | None = field(
        None, "Voxel size of arrays that come without one and without a mask that has it; null: an error", unit="mm"
    )
    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = field(
        (1.5, 1.5, 1.5), "Volumes are resampled to this voxel size; null: they keep their own", unit="mm"
    )
    window: Literal["brain", "subdural", "bone", "custom", "none"] = field(
        "brain", "Intensities outside this window are clipped; custom: window_level and window_width; none: no clipping"
    )
    window_level: float = field(40.0, "custom window: centre", unit="HU")
    window_width: float = field(80.0, "custom window: width", unit="HU", gt=0)
    normalize: Literal["zscore_positive", "zscore", "none"] = field(
        "zscore_positive",
        "Mean 0 and deviation 1 over a volume: over the voxels above the window's lowest value (without a window "
        "above 0, the released protocol), or over all",
    )
    random_crops: int = field(
        1, "Evenly placed crops of each volume and epoch, besides those that hold its lesions", unit="crops", ge=0
    )
    augmentation_prob: float = field(
        0.5, "Probability of each kind of random variation of a training crop", ge=0, le=1, continued="applied"
    )
    cache_dir: Path | None = field(
        None, "Where prepared volumes are kept between runs; null: outputs/sam_med3d_ich/cache", continued="applied"
    )

    @model_validator(mode="after")
    def _check_paths(self) -> Self:
        if self.train_csv is not None:
            for key in ("val_csv", "mask_dir"):
                if getattr(self, key) is None:
                    reject(key, "needed together with train_csv")
        elif self.val_csv is not None or self.test_csv is not None:
            reject("val_csv" if self.val_csv is not None else "test_csv", "needs train_csv, too")
        return self


UNET = (64, 8)
"""Side of a UNet's crops, unless another one is given, and what it is a multiple of, in voxels."""


class ModelConfig(Section):
    """The network and the weights it starts from."""

    model_type: Literal["vit_b_ori", "vit_small", "vit_tiny", "unet"] = field(
        "vit_b_ori",
        "vit_b_ori: the released size (100 million parameters); vit_small: 20 million; vit_tiny: 2 million; unet: "
        "MONAI's UNet (1 million) instead of SAM-Med3D, to compare with",
    )
    image_size: int | None = field(
        None, "Side of the input cube; null: by type (128, 128, 32, 64)", unit="voxels", ge=8
    )
    patch_size: int | None = field(None, "Side of a patch; null: by type (16, 16, 4)", unit="voxels", ge=2)
    weights: str = field(
        "hub",
        "Start: hub (the released sam_med3d_turbo.pth: the file that SAM_MED3D_WEIGHTS names, or from Hugging Face), "
        "a checkpoint (a file or s3://bucket/key), or none (random)",
        min_length=1,
    )
    allow_partial_weights: bool = field(
        default=False,
        description="Load what fits of the weights and list the rest, where the model differs",
        continued="applied",
    )
    interpolate_positions: bool = field(
        default=False,
        description="Interpolate the weights' position tables to another image size, with a warning",
        continued="applied",
    )
    visual_tokens: int = field(256, "Width of the representation head's tokens", unit="features", ge=1)
    refine_masks: bool = field(
        default=False,
        description="Two convolutions over the mask's features and the image itself, which patches are too coarse for: "
        "sharper edges of small structures. They start as nothing, so published weights begin with their own answers",
    )
    freeze_encoder: bool = field(default=False, description="Keep the image encoder as it is")
    layer_decay: float = field(
        1.0,
        "Each encoder block's learning rate is this times that of the block above it",
        gt=0,
        le=1,
        continued="applied",
    )
    decoder_lr_scale: float = field(
        1.0,
        "Learning rate of prompt encoder and mask decoder, in units of lr (released protocol: 0.1)",
        gt=0,
        continued="applied",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        sizes = {"vit_tiny": (32, 4), "unet": UNET}
        preset_size, preset_patch = sizes.get(self.model_type, (128, 16))
        image, patch = self.image_size or preset_size, self.patch_size or preset_patch
        if self.model_type == "unet":
            self._check_unet()
            if image % preset_patch:
                reject("image_size", f"{image} is no multiple of {preset_patch}, by which a UNet makes crops smaller")
        elif image % patch:
            reject("image_size", f"{image} is no multiple of the patch size, {patch}")
        return self

    def _check_unet(self) -> None:
        if self.weights != "none":
            reject("weights", "a UNet starts at random; give model.weights=none")
        for name in ("patch_size", "refine_masks", "freeze_encoder", "layer_decay", "decoder_lr_scale"):
            if getattr(self, name) != type(self).model_fields[name].default:
                reject(name, "a UNet has no such part; leave it out")


class ObjectiveConfig(Section):
    """What is trained for."""

    prompt_mode: Literal["none", "clicks"] = field(
        "none", "none: segment without a prompt; clicks: simulated clicks on what is wrong, after the released training"
    )
    num_clicks: int = field(11, "clicks: rounds for each crop", unit="rounds", ge=1, continued="applied")
    loss: Literal["dice_ce", "dice_focal"] = field(
        "dice_ce",
        "Loss of the mask: Dice plus cross entropy, or Dice plus focal loss",
        aliases=("loss_type",),
        continued="reset",
        resets=BEST,
    )
    focal_gamma: float = field(
        2.0, "dice_focal: how strongly easy voxels are discounted", ge=0, continued="reset", resets=BEST
    )
    ich_weight: float = field(0.1, "Weight of the image-level haemorrhage loss", ge=0, continued="reset", resets=BEST)


class InferenceConfig(Section):
    """How whole volumes are segmented, in validation and in predict.py alike."""

    overlap: float = field(
        0.5, "Share of a window that the next one covers again", ge=0, lt=1, continued="reset", resets=BEST
    )
    threshold: float = field(
        0.5, "Probability from which a voxel belongs to the mask", gt=0, lt=1, continued="reset", resets=BEST
    )
    min_volume_ml: float = field(
        0.0,
        "Connected parts of a mask that are smaller are left out",
        unit="mL",
        ge=0,
        continued="reset",
        resets=BEST,
    )
    windows_per_batch: int = field(
        1, "Windows that go through the model together", unit="windows", ge=1, continued="applied"
    )


class MaskDecisionConfig(Section):
    """What a trained model decides at; kept in the run's decision.json."""

    rule: Literal["none", "score"] = field(
        "none",
        "none: inference.threshold and inference.min_volume_ml; score: at the end, the pair of them with the highest "
        "score on the validation cases",
        aliases=("decision_rule",),
        continued="applied",
    )


class SamMed3DConfig(Section):
    """Everything the SAM-Med3D app can be told."""

    data: DataConfig = field(DataConfig(), "Data")
    model: ModelConfig = field(ModelConfig(), "Model")
    objective: ObjectiveConfig = field(ObjectiveConfig(), "Training objective")
    inference: InferenceConfig = field(InferenceConfig(), "Whole volumes")
    decision: MaskDecisionConfig = field(MaskDecisionConfig(), "Decision")
    train: TrainConfig = field(TrainConfig(), "Training")
    scheduler: SchedulerConfig = field(SchedulerConfig(), "Learning-rate schedule")
    protocol: ProtocolConfig = field(ProtocolConfig(), "Protocol: folds, seeds, a last run on all data")
    run: RunConfig = field(RunConfig(), "Run")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "Checkpoints")
    tracking: TrackingConfig = field(TrackingConfig(), "Tracking")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.model_type == "unet" and self.objective.prompt_mode == "clicks":
            reject("objective.prompt_mode", "a UNet takes no clicks; expected none")
        return self

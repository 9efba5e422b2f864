"""The sections that all applications share."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mlcore.config.section import BEST, Section, field, reject

__all__ = [
    "DECODE_SIDE",
    "CheckpointConfig",
    "EarlyStoppingConfig",
    "RunConfig",
    "TrackingConfig",
    "TrainConfig",
]

Count = Annotated[int, Field(ge=0)]

DECODE_SIDE: Any = field(
    None,
    "Large JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, in less time, where no side gets shorter than "
    "this: the input's size, or twice that to stay closer to the whole; null: at full size",
    unit="pixels",
    ge=16,
)
"""Of apps that read pictures, `decode_side: int | None`; see `mlcore.data.images.read_image`."""

_WANDB_NAME = r"^[^/\\#?%:@]{1,128}$"  # what W&B allows; nothing in which a password could stand
_PLACE = re.compile(r"(s3://)?\w[\w.-]*(/\w[^/\s]*)*/?")  # nothing in which a password could stand


class RunConfig(Section):
    """Where a run lives and what it runs on."""

    name: str | None = field(
        None,
        "Name of the run, part of its folder's path; by default the experiment's or the dataset's",
        aliases=("name", "run_name"),
        pattern=r"^\w[\w.+ -]*$",
        continued="applied",
        max_length=80,
    )
    output_dir: Path | None = field(
        None,
        "Folder of this run; by default <name>/<date-time> in the app's folder of runs",
        aliases=("output_dir",),
        continued="applied",
    )
    resume: str = field(
        "auto",
        "auto: go on from the newest good checkpoint of the run folder if there is one; never: start afresh; "
        "or a checkpoint (a path or s3://bucket/key) or run folder",
        bare="auto",
        min_length=1,
        continued="applied",
    )
    seed: int = field(0, "Seed of initial weights, data order and augmentation", ge=0, lt=2**32)
    device: str = field(
        "auto",
        "Compute device: auto (CUDA where there is one), cpu, cuda or cuda:N",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        continued="applied",
    )
    baseline: Literal["auto", "none"] = field(
        "auto",
        "auto: at the end plain models are fitted to the same data, and the report says what the network gains; none: "
        "leave that out",
        aliases=("baseline",),
        continued="applied",
    )
    deterministic: bool = field(
        default=False,
        description="Use deterministic kernels only (slower on a GPU; on a CPU runs repeat anyway)",
        continued="applied",
    )
    num_workers: Literal["auto"] | Count = field(
        "auto",
        "Data loading processes per rank; auto: by the cores and the memory there are",
        unit="processes",
        continued="applied",
    )
    num_threads: int | None = field(
        None, "CPU threads of torch per rank; null: torch's choice", unit="threads", ge=1, continued="applied"
    )


class EarlyStoppingConfig(Section):
    """When to stop early, and which evaluation is the best."""

    patience: int | None = field(
        None,
        "Stop after this many evaluations in a row without improvement; null: never",
        unit="evaluations",
        aliases=("patience",),
        ge=1,
        continued="applied",
    )
    metric: str = field(
        "val_loss",
        "Metric that decides which checkpoint is the best and when to stop",
        min_length=1,
        continued="reset",
        resets=BEST,
    )
    mode: Literal["min", "max"] | None = field(
        None,
        "Whether a smaller or a larger metric is better; null: min for losses and errors, max otherwise",
        continued="reset",
        resets=BEST,
    )
    min_delta: float = field(0.0, "Smallest change of the metric that counts as improvement", ge=0, continued="applied")

    @property
    def monitored(self) -> str:
        """`metric` as evaluations name it, without "val"."""
        return self.metric.removeprefix("val_").removeprefix("val/")

    @property
    def resolved_mode(self) -> Literal["min", "max"]:
        """`mode`, or what the metric's name suggests."""
        smaller = ("loss", "error", "ece", "brier", "hd95", "nll", "mse", "mae", "rmse")
        guess: Literal["min", "max"] = "min" if re.split("[_/]", self.metric)[-1].lower() in smaller else "max"
        return self.mode or guess


class TrainConfig(Section):
    """The optimisation."""

    epochs: int = field(
        50, "Passes over the training data", unit="epochs", aliases=("num_epochs",), ge=1, continued="applied"
    )
    max_steps: int | None = field(
        None,
        "Stop after this many optimiser steps, if sooner",
        unit="steps",
        aliases=("max_steps",),
        ge=1,
        continued="applied",
    )
    max_hours: float | None = field(
        None, "Stop (and save, exit code 76) after this time, if sooner", unit="hours", gt=0, continued="applied"
    )
    batch_size: int = field(
        32,
        "Samples per micro-batch and rank; auto: auto_batch_size",
        unit="samples",
        ge=1,
        turns_on=("auto", "auto_batch_size"),
        continued="applied",
    )
    auto_batch_size: bool = field(
        default=False,
        description="Choose batch_size, the largest that fits the memory, and gradient_accumulation_steps, so that a "
        "step has as many samples as with those given",
        continued="applied",
    )
    eval_batch_size: int | None = field(
        None, "Samples per batch and rank in evaluation; null: batch_size", unit="samples", ge=1, continued="applied"
    )
    gradient_accumulation_steps: int = field(
        1,
        "Micro-batches per optimiser step",
        unit="micro-batches",
        aliases=("accumulation_steps",),
        ge=1,
        continued="applied",
    )
    optimizer: Literal["adamw", "adam", "sgd"] = field(
        "adamw",
        "Optimisation algorithm",
        aliases=("optimizer_type",),
        continued="reset",
        resets="the optimiser's moments (adam and adamw keep theirs)",
    )
    lr: float = field(1e-4, "Peak learning rate", aliases=("learning_rate",), gt=0, continued="applied")
    weight_decay: float = field(
        1e-4, "Weight decay of matrices (never of biases, norms and embeddings)", ge=0, continued="applied"
    )
    momentum: float = field(0.9, "Momentum of sgd", ge=0, lt=1, continued="applied")
    max_grad_norm: float | None = field(
        1.0,
        "Clip the global gradient norm to this; null: no clipping",
        aliases=("gradient_clip_val",),
        gt=0,
        continued="applied",
    )
    precision: Literal["fp32", "bf16", "fp16", "auto"] = field(
        "fp32",
        "Arithmetic of forward and backward passes; weights stay fp32, fp16 scales its loss; "
        "auto: bf16 on GPUs and processors (AVX512-BF16, AMX) that have it, fp16 on other GPUs, fp32 on other CPUs",
        aliases=("use_mixed_precision",),
        bare="auto",
        continued="applied",
    )
    gradient_checkpointing: bool = field(
        default=False,
        description="Recompute activations in the backward pass: less memory, more time",
        aliases=("use_gradient_checkpointing",),
        continued="applied",
    )
    compile: bool = field(default=False, description="Compile the model with torch.compile", continued="applied")
    ema_decay: float | None = field(
        None,
        "Decay per step of the moving average of the weights, which is then evaluated and exported; it warms up: after "
        "t steps it is at most (1 + t) / (10 + t); null: none",
        ge=0,
        lt=1,
        continued="applied",
    )
    sync_batch_norm: bool = field(
        default=False,
        description="Batch norms take their statistics from the micro-batches of all ranks (CUDA); nothing on one rank",
        continued="applied",
    )
    eval_every: int = field(1, "Evaluate after each this many `eval_unit`", unit="eval_unit", ge=1, continued="applied")
    eval_unit: Literal["epochs", "steps"] = field("epochs", "What eval_every counts", continued="applied")
    early_stopping: EarlyStoppingConfig = field(EarlyStoppingConfig(), "Early stopping")
    max_bad_steps: int = field(
        10,
        "Stop after this many steps in a row with a non-finite loss or gradient",
        unit="steps",
        ge=1,
        continued="applied",
    )
    drop_last: bool = field(
        default=False, description="Leave out the last, incomplete micro-batch of an epoch", continued="applied"
    )


class CheckpointConfig(Section):
    """What is saved when; the latest and the best state are always kept."""

    save_every_steps: int | None = field(
        None, "Also save after this many steps", unit="steps", ge=1, continued="applied"
    )
    save_every_minutes: float | None = field(
        None, "Also save after this time", unit="minutes", gt=0, continued="applied"
    )
    keep_last: int = field(
        2, "How many step checkpoints are kept besides latest and best", unit="files", ge=1, continued="applied"
    )
    keep_every_epochs: int | None = field(
        None, "Keep the state after each this many epochs for good", unit="epochs", ge=1, continued="applied"
    )
    async_save: bool = field(
        default=True, description="Write checkpoints in a thread while training goes on", continued="applied"
    )
    upload_to: str | None = field(
        None,
        "Bucket, or s3://bucket/prefix, that gets a copy of the run while it trains; null: none",
        env="S3_BUCKET_NAME",
        continued="applied",
    )

    @model_validator(mode="after")
    def _check_upload_to(self) -> Self:
        if self.upload_to is not None and not _PLACE.fullmatch(self.upload_to):
            reject("upload_to", "expected the name of a bucket, or s3://bucket/prefix")
        return self


class TrackingConfig(Section):
    """Where figures go besides metrics.csv and metrics.jsonl."""

    tensorboard: bool = field(
        default=True, description="Write TensorBoard event files", aliases=("use_tensorboard",), continued="applied"
    )
    use_wandb: bool = field(default=False, description="Log to Weights & Biases", continued="applied")
    wandb_project: str | None = field(
        None,
        "Project on Weights & Biases; null: the app's name",
        env="WANDB_PROJECT",
        pattern=_WANDB_NAME,
        continued="applied",
    )
    wandb_entity: str | None = field(
        None, "Team or user on Weights & Biases", env="WANDB_ENTITY", pattern=_WANDB_NAME, continued="applied"
    )
    wandb_mode: Literal["online", "offline", "disabled"] = field(
        "online", "offline: keep the data in the run folder for `wandb sync`", env="WANDB_MODE", continued="applied"
    )
    log_every: int = field(10, "Write training figures each this many steps", unit="steps", ge=1, continued="applied")
    profile: bool = field(
        default=False,
        description="Time some steps part by part and trace some with torch's profiler; the report says where a step's "
        "time goes",
        continued="applied",
    )
    log_images: bool = field(default=False, description="Log sample pictures", continued="applied")
    log_freq: int = field(10, "Log pictures each this many epochs", unit="epochs", ge=1, continued="applied")

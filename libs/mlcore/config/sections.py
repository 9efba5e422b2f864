"""The sections that all applications share."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mlcore.config.section import Section, field, reject

__all__ = ["CheckpointConfig", "EarlyStoppingConfig", "RunConfig", "SchedulerConfig", "TrackingConfig", "TrainConfig"]

Count = Annotated[int, Field(ge=0)]

_PLACE = re.compile(r"(s3://)?\w[\w.-]*(/\w[^/\s]*)*/?")  # nothing in which a password could stand


class RunConfig(Section):
    """Where a run lives and what it runs on."""

    name: str | None = field(
        None,
        "Name of the run, part of its folder's path; by default the experiment's or the dataset's",
        aliases=("name", "run_name"),
        pattern=r"^\w[\w.+ -]*$",
    )
    output_dir: Path | None = field(
        None,
        "Folder of this run; by default <name>/<date-time> in the app's folder of runs",
        aliases=("output_dir",),
    )
    resume: str = field(
        "auto",
        "auto: go on from the newest good checkpoint of the run folder if there is one; never: start afresh; "
        "or a checkpoint (a path or s3://bucket/key) or run folder",
        bare="auto",
        min_length=1,
    )
    seed: int = field(0, "Seed of initial weights, data order and augmentation", ge=0, lt=2**32)
    device: str = field(
        "auto",
        "Compute device: auto (CUDA where there is one), cpu, cuda or cuda:N",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
    )
    deterministic: bool = field(
        default=False, description="Use deterministic kernels only (slower on a GPU; on a CPU runs repeat anyway)"
    )
    num_workers: Literal["auto"] | Count = field(
        "auto", "Data loading processes per rank; auto: by the cores and the memory there are", unit="processes"
    )
    num_threads: int | None = field(None, "CPU threads of torch per rank; null: torch's choice", unit="threads", ge=1)


class EarlyStoppingConfig(Section):
    """When to stop early, and which evaluation is the best."""

    patience: int | None = field(
        None,
        "Stop after this many evaluations in a row without improvement; null: never",
        unit="evaluations",
        aliases=("patience",),
        ge=1,
    )
    metric: str = field("val_loss", "Metric that decides which checkpoint is the best and when to stop", min_length=1)
    mode: Literal["min", "max"] | None = field(
        None, "Whether a smaller or a larger metric is better; null: min for losses and errors, max otherwise"
    )
    min_delta: float = field(0.0, "Smallest change of the metric that counts as improvement", ge=0)

    @property
    def resolved_mode(self) -> Literal["min", "max"]:
        """`mode`, or what the metric's name suggests."""
        smaller = ("loss", "error", "ece", "brier", "hd95", "nll", "mse", "mae", "rmse")
        guess: Literal["min", "max"] = "min" if re.split("[_/]", self.metric)[-1].lower() in smaller else "max"
        return self.mode or guess


class TrainConfig(Section):
    """The optimisation."""

    epochs: int = field(50, "Passes over the training data", unit="epochs", aliases=("num_epochs",), ge=1)
    max_steps: int | None = field(
        None, "Stop after this many optimiser steps, if sooner", unit="steps", aliases=("max_steps",), ge=1
    )
    max_hours: float | None = field(None, "Stop (and save) after this time, if sooner", unit="hours", gt=0)
    batch_size: int = field(32, "Samples per micro-batch and rank", unit="samples", ge=1)
    eval_batch_size: int | None = field(
        None, "Samples per batch and rank in evaluation; null: batch_size", unit="samples", ge=1
    )
    gradient_accumulation_steps: int = field(
        1, "Micro-batches per optimiser step", unit="micro-batches", aliases=("accumulation_steps",), ge=1
    )
    optimizer: Literal["adamw", "adam", "sgd"] = field("adamw", "Optimisation algorithm", aliases=("optimizer_type",))
    lr: float = field(1e-4, "Peak learning rate", aliases=("learning_rate",), gt=0)
    weight_decay: float = field(1e-4, "Weight decay of matrices (never of biases, norms and embeddings)", ge=0)
    momentum: float = field(0.9, "Momentum of sgd", ge=0, lt=1)
    max_grad_norm: float | None = field(
        1.0, "Clip the global gradient norm to this; null: no clipping", aliases=("gradient_clip_val",), gt=0
    )
    precision: Literal["fp32", "bf16", "fp16", "auto"] = field(
        "fp32",
        "Arithmetic of forward and backward passes; weights stay fp32, fp16 scales its loss; "
        "auto: bf16 on GPUs that have it, fp16 on others, fp32 on a CPU",
        aliases=("use_mixed_precision",),
        bare="auto",
    )
    gradient_checkpointing: bool = field(
        default=False,
        description="Recompute activations in the backward pass: less memory, more time",
        aliases=("use_gradient_checkpointing",),
    )
    compile: bool = field(default=False, description="Compile the model with torch.compile")
    ema_decay: float | None = field(
        None,
        "Decay per step of the moving average of the weights, which is then evaluated and exported; it warms up: after "
        "t steps it is at most (1 + t) / (10 + t); null: none",
        ge=0,
        lt=1,
    )
    sync_batch_norm: bool = field(
        default=False,
        description="Batch norms take their statistics from the micro-batches of all ranks (CUDA); nothing on one rank",
    )
    eval_every: int = field(1, "Evaluate after each this many `eval_unit`", unit="eval_unit", ge=1)
    eval_unit: Literal["epochs", "steps"] = field("epochs", "What eval_every counts")
    early_stopping: EarlyStoppingConfig = field(EarlyStoppingConfig(), "Early stopping")
    max_bad_steps: int = field(
        10, "Stop after this many steps in a row with a non-finite loss or gradient", unit="steps", ge=1
    )
    drop_last: bool = field(default=False, description="Leave out the last, incomplete micro-batch of an epoch")


_ScheduleName = Literal[
    "constant",
    "cosine",
    "step",
    "exponential",
    "plateau",
    "reduce_on_plateau",
    "warmup_cosine",
    "cosine_warmup",
    "warmup_linear",
    "cosine_warm_restart",
]
_CLASS = re.compile(r"(?:\w+\.)*(\w+)Scheduler")  # how older files named a schedule: src.schedulers.step.StepScheduler


def _plain_name(value: object) -> object:
    """The schedule's name where the value is its class's; it is read as text, and nothing is imported."""
    match = _CLASS.fullmatch(value) if isinstance(value, str) else None
    return value if match is None else re.sub(r"(?<!^)(?=[A-Z])", "_", match.group(1)).lower()


_WARMUP = ("warmup_steps", "max_steps", "min_lr", "warmup_start_lr")
_PLATEAU = ("mode", "factor", "patience", "verbose")
_TAKES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("T_max", "eta_min"),
    "step": ("step_size", "gamma"),
    "exponential": ("gamma",),
    "plateau": _PLATEAU,
    "reduce_on_plateau": _PLATEAU,
    "warmup_cosine": _WARMUP,
    "cosine_warmup": _WARMUP,
    "warmup_linear": _WARMUP,
    "cosine_warm_restart": ("T_0", "T_mult", "eta_min"),
}


class SchedulerConfig(Section):
    """The learning-rate schedule; each takes the parameters that name it in their description."""

    hoisted: ClassVar[tuple[str, ...]] = ("params",)

    name: Annotated[_ScheduleName, BeforeValidator(_plain_name)] = field(
        "cosine",
        "Schedule of the learning rate; cosine_warmup is warmup_cosine, and reduce_on_plateau is plateau",
        aliases=("scheduler_type", "train.scheduler_type", "scheduler._target_"),
        selects=True,
    )
    unit: Literal["step", "epoch"] | None = field(
        None, "What lengths count, and when the rate changes; null: steps for the warm-up schedules, epochs for others"
    )
    T_max: float | None = field(None, "cosine: length of the decay; null: the whole run", unit="scheduler.unit", gt=0)
    eta_min: float | None = field(None, "cosine, cosine_warm_restart: lowest learning rate", ge=0)
    step_size: float | None = field(None, "step: interval of the decay; null: 30", unit="scheduler.unit", gt=0)
    gamma: float | None = field(None, "step, exponential: factor of each decay", gt=0, le=1)
    mode: Literal["min", "max"] | None = field(
        None,
        "plateau: whether what it watches should fall or rise; null: as train.early_stopping's metric, which it then "
        "watches; min beside a metric that should rise: it watches the validation loss",
    )
    factor: float | None = field(None, "plateau: factor of each reduction; null: 0.1", gt=0, lt=1)
    patience: int | None = field(
        None, "plateau: evaluations without improvement that are tolerated; null: 10", unit="evaluations", ge=0
    )
    verbose: bool | None = field(None, "plateau: kept for old files; changes of the learning rate are always logged")
    warmup_steps: float | None = field(
        None, "warm-up schedules: length of the linear rise", unit="scheduler.unit", ge=0
    )
    max_steps: float | None = field(
        None, "warm-up schedules: end of the decay; null: the whole run", unit="scheduler.unit", gt=0
    )
    min_lr: float | None = field(None, "warm-up schedules: learning rate at the end", ge=0)
    warmup_start_lr: float | None = field(None, "warm-up schedules: learning rate at step 0", ge=0)
    T_0: float | None = field(None, "cosine_warm_restart: length of the first cycle", unit="scheduler.unit", gt=0)
    T_mult: float | None = field(None, "cosine_warm_restart: how much longer each next cycle is", ge=1)

    @model_validator(mode="after")
    def _check_params(self) -> Self:
        takes = _TAKES[self.name]
        for key in type(self).model_fields:
            if key not in ("name", "unit", *takes) and getattr(self, key) is not None:
                reject(key, f"schedule '{self.name}' does not take it; it takes {', '.join(takes) or 'no parameters'}")
        needed = {"exponential": "gamma", "cosine_warm_restart": "T_0"}.get(self.name)
        if needed is not None and getattr(self, needed) is None:
            reject(needed, f"schedule '{self.name}' needs it")
        return self

    def params(self) -> dict[str, Any]:
        """The parameters that were given for the chosen schedule, ready to be its keyword arguments."""
        given = {key: getattr(self, key) for key in _TAKES[self.name] if key != "verbose"}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def resolved_unit(self) -> Literal["step", "epoch"]:
        """What lengths count."""
        return self.unit or ("step" if "warmup_steps" in _TAKES[self.name] else "epoch")


class CheckpointConfig(Section):
    """What is saved when; the latest and the best state are always kept."""

    save_every_steps: int | None = field(None, "Also save after this many steps", unit="steps", ge=1)
    save_every_minutes: float | None = field(None, "Also save after this time", unit="minutes", gt=0)
    keep_last: int = field(2, "How many step checkpoints are kept besides latest and best", unit="files", ge=1)
    keep_every_epochs: int | None = field(
        None, "Keep the state after each this many epochs for good", unit="epochs", ge=1
    )
    async_save: bool = field(default=True, description="Write checkpoints in a thread while training goes on")
    upload_to: str | None = field(
        None,
        "Bucket, or s3://bucket/prefix, that gets a copy of the run while it trains; null: none",
        env="S3_BUCKET_NAME",
    )

    @model_validator(mode="after")
    def _check_upload_to(self) -> Self:
        if self.upload_to is not None and not _PLACE.fullmatch(self.upload_to):
            reject("upload_to", "expected the name of a bucket, or s3://bucket/prefix")
        return self


class TrackingConfig(Section):
    """Where figures go besides metrics.csv and metrics.jsonl."""

    tensorboard: bool = field(default=True, description="Write TensorBoard event files", aliases=("use_tensorboard",))
    use_wandb: bool = field(default=False, description="Log to Weights & Biases")
    wandb_project: str | None = field(None, "Project on Weights & Biases; null: the app's name", env="WANDB_PROJECT")
    wandb_entity: str | None = field(None, "Team or user on Weights & Biases", env="WANDB_ENTITY")
    wandb_mode: Literal["online", "offline", "disabled"] = field(
        "online", "offline: keep the data in the run folder for `wandb sync`", env="WANDB_MODE"
    )
    log_every: int = field(10, "Write training figures each this many steps", unit="steps", ge=1)
    log_images: bool = field(default=False, description="Log sample pictures")
    log_freq: int = field(10, "Log pictures each this many epochs", unit="epochs", ge=1)

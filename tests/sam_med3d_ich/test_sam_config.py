"""The command line keeps its promises: the flags, their defaults, and the commands that are in people's notes."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlcore.cli.parse import parse
from mlcore.config.text import ConfigError
from quartet.apps.sam_med3d_ich.app import APP
from quartet.apps.sam_med3d_ich.config import SamMed3DConfig
from quartet.apps.sam_med3d_ich.model.weights import fetch_released
from quartet.apps.sam_med3d_ich.restore import describe, encoder_shape, make_model, make_segmenter, preprocessing

BASIC = "--train_csv train.csv --val_csv val.csv --mask_dir masks --output_dir ./outputs"
ADVANCED = f"""{BASIC} --epochs 200 --batch_size 2 --lr 1e-4 --use_mixed_precision --gradient_accumulation_steps 4
--scheduler_type cosine --use_wandb --wandb_project my-sam-med3d --freeze_encoder"""

Get = Callable[[SamMed3DConfig], Any]
# name of the flag, where it lands, its promised default, another value as text and as read
PROMISED: list[tuple[str, Get, object, str, object]] = [
    ("epochs", lambda c: c.train.epochs, 200, "3", 3),
    ("batch_size", lambda c: c.train.batch_size, 2, "5", 5),
    ("lr", lambda c: c.train.lr, 1e-4, "2e-3", 2e-3),
    ("weight_decay", lambda c: c.train.weight_decay, 1e-4, "0.1", 0.1),
    ("patience", lambda c: c.train.early_stopping.patience, 15, "4", 4),
    ("gradient_accumulation_steps", lambda c: c.train.gradient_accumulation_steps, 4, "8", 8),
    ("max_grad_norm", lambda c: c.train.max_grad_norm, 1.0, "0.5", 0.5),
    ("scheduler_type", lambda c: c.scheduler.name, "reduce_on_plateau", "step", "step"),
    ("visual_tokens", lambda c: c.model.visual_tokens, 256, "64", 64),
    ("wandb_project", lambda c: c.tracking.wandb_project, None, "mine", "mine"),
    ("wandb_entity", lambda c: c.tracking.wandb_entity, None, "team", "team"),
    ("log_freq", lambda c: c.tracking.log_freq, 10, "2", 2),
    ("num_workers", lambda c: c.run.num_workers, "auto", "4", 4),
    ("augmentation_prob", lambda c: c.data.augmentation_prob, 0.5, "0.1", 0.1),
]
SWITCHES: list[tuple[str, Get, object, object]] = [
    ("use_mixed_precision", lambda c: c.train.precision, "fp32", "auto"),
    ("freeze_encoder", lambda c: c.model.freeze_encoder, False, True),
    ("use_gradient_checkpointing", lambda c: c.train.gradient_checkpointing, False, True),
    ("use_wandb", lambda c: c.tracking.use_wandb, False, True),
    ("log_images", lambda c: c.tracking.log_images, False, True),
]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that a developer's shell may hold."""
    for name in ("SAM_MED3D_WEIGHTS", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def config(line: str) -> SamMed3DConfig:
    return parse(APP, shlex.split(line)).config


def test_the_basic_command_is_a_training_on_own_files() -> None:
    invocation = parse(APP, shlex.split(f"{BASIC} --epochs 200 --batch_size 2 --lr 1e-4"))
    data = invocation.config.data
    assert invocation.action == "train"
    assert not invocation.composed.demo
    assert (data.source, str(data.train_csv), str(data.val_csv), str(data.mask_dir)) == (
        "csv",
        "train.csv",
        "val.csv",
        "masks",
    )
    assert str(invocation.config.run.output_dir) == "outputs"
    model = invocation.config.model
    assert (model.model_type, model.weights) == ("vit_b_ori", "hub")


def test_the_advanced_command_means_what_it_says() -> None:
    found = config(ADVANCED)
    assert found.train.precision == "auto"
    assert found.train.gradient_accumulation_steps == 4
    assert found.scheduler.name == "cosine"
    assert found.tracking.use_wandb
    assert found.tracking.wandb_project == "my-sam-med3d"
    assert found.model.freeze_encoder
    assert (found.train.epochs, found.train.batch_size, found.train.lr) == (200, 2, 1e-4)


@pytest.mark.parametrize(("flag", "get", "default", "text", "value"), PROMISED, ids=[row[0] for row in PROMISED])
def test_promised_flags_and_defaults(flag: str, get: Get, default: object, text: str, value: object) -> None:
    assert get(config(BASIC)) == default
    assert get(config(f"{BASIC} --{flag} {text}")) == value


@pytest.mark.parametrize(("flag", "get", "default", "value"), SWITCHES, ids=[row[0] for row in SWITCHES])
def test_promised_switches(flag: str, get: Get, default: object, value: object) -> None:
    assert get(config(BASIC)) == default
    assert get(config(f"{BASIC} --{flag}")) == value


@pytest.mark.parametrize("name", ["reduce_on_plateau", "cosine", "step"])
def test_promised_schedules(name: str) -> None:
    assert config(f"{BASIC} --scheduler_type {name}").scheduler.name == name


def test_the_best_checkpoint_is_the_one_with_the_best_score() -> None:
    stopping = config(BASIC).train.early_stopping
    assert (stopping.metric, stopping.resolved_mode) == ("val_score", "max")


def test_test_checks_the_system() -> None:
    assert parse(APP, ["--test"]).action == "test"


def test_without_data_the_demo_runs() -> None:
    invocation = parse(APP, [])
    assert invocation.composed.demo
    data, model = invocation.config.data, invocation.config.model
    assert (data.source, model.model_type, model.weights) == ("phantoms", "vit_tiny", "none")


@pytest.mark.parametrize("missing", ["val_csv", "mask_dir"])
def test_a_missing_table_or_folder_is_named(missing: str) -> None:
    given = {"train_csv": "train.csv", "val_csv": "val.csv", "mask_dir": "masks"}
    line = " ".join(f"--{key} {value}" for key, value in given.items() if key != missing)
    with pytest.raises(ConfigError, match=rf"^data\.{missing} \(--{missing}\): needed together with train_csv$"):
        config(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--image_size 100", r"model\.image_size.*100 is no multiple of the patch size, 16"),
        ("--image_size 96 --patch_size 10", r"model\.image_size.*96 is no multiple of the patch size, 10"),
        ("--patch_size 12", r"model\.image_size.*128 is no multiple of the patch size, 12"),
        ("--model_type vit_tiny --image_size 34", r"model\.image_size.*34 is no multiple of the patch size, 4"),
        ("--model_type vit_huge", r"model\.model_type.*vit_huge"),
        ("--prompt_mode boxes", r"objective\.prompt_mode.*boxes"),
        ("--num_clicks 0", r"objective\.num_clicks"),
        ("--overlap 1", r"inference\.overlap"),
        ("--threshold 0", r"inference\.threshold"),
        ("--spacing 1 1 0", r"data\.spacing"),
        ("--spacing 1 1", r"data\.spacing"),
        ("--window_widht 3", r"window_width"),
        ("--scheduler_type linear", r"scheduler"),
    ],
)
def test_mistakes_are_named_with_what_was_given(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(f"{BASIC} {line}")


@pytest.mark.parametrize(("model_type", "size", "patch"), [("vit_b_ori", 128, 16), ("vit_tiny", 32, 4)])
def test_sizes_follow_the_type_unless_given(model_type: str, size: int, patch: int) -> None:
    plain = encoder_shape(config(f"{BASIC} --model_type {model_type}").model)
    assert (plain.image_size, plain.patch_size) == (size, patch)
    other = encoder_shape(config(f"{BASIC} --model_type {model_type} --image_size 64 --patch_size 8").model)
    assert (other.image_size, other.patch_size, other.grid, other.depth) == (64, 8, 8, plain.depth)


def test_small_is_between_the_two() -> None:
    shape = encoder_shape(config(f"{BASIC} --model_type vit_small").model)
    assert (shape.image_size, shape.patch_size) == (128, 16)


def test_the_environment_names_the_released_file_and_leaves_the_demo_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_MED3D_WEIGHTS", "turbo.pth")
    assert config(BASIC).model.weights == "hub"
    assert fetch_released() == Path("turbo.pth")
    assert config("--demo").model.weights == "none"


def test_held_out_data_without_training_data_is_no_demo() -> None:
    with pytest.raises(ConfigError, match=r"val_csv.*needs train_csv"):
        config("--val_csv val.csv --mask_dir masks")


@pytest.mark.parametrize(
    ("line", "window"),
    [
        ("", (40.0, 80.0)),
        ("--window subdural", (75.0, 215.0)),
        ("--window none", None),
        ("--window custom --window_level 50 --window_width 130", (50.0, 130.0)),
    ],
)
def test_windows(line: str, window: tuple[float, float] | None) -> None:
    assert preprocessing(config(f"{BASIC} {line}").data).window == window


def test_a_model_and_segmenter_come_back_from_plain_values() -> None:
    found = config(f"{BASIC} --model_type vit_tiny --prompt_mode clicks --spacing 2 2 4 --threshold 0.4 --window none")
    metadata = describe(found)
    model = make_model(metadata)
    segmenter = make_segmenter(metadata, model)
    assert model.sam.shape == encoder_shape(found.model)
    assert segmenter.preprocessing == preprocessing(found.data)
    assert segmenter.threshold == 0.4
    assert metadata["prompted"] is True
    assert not model.sam.prompt_encoder.no_mask_embed.weight.requires_grad

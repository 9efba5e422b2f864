"""The shared sections and their dump."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from mlcore.config.compose import Request, compose
from mlcore.config.dump import to_values, to_yaml
from mlcore.config.names import NameTable
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.section import Section, field
from mlcore.config.sections import CheckpointConfig, EarlyStoppingConfig, RunConfig, TrackingConfig, TrainConfig


class Everything(Section):
    run: RunConfig = field(RunConfig(), "Run")
    train: TrainConfig = field(TrainConfig(), "Training")
    scheduler: SchedulerConfig = field(SchedulerConfig(), "Schedule")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "Checkpoints")
    tracking: TrackingConfig = field(TrackingConfig(), "Tracking")


ODD = Everything(
    run=RunConfig(name="1e-4", output_dir=Path("a: b"), seed=7, device="cuda:1", num_workers=0),
    train=TrainConfig(lr=3e-7, max_grad_norm=None, ema_decay=0.999, early_stopping=EarlyStoppingConfig(patience=3)),
    scheduler=SchedulerConfig(name="cosine_warm_restart", T_0=10, T_mult=2, eta_min=1e-6),
    tracking=TrackingConfig(wandb_project="yes"),
)


def explained(config: Section) -> str:
    return to_yaml(config, explain=True)


def as_json(config: Section) -> str:
    return json.dumps(to_values(config))


@pytest.mark.parametrize("config", [Everything(), ODD], ids=["defaults", "odd"])
@pytest.mark.parametrize(("suffix", "dump"), [(".yaml", to_yaml), (".yaml", explained), (".json", as_json)])
def test_a_dumped_configuration_reads_back_equal(
    tmp_path: Path, config: Everything, suffix: str, dump: Callable[[Section], str]
) -> None:
    (tmp_path / "default.yaml").touch()
    file = tmp_path / f"config{suffix}"
    file.write_text(dump(config))
    composed = compose(Everything, tmp_path, Request(files=[file]), environ={})
    assert composed.config == config
    assert dump(composed.config) == dump(config)  # stable order


def test_an_explained_configuration_says_what_each_setting_is_and_may_be() -> None:
    text = explained(Everything())
    assert (
        "\n# The optimisation.\ntrain:\n  # Passes over the training data [a whole number, at least 1 (epochs)]\n"
        in text
    )
    assert "  # Optimisation algorithm [one of adamw, adam, sgd]\n  optimizer: adamw\n" in text
    for leaf in NameTable(Everything).leaves.values():
        assert f"# {leaf.info.description}"[:60] in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_explained_configuration_leaves_secrets_out(tmp_path: Path) -> None:
    class Secretive(Section):
        token: SecretStr | None = field(None, "Token of the service")
        other: SecretStr | None = field(None, "Another token")

    (tmp_path / "default.yaml").touch()
    given = [("token", "hunter2")]
    config = compose(Secretive, tmp_path, Request(overrides=given), environ={}).config
    text = explained(config)
    assert "a secret, left out here]\n# token: '***'\n" in text
    assert "\nother: null\n" in text
    (tmp_path / "mine.yaml").write_text(text)
    request = Request(overrides=given, files=[tmp_path / "mine.yaml"])
    assert compose(Secretive, tmp_path, request, environ={}).config == config


def test_origins_become_comments_that_do_not_change_the_values(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").touch()
    composed = compose(Everything, tmp_path, Request(overrides=[("lr", "0.5")]), environ={})
    text = to_yaml(composed.config, composed.sources)
    assert "  lr: 0.5  # command line\n" in text
    assert text.count("#") == 1


def test_secrets_are_masked_in_dumps() -> None:
    class Secretive(Section):
        token: SecretStr = field(SecretStr("hunter2"), "Token")

    assert "hunter2" not in to_yaml(Secretive()) + explained(Secretive()) + repr(to_values(Secretive()))


def test_sections_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        TrainConfig().lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="batch_sise"):
        TrainConfig(batch_sise=3)  # type: ignore[call-arg]


def test_every_shared_setting_says_what_it_means() -> None:
    leaves = NameTable(Everything).leaves
    assert [path for path, leaf in leaves.items() if len(leaf.info.description or "") < 10] == []


def test_params_are_those_given_for_the_chosen_schedule() -> None:
    assert SchedulerConfig(name="warmup_cosine", warmup_steps=5).params() == {"warmup_steps": 5.0}
    assert SchedulerConfig(name="plateau", factor=0.5, patience=2, verbose=True).params() == {
        "factor": 0.5,
        "patience": 2,
    }
    assert SchedulerConfig().params() == {}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("cosine", "epoch"),
        ("step", "epoch"),
        ("warmup_cosine", "step"),
        ("cosine_warmup", "step"),
        ("warmup_linear", "step"),
    ],
)
def test_lengths_count_what_the_name_of_the_parameter_says(name: str, unit: str) -> None:
    assert SchedulerConfig.model_validate({"name": name}).resolved_unit == unit
    assert SchedulerConfig.model_validate({"name": name, "unit": "step"}).resolved_unit == "step"


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_loss", "min"),
        ("loss", "min"),
        ("val_hd95", "min"),
        ("val_accuracy", "max"),
        ("val_auroc", "max"),
        ("val_dice", "max"),
    ],
)
def test_direction_of_a_metric_follows_its_name_unless_given(metric: str, mode: str) -> None:
    assert EarlyStoppingConfig(metric=metric).resolved_mode == mode
    assert EarlyStoppingConfig(metric=metric, mode="max").resolved_mode == "max"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU"])
def test_devices_are_checked(device: str) -> None:
    with pytest.raises(ValidationError):
        RunConfig(device=device)


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b", "", ".hidden"])
def test_a_run_name_is_one_folder_name(name: str) -> None:
    with pytest.raises(ValidationError):
        RunConfig(name=name)


def test_sources_are_plain_values(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").touch()
    composed = compose(Everything, tmp_path, Request(), environ={})
    assert {dataclasses.asdict(source)["where"] for source in composed.sources.values()} == {"default"}


@pytest.mark.parametrize("place", ["models", "my.models-1", "s3://models", "s3://models/team/a", "models/team/"])
def test_a_bucket_is_a_place_to_upload_to(place: str) -> None:
    assert CheckpointConfig(upload_to=place).upload_to == place


@pytest.mark.parametrize("place", ["", "s3://", "s3:/models", "https://user:password@host/models", "a b", "models//x"])
def test_anything_else_is_none(place: str) -> None:
    with pytest.raises(ValidationError, match="expected the name of a bucket, or s3://bucket/prefix"):
        CheckpointConfig(upload_to=place)

"""Settings become the parts of a trainer, each where it belongs."""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.run.advice import unsuitable
from mlcore.run.build import (
    build_trainer,
    describe,
    evaluation_loader,
    statistics_loader,
    train_loader,
)
from mlcore.run.tracking import build_tracker
from mlcore.trackers.base import Trackers
from mlcore.training.trainer import Trainer
from tests.mlcore.run.toy import Line, LineConfig, ToyConfig, build


def config_of(**sections: dict[str, Any]) -> ToyConfig:
    train = {"batch_size": 8, "early_stopping": {"metric": "loss"}, **sections.pop("train", {})}
    return ToyConfig.model_validate({"train": train, "run": {"num_workers": 0, "device": "cpu"}, **sections})


def trainer_of(folder: Path | None = None, **sections: dict[str, Any]) -> Trainer:
    config = config_of(**sections)
    return build_trainer(config, build(config, World()), world=World(), folder=folder)


def test_length_of_a_run_in_epochs_steps_and_hours() -> None:
    trainer = trainer_of(train={"epochs": 5, "gradient_accumulation_steps": 3, "max_hours": 0.5})
    assert (trainer.steps_per_epoch, trainer.total_steps) == (2, 10)  # 4 batches of 8 in windows of 3
    assert trainer.limits.max_seconds == 1800
    assert trainer_of(train={"epochs": 5, "max_steps": 7}).total_steps == 7


def test_rates_follow_the_schedule_from_the_configured_one_on() -> None:
    trainer = trainer_of(train={"epochs": 4, "lr": 0.05}, scheduler={"name": "cosine"})
    rates = []
    for window in trainer.windows_over_epochs(3):
        trainer.engine.run_window(trainer.task.training_step, window)
        rates.append(trainer.engine.learning_rates()[0])
    assert rates[0] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("name", "given"), [("val_loss", "loss"), ("val/loss", "loss"), ("loss", "loss")])
def test_the_monitored_metric_is_named_as_the_evaluation_names_it(name: str, given: str) -> None:
    trainer = trainer_of(train={"early_stopping": {"metric": name, "patience": 3, "min_delta": 0.1}})
    assert (trainer.monitor.metric, trainer.monitor.mode) == (given, "min")
    assert (trainer.monitor.patience, trainer.monitor.min_delta) == (3, 0.1)


def test_a_plateau_watches_in_the_direction_of_the_metric_unless_told() -> None:
    assert trainer_of(scheduler={"name": "cosine"}).plateau is None
    watched = trainer_of(scheduler={"name": "plateau", "factor": 0.3, "patience": 2}).plateau
    assert watched is not None
    assert [watched.update(loss) for loss in (1.0, 0.5, 0.2, 0.3, 0.3)] == [1.0] * 5  # a falling loss is progress
    assert watched.update(0.3) == pytest.approx(0.3)


def doubts(config: ToyConfig, trainer: Trainer) -> str:
    """What is said at the start of a run whose settings are a preset's, and does not stop it."""
    found = list(unsuitable(config, trainer, chosen=lambda _: False))
    assert not any(fatal for fatal, _ in found)
    return "\n".join(text for _, text in found)


def test_a_plateau_told_to_watch_a_rising_metric_fall_watches_the_loss() -> None:
    block = {"name": "src.schedulers.plateau.PlateauScheduler", "mode": "min", "patience": 0, "verbose": False}
    sections = {"train": {"early_stopping": {"metric": "val_macro_f1"}}, "scheduler": block}
    trainer = trainer_of(**sections)
    said = doubts(config_of(**sections), trainer)
    assert "a larger macro_f1 is better: the plateau schedule watches val loss instead" in said
    assert (trainer.monitor.metric, trainer.monitor.mode) == ("macro_f1", "max")
    watched = trainer.plateau
    assert watched is not None
    assert watched.metric == "loss"
    assert [watched.update(loss) for loss in (1.0, 0.5, 0.2)] == [1.0] * 3
    assert watched.update(0.3) == pytest.approx(0.1)


def test_a_plateau_told_to_watch_a_falling_metric_rise_is_refused() -> None:
    with pytest.raises(UserError, match=r"scheduler\.mode=max, but a smaller loss is better"):
        trainer_of(scheduler={"name": "plateau", "mode": "max"})
    rising = trainer_of(
        train={"early_stopping": {"metric": "val_macro_f1"}}, scheduler={"name": "plateau", "mode": "max"}
    )
    assert rising.plateau is not None
    assert rising.plateau.metric == "macro_f1"


@pytest.mark.parametrize(
    "watching", [{"train": {"early_stopping": {"patience": 3}}}, {"scheduler": {"name": "plateau"}}]
)
def test_without_validation_data_nothing_can_watch_it(watching: dict[str, Any]) -> None:
    for sections, refused in (({}, False), (watching, True)):
        config = config_of(**sections)
        setup = replace(build(config, World()), evaluation={})
        with pytest.raises(UserError, match="nothing to watch") if refused else nullcontext():
            trainer = build_trainer(config, setup, world=World())
            assert trainer.evaluator is None
            assert trainer.fit().progress.best is None


SCHEDULES: list[tuple[dict[str, Any], str, bool]] = [
    ({"name": "warmup_cosine", "warmup_steps": 40}, "the warm-up takes 40 steps, the run only 8", True),
    ({"name": "step", "step_size": 3}, r"step_size is 12 steps \(3 epochs\), the run only 8", True),
    ({"name": "cosine", "T_max": 100}, "T_max is 400 steps .* ends at 100% of its highest", True),
    ({"name": "cosine", "T_max": 3}, "T_max is 12 steps .* ends at 25% of its highest", False),
]


@pytest.mark.parametrize(("schedule", "told", "refused"), SCHEDULES)
def test_a_schedule_that_is_longer_than_the_run(schedule: dict[str, Any], told: str, refused: bool) -> None:
    """What the user gave and nothing would come of is refused; a preset's is told, so that presets can be tried."""
    sections: dict[str, Any] = {"train": {"epochs": 2}, "scheduler": schedule}
    config, trainer = config_of(**sections), trainer_of(**sections)
    assert re.search(told, doubts(config, trainer))
    [(fatal, _)] = unsuitable(config, trainer, chosen=lambda path: path.startswith("scheduler."))
    assert fatal == refused


def test_what_will_not_happen_in_so_short_a_run_is_said() -> None:
    sections: dict[str, Any] = {
        "train": {"epochs": 2, "eval_every": 3, "early_stopping": {"metric": "val_loss", "patience": 5}},
        "checkpoint": {"save_every_steps": 99, "keep_every_epochs": 2},
    }
    found = list(unsuitable(config_of(**sections), trainer_of(**sections), chosen=lambda _: True))
    assert [text.split(" ")[0] for _, text in found] == ["the", "--patience", "--save_every_steps"]
    assert not any(fatal for fatal, _ in found)


class Normed(Line):
    """The line, after a batch norm."""

    def __init__(self, config: LineConfig) -> None:
        super().__init__(config)
        self.model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), self.model)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {"gradient_accumulation_steps": 2},
            "1 batch norms take their statistics from 8 samples at a time, not from the 16",
        ),
        ({}, None),
    ],
)
def test_batch_norms_whose_statistics_are_of_a_part_of_the_step_are_said(
    train: dict[str, Any], said: str | None
) -> None:
    config = config_of(train=train)
    setup = replace(build(config, World()), task=Normed(config.line))
    found = doubts(config, build_trainer(config, setup, world=World()))
    assert (said or "") in found
    assert ("batch norm" in found) == (said is not None)
    assert "batch norm" not in doubts(config, trainer_of(train=train))  # the line alone is exact


def test_averaged_weights_get_statistics_of_the_same_full_batches_of_all_classes() -> None:
    config = config_of(train={"ema_decay": 0.9, "batch_size": 5})
    setup = replace(build(config, World()), task=Normed(config.line))
    loader = statistics_loader(config, setup, world=World())
    first, again = ([batch.data["x"] for batch in loader.epoch(0)] for _ in range(2))
    assert [len(x) for x in first] == [5] * 6  # of 32 samples
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.cat(first).flatten().tolist() != sorted(torch.cat(first).flatten().tolist())
    assert build_trainer(config, setup, world=World()).engine.settle is not None
    assert trainer_of(train={"ema_decay": 0.9}).engine.settle is None  # without batch norm there is nothing to settle
    few = [
        len(batch.data["x"])
        for batch in statistics_loader(config_of(train={"batch_size": 64}), setup, world=World()).epoch(0)
    ]
    assert few == [32]


def test_few_workers_read_what_the_statistics_of_averaged_weights_are_of() -> None:
    loaders = []
    for workers in (0, 1, 7):
        config = config_of(train={"ema_decay": 0.9, "batch_size": 5}, run={"num_workers": workers})
        loaders.append(statistics_loader(config, build(config, World()), world=World()))
    assert [loader.num_workers for loader in loaders] == [0, 1, 2]
    alone, _, shared = ([batch.data["x"] for batch in loader.epoch(0)] for loader in loaders)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_synchronised_batch_norms_need_cuda_where_there_are_ranks() -> None:
    config = config_of(train={"sync_batch_norm": True})
    setup = replace(build(config, World()), task=Normed(config.line))
    build_trainer(config, setup, world=World())
    with pytest.raises(UserError, match="sync_batch_norm"):
        build_trainer(config, setup, world=World(size=2))


def test_checkpoints_are_kept_only_where_there_is_a_folder(tmp_path: Path) -> None:
    assert trainer_of().store is None
    store = trainer_of(tmp_path / "checkpoints", checkpoint={"keep_last": 3}).store
    assert store is not None
    assert store.folder == tmp_path / "checkpoints"
    store.close()


def test_ranks_share_the_training_data_and_evaluation_takes_every_sample_once() -> None:
    config = config_of(train={"eval_batch_size": 3})
    setup = build(config, World())
    loaders = [train_loader(config, setup, world=World(rank=rank, size=2)) for rank in range(2)]
    seen = [{i for key in loader.order.batches(0) for i in key.indices} for loader in loaders]
    assert seen[0] | seen[1] == set(range(32))
    assert not seen[0] & seen[1]
    whole = evaluation_loader(config, setup.validation, world=World())
    assert [len(key.indices) for key in whole.order.batches(0)] == [3, 3, 2]


def test_one_line_says_what_is_trained_on_what() -> None:
    said = describe(trainer_of(train={"epochs": 2}))
    assert said == "1 trainable parameters, 32 training and 8 validation samples, 8 steps, on cpu in float32"


@pytest.mark.parametrize("tensorboard", [False, True])
def test_trackers_are_those_that_are_asked_for(tmp_path: Path, tensorboard: bool) -> None:
    config = config_of(tracking={"tensorboard": tensorboard})
    tracker = build_tracker(config, app="toy", folder=tmp_path, resume_step=None, known={})
    assert isinstance(tracker, Trackers)
    tracker.log(1, {"train/loss": 0.5})
    tracker.close(status="finished")
    assert (tmp_path / "metrics.csv").is_file()
    assert (tmp_path / "tensorboard").is_dir() == tensorboard

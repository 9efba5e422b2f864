"""What a run that goes on does with other settings: as each declares, applied, reset and said, or refused."""

import copy
import json
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlcore.base.console import Pace
from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.cli.apps import app_names, load_app
from mlcore.cli.main import run_app
from mlcore.cli.parse import parse
from mlcore.config.difference import changes, matters, plain_values
from mlcore.config.dump import to_values
from mlcore.config.names import NameTable, flatten
from mlcore.config.section import BEST
from mlcore.data.batch import MicroBatch
from mlcore.run.build import build_trainer
from mlcore.run.continued import Resumed, accepted_changes, adopt_changes
from mlcore.run.session import EXIT_INTERRUPTED, run
from mlcore.trackers.table import read_history
from mlcore.training.checkpoint import load_checkpoint, save_checkpoint
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.trainer import Trainer
from tests.mlcore.run.toy import ToyConfig, build, toy_app

Sections = Mapping[str, Any]

PLATEAU = {"scheduler": {"name": "plateau"}}
WARMUP = {"scheduler": {"name": "warmup_cosine", "warmup_steps": 4}}
RESTARTS = {"scheduler": {"name": "cosine_warm_restart", "T_0": 3}}
STEPS = {"scheduler": {"name": "step", "step_size": 1}}

# Of every setting that all apps share another value, and what else has to be set for it to mean something.
OTHER: dict[str, tuple[Any, Sections]] = {
    "train.epochs": (3, {}),
    "train.max_steps": (6, {}),
    "train.max_hours": (1.0, {}),
    "train.batch_size": (4, {}),
    "train.auto_batch_size": (True, {}),
    "train.eval_batch_size": (3, {}),
    "train.gradient_accumulation_steps": (2, {}),
    "train.optimizer": ("sgd", {}),
    "train.lr": (0.03, {}),
    "train.weight_decay": (0.2, {}),
    "train.momentum": (0.5, {"train": {"optimizer": "sgd"}}),
    "train.max_grad_norm": (0.01, {}),
    "train.precision": ("fp16", {}),
    "train.gradient_checkpointing": (True, {}),
    "train.compile": (True, {}),
    "train.ema_decay": (0.9, {}),
    "train.sync_batch_norm": (True, {}),
    "train.eval_every": (2, {}),
    "train.eval_unit": ("steps", {"train": {"eval_every": 2}}),
    "train.early_stopping.patience": (3, {}),
    "train.early_stopping.metric": ("n", {}),
    "train.early_stopping.mode": ("max", {}),
    "train.early_stopping.min_delta": (0.5, {}),
    "train.max_bad_steps": (3, {}),
    "train.drop_last": (True, {}),
    "scheduler.name": ("plateau", {}),
    "scheduler.unit": ("step", {}),
    "scheduler.T_max": (1.5, {}),
    "scheduler.eta_min": (0.05, {}),
    "scheduler.step_size": (2, STEPS),
    "scheduler.gamma": (0.5, STEPS),
    "scheduler.mode": ("min", {**PLATEAU, "train": {"early_stopping": {"metric": "n"}}}),
    "scheduler.factor": (0.5, PLATEAU),
    "scheduler.patience": (1, PLATEAU),
    "scheduler.verbose": (True, PLATEAU),
    "scheduler.warmup_steps": (6, WARMUP),
    "scheduler.max_steps": (7, WARMUP),
    "scheduler.min_lr": (0.01, WARMUP),
    "scheduler.warmup_start_lr": (0.01, WARMUP),
    "scheduler.T_0": (2, RESTARTS),
    "scheduler.T_mult": (2, RESTARTS),
    "run.name": ("other", {}),
    "run.output_dir": ("elsewhere", {}),
    "run.resume": ("never", {}),
    "run.seed": (1, {}),
    "run.device": ("auto", {}),
    "run.baseline": ("none", {}),
    "run.deterministic": (True, {}),
    "run.num_workers": (0, {}),
    "run.num_threads": (1, {}),
    "checkpoint.save_every_steps": (1, {}),
    "checkpoint.save_every_minutes": (1.0, {}),
    "checkpoint.keep_last": (1, {}),
    "checkpoint.keep_every_epochs": (1, {}),
    "checkpoint.async_save": (False, {}),
    "checkpoint.upload_to": ("bucket", {}),
    "tracking.tensorboard": (False, {}),
    "tracking.use_wandb": (True, {}),
    "tracking.wandb_project": ("other", {}),
    "tracking.wandb_entity": ("other", {}),
    "tracking.wandb_mode": ("offline", {}),
    "tracking.log_every": (1, {}),
    "tracking.profile": (True, {}),
    "tracking.log_images": (True, {}),
    "tracking.log_freq": (1, {}),
}
CUTS = ("train.batch_size", "train.gradient_accumulation_steps", "train.drop_last")


def config_of(sections: Sections, *, path: str = "", value: Any = None) -> ToyConfig:
    """The toy's settings with `sections`, and with `value` at `path`."""
    early = {"metric": "loss", **sections.get("train", {}).get("early_stopping", {})}
    train = {"epochs": 2, "batch_size": 8, "lr": 0.1, **sections.get("train", {}), "early_stopping": early}
    values: dict[str, Any] = {"run": {"device": "cpu"}, **sections, "train": train}
    *parents, key = path.split(".")
    inner: Any = values
    for parent in parents:
        inner[parent] = inner = {**inner.get(parent, {})}
    if path:
        inner[key] = value
    return ToyConfig.model_validate(values, strict=False)


def trainer_of(config: ToyConfig, folder: Path | None = None) -> Trainer:
    extra = {"config": to_values(config), "app": "toy"}
    return build_trainer(config, build(config, World()), world=World(), folder=folder, extra=extra)


def begun(config: ToyConfig, *, windows: int = 3) -> dict[str, Any]:
    """The state of a run in the middle of its first epoch of 4 windows, evaluated once."""
    torch.manual_seed(0)
    trainer = trainer_of(config)
    trainer._seconds_before = trainer._begun = trainer._last_log = 0.0
    trainer._pace = Pace(trainer.total_steps)
    for window in trainer.windows_over_epochs(windows):
        trainer.engine.run_window(trainer.task.training_step, window)
        trainer._advance(window)
    trainer._evaluate()
    return trainer.state_dict()


def in_force(trainer: Trainer) -> dict[str, Any]:
    """What steers a trainer, whether it has just been built or has taken over a run."""
    engine, plateau, order = trainer.engine, trainer.plateau, trainer.loader.order
    groups = [{k: v for k, v in g.items() if k not in ("lr", "params")} for g in engine.optimizer.param_groups]
    assert trainer.evaluator is not None
    return {
        "optimizer": (type(engine.optimizer), groups),
        "engine": (engine.max_grad_norm, engine.ema_decay, engine.arithmetic, engine.scaler.is_enabled()),
        "loop": (trainer.limits, trainer.cadence, trainer.monitor, trainer.accumulation, trainer.max_bad_steps),
        "plateau": plateau and (plateau.metric, *(plateau._watch.__dict__[k] for k in ("mode", "factor", "patience"))),
        "data": (replace(order, group=None), trainer.evaluator._loader.order.batch_size, trainer.loader.num_workers),
        "store": trainer.store and (trainer.store._keep_last, trainer.store._writer is None),
    }


CORE = [path for path in NameTable(ToyConfig).leaves if not path.startswith("line.")]


def test_of_every_shared_setting_another_value_is_tried() -> None:
    assert list(OTHER) == CORE


@pytest.mark.parametrize("path", OTHER)
def test_another_value_is_applied_reset_or_refused_as_declared(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value, sections = OTHER[path]
    old, new = config_of(sections), config_of(sections, path=path, value=value)
    assert [change.path for change in changes(to_values(old), new)] == [path]
    declared = NameTable(ToyConfig).leaves[path].meta
    state = begun(old)
    if declared.continued == "refused":
        with pytest.raises(UserError, match=rf"cannot go on with another value of {path} \S+ -> {value}"):
            accepted_changes(new, state, source=tmp_path)
        return
    trainer, fresh = trainer_of(new, tmp_path), trainer_of(new, tmp_path)
    trainer.load_state_dict(state, source=tmp_path)
    best = trainer.progress.best
    with caplog.at_level(logging.WARNING):
        adopt_changes(Resumed(tmp_path, state, accepted_changes(new, state, source=tmp_path)), trainer)
    assert in_force(trainer) == in_force(fresh)
    assert ("reset: " in caplog.text) == (declared.continued == "reset")
    assert (trainer.progress.best is None) == (declared.resets == BEST)
    assert best is not None
    assert (f"{path} " in caplog.text) == matters(path)
    like_before = config_of(sections) if path in CUTS else new
    curve = trainer_of(like_before)
    assert trainer.schedule is not None
    at = np.asarray([trainer.steps_done])
    expected = trainer.schedule(total_steps=curve.total_steps, steps_per_epoch=curve.steps_per_epoch, at=at)
    np.testing.assert_allclose(trainer.engine.table[3], expected[0], rtol=1e-6)
    if path != "train.compile":  # which takes long; the model is the same
        assert trainer.fit().status == "finished"


# ----------------------------------------------------------------------------------------------------- settings of apps


def table_of(app: str) -> NameTable:
    return NameTable(load_app(app).config_cls)


@pytest.mark.parametrize("name", app_names())
def test_every_setting_of_every_app_has_the_outcome_that_it_declares(name: str) -> None:
    app = load_app(name)
    config = app.config_cls()
    leaves = NameTable(app.config_cls).leaves
    now = flatten(plain_values(to_values(config)), leaves)
    for path, leaf in leaves.items():
        old = nested({**now, path: "another"})
        (change,) = changes(old, config)
        assert (change.path, change.old, change.new) == (path, "another", now[path])
        assert (leaf.meta.continued == "reset") == bool(leaf.meta.resets)
        if leaf.meta.continued == "refused":
            assert matters(path)
            with pytest.raises(UserError, match=rf"another value of {path} another -> "):
                accepted_changes(config, {"config": old}, source=Path("x.pth"))
        else:
            assert [c.path for c in accepted_changes(config, {"config": old}, source=Path("x.pth"))] == (
                [path] if matters(path) else []
            )


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, key = path.split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[key] = value
    return values


@pytest.mark.parametrize(
    "path",
    [
        "perceiver data.dataset",
        "perceiver model.num_latents",
        "doc_ensemble model.image_size",
        "doc_ensemble kfold.folds",
        "multimodal_ads text_encoder.max_length",
        "multimodal_ads train.lora.rank",
        "sam_med3d_ich data.spacing",
        "sam_med3d_ich objective.prompt_mode",
    ],
)
def test_what_makes_other_data_or_another_model_is_refused(path: str) -> None:
    name, _, setting = path.partition(" ")
    assert table_of(name).leaves[setting].meta.continued == "refused"


def test_a_setting_that_the_checkpoint_does_not_know_had_its_default_and_a_forgotten_one_says_nothing() -> None:
    old = to_values(config_of({}))
    del old["train"]["ema_decay"], old["line"]
    old["train"]["gone"] = 3
    assert changes(old, config_of({})) == []
    assert [str(change) for change in changes(old, config_of({"train": {"ema_decay": 0.5}}))] == [
        "train.ema_decay None -> 0.5"
    ]


# --------------------------------------------------------------------------------------------------- moments, averages


class Pair(nn.Module):
    """Vectors between matrices, so that weight decay makes two groups in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())  # type: ignore[no-any-return]


def engine_of(name: Any = "adamw", *, weight_decay: float = 0.0, momentum: float = 0.9, **options: Any) -> Engine:
    torch.manual_seed(0)
    model = Pair()
    groups = parameter_groups(model, lr=0.1, weight_decay=weight_decay)
    rates = np.full((99, len(groups)), 0.1)
    return Engine(model, build_optimizer(groups, name=name, momentum=momentum), learning_rates=rates, **options)


def train(engine: Engine, steps: int = 3) -> Engine:
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    for _ in range(steps):
        engine.run_window(
            lambda model, batch: StepOutput((model(batch) - 1).square().sum(), len(batch)), [MicroBatch(x)]
        )
    return engine


def moments(engine: Engine, key: str) -> dict[str, Tensor]:
    names = dict(engine.model.named_parameters())
    return {name: engine.optimizer.state[p][key].clone() for name, p in names.items()}


@pytest.mark.parametrize(("before", "after"), [("adamw", "adam"), ("adam", "adamw"), ("sgd", "sgd")])
@pytest.mark.parametrize("decays", [(0.0, 0.3), (0.3, 0.0), (0.1, 0.2)])
def test_moments_go_with_their_parameters(before: str, after: str, decays: tuple[float, float]) -> None:
    old = train(engine_of(before, weight_decay=decays[0]))
    new = engine_of(after, weight_decay=decays[1])
    new.model.load_state_dict(old.model.state_dict())
    new.load_state_dict(old.state_dict())
    for key in ("momentum_buffer",) if before == "sgd" else ("exp_avg", "exp_avg_sq", "step"):
        kept, found = moments(old, key), moments(new, key)
        assert all(torch.equal(kept[name], found[name]) for name in kept)
    assert {group["weight_decay"] for group in new.optimizer.param_groups} == (
        {0.0} if decays[1] == 0 else {0.0, decays[1]}
    )
    train(new)


def test_another_weight_decay_decays_as_torch_does() -> None:
    old, new = train(engine_of(weight_decay=0.1)), engine_of(weight_decay=0.5)
    new.model.load_state_dict(old.model.state_dict())
    new.load_state_dict(copy.deepcopy(old.state_dict()))  # as from a file
    for group in old.optimizer.param_groups:
        group["weight_decay"] *= 5
    train(old, 2)
    train(new, 2)
    assert all(torch.equal(a, b) for a, b in zip(old.model.parameters(), new.model.parameters(), strict=True))


@pytest.mark.parametrize(("before", "after"), [("sgd", "adamw"), ("adam", "sgd")])
def test_moments_of_another_kind_begin_anew_and_the_log_says_so(
    before: str, after: str, caplog: pytest.LogCaptureFixture
) -> None:
    new = engine_of(after)
    new.load_state_dict(train(engine_of(before)).state_dict())
    assert "moments begin anew" in caplog.text
    train(new)


def test_an_older_checkpoint_does_not_name_its_parameters() -> None:
    old = train(engine_of(weight_decay=0.1))
    state = old.state_dict()
    del state["names"]
    same, other = engine_of(weight_decay=0.2), engine_of()
    same.load_state_dict(state)
    assert all(torch.equal(a, moments(same, "exp_avg")[name]) for name, a in moments(old, "exp_avg").items())
    other.load_state_dict(state)
    assert not other.optimizer.state


def test_a_new_average_begins_with_the_weights_of_now(caplog: pytest.LogCaptureFixture) -> None:
    old, new = train(engine_of()), engine_of(ema_decay=0.5)
    new.model.load_state_dict(old.model.state_dict())
    new.load_state_dict(old.state_dict())
    weights = dict(new.model.named_parameters())
    assert all(torch.equal(average, weights[name]) for name, average in new.state_dict()["ema"].items())
    assert len(new.state_dict()["ema"]) == len(weights)
    assert "average of the weights begins" in caplog.text


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16")])
def test_a_loss_scale_begins_afresh_or_is_left(before: Any, after: Any) -> None:
    new = engine_of(precision=after)
    new.load_state_dict(train(engine_of(precision=before)).state_dict())
    assert new.scaler.is_enabled() == (after == "fp16")
    train(new)


def test_rates_that_a_plateau_lowered_are_those_of_another_schedule_again() -> None:
    old = config_of({**PLATEAU, "train": {"epochs": 4}})
    state = begun(old)
    state["plateau"]["scale"] = state["engine"]["lr_scale"] = 0.01
    trainer = trainer_of(config_of({"scheduler": {"name": "constant"}, "train": {"epochs": 4}}))
    trainer.load_state_dict(state, source="x")
    trainer.fit()
    assert trainer.engine.learning_rates() == pytest.approx([0.1])


def test_a_plateau_forgets_what_was_measured_in_another_way_but_not_the_rate() -> None:
    config = config_of(PLATEAU)
    state = begun(config)
    state["plateau"] |= {"scale": 0.25, "best": -1.0, "bad": 7}
    trainer = trainer_of(config)
    trainer.load_state_dict(state, source="x")
    trainer.forget_best()
    assert trainer.plateau is not None
    assert trainer.plateau.state_dict() == {**state["plateau"], "best": float("inf"), "bad": 0}


def test_momentum_that_there_was_not_begins_with_zeros() -> None:
    old, new = engine_of("sgd", momentum=0.0), engine_of("sgd")
    new.load_state_dict(copy.deepcopy(train(old).state_dict()))
    assert all(not buffer.any() for buffer in moments(new, "momentum_buffer").values())
    train(new)


# --------------------------------------------------------------------------------------------------------- whole runs

Call = Callable[..., int]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the toy with these arguments in the folder `run`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        app = toy_app(tmp_path)
        return run(app, parse(app, ["--output_dir", "run", *arguments]))

    return call


def interrupted_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process in the training step of this number."""
    advance = Trainer._advance

    def advancing(self: Trainer, window: Any) -> bool:
        if self.progress.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, window)

    patch.setattr(Trainer, "_advance", advancing)


@pytest.fixture
def stopped(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in the folder `run` that was interrupted in its second epoch, after 5 of 8 steps."""
    with monkeypatch.context() as patch:
        interrupted_at(5, patch)
        assert call() == EXIT_INTERRUPTED


def log(tmp_path: Path) -> str:
    return (tmp_path / "run/train.log").read_text("utf-8")


def test_what_is_refused_is_refused_before_anything_is_built_or_written(
    call: Call,
    stopped: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr("tests.mlcore.run.toy.build", lambda *_: pytest.fail("built"))
    with pytest.raises(UserError, match=r"run\.seed 0 -> 3.*old one again, or start a new run.*--output_dir"):
        call("--seed", "3")
    with pytest.raises(SystemExit, match="2"):
        run_app(app := toy_app(tmp_path), lambda asked: run(app, asked), argv=["--output_dir", "run", "line.slope=3"])
    assert "line.slope 2.0 -> 3.0" in capsys.readouterr().err
    live = ("run.lock", "train.log")
    assert {path: path.read_bytes() for path in kept if path.name not in live} == {
        path: data for path, data in kept.items() if path.name not in live
    }


def test_another_metric_is_not_compared_with_the_old_ones_best(call: Call, stopped: None, tmp_path: Path) -> None:
    assert call("train.early_stopping.metric=n", "--patience", "1") == 0
    best = load_checkpoint(tmp_path / "run/checkpoints/best_model.pth")["progress"]
    assert (best["best"], best["best_step"]) == (8.0, 8), "the number of samples, not a loss"
    assert "reset: the best value and the patience (train.early_stopping.metric loss -> n)" in log(tmp_path)


def test_the_best_that_another_metric_chose_is_kept(call: Call, stopped: None, tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints"
    before = (folder / "best_model.pth").read_bytes()
    assert call("train.early_stopping.metric=n", "--epochs", "4", "checkpoint.keep_last=1") == 0
    assert (folder / "best_before_step_5.pth").read_bytes() == before
    assert (folder / "best_model.pth").read_bytes() != before


@pytest.mark.parametrize("written", ["metric=val_loss", "metric=val/loss", "mode=min"])
def test_the_same_judgement_written_in_another_way_resets_nothing(
    written: str, call: Call, stopped: None, tmp_path: Path
) -> None:
    path = tmp_path / "run/checkpoints/latest_model.pth"
    state = load_checkpoint(path)
    state["progress"]["best"] = -1.0  # no later evaluation is as good
    rewrite(path, state)
    assert call(f"train.early_stopping.{written}") == 0
    assert load_checkpoint(path)["progress"]["best_step"] == 4
    assert load_checkpoint(path.with_name("best_model.pth"))["progress"]["step"] == 4
    assert "reset: " not in log(tmp_path)
    assert not list(path.parent.glob("best_before_*"))


def test_another_validation_set_is_not_compared_with_the_old_ones_best(
    call: Call, stopped: None, tmp_path: Path
) -> None:
    path = tmp_path / "run/checkpoints/latest_model.pth"
    state = load_checkpoint(path)
    state["validation_samples"], state["progress"]["best"] = 20, -1.0
    rewrite(path, state)
    assert call() == 0
    assert "reset: the best value and the patience (validation samples 20 -> 8)" in log(tmp_path)
    assert load_checkpoint(path.with_name("best_model.pth"))["progress"]["best_step"] == 8


def test_other_batches_and_ranks_are_said_and_the_settings_in_force_written(
    call: Call, stopped: None, tmp_path: Path
) -> None:
    path = tmp_path / "run/checkpoints/latest_model.pth"
    state = load_checkpoint(path)
    state["rng"] *= 2
    rewrite(path, state)
    assert call("--batch_size", "2", "--weight_decay", "0.3") == 0
    assert "train.batch_size 8 -> 2; train.weight_decay 0.0001 -> 0.3; ranks 2 -> 1" in log(tmp_path)
    assert "a step was of 8 samples when the run began and is of 2 now" in log(tmp_path)
    written = (tmp_path / "run/config.yaml").read_text("utf-8")
    assert written.startswith("# a step was of 8 samples when the run began and is of 2 now")
    assert "batch_size: 2 " in written
    assert "weight_decay: 0.3 " in written


def rewrite(path: Path, state: Mapping[str, Any]) -> None:
    """Let every name of the newest checkpoint have this content."""
    for name in (path, *path.parent.glob("step_*.pth")):
        name.unlink()
    save_checkpoint(path, state)


@pytest.mark.parametrize(
    ("seed", "split_seed", "expected"), [(0, 0, []), (5, 5, []), (5, 0, ["data.split_seed 5 -> 0"])]
)
def test_continued_older_runs_were_split_by_the_trainings_seed(seed: int, split_seed: int, expected: list[str]) -> None:
    """Otherwise pages of their training would be among the validation pages from then on."""
    app = load_app("doc_ensemble")
    now = parse(app, ["--data_dir", "pages", f"--seed={seed}", f"--split_seed={split_seed}"]).config
    old = to_values(now)
    del old["data"]["split_seed"]
    assert [str(change) for change in changes(old, now)] == expected


# ------------------------------------------------------------------------------------------------- ends and branches


def summary(tmp_path: Path, folder: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / folder / "summary.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize(("flag", "value"), [("--epochs", "1"), ("--max_steps", "5"), ("--max_steps", "3")])
def test_an_unfinished_run_can_be_ended_where_it_is(
    flag: str, value: str, call: Call, stopped: None, tmp_path: Path
) -> None:
    assert call(flag, value) == 0
    assert summary(tmp_path)["status"] == "finished"
    assert summary(tmp_path)["progress"]["step"] == 5
    assert summary(tmp_path)["results_of_best_checkpoint"]["test"]["n"] == 6
    with pytest.raises(UserError, match="holds a run that is finished"):
        call(flag, value, "--lr", "0.2")


def test_patience_ends_an_unfinished_run(call: Call, stopped: None, tmp_path: Path) -> None:
    path = tmp_path / "run/checkpoints/latest_model.pth"
    state = load_checkpoint(path)
    state["progress"] |= {"best": -1.0, "stale": 3}  # nor does the evaluation of the last weights improve on it
    rewrite(path, state)
    assert call("--patience", "2") == 0
    assert summary(tmp_path)["status"] == "stopped early"
    assert summary(tmp_path)["progress"]["step"] == 5


def branch(tmp_path: Path, state: Mapping[str, Any], *arguments: str) -> int:
    """Start a run in the folder `branch` from `state`."""
    save_checkpoint(tmp_path / "elsewhere.pth", state)
    app = toy_app(tmp_path)
    return run(app, parse(app, ["--resume", "elsewhere.pth", "--output_dir", "branch", *arguments]))


def test_a_branch_has_a_best_of_its_own_where_that_of_the_other_run_is_not_at_hand(
    call: Call, stopped: None, tmp_path: Path
) -> None:
    state = load_checkpoint(tmp_path / "run/checkpoints/latest_model.pth")
    assert state["progress"]["best_step"] == 4
    state["progress"]["best"] = -1.0  # no later evaluation is as good
    assert branch(tmp_path, state) == 0
    assert summary(tmp_path, "branch")["best_step"] == 8
    best = load_checkpoint(tmp_path / "branch/checkpoints/best_model.pth")["progress"]
    assert best["step"] == 8
    told = (tmp_path / "branch/summary.md").read_text("utf-8")
    assert "best weights at step 8 of 8" in told
    assert "the best weights, of step 4, are not in elsewhere.pth" in (tmp_path / "branch/train.log").read_text("utf-8")


@pytest.mark.parametrize("more", [("--max_steps", "5"), ()])
def test_a_branch_from_the_best_weights_keeps_them(
    more: tuple[str, ...], call: Call, stopped: None, tmp_path: Path
) -> None:
    state = load_checkpoint(tmp_path / "run/checkpoints/latest_model.pth")
    state["progress"] |= {"best": -1.0, "best_step": 5}
    state["evaluated_at"] = 5
    assert branch(tmp_path, state, *more) == 0
    assert summary(tmp_path, "branch")["best_step"] == 5
    best = load_checkpoint(tmp_path / "branch/checkpoints/best_model.pth")
    assert best["progress"]["step"] == 5
    assert torch.equal(best["model"]["weight"], state["model"]["weight"])


def test_a_branch_with_nothing_left_to_train_is_evaluated(call: Call, stopped: None, tmp_path: Path) -> None:
    assert call() == 0
    state = load_checkpoint(tmp_path / "run/checkpoints/latest_model.pth")
    state["progress"]["best_step"] = 4
    assert branch(tmp_path, state) == 0
    assert summary(tmp_path, "branch")["best_step"] == 8
    assert (tmp_path / "branch/checkpoints/best_model.pth").is_file()


def test_what_a_plateau_has_seen_goes_with_a_branch() -> None:
    state = begun(config_of(PLATEAU))
    trainer = trainer_of(config_of(PLATEAU))
    trainer.load_state_dict(state, source="x")
    trainer.forget_best(alike=True)
    assert trainer.plateau is not None
    assert trainer.plateau.state_dict() == state["plateau"]
    assert (trainer.progress.best, trainer.progress.best_step) == (None, -1)


def test_the_same_command_goes_on_with_an_interrupted_branch(
    call: Call, stopped: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_checkpoint(tmp_path / "run/checkpoints/latest_model.pth")
    with monkeypatch.context() as patch:
        interrupted_at(7, patch)
        assert branch(tmp_path, state) == EXIT_INTERRUPTED
    assert branch(tmp_path, state) == 0
    told = (tmp_path / "branch/train.log").read_text("utf-8")
    assert "resuming branch/checkpoints/step_00000007.pth at step 7" in told
    assert call() == 0
    weight = [load_checkpoint(tmp_path / f"{name}/checkpoints/latest_model.pth")["model"] for name in ("run", "branch")]
    assert torch.equal(weight[0]["weight"], weight[1]["weight"])


@pytest.mark.parametrize(("every", "evaluated"), [(1, {4, 5, 6}), (2, {5, 6}), (3, {6})])
def test_an_epoch_of_which_a_larger_batch_leaves_nothing_ends_like_any_other(
    every: int, evaluated: set[int], call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = (f"--eval_every={every}", "checkpoint.keep_every_epochs=2", "--epochs=3")
    with monkeypatch.context() as patch:
        interrupted_at(5, patch)
        assert call(*settings) == EXIT_INTERRUPTED
    assert call(*settings, "--batch_size", "32", "--drop_last", "true") == 0  # 24 of 32 samples were left
    assert {step for step, row in read_history(tmp_path / "run") if "val/loss" in row} == evaluated
    kept = load_checkpoint(tmp_path / "run/checkpoints/epoch_0002.pth")["progress"]
    assert (kept["epoch"], kept["position"], kept["step"]) == (2, 0, 5)

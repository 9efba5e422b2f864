"""The loop: what it resumes, when it stops, what it refuses."""

import gc
import itertools
import json
import logging
import os
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mlcore.base.errors import UserError
from mlcore.base.seeding import seed_everything
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.checkpoint import CheckpointError, CheckpointStore, load_checkpoint
from mlcore.training.engine import Engine, Precision, StepOutput
from mlcore.training.evaluator import Evaluator
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.progress import Cadence, Limits, Monitor
from mlcore.training.schedules import Plateau, lr_table
from mlcore.training.trainer import Trainer


class Points:
    """Noisy linear regression."""

    def __init__(self, size: int = 50, *, bad: set[int] | None = None) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(size, 5)).astype(np.float32)
        self.y = (self.x.sum(1) + 0.1 * rng.normal(size=size)).astype(np.float32)
        for index in bad or ():
            self.x[index] = np.nan

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "y": self.y[index]}


def jitter(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**sample, "x": sample["x"] + 0.01 * rng.normal(size=5).astype(np.float32)}


EVALUATED = 20


class Regression:
    """A small network with dropout, so that the global generator matters."""

    def __init__(self, *, score: list[float] | None = None, width: int = 8, inner: nn.Module | None = None) -> None:
        layers = [nn.Linear(5, width), nn.Dropout(0.2), inner or nn.Identity(), nn.ReLU(), nn.Linear(width, 1)]
        self.model: nn.Module = nn.Sequential(*layers)
        self._score = score

    def training_step(self, model: nn.Module, batch: dict[str, Tensor]) -> StepOutput:
        error = model(batch["x"]).squeeze(1) - batch["y"]
        return StepOutput(error.square().sum(), len(error), {"abs_error": error.abs().sum()})

    def evaluation_step(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"error": functional.mse_loss(model(batch["x"]).squeeze(1), batch["y"], reduction="none")}

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        whole = len(predictions["error"]) == EVALUATED  # of a part, only the names are asked for
        value = self._score.pop(0) if self._score and whole else float(predictions["error"].mean())
        return {"loss": value}

    @property
    def metadata(self) -> dict[str, Any]:
        return {"kind": "regression"}


class Rows:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        kept = {key: value for key, value in values.items() if not key.startswith("perf/")}
        self.rows.append((step, kept))

    def image(self, step: int, name: str, path: Path) -> None: ...

    def close(self, *, status: str) -> None: ...

    def state(self) -> dict[str, str]:
        return {}


def make(
    folder: Path | None = None,
    *,
    epochs: int = 4,
    max_steps: int | None = None,
    patience: int | None = None,
    score: list[float] | None = None,
    data: Points | None = None,
    precision: Precision = "fp32",
    save_every: int | None = None,
    plateau: Plateau | None = None,
    width: int = 8,
    max_seconds: float | None = None,
    workers: int = 0,
    inner: Callable[[], nn.Module] = nn.Identity,
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
) -> Trainer:
    seed_everything(3)
    data = data or Points()
    task = Regression(score=score, width=width, inner=inner())
    groups = parameter_groups(task.model, lr=0.05, weight_decay=0.01)
    loader = BatchLoader(data, EpochOrder(len(data), 4, seed=3), transform=jitter, num_workers=workers)
    steps = -(-len(loader) // 3)
    rates = lr_table("cosine", {}, base_lrs=[0.05, 0.05], total_steps=epochs * steps, steps_per_epoch=steps)
    engine = Engine(
        task.model,
        build_optimizer(groups, name=optimizer),
        learning_rates=rates,
        precision=precision,
        max_grad_norm=1.0,
        ema_decay=0.9,
        nominal_count=12,
    )
    return Trainer(
        task=task,
        engine=engine,
        loader=loader,
        evaluator=Evaluator(task, BatchLoader(Points(EVALUATED), EpochOrder(EVALUATED, 8, shuffle=False))),
        limits=Limits(epochs=epochs, max_steps=max_steps, max_seconds=max_seconds),
        cadence=Cadence(log_every=2, save_every_steps=save_every),
        monitor=Monitor(metric="loss", mode="min", patience=patience),
        accumulation=3,
        store=None if folder is None else CheckpointStore(folder / "checkpoints", keep_last=100),
        tracker=Rows(),
        plateau=plateau,
        max_bad_steps=3,
    )


def rows(trainer: Trainer) -> list[tuple[int, dict[str, float]]]:
    assert isinstance(trainer.tracker, Rows)
    return trainer.tracker.rows


def flat(state: Any) -> list[Any]:
    if isinstance(state, Mapping):
        keys = (key for key in sorted(state, key=str) if not str(key).startswith("perf/"))
        return [item for key in keys for item in flat(state[key])]
    if isinstance(state, list | tuple):
        return [item for value in state for item in flat(value)]
    return [state]


def assert_same_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    one, other = ({k: v for k, v in s.items() if k != "progress"} for s in (one, other))
    for a, b in zip(flat(one), flat(other), strict=True):
        same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
        assert same, f"{a} != {b}"


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(8)


def convolution() -> nn.Module:
    """With weights whose strides are not those of a new tensor."""
    layers = [nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten()]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("inner", [nn.Identity, batch_norm, convolution])
@pytest.mark.parametrize("step", range(1, 20, 3))
def test_resuming_from_any_step_ends_bit_identical(
    step: int, inner: Callable[[], nn.Module], optimizer: Literal["adamw", "adam", "sgd"], tmp_path: Path
) -> None:
    whole = make(tmp_path, save_every=1, inner=inner, optimizer=optimizer)
    whole.fit()
    checkpoint = tmp_path / "checkpoints" / f"step_{step:08d}.pth"
    resumed = make(inner=inner, optimizer=optimizer)
    state = load_checkpoint(checkpoint)
    resumed.load_state_dict(state, source=checkpoint)
    resumed.fit()
    assert_same_state(resumed.state_dict(), whole.state_dict())
    first = step if state["due"] is not None else step + 1  # a checkpoint before an evaluation is also before its row
    assert (state["due"] is not None) == (step % 5 == 0)
    assert rows(resumed) == [row for row in rows(whole) if row[0] >= first]


def test_two_resumes_in_one_epoch_are_as_good_as_one(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    whole.fit()
    for steps in (1, 2, None):
        part = make(tmp_path / "parts", max_steps=steps)
        assert part.store is not None
        found = part.store.newest_good()
        if found is not None:
            part.load_state_dict(found[1], source=found[0])
            # The schedule is that of the whole run; only the limit differs.
        part.fit()
    # An evaluation at a forced stop is part of the run's history, so compare what training itself produced.
    for key in ("model", "rng"):
        assert_same_state({key: part.state_dict()[key]}, {key: whole.state_dict()[key]})


def test_what_an_evaluation_draws_from_the_generators_is_not_felt_by_training() -> None:
    quiet, drawing = make(), make()
    drawing.on_evaluation = lambda *_: [random.random(), np.random.random(), torch.rand(3)]
    make(epochs=1).fit()  # what is imported at the first use has been imported
    for trainer in (quiet, drawing):
        seed_everything(3)
        trainer.fit()
    assert_same_state(drawing.state_dict(), quiet.state_dict())


def test_early_stopping_counts_evaluations_without_improvement(tmp_path: Path) -> None:
    trainer = make(tmp_path, epochs=10, patience=2, score=[3.0, 2.0, 2.5, 2.1, 1.0])
    outcome = trainer.fit()
    assert outcome.status == "stopped early"
    assert outcome.progress.epoch == 4
    best, latest = (load_checkpoint(tmp_path / "checkpoints" / f"{name}_model.pth") for name in ("best", "latest"))
    assert latest["progress"]["best"] == 2.0
    assert best["progress"]["step"] == outcome.progress.best_step


def test_plateau_lowers_the_learning_rate_when_the_metric_stalls(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(epochs=3, score=[1.0, 1.0, 1.0], plateau=Plateau(factor=0.5, patience=0))
    with caplog.at_level(logging.INFO, logger="mlcore"):
        trainer.fit()
    assert trainer.plateau is not None
    assert trainer.plateau.scale == 0.25
    said = [record.getMessage() for record in caplog.records if "learning rate falls" in record.getMessage()]
    assert [line.split(":")[0] for line in said] == ["step 10", "step 15"]
    rates = [line.rpartition("from ")[2].split(" to ") for line in said]
    assert [float(after) / float(before) for before, after in rates] == pytest.approx([0.5, 0.5], rel=0.02)


def test_a_plateau_follows_its_own_metric() -> None:
    trainer = make(epochs=3, score=[3.0, 2.0, 1.0], plateau=Plateau(metric="stalled", factor=0.5, patience=0))
    metrics = trainer.task.metrics
    trainer.task.metrics = lambda rows: {**metrics(rows), "stalled": 1.0}  # type: ignore[method-assign]
    trainer.fit()
    assert trainer.plateau is not None
    assert (trainer.plateau.scale, trainer.progress.best) == (0.25, 1.0)


def test_a_plateau_of_the_first_release_goes_on_from_what_it_watched() -> None:
    first = make(epochs=2, score=[1.0, 2.0], plateau=Plateau(factor=0.5, patience=2))
    first.fit()
    state = first.state_dict()
    del state["plateau"]["metric"], state["plateau"]["mode"]
    again = make(plateau=Plateau(factor=0.5, patience=2))
    again.load_state_dict(state, source="old")
    assert again.plateau is not None
    assert [again.plateau.update(value) for value in (1.5, 1.5)] == [1.0, 0.5]
    other = make(plateau=Plateau(metric="score", mode="max", factor=0.5, patience=2))
    other.load_state_dict(state, source="old")
    assert other.plateau is not None
    assert [other.plateau.update(value) for value in (0.1, 0.2, 0.3)] == [1.0] * 3


def test_max_steps_ends_with_an_evaluation_and_a_checkpoint(tmp_path: Path) -> None:
    outcome = make(tmp_path, max_steps=3).fit()
    assert outcome.status == "finished"
    assert outcome.progress.step == 3
    assert "loss" in outcome.metrics
    assert load_checkpoint(tmp_path / "checkpoints" / "latest_model.pth")["progress"]["step"] == 3


def test_time_limit_stops_at_a_step_boundary_and_can_be_resumed(tmp_path: Path) -> None:
    outcome = make(tmp_path, max_seconds=0.0).fit()
    assert outcome.status == "time is up"
    assert outcome.progress.step == 1
    assert (tmp_path / "checkpoints" / "latest_model.pth").is_file()


def test_a_signal_saves_at_the_step_boundary(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    plain = trainer.task.training_step
    calls = iter(range(10**6))

    def step(model: nn.Module, batch: Any) -> StepOutput:
        if next(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(model, batch)

    trainer.task.training_step = step  # type: ignore[method-assign]
    outcome = trainer.fit()
    assert outcome.status == "interrupted"
    assert outcome.progress.step == 3, "the signal came in the third window"
    assert load_checkpoint(tmp_path / "checkpoints" / "latest_model.pth")["progress"]["step"] == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("inner", [nn.Identity, batch_norm])
def test_a_bad_sample_skips_its_step_and_moves_nothing(inner: Callable[[], nn.Module], tmp_path: Path) -> None:
    outcome = make(tmp_path, epochs=2, data=Points(bad={11}), inner=inner).fit()
    assert outcome.skipped == 2, "once an epoch"
    state = load_checkpoint(tmp_path / "checkpoints" / "latest_model.pth")
    assert int(state["engine"]["updates"]) == outcome.progress.step - 2
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert all(torch.isfinite(value).all() for value in state["engine"]["ema"].values())


def test_running_statistics_are_averaged_like_the_weights() -> None:
    trainer = make(epochs=1, inner=batch_norm)
    norm = trainer.task.model[2]  # type: ignore[index]
    expected, live = norm.running_mean.clone(), []
    advance = trainer._advance

    def note(window: Any) -> bool:
        live.append(norm.running_mean.clone())
        return advance(window)

    trainer._advance = note  # type: ignore[method-assign]
    trainer.fit()
    for update, value in enumerate(live):
        expected += max(0.1, 9 / (10 + update)) * (value - expected)
    averaged = trainer.engine.state_dict()["ema"]["2.running_mean"]
    torch.testing.assert_close(averaged, expected)
    with trainer.engine.averaged_weights():
        assert torch.equal(norm.running_mean, averaged)
    assert torch.equal(norm.running_mean, live[-1])


def test_too_many_bad_steps_stop_with_samples_and_the_first_bad_module(tmp_path: Path) -> None:
    trainer = make(tmp_path, epochs=3)
    hidden = trainer.task.model[1]  # type: ignore[index]
    hidden.register_forward_hook(lambda module, inputs, output: torch.full_like(output, float("inf")))
    with pytest.raises(UserError, match=r"not finite.*module '1'"):
        trainer.fit()
    report = json.loads((tmp_path / "bad_steps_rank0.json").read_text("utf-8"))
    keys = list(trainer.loader.order.batches(0))
    assert report["sample_indices_by_window"][0] == [i for key in keys[:3] for i in key.indices]
    assert "its input is finite" in report["first_bad_place"]


def test_the_last_epoch_leaves_its_milestone_too(tmp_path: Path) -> None:
    trainer = make(tmp_path, epochs=2)
    trainer.cadence = Cadence(log_every=2, milestone_every_epochs=1)
    trainer.fit()
    steps = [load_checkpoint(tmp_path / "checkpoints" / f"epoch_000{k}.pth")["progress"]["epoch"] for k in (1, 2)]
    assert steps == [1, 2]


def test_a_run_goes_on_with_a_larger_batch(tmp_path: Path) -> None:
    make(tmp_path, max_steps=4).fit()  # 48 of 50 samples in micro-batches of 4
    path = tmp_path / "checkpoints" / "latest_model.pth"
    resumed = make(epochs=2)
    resumed.loader = BatchLoader(Points(), EpochOrder(50, 32, seed=3), transform=jitter)
    resumed.load_state_dict(load_checkpoint(path), source=path)
    outcome = resumed.fit()
    assert outcome.status == "finished"
    assert outcome.progress.step == 4 + 1 + 1, "the last 2 samples, then one window of 32 + 18"


def test_an_unknown_monitor_is_refused_before_the_first_step() -> None:
    trainer = make(score=[1.0])
    trainer.monitor = Monitor(metric="accuracy")
    with pytest.raises(UserError, match=r"'accuracy'.*: loss, n"):
        trainer.fit()
    assert trainer.progress.step == 0
    assert trainer.task._score == [1.0]  # type: ignore[attr-defined] # nothing was judged


class Killed(BaseException):
    """In place of SIGKILL: nothing of the process is left but its files."""


def hit_in_evaluation(trainer: Trainer, *, evaluation: int, batch: int, error: type[BaseException] | None) -> None:
    """Kill the process, or without an error send it SIGTERM, in this batch of this evaluation (both from 1)."""
    plain, calls = trainer.task.evaluation_step, iter(range(10**6))
    target = 1 + 3 * (evaluation - 1) + batch - 1  # one batch tells the names of the figures; three are an evaluation

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        if next(calls) == target:
            if error is not None:
                raise error
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        return plain(model, batch)

    trainer.task.evaluation_step = step  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [None, Killed], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize(("evaluation", "step"), [(2, 10), (4, 20)])
def test_an_evaluation_loses_nothing_and_is_made_again(
    evaluation: int, step: int, error: type[BaseException] | None, tmp_path: Path
) -> None:
    plateau = {"patience": 0, "factor": 0.5}
    whole = make(tmp_path / "whole", plateau=Plateau(**plateau))  # type: ignore[arg-type]
    whole.fit()
    part = make(tmp_path / "part", plateau=Plateau(**plateau))  # type: ignore[arg-type]
    hit_in_evaluation(part, evaluation=evaluation, batch=2, error=error)
    if error is None:
        outcome = part.fit()
        assert (outcome.status, outcome.progress.step) == ("interrupted", step)
    else:
        with pytest.raises(error):
            part.fit()
    assert part.store is not None
    assert whole.store is not None
    part.store.close()
    assert max(at for at, _ in rows(part)) < step, "the row of an evaluated step is logged once, by whoever ends it"
    going_on = make(tmp_path / "part", plateau=Plateau(**plateau))  # type: ignore[arg-type]
    path, state = going_on.store.newest_good()  # type: ignore[union-attr, misc]
    assert state["progress"]["step"] == step
    going_on.load_state_dict(state, source=path)
    going_on.fit()
    assert_same_state(going_on.state_dict(), whole.state_dict())
    assert rows(part) + rows(going_on) == rows(whole)
    for name in (CheckpointStore.BEST, CheckpointStore.LATEST):
        ends = (load_checkpoint(store.folder / name) for store in (going_on.store, whole.store))  # type: ignore[union-attr]
        assert_same_state(*ends)


def test_the_best_is_right_when_the_process_dies_after_an_evaluation(tmp_path: Path) -> None:
    scores = [3.0, 2.0, 2.5, 2.1]
    whole = make(tmp_path / "whole", score=list(scores))
    whole.fit()
    part = make(tmp_path / "part", score=list(scores))

    def die(step: int, *_: object) -> None:
        if step == 10:
            raise Killed

    part.on_evaluation = die  # after the comparison, before the best is named
    with pytest.raises(Killed):
        part.fit()
    part.store.close()  # type: ignore[union-attr]
    going_on = make(tmp_path / "part", score=scores[1:])
    path, state = going_on.store.newest_good()  # type: ignore[union-attr, misc]
    going_on.load_state_dict(state, source=path)
    assert going_on.fit().progress.best_step == 10
    best = [load_checkpoint(tmp_path / name / "checkpoints" / "best_model.pth") for name in ("whole", "part")]
    assert_same_state(*best)


def test_one_checkpoint_is_written_for_an_evaluation_and_one_for_the_end(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    assert trainer.store is not None
    saved, save = list[int](), trainer.store.save
    trainer.store.save = lambda state, *, step, **more: (saved.append(step), save(state, step=step, **more))[1]  # type: ignore[method-assign]
    trainer.fit()
    assert saved == [5, 10, 15, 20, 20]


def test_no_rank_waits_on_its_device_while_the_main_one_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, epochs=1, save_every=1)
    assert trainer.store is not None
    done, engine = list[str](), trainer.engine

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: (done.append(name), call(*args, **more))[1]

    trainer.store.save = noted("save", trainer.store.save)  # type: ignore[method-assign]
    engine.run_window = noted("device", engine.run_window)  # type: ignore[method-assign]
    engine.averaged_weights = noted("device", engine.averaged_weights)  # type: ignore[method-assign]
    monkeypatch.setattr("mlcore.training.trainer.barrier", lambda: done.append("barrier"))
    trainer.fit()
    after = [later for earlier, later in itertools.pairwise(done) if earlier == "save"]
    assert after == ["barrier"] * 6, "five steps, the last of them with an evaluation, and the end"


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    make(tmp_path, max_steps=1).fit()
    path = tmp_path / "checkpoints" / "latest_model.pth"
    with pytest.raises(CheckpointError, match=r"another architecture.*\n.*shape"):
        make(width=9).load_state_dict(load_checkpoint(path), source=path)


def test_out_of_memory_says_which_knobs_to_turn() -> None:
    trainer = make()

    def step(model: nn.Module, batch: Any) -> StepOutput:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    trainer.task.training_step = step  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"(?s)--batch_size 2 --gradient_accumulation_steps 6.*gradient_checkpointing"):
        trainer.fit()


class ReaderDies:
    """A data set whose reader dies at its eighth sample, as where the kernel wants its memory back."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if index == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.dataset[index]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_reader_says_what_to_do_and_where_to_go_on() -> None:
    trainer = make()
    loader = trainer.loader
    trainer.loader = BatchLoader(ReaderDies(loader.dataset), loader.order, num_workers=1)
    with pytest.raises(UserError, match=r"reads data has died \(DataLoader worker.*--num_workers.*goes on"):
        trainer.fit()
    gc.collect()  # files that torch opens to see whether there are too many, and does not close


def test_an_ordinary_bug_is_not_dressed_up() -> None:
    trainer = make()

    def step(model: nn.Module, batch: Any) -> StepOutput:
        raise RuntimeError("a bug")

    trainer.task.training_step = step  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a bug"):
        trainer.fit()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_and_scales_its_loss(precision: Precision, tmp_path: Path) -> None:
    trainer = make(tmp_path, epochs=6, precision=precision)
    first = trainer.evaluator.run(trainer.task.model)[0]["loss"]  # type: ignore[union-attr]
    outcome = trainer.fit()
    assert outcome.metrics["loss"] < 0.5 * first
    assert trainer.engine.scaler.is_enabled() == (precision == "fp16")


def test_a_checkpoint_of_the_first_release_goes_on(tmp_path: Path) -> None:
    whole = make(epochs=2)
    whole.fit()
    stopped = make(tmp_path, max_steps=3)
    stopped.fit()
    assert stopped.store is not None
    stopped.store.close()
    state = load_checkpoint(stopped.store.folder / "latest_model.pth")
    del state["engine"]["statistics"]  # it had another name
    going_on = make(epochs=2)
    going_on.load_state_dict(state, source="old")
    going_on.fit()
    assert going_on.progress.step == whole.progress.step


def test_a_run_that_goes_on_without_the_data_of_a_due_evaluation_ends(tmp_path: Path) -> None:
    part = make(tmp_path)
    hit_in_evaluation(part, evaluation=4, batch=2, error=Killed)
    with pytest.raises(Killed):
        part.fit()
    assert part.store is not None
    part.store.close()
    blind = make(tmp_path)
    blind.evaluator = None
    path, state = blind.store.newest_good()  # type: ignore[union-attr, misc]
    assert state["due"] is not None
    blind.load_state_dict(state, source=path)
    assert blind.fit().status == "finished"


def test_losses_of_half_precision_are_added_up_in_float32() -> None:
    trainer = make()
    weight = next(trainer.task.model.parameters())

    def step(model: nn.Module, batch: Any) -> StepOutput:
        loss = (0.0 * weight.sum() + 1.0).bfloat16()
        return StepOutput(loss, 1, {"log": loss})

    trainer.engine.run_window(step, [trainer.loader.read(next(trainer.loader.order.batches(0)))] * 300)
    totals = trainer.engine.read_totals()
    assert totals.count == 300
    assert totals.logs["log"] == totals.loss == 1.0  # in bfloat16 a sum of ones ends at 256

"""A run goes on with another batch size or number of ranks: same curve over samples, every sample once an epoch."""

import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlcore.base.distributed import World, start_world
from mlcore.base.errors import UserError
from mlcore.base.seeding import seed_everything
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.checkpoint import CheckpointStore, load_checkpoint
from mlcore.training.course import Course, Cut
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.progress import Cadence, Limits, Progress
from mlcore.training.schedules import lr_table
from mlcore.training.trainer import Trainer

SIZE, EPOCHS, BASE, WINDOW = 96, 3, 0.01, 16
PER_EPOCH, TOTAL = SIZE // WINDOW, EPOCHS * SIZE // WINDOW
LENGTHS = np.random.default_rng(0).integers(5, 60, SIZE).tolist()


class Fit:
    """Linear regression, without anything random."""

    metadata: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.model: nn.Module = nn.Linear(4, 1)
        self.bad = -1  # a sample whose loss is not finite

    def training_step(self, model: nn.Module, batch: dict[str, Tensor]) -> StepOutput:
        error = (model(batch["x"]) - batch["x"].sum(1, keepdim=True)).squeeze(1)
        error = error * torch.where(batch["i"] == self.bad, torch.nan, 1.0)
        return StepOutput(error.square().sum(), len(error))

    def evaluation_step(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        raise NotImplementedError


class Rates(Trainer):
    """A trainer that notes samples consumed and learning rate of each window."""

    def fit(self, *, stop_after: int | None = None) -> Any:
        """Train; a signal comes in the window of this number."""
        self.seen: list[tuple[int, int, float]] = []
        self.stop_after = stop_after
        return super().fit()

    def _advance(self, window: Any) -> bool:
        now = self.progress
        self.seen.append((now.epoch, now.position, self.engine.learning_rates()[0]))
        if len(self.seen) == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return super()._advance(window)


Schedule = tuple[str, Mapping[str, float], Literal["step", "epoch"]]


def trainer(
    batch: int = WINDOW,
    ranks: int = 1,
    *,
    accumulation: int = 1,
    grouped: bool = False,
    schedule: Schedule = ("cosine", {}, "step"),
    folder: Path | None = None,
    world: World | None = None,
    size: int = SIZE,
    drop_last: bool = False,
    max_steps: int | None = None,
) -> Rates:
    """Rank 0 of `ranks`; alone with `world`, where there are really so many."""
    seed_everything(0)
    task, world = Fit(), world or World()
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    order = EpochOrder(
        size,
        batch,
        seed=5,
        lengths=LENGTHS[:size] if grouped else None,
        drop_last=drop_last,
        rank=world.rank,
        world_size=ranks,
    )
    loader = BatchLoader([{"x": row, "i": i} for i, row in enumerate(x)], order)  # type: ignore[arg-type]
    groups = parameter_groups(task.model, lr=BASE)
    name, params, unit = schedule
    rates = partial(lr_table, name, params, base_lrs=[BASE], unit=unit)
    cut = Cut.of(order, accumulation)
    total = min(EPOCHS * cut.steps_per_epoch, max_steps or 10**9)
    model = DistributedDataParallel(task.model) if world.size > 1 else task.model
    return Rates(
        task=task,
        engine=Engine(
            model,
            build_optimizer(groups),
            learning_rates=rates(total_steps=total, steps_per_epoch=cut.steps_per_epoch),
            world=world,
        ),
        loader=loader,
        evaluator=None,
        limits=Limits(epochs=EPOCHS, max_steps=max_steps),
        cadence=Cadence(log_every=7),
        accumulation=accumulation,
        store=None if folder is None else CheckpointStore(folder, keep_last=99, asynchronous=False),
        schedule=rates,
    )


def go_on(part: Trainer, folder: Path) -> Any:
    """Let a trainer take over what was last saved in `folder`; returns itself."""
    path = folder / CheckpointStore.LATEST
    part.load_state_dict(load_checkpoint(path), source=path)
    return part


def samples(part: Rates) -> list[tuple[int, int]]:
    """Epoch and index of every sample that this trainer's windows read, on all ranks."""
    found = []
    order = part.loader.order
    for epoch, position, _ in part.seen:
        for rank in range(order.world_size):
            keys = replace(order, rank=rank).batches(epoch, start=position)
            for key, _ in zip(keys, range(part.accumulation), strict=False):
                found += [(epoch, index) for index in key.indices if key.real]
    return found


SCHEDULES: dict[str, tuple[Schedule, Callable[[float], float]]] = {
    "constant": (("constant", {}, "step"), lambda t: 1.0),
    "plateau": (("plateau", {}, "step"), lambda t: 1.0),
    "reduce_on_plateau": (("reduce_on_plateau", {}, "epoch"), lambda t: 1.0),
    "cosine": (("cosine", {}, "step"), lambda t: 0.5 + 0.5 * math.cos(math.pi * t / TOTAL)),
    "cosine by epoch": (("cosine", {}, "epoch"), lambda t: 0.5 + 0.5 * math.cos(math.pi * (t // PER_EPOCH) / EPOCHS)),
    "step": (("step", {"step_size": 5, "gamma": 0.5}, "step"), lambda t: 0.5 ** (t // 5)),
    "step by epoch": (("step", {"step_size": 1}, "epoch"), lambda t: 0.1 ** (t // PER_EPOCH)),
    "exponential": (("exponential", {"gamma": 0.9}, "step"), lambda t: 0.9 ** math.floor(t)),
    "warmup_cosine": (
        ("warmup_cosine", {"warmup_steps": 7}, "step"),
        lambda t: t / 7 if t < 7 else 0.5 + 0.5 * math.cos(math.pi * (t - 7) / (TOTAL - 7)),
    ),
    "cosine_warmup": (
        ("cosine_warmup", {"warmup_steps": 0}, "step"),
        lambda t: 0.5 + 0.5 * math.cos(math.pi * t / TOTAL),
    ),
    "warmup_linear": (
        ("warmup_linear", {"warmup_steps": 7}, "step"),
        lambda t: t / 7 if t < 7 else 1 - (t - 7) / (TOTAL - 7),
    ),
    "cosine_warm_restart": (
        ("cosine_warm_restart", {"T_0": 9}, "step"),
        lambda t: 0.5 + 0.5 * math.cos(math.pi * (t % 9) / 9),
    ),
}
CHANGES = {
    "1 to 2 ranks": [(16, 1, 1, 8), (16, 2, 1, None)],
    "2 to 1 ranks": [(8, 2, 1, 8), (8, 1, 1, None)],
    "16 to 32 to 8": [(16, 1, 1, 3), (32, 1, 1, 4), (8, 1, 1, None)],
    "accumulation and ranks": [(4, 2, 2, 7), (6, 1, 3, 4), (5, 3, 1, None)],
}
"""Batch size, ranks, accumulation, and the window after which a signal comes; all begin with steps of 16 samples."""


@pytest.mark.parametrize("grouped", [False, True], ids=["random", "by-length"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_lie_on_the_curve_over_samples_and_every_sample_comes_once(
    name: str, change: str, grouped: bool, tmp_path: Path
) -> None:
    schedule, curve = SCHEDULES[name]
    seen: list[tuple[int, int, float]] = []
    read: list[tuple[int, int]] = []
    for batch, ranks, accumulation, stop_after in CHANGES[change]:
        part = trainer(batch, ranks, accumulation=accumulation, grouped=grouped, schedule=schedule, folder=tmp_path)
        if seen:
            go_on(part, tmp_path)
        part.fit(stop_after=stop_after)
        seen += part.seen
        read += samples(part)
    assert sorted(read) == [(epoch, index) for epoch in range(EPOCHS) for index in range(SIZE)]
    found = [rate for *_, rate in seen]
    expected = [BASE * curve((epoch * SIZE + position) / WINDOW) for epoch, position, _ in seen]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert seen[-1][0] == EPOCHS - 1


def test_a_run_of_all_schedules_is_in_the_table_above() -> None:
    from mlcore.training import schedules

    assert {schedule[0] for schedule, _ in SCHEDULES.values()} == schedules._FUNCTIONS.keys()


@pytest.mark.parametrize("batch", [16, 24])
def test_a_short_last_step_is_a_whole_one_on_the_curve(batch: int, tmp_path: Path) -> None:
    """100 samples are 7 steps of 16, the last of 4; in steps of 24 an epoch is as long."""
    make = partial(trainer, size=100, folder=tmp_path)
    whole = make()
    whole.fit()
    first = make()
    first.fit(stop_after=9)
    second = go_on(make(batch), tmp_path)
    second.fit()
    known = {(epoch, position): rate for epoch, position, rate in whole.seen}
    both = [(rate, known[epoch, position]) for epoch, position, rate in second.seen if (epoch, position) in known]
    assert len(both) > 1  # at least where the epochs begin
    assert all(a == pytest.approx(b, rel=1e-6) for a, b in both)


def test_two_changes_and_a_resume_between_them_end_as_the_changes_alone(tmp_path: Path) -> None:
    ends = []
    for stops in ([9], [3, 6]):
        folder = tmp_path / str(len(stops))
        trainer(folder=folder).fit(stop_after=5)
        for stop in stops:
            go_on(trainer(24, folder=folder), folder).fit(stop_after=stop)
        last = go_on(trainer(8, 3, folder=folder), folder)
        last.fit()
        ends.append((last.task.model.weight, last.seen[-20:]))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_a_window_that_is_not_finite_moves_no_schedule_before_and_after_a_change(tmp_path: Path) -> None:
    def with_bad_sample(part: Rates) -> Rates:
        part.task.bad = 0  # type: ignore[attr-defined]
        return part

    with_bad_sample(trainer(folder=tmp_path)).fit(stop_after=PER_EPOCH)  # one of these windows was skipped
    part = with_bad_sample(go_on(trainer(32, folder=tmp_path), tmp_path))
    assert part.course.late == 1.0
    part.fit()
    places = np.arange(0, 2 * PER_EPOCH, 2) + PER_EPOCH
    late, expected = 1.0, []
    order = part.loader.order
    for (epoch, position, _), place in zip(part.seen, places, strict=True):
        expected.append(BASE * (0.5 + 0.5 * math.cos(math.pi * (place - late) / TOTAL)))
        key = next(order.batches(epoch, start=position))
        late += 2.0 if 0 in key.indices else 0.0
    assert [rate for *_, rate in part.seen] == pytest.approx(expected, rel=1e-6)


def test_limits_and_evaluations_count_steps_of_the_first_cut(tmp_path: Path) -> None:
    trainer(folder=tmp_path, max_steps=14).fit(stop_after=10)
    part = go_on(trainer(32, folder=tmp_path, max_steps=14), tmp_path)
    assert (part.steps_done, part.total_steps) == (10, 14)
    outcome = part.fit()
    assert outcome.status == "finished"
    assert outcome.progress.step == 10 + 1 + 1, "one step ends the epoch, one is 2 of 16 samples"
    part.evaluator, part.cadence = object(), Cadence(evaluate_every=3, evaluate_unit="steps")  # type: ignore[assignment]
    due = []
    for position in range(0, 97, 32):
        part.progress, part._before = Progress(position=position), (0, max(0, position - 32))
        due.append(part._evaluation_is_due(epoch_ended=False))
    assert due == [False, False, True, True], "after 4 and 6 steps of 16 samples"


def test_without_the_short_last_batch_the_epoch_is_over_on_the_curve(tmp_path: Path) -> None:
    make = partial(trainer, size=100, drop_last=True, folder=tmp_path)
    make().fit(stop_after=5)  # 80 of 96 samples
    part = go_on(make(64), tmp_path)
    part.fit()
    assert [(epoch, position) for epoch, position, _ in part.seen] == [(1, 0), (2, 0)]
    expected = [BASE * (0.5 + 0.5 * math.cos(math.pi * t / 18)) for t in (6, 12)]
    assert [rate for *_, rate in part.seen] == pytest.approx(expected, rel=1e-6)


def test_an_older_checkpoint_tells_its_cut_by_its_configuration_and_ranks(tmp_path: Path) -> None:
    first = trainer(8, 2, grouped=True, folder=tmp_path)
    first.extra = {"config": {"train": {"batch_size": 8, "gradient_accumulation_steps": 1, "drop_last": False}}}
    first.fit(stop_after=8)
    path = tmp_path / CheckpointStore.LATEST
    state = load_checkpoint(path)
    state["rng"] *= 2  # one for each rank
    del state["course"]
    part = trainer(4, 1, grouped=True)
    part.load_state_dict(state, source=path)
    assert part.course.first == Cut(samples=SIZE, batch=16)
    part.fit()
    both = samples(first) + samples(part)
    assert sorted(both) == [(epoch, index) for epoch in range(EPOCHS) for index in range(SIZE)]


def test_other_data_are_refused(tmp_path: Path) -> None:
    trainer(folder=tmp_path).fit(stop_after=2)
    with pytest.raises(UserError, match=r"began with 96 training samples, and now there are 100"):
        go_on(trainer(size=100), tmp_path)


def test_a_trainer_without_a_schedule_holds_each_rate_of_its_table(tmp_path: Path) -> None:
    trainer(folder=tmp_path).fit(stop_after=5)
    part = trainer(8, folder=tmp_path)
    part.schedule, part.engine = None, trainer().engine
    go_on(part, tmp_path).fit()
    table = lr_table("cosine", {}, base_lrs=[BASE], total_steps=TOTAL, steps_per_epoch=PER_EPOCH)[:, 0]
    expected = [table[(epoch * SIZE + position) // WINDOW] for epoch, position, _ in part.seen]
    assert [rate for *_, rate in part.seen] == pytest.approx(expected, rel=1e-6)


def test_one_place_on_a_cut_is_what_many_at_once_are() -> None:
    for cut in (
        Cut(samples=50, batch=4, accumulation=3),
        Cut(samples=50, batch=4, accumulation=3, drop_last=True),
        Cut(samples=48, batch=16),
        Cut(samples=7, batch=8, accumulation=2),
    ):
        places = np.arange(cut.samples + cut.window)  # the last batch may be filled up with samples that there are not
        for epoch in (0, 3):
            assert [cut.steps_at(epoch, place) for place in places.tolist()] == cut.steps(epoch, places).tolist()


def test_the_course_of_an_unchanged_run_is_its_table() -> None:
    for size, batch, accumulation, drop_last in ((100, 16, 1, False), (100, 7, 3, True), (5, 16, 1, False)):
        cut = Cut(samples=size, batch=batch, accumulation=accumulation, drop_last=drop_last)
        order = EpochOrder(size, batch, drop_last=drop_last)
        assert cut.steps_per_epoch == -(-len(order) // accumulation) == len(cut.starts())
        total = 4 * cut.steps_per_epoch
        assert Course(first=cut, now=cut).places(total).tolist() == list(range(total + 1))


# ------------------------------------------------------------------------------------------------------ two processes


def _ranks(rank: int, rendezvous: str, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = rendezvous
    torch.set_num_threads(1)
    with start_world("cpu") as world:
        part = trainer(8, 2, grouped=True, world=world, folder=Path(folder))
        go_on(part, Path(folder)).fit(stop_after=6 if rank else None)


def test_one_rank_then_two_then_one_with_other_batches_end_as_one_alone(free_port: int, tmp_path: Path) -> None:
    whole = trainer(grouped=True)
    whole.fit()
    trainer(grouped=True, folder=tmp_path).fit(stop_after=5)
    mp.spawn(_ranks, args=(str(free_port), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    last = go_on(trainer(4, accumulation=4, grouped=True), tmp_path)
    assert last.progress.step == 5 + 6
    last.fit()
    assert sequence(whole)[11:] == pytest.approx(sequence(last), rel=1e-6)
    torch.testing.assert_close(last.task.model.weight, whole.task.model.weight, rtol=1e-5, atol=1e-6)


def sequence(part: Rates) -> Sequence[float]:
    """Learning rates of all windows."""
    return [rate for *_, rate in part.seen]

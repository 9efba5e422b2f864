"""The loop: train, log, evaluate, save, stop.

Everything that decides what happens next is in `Progress`, which a checkpoint carries; a run continued from any
checkpoint goes through the same states as one that was never interrupted. The global generators serve the training
steps alone: logging, evaluating and saving leave them as they found them, so how often they happen changes nothing.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlcore.base.console import Pace
from mlcore.base.distributed import any_rank, barrier, gather_objects
from mlcore.base.seeding import RngState, rng_state, set_rng_state, untouched_generators
from mlcore.base.signals import Interrupted, deferred, received
from mlcore.data.batch import MicroBatch
from mlcore.data.loader import BatchLoader
from mlcore.trackers.base import Tracker
from mlcore.training.checkpoint import CheckpointStore, load_model_weights
from mlcore.training.course import Course, Cut
from mlcore.training.diagnose import advice_when_out_of_memory, peak_memory_bytes, too_many_bad_steps
from mlcore.training.engine import Engine, unwrap
from mlcore.training.evaluator import Evaluator, Predictions
from mlcore.training.judging import check_metrics, judge
from mlcore.training.progress import Cadence, Limits, Monitor, Outcome, Progress, Status
from mlcore.training.schedules import FloatArray, Plateau
from mlcore.training.step_statistics import Totals
from mlcore.training.task import Task

_log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Trains a task.

    Args:
        task: What is trained.
        engine: Runs single windows.
        loader: Training batches.
        evaluator: Evaluates the model on held-out data; None trains blindly and saves at the end of each epoch.
        limits: When to stop.
        cadence: How often to log, evaluate and save.
        monitor: What "best" means.
        accumulation: Micro-batches of a full window.
        store: Where checkpoints go; None saves nothing.
        tracker: Where figures go.
        plateau: Lowers learning rates when the metric that it watches stalls.
        schedule: `lr_table` without what depends on the cut of a step (`at`, `total_steps`, `steps_per_epoch`), for
            runs that go on with another one; None: the engine's table, each rate until the next.
        max_bad_steps: Non-finite windows in a row after which training stops with a report.
        extra: Plain values that each checkpoint carries (configuration, code version).
        on_evaluation: Called on the main rank after each evaluation with step, metrics and predictions.
        rng: What the generators are set to when training begins; None leaves them as they are.
    """

    task: Task
    engine: Engine
    loader: BatchLoader
    evaluator: Evaluator | None
    limits: Limits
    cadence: Cadence = field(default_factory=Cadence)
    monitor: Monitor = field(default_factory=Monitor)
    accumulation: int = 1
    store: CheckpointStore | None = None
    tracker: Tracker | None = None
    plateau: Plateau | None = None
    schedule: Callable[..., FloatArray] | None = None
    max_bad_steps: int = 10
    extra: Mapping[str, Any] = field(default_factory=dict)
    on_evaluation: Callable[[int, Mapping[str, float], Predictions], None] | None = None
    rng: RngState | None = None

    def __post_init__(self) -> None:
        self.progress = Progress()
        self.metrics: dict[str, float] = {}
        self._evaluated_at = -1
        self._saved = (-1, -1)  # step of the newest checkpoint, and of the newest evaluation that it knows
        self._due: dict[str, float] | None = None  # an evaluation of this step is, and then this row is to be logged
        self._skipped = 0
        self._window: list[MicroBatch] = []
        micro_batch, accumulation = self.loader.order.batch_size, self.accumulation
        self._advice = partial(
            advice_when_out_of_memory, device=self.engine.device, micro_batch=micro_batch, accumulation=accumulation
        )
        # The way of the run through its samples; its first cut is the unit of all that counts steps, but `step`.
        self.course = Course(first=self.cut, now=self.cut)

    # ---------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> Outcome:
        """Train until a limit, an early stop or a signal; resumable at any moment.

        Raises:
            UserError: Memory ran out, too many windows in a row were not finite, or a checkpoint could not be written.
        """
        self._pace = Pace(self.total_steps, done=self.steps_done)
        self._begun = self._last_save = self._last_log = time.monotonic()
        self._seconds_before = self.progress.seconds
        if self.rng is not None:  # last of all, so that nothing on the way here has drawn from the generators
            set_rng_state(self.rng)
        with deferred(), self._advice():
            status = self._begin()
            self.engine.model.train()
            while status is None:
                for window in self._windows(self.progress.epoch, start=self.progress.position):
                    self.engine.run_window(self.task.training_step, window)
                    epoch_ended = self._advance(window)
                    if self._evaluation_is_due(epoch_ended):
                        self._evaluate()
                    elif self.progress.step % self.cadence.log_every == 0:
                        self._log()
                    status = self._over()
                    if status is not None:
                        break
                    if self._save_is_due(epoch_ended):
                        self._save()
            self._finish(status)
        return Outcome(status, self.progress, self.metrics, self._skipped)

    @property
    def cut(self) -> Cut:
        """How samples become steps now."""
        return Cut.of(self.loader.order, self.accumulation)

    @property
    def steps_done(self) -> float:
        """Steps of the run's first cut that are done; where that is the present one, `step` of the progress."""
        return self.course.steps(self.progress)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch as the run was first cut; the last may be short."""
        return self.course.first.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps of the whole run as it was first cut."""
        steps = self.limits.epochs * self.steps_per_epoch
        return steps if self.limits.max_steps is None else min(steps, self.limits.max_steps)

    def windows_over_epochs(self, count: int) -> Iterator[list[MicroBatch]]:
        """The first `count` windows of a run, for what is not part of it."""
        epochs = itertools.chain.from_iterable(self._windows(epoch) for epoch in itertools.count())
        return itertools.islice(epochs, count)

    def _windows(self, epoch: int, *, start: int = 0) -> Iterator[list[MicroBatch]]:
        """Windows of an epoch after its first `start` samples; the last one may be short."""
        window: list[MicroBatch] = []
        for batch in self.loader.epoch(epoch, start=start):
            window.append(batch.to(self.engine.device))
            if len(window) == self.accumulation:
                yield window
                window = []
        if window:
            yield window

    def _advance(self, window: list[MicroBatch]) -> bool:
        """Count `window` as done; returns whether the epoch ended with it."""
        now = self.progress
        self._window, self._before = window, (now.epoch, now.position)
        now.step += 1
        now.position += len(window) * self.loader.order.global_batch
        return self._end_epoch()

    def _end_epoch(self) -> bool:
        """Go on to the next epoch where nothing of this one is left; returns whether that is so."""
        now = self.progress
        if ended := self.loader.order.is_over(now.position):
            now.epoch, now.position = now.epoch + 1, 0
        return ended

    def _begin(self) -> Status | None:
        """Evaluate and save what is due of before; returns why there is nothing left to do, or None."""
        now = self.progress
        self._before = (now.epoch, now.position)
        if ended := self._end_epoch():  # a larger batch with drop_last may find nothing left of it
            self._saved = (-1, -1)
        if self._due is not None or (self._evaluated_at != now.step and self._evaluation_is_due(ended)):
            self._evaluate()
            return self._over()
        is_best = now.best_step == now.step and self._saved[0] != now.step  # another run's, from which this one starts
        if self.complete() is None and (is_best or (ended and self._save_is_due(ended))):
            self._save()
        self.check_monitor()
        return self.complete()

    @untouched_generators()
    def check_monitor(self) -> None:
        """Find on one batch that evaluations give what is watched; a `UserError` says that they do not."""
        if self.evaluator is not None:
            with self._advice():
                known = self.metrics or self.evaluator.metric_names(self.task.model, engine=self.engine)
            check_metrics(known, monitor=self.monitor, plateau=self.plateau)

    def complete(self) -> Status | None:
        """Why there is nothing left to do, or None."""
        if self._due is not None:
            return None
        limit = self.limits.max_steps
        if self.progress.epoch >= self.limits.epochs or (limit is not None and self.steps_done >= limit):
            return "finished"
        patience = self.monitor.patience
        return "stopped early" if patience is not None and self.progress.stale >= patience else None

    def _over(self) -> Status | None:
        """Why training ends now, or None; ranks agree over host memory, so no device waits for it."""
        if (complete := self.complete()) is not None:
            return complete
        if any_rank(received()):
            return "interrupted"
        limit = self.limits.max_seconds
        return "time is up" if limit is not None and any_rank(time.monotonic() - self._begun >= limit) else None

    def _finish(self, status: Status) -> None:
        """Leave a checkpoint of the very last step; a run that is to go on is left as it is, and nothing judges it."""
        if status not in ("interrupted", "time is up"):
            self._log()
            if self.evaluator is None:
                self.engine.settle_averages()
        if self._saved != (self.progress.step, self._evaluated_at):
            self._save()
        if self.store is not None:
            self.store.wait()
        barrier()
        _log.info("%s after %d steps, %d epochs", status, self.progress.step, self.progress.epoch)

    # --------------------------------------------------------------------------------------------------------- log

    @untouched_generators()
    def _log(self) -> None:
        self._track(self._figures())

    def _figures(self) -> dict[str, float]:
        """The row of the steps since the last one; empty if there was none that counts."""
        totals = self.engine.read_totals()
        self._skipped = totals.skipped
        if totals.worst_row >= self.max_bad_steps:
            course, order, store = self.course, self.loader.order, self.store
            raise too_many_bad_steps(
                self.engine,
                self.task.training_step,
                self._window,
                totals=totals,
                step=self.progress.step,
                samples=course.recent_samples(order, progress=self.progress, windows=totals.worst_row),
                folder=None if store is None else store.folder.parent,
            )
        if not totals.count:
            return {}
        now = self.progress
        rates = self.engine.learning_rates()
        values = {
            "train/loss": totals.loss,
            **{f"train/{name}": value for name, value in totals.logs.items()},
            "train/grad_norm": totals.grad_norm,
            "train/lr": rates[0],
            "train/epoch": now.epoch + now.position / self.loader.order.size,
            "train/skipped_steps": float(totals.skipped),
        }
        return {**values, **self._performance(totals)}

    def _performance(self, totals: Totals) -> dict[str, float]:
        """Figures that differ from run to run; their names begin with "perf/"."""
        clock = time.monotonic()
        interval, self._last_log = clock - self._last_log, clock
        self._pace.update(self.steps_done)
        self.progress.seconds = self._seconds_before + clock - self._begun
        eta = self._pace.eta_s
        return {
            "perf/samples_per_s": totals.count / max(interval, 1e-9),
            "perf/eta_s": float("nan") if eta is None else eta,
            "perf/memory_gib": peak_memory_bytes(self.engine.device) / 2**30,
        }

    def _track(self, values: Mapping[str, float]) -> None:
        if values and self.tracker is not None and self.engine.world.is_main:
            self.tracker.log(self.progress.step, values)

    # ---------------------------------------------------------------------------------------------------- evaluate

    def _evaluation_is_due(self, epoch_ended: bool) -> bool:
        if self.evaluator is None:
            return False
        if self.complete() is not None:
            return True
        if self.cadence.evaluate_unit == "steps":
            every = self.cadence.evaluate_every
            return self.steps_done // every > self.course.first.steps_at(*self._before) // every
        return epoch_ended and self.progress.epoch % self.cadence.evaluate_every == 0

    @untouched_generators()
    def _evaluate(self) -> None:
        """Save, so that a long evaluation can be killed or interrupted; then evaluate, log, and name the best.

        The checkpoint says that the evaluation is due: whoever goes on from it makes it again. What it found is in the
        next checkpoint.
        """
        if self.evaluator is None:
            return
        begun = time.monotonic()
        if self._due is None:
            self._due = self._figures()
            self.engine.settle_averages()
        if self._saved[0] != self.progress.step:
            self._save()
        try:
            with self.engine.averaged_weights():
                metrics, predictions = self.evaluator.run(self.task.model, engine=self.engine)
        except Interrupted:
            return
        self._track(self._due)
        self._due, self.metrics, self._evaluated_at = None, metrics, self.progress.step
        judge(metrics, progress=self.progress, monitor=self.monitor, plateau=self.plateau, engine=self.engine)
        seconds = time.monotonic() - begun
        self._last_log += seconds  # throughput is of training alone
        self._track({**{f"val/{k}": v for k, v in metrics.items()}, "perf/evaluation_s": seconds})
        if self.engine.world.is_main and self.on_evaluation is not None:
            self.on_evaluation(self.progress.step, metrics, predictions)
        if self.engine.world.is_main and self.store is not None and self.progress.best_step == self.progress.step:
            self.store.mark_best()

    # -------------------------------------------------------------------------------------------- save and take over

    def _save_is_due(self, epoch_ended: bool) -> bool:
        if self.store is None:
            return False
        self.store.check()
        now, every = self.progress, self.cadence
        if self._saved[0] == now.step:
            return False
        by_steps = every.save_every_steps is not None and now.step % every.save_every_steps == 0
        if by_steps or (epoch_ended and self.evaluator is None) or every.milestone(now) is not None:
            return True
        seconds = every.save_every_seconds
        return seconds is not None and any_rank(time.monotonic() - self._last_save >= seconds)

    @untouched_generators()
    def _save(self) -> None:
        if self.store is None:
            return
        milestone = self.cadence.milestone(self.progress)
        if milestone is not None and self._due is None and self._evaluated_at != self.progress.step:
            self.engine.settle_averages()  # a milestone is used like the best checkpoint
        state = self.state_dict()
        self._saved, self._last_save = (self.progress.step, self._evaluated_at), time.monotonic()
        if self.engine.world.is_main:
            best = self.progress.best_step == self.progress.step
            self.store.save(state, step=self.progress.step, best=best, milestone=milestone)
        barrier()  # the main rank may have waited for the disk, which what waits on the device would take for a fault

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain values; every rank must call it."""
        self.progress.seconds = self._seconds_before + time.monotonic() - self._begun
        return {
            "model": unwrap(self.engine.model).state_dict(),
            "engine": self.engine.state_dict(),
            "progress": asdict(self.progress),
            "course": self.course.state_dict(),
            "metrics": {} if self._due is not None else dict(self.metrics),
            "due": self._due,
            "evaluated_at": self._evaluated_at,
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
            "rng": gather_objects(rng_state()),
            "tracker": {} if self.tracker is None else self.tracker.state(),
            "task": dict(self.task.metadata),
            **self.extra,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, source: Path | str) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: The checkpoint is of another architecture, or of another number of training samples.
        """
        course = Course.read(state, now=self.cut, source=source)
        load_model_weights(unwrap(self.engine.model), state["model"], source=source)
        self.engine.load_state_dict(state["engine"])
        self.progress = Progress(**state["progress"])
        self.course = course.go_on(self.cut, progress=self.progress, updates=int(state["engine"]["updates"]))
        self.loader.group_by(course.first.batch)
        if self.course != Course(first=self.cut, now=self.cut):
            rates = self.course.rates(self.schedule, table=self.engine.table, total_steps=self.total_steps)
            self.engine.replace_learning_rates(rates)
        self.metrics, self._evaluated_at = dict(state["metrics"]), state["evaluated_at"]
        self._due = None if self.evaluator is None else state.get("due")  # without validation data none is made
        if self.store is not None and Path(source).parent == self.store.folder:
            self._saved = (self.progress.step, self._evaluated_at)
        if self.plateau is not None and state["plateau"] is not None:
            watched = {"metric": self.monitor.metric, "mode": self.monitor.mode}  # by those that do not say what
            self.plateau.load_state_dict({**watched, **state["plateau"]})
        self.engine.scale_learning_rates(1.0 if self.plateau is None else self.plateau.scale)
        self.rng = dict(enumerate(state["rng"])).get(self.engine.world.rank, self.rng)

    def forget_best(self, *, alike: bool = False) -> None:
        """Let the next evaluation be the best so far; a plateau schedule goes on where judging stays `alike`."""
        self.progress.best, self.progress.best_step, self.progress.stale = None, -1, 0
        self._evaluated_at = -1  # where nothing is left to train, the next one is made of this step
        if self.plateau is not None and not alike:
            self.plateau.forget()

"""Where the time of a training step goes: some steps timed part by part, then some traced with torch's profiler.

The loop knows nothing of it, so a run that is not profiled pays nothing: `profiled` puts clocks around the methods of
one trainer's parts. On a GPU the device is waited for between the parts, in the timed steps alone; the trace is of
steps that nobody waits in, and tells how long the device had nothing to do.
"""

import gzip
import logging
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, write_json
from mlcore.data.batch import MicroBatch
from mlcore.training.trainer import Trainer

__all__ = ["PROFILE", "TRACE", "profiled"]

PROFILE, TRACE = "profile.json", "trace.json.gz"

_log = logging.getLogger(__name__)

_STEP = ("data", "copy", "forward", "backward", "optimiser", "rest")
_RARE = {"_log": "log", "_evaluate": "evaluation", "_save": "save"}  # of the whole run; they wait for the device anyway
_REST = "rest"


@dataclass(frozen=True)
class _Plan:
    """Steps of warm-up, timed steps, traced steps; what a short run leaves of them."""

    warm_up: int
    timed: int
    traced: int

    @classmethod
    def of(cls, steps: int) -> "_Plan":
        warm_up, timed = min(5, steps // 4), min(20, -(-steps // 2))
        return cls(warm_up, timed, max(0, min(3, steps - warm_up - timed)))


class _Clock:
    """Seconds inside named spans, each without those inside it; and how long the thread computed meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self.busy = defaultdict[str, float](float), defaultdict[str, float](float)
        self.waits = False  # for the device, at both ends of every span
        self._device = device
        self._open = [_REST]
        self._last = (time.perf_counter(), time.thread_time())

    def tick(self, *, wait: bool = False) -> None:
        """Give the time since the last tick to the innermost span."""
        if (wait or self.waits) and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now, name = (time.perf_counter(), time.thread_time()), self._open[-1]
        self.seconds[name] += now[0] - self._last[0]
        self.busy[name] += now[1] - self._last[1]
        self._last = now

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.tick(wait=name in _RARE.values())
        self._open.append(name)
        try:
            with record_function(name):
                yield
        finally:
            self.tick()
            self._open.pop()


@contextmanager
def profiled(trainer: Trainer, *, folder: Path) -> Iterator[None]:
    """Profile what `trainer` does in the block; `profile.json` and `trace.json.gz` are in `folder` afterwards.

    Args:
        trainer: About to train; it trains to the same bits.
        folder: An existing one. Where nothing is left to train, nothing is written.
    """
    profiler = _Profiler(trainer, folder)
    with ExitStack() as wrapped:
        for owner, name, around in profiler.clocks():
            wrapped.enter_context(_replaced(owner, name, around))
        profiler.begin_stage()
        try:
            yield
        finally:
            profiler.close()


@contextmanager
def _replaced(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Inside, calls of the owner's method go to `around`, which is given the method first."""
    method = getattr(owner, name)
    before = vars(owner).get(name)
    setattr(owner, name, partial(around, method))
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


class _Profiler:
    """Counts the steps of a trainer, and knows what is to be done after each."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        self._device = trainer.engine.device
        self._plan = _Plan.of(max(0, round(trainer.total_steps - trainer.steps_done)))
        self._clock = _Clock(self._device)
        self._steps = 0
        self._timed_from: tuple[int, dict[str, float], dict[str, float]] | None = None
        self._timed: dict[str, Any] = {}
        self._trace: Any = None

    def clocks(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """What is called around which method of which object."""
        trainer = self._trainer
        yield trainer.loader, "epoch", self._batches
        yield trainer.engine, "run_window", self._window
        yield trainer.engine, "_backward", self._within("backward")
        for method, name in _RARE.items():
            yield trainer, method, self._within(name)

    def _within(self, name: str) -> Callable[..., Any]:
        def call(method: Callable[..., Any], *given: Any, **named: Any) -> Any:
            with self._clock.span(name):
                return method(*given, **named)

        return call

    def _batches(self, epoch: Callable[..., Iterator[MicroBatch]], *given: Any, **named: Any) -> Iterator[MicroBatch]:
        batches = epoch(*given, **named)
        while True:
            with self._clock.span("data"):
                batch = next(batches, None)
            if batch is None:
                return
            with self._clock.span("copy"):
                batch = batch.to(self._device)
            yield batch

    def _window(self, run: Callable[..., None], forward: Callable[..., Any], window: Any) -> None:
        with self._clock.span("optimiser"):  # what is neither forward nor backward
            run(partial(self._within("forward"), forward), window)
        self._steps += 1
        self.begin_stage()

    def begin_stage(self) -> None:
        """What begins or ends after so many steps."""
        plan, clock = self._plan, self._clock
        if self._steps == plan.warm_up and plan.timed:
            clock.tick(wait=True)
            clock.waits, self._timed_from = True, (self._steps, clock.seconds.copy(), clock.busy.copy())
        if self._steps == plan.warm_up + plan.timed:
            self._end_timing()
            self._begin_trace()
        if self._steps == plan.warm_up + plan.timed + plan.traced:
            self._end_trace()

    def _end_timing(self) -> None:
        if self._timed_from is None:
            return
        clock = self._clock
        clock.tick()
        begun, seconds, busy = self._timed_from
        count = self._steps - begun
        if count:
            spent = {name: (clock.seconds[name] - seconds[name]) / count for name in _STEP}
            worked = {name: (clock.busy[name] - busy[name]) / count for name in _STEP}
            waited = {name: max(0.0, spent[name] - worked[name]) for name in _STEP}
            self._timed = {"steps": count, "seconds": spent, "waited": waited}
        clock.waits, self._timed_from = False, None

    def _begin_trace(self) -> None:
        if not self._plan.traced:
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell on stderr that it begins and ends
        on_gpu = self._device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._trace = torch.profiler.profile(activities=activities)
        self._trace.start()

    def _end_trace(self) -> None:
        if self._trace is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._trace.stop()
        trace, self._trace = self._trace, None
        if self._device.type == "cuda":
            self._timed["device_idle"] = _idle(trace)
        try:
            with tempfile.TemporaryDirectory() as scratch, atomic_write(self._folder / TRACE) as file:
                trace.export_chrome_trace(f"{scratch}/trace.json")
                with Path(f"{scratch}/trace.json").open("rb") as plain, gzip.open(file, "wb") as packed:
                    shutil.copyfileobj(plain, packed)
        except (OSError, RuntimeError, UserError) as error:  # training matters more
            _log.warning("no trace of the profile: %s", error)

    def close(self) -> None:
        """Write what there is; log, evaluation and save are of all steps."""
        self._end_timing()
        self._end_trace()
        if not self._timed:
            return
        self._clock.tick()
        rare = {name: self._clock.seconds[name] / self._steps for name in _RARE.values()}
        parts = {**self._timed["seconds"], **rare}
        total = sum(parts.values()) or 1.0
        told = ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items())
        _log.info("where a step's %.1f ms went (%d steps timed): %s", 1e3 * total, self._timed["steps"], told)
        found = {**self._timed, "seconds": parts, "of_steps": self._steps, "device": str(self._device)}
        try:
            write_json(self._folder / PROFILE, found)
        except UserError as error:
            _log.warning("no table of the profile: %s", error)


def _idle(trace: Any) -> float:
    """Share of the traced time in which nothing ran on the GPU."""
    events = list(trace.profiler.kineto_results.events())
    work = sorted(
        (event.start_ns(), event.end_ns())
        for event in events
        if event.device_type().name == "CUDA" and not event.is_user_annotation()
    )
    begun, ended = min(event.start_ns() for event in events), max(event.end_ns() for event in events)
    busy, reached = 0, begun
    for start, end in work:
        busy += max(0, end - max(start, reached))
        reached = max(reached, end)
    return float(1.0 - busy / max(1, ended - begun))

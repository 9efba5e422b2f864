"""`--profile`: it changes no bit of a run, and says where the time of its steps went."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlcore.cli.parse import parse
from mlcore.run.session import run
from mlcore.training.checkpoint import load_checkpoint
from mlcore.training.profile import PROFILE, TRACE, _Clock, _idle, _Plan
from tests.mlcore.run.toy import toy_app

STEPS = 8  # of the toy: 2 epochs of 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the same run, profiled and not."""
    base = tmp_path_factory.mktemp("profile")
    app = toy_app(base)
    flags = {"profiled": ["--profile"], "plain": []}
    for name, more in flags.items():
        given = ["--output_dir", str(base / name), "--ema_decay", "0.9", "--log_every", "2", *more]
        assert run(app, parse(app, given)) == 0
    return {name: base / name for name in flags}


def of_training(folder: Path) -> tuple[Any, list[dict[str, str]]]:
    """The last checkpoint without what is about the time, and the figures likewise."""
    state = load_checkpoint(folder / "checkpoints/latest_model.pth")
    kept = {key: state[key] for key in ("model", "engine", "rng", "metrics")}
    rows = list(csv.DictReader((folder / "metrics.csv").read_text("utf-8").splitlines()))
    return kept, [{key: row[key] for key in row if not key.startswith(("perf/", "time"))} for row in rows]


def test_a_profiled_run_trains_to_the_same_bits(folders: dict[str, Path]) -> None:
    (one, rows), (other, other_rows) = (of_training(folder) for folder in folders.values())
    leaves, other_leaves = (torch.utils._pytree.tree_leaves(state) for state in (one, other))
    assert len(leaves) == len(other_leaves) > 10
    for a, b in zip(leaves, other_leaves, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert rows == other_rows
    assert not (folders["plain"] / PROFILE).exists()
    assert not (folders["plain"] / TRACE).exists()


def test_every_part_of_a_step_has_its_time(folders: dict[str, Path]) -> None:
    found = json.loads((folders["profiled"] / PROFILE).read_text("utf-8"))
    assert (found["steps"], found["of_steps"]) == (4, STEPS)
    assert list(found["seconds"]) == [
        *("data", "copy", "forward", "backward", "optimiser", "rest", "log", "evaluation", "save")
    ]
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert all(0 <= waited <= found["seconds"][name] for name, waited in found["waited"].items())


def test_the_trace_is_of_whole_steps_with_their_operations(folders: dict[str, Path]) -> None:
    trace = json.loads(gzip.decompress((folders["profiled"] / TRACE).read_bytes()))
    names = Counter(event.get("name") for event in trace["traceEvents"])
    assert names["forward"] == names["backward"] == names["optimiser"] == 2
    assert names["aten::linear"] >= 2


def test_the_report_shows_it(folders: dict[str, Path]) -> None:
    text = (folders["profiled"] / "summary.md").read_text("utf-8")
    section = text.partition("Where a step's time goes")[2]
    assert "| forward |" in section
    assert "4 of 8 steps were timed" in section
    assert (folders["profiled"] / "step.png").is_file()
    assert "Where a step" not in (folders["plain"] / "summary.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("steps", "plan"), [(0, (0, 0, 0)), (1, (0, 1, 0)), (2, (0, 1, 1)), (8, (2, 4, 2)), (1000, (5, 20, 3))]
)
def test_a_short_run_is_profiled_for_as_long_as_it_is(steps: int, plan: tuple[int, int, int]) -> None:
    assert _Plan.of(steps) == _Plan(*plan)


def test_time_belongs_to_the_innermost_span(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("mlcore.training.profile.time.perf_counter", lambda: clock.now)
    spans = _Clock(torch.device("cpu"))
    with spans.span("optimiser"):
        clock.now = 1.0
        with spans.span("backward"):
            clock.now = 3.0
        clock.now = 7.0
    clock.now = 15.0
    spans.tick()
    assert spans.seconds == {"optimiser": 5.0, "backward": 2.0, "rest": 8.0}


def test_a_device_is_waited_for_in_timed_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    clock = _Clock(torch.device("cuda", 0))
    with clock.span("forward"):
        pass
    assert not waits
    clock.waits = True
    with clock.span("forward"):
        pass
    assert len(waits) == 2


def test_idle_is_what_no_kernel_covers() -> None:
    def event(kind: str, start: int, end: int, *, annotation: bool = False) -> SimpleNamespace:
        device = SimpleNamespace(name=kind)
        return SimpleNamespace(
            device_type=lambda: device,
            start_ns=lambda: start,
            end_ns=lambda: end,
            is_user_annotation=lambda: annotation,
        )

    events = [
        event("CPU", 0, 100),
        event("CUDA", 10, 30),
        event("CUDA", 20, 40),  # another stream
        event("CUDA", 60, 80),
        event("CUDA", 0, 100, annotation=True),
    ]
    trace = SimpleNamespace(profiler=SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events)))
    assert _idle(trace) == pytest.approx(0.5)

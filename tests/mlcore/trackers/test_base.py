import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from mlcore.trackers.base import Tracker, Trackers
from mlcore.trackers.console import ConsoleTracker


class Recorder:
    """Remembers every call; fails in the method named `broken`."""

    def __init__(self, *, broken: str = "", run: str = "") -> None:
        self.calls: list[tuple[object, ...]] = []
        self._broken = broken
        self._run = run

    def _call(self, *call: object) -> None:
        self.calls.append(call)
        if call[0] == self._broken:
            raise ConnectionError("the server\nhas gone")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call("log", step, dict(values))

    def image(self, step: int, name: str, path: Path) -> None:
        self._call("image", step, name, path)

    def close(self, *, status: str) -> None:
        self._call("close", status)

    def state(self) -> dict[str, str]:
        return {"run": self._run} if self._run else {}


def cannot_start() -> Tracker:
    raise ConnectionError("no route")


def given(tracker: Tracker) -> Callable[[], Tracker]:
    return lambda: tracker


def test_every_tracker_gets_every_call_with_plain_floats() -> None:
    first, second = Recorder(), Recorder()
    trackers = Trackers({"first": given(first), "second": given(second)})
    trackers.log(3, {"a": np.float64(0.1), "b": torch.tensor(2.0), "c": 1})
    trackers.image(3, "plot", Path("x.png"))
    trackers.close(status="finished")
    trackers.close(status="failed")
    assert first.calls == second.calls
    assert first.calls == [
        ("log", 3, {"a": 0.1, "b": 2.0, "c": 1.0}),
        ("image", 3, "plot", Path("x.png")),
        ("close", "finished"),
    ]
    assert all(type(value) is float for value in first.calls[0][2].values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["log", "image", "close"])
def test_a_failing_tracker_warns_once_and_the_others_go_on(method: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Recorder(broken=method), Recorder()
    trackers = Trackers({"Bad": given(bad), "good": given(good)})
    for step in range(3):
        trackers.log(step, {"a": 0.0})
        trackers.image(step, "plot", Path("x.png"))
    trackers.close(status="finished")
    assert [call[0] for call in good.calls] == ["log", "image"] * 3 + ["close"]
    assert [call[0] for call in bad.calls].count(method) == 1
    [record] = caplog.records
    assert (record.name, record.levelname) == ("mlcore", "WARNING")
    assert record.getMessage().startswith("Bad ")
    assert "the server has gone" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_dropped_tracker_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    bad = Recorder(broken="log")
    trackers = Trackers({"bad": given(bad)})
    trackers.log(0, {})
    assert bad.calls[-1] == ("close", "failed")


def test_a_tracker_that_cannot_start_warns_once_and_keeps_its_state(caplog: pytest.LogCaptureFixture) -> None:
    trackers = Trackers({"W&B": cannot_start}, state={"run": "abc"})
    trackers.log(0, {"a": 0.0})
    trackers.close(status="finished")
    assert trackers.state() == {"run": "abc"}
    assert [record.getMessage() for record in caplog.records] == [
        "W&B cannot start, training goes on without it: no route"
    ]


def test_the_state_of_a_dropped_tracker_stays() -> None:
    trackers = Trackers({"a": given(Recorder(broken="log", run="xyz")), "b": given(Recorder())})
    trackers.log(0, {})
    assert trackers.state() == {"run": "xyz"}


def test_an_interrupt_is_not_swallowed() -> None:
    class Interrupted(Recorder):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    trackers = Trackers({"a": Interrupted})
    with pytest.raises(KeyboardInterrupt):
        trackers.log(0, {})


def test_the_console_writes_one_line_per_row(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mlcore")
    tracker = ConsoleTracker()
    tracker.log(12, {"train/loss": 0.123456, "perf/samples_per_s": 466.4, "perf/eta_s": 80.0})
    tracker.log(13, {"val/loss": 0.5, "val/n": 300.0, "perf/eta_s": float("nan")})
    tracker.image(12, "curves", Path("curves.png"))
    assert [record.getMessage() for record in caplog.records] == [
        "step 12     train  loss 0.1235  466 samples/s  ETA 0:01:20",
        "step 13     val  loss 0.5  n 300  ETA ?",
        "step 12     curves: curves.png",
    ]

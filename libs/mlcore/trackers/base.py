"""What a tracker is, and `Trackers`: several of them that never stop a training run.

Each tracker is given as a function that starts it, so that one which cannot start is dropped like any other:
`Trackers({"table": lambda: TableTracker(folder, resume_step=step)}, state=state)`.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

__all__ = ["Tracker", "Trackers"]

logger = logging.getLogger("mlcore")


class Tracker(Protocol):
    """Somewhere to keep what a run measures.

    Steps never decrease; several calls may share a step, and their values form one row. Names starting with `perf/`
    are timings; every other value of a resumed run is bit-identical to that of an uninterrupted one.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values` (plain numbers by name) for the optimiser step `step`."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Keep the picture in the file `path` as `name`."""

    def close(self, *, status: str) -> None:
        """End the run; `status` is "finished", "interrupted" or "failed"."""

    def state(self) -> dict[str, str]:
        """What a checkpoint must hold for a resumed run to go on in the same place."""


class Trackers:
    """Several trackers as one, which fails open.

    A tracker that cannot start, or raises later, is reported by exactly one warning and dropped; the others go on.

    Args:
        starters: How to make each tracker, by the name used in warnings. Called at once, in order.
        state: What `state()` gave to the checkpoint this run resumes from; kept for trackers that cannot start this
            time, so that a later resumption still finds their run.
    """

    def __init__(
        self, starters: Mapping[str, Callable[[], Tracker]], *, state: Mapping[str, str] | None = None
    ) -> None:
        self._live: dict[str, Tracker] = {}
        self._state = dict(state or {})
        for name, start in starters.items():
            try:
                self._live[name] = start()
            except Exception as error:  # noqa: BLE001 - no tracker, whatever is wrong with it, may stop training
                _warn(name, "cannot start, training goes on without it", error)
        self.state()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass a row to every live tracker; numbers of any kind (NumPy, 0-d tensors) become floats here, once."""
        row = {name: float(value) for name, value in values.items()}
        self._each(lambda tracker: tracker.log(step, row))

    def image(self, step: int, name: str, path: Path) -> None:
        """Pass a picture's file to every live tracker."""
        self._each(lambda tracker: tracker.image(step, name, path))

    def state(self) -> dict[str, str]:
        """The state of all trackers together, the last known one for those that were dropped."""
        self._each(lambda tracker: self._state.update(tracker.state()))
        return dict(self._state)

    def close(self, *, status: str) -> None:
        """Close every live tracker; a second call does nothing."""
        self.state()
        self._each(lambda tracker: tracker.close(status=status), closing=True)
        self._live.clear()

    def _each(self, action: Callable[[Tracker], None], *, closing: bool = False) -> None:
        for name, tracker in list(self._live.items()):
            try:
                action(tracker)
            except Exception as error:  # noqa: BLE001 - as above
                del self._live[name]
                _warn(name, "was not closed in order" if closing else "failed, training goes on without it", error)
                if not closing:
                    with contextlib.suppress(Exception):  # free its files and threads; its failure has been told
                        tracker.close(status="failed")


def _warn(name: str, what: str, error: Exception) -> None:
    reason = str(error).strip() or type(error).__name__
    logger.warning("%s %s: %s", name, what, " ".join(reason.split()))

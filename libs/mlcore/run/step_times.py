"""The report's section on where a training step's time goes, made of what a profiled run left."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcore.base.reading import reading
from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.steps import plot_step
from mlcore.training.profile import PROFILE, TRACE

__all__ = ["step_time_sections"]

_TITLE = "Where a step's time goes"
_MEANING = {
    "data": "waiting for the next batch, or reading it where there are no workers",
    "copy": "the batch to the device",
    "forward": "the task's training step: network and loss",
    "backward": "gradients, and their exchange between processes",
    "optimiser": "clipping, update, averages, figures kept for the log",
    "rest": "the loop itself",
    "log": "of the whole run, spread over its steps",
    "evaluation": "likewise, on validation data",
    "save": "likewise, what the loop waits for",
}


def step_time_sections(folder: Path) -> list[Section]:
    """A bar and a table; nothing of a run that was not profiled."""
    path = folder / PROFILE
    if not path.is_file():
        return []
    with reading(path, "the profile of a run"):
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = {name: float(found["seconds"][name]) for name in _MEANING}
        waited = {name: float(value) for name, value in found["waited"].items()}
        steps, of_steps, idle = int(found["steps"]), int(found["of_steps"]), found.get("device_idle")
    total = sum(parts.values()) or 1.0
    rows: list[list[object]] = [
        [name, 1e3 * value, f"{value / total:.1%}", _thread(waited.get(name)), _MEANING[name]]
        for name, value in parts.items()
    ]
    rows.append(["together", 1e3 * total, "100.0%", _thread(sum(waited.values())), f"{1 / total:,.2f} steps a second"])
    note = (
        f"{steps} of {of_steps} steps were timed after a warm-up. Idle is what the training thread waited: for data, "
        "the device, the disk, other processes or its turn on the processor."
    )
    if idle is not None:
        note += f" With nobody waiting, the GPU had nothing to do in {idle:.1%} of the traced steps."
    if (folder / TRACE).is_file():
        note += f" {TRACE} has the next steps operation by operation: open it at ui.perfetto.dev or chrome://tracing."
    columns = ["part", "ms a step", "share", "of it idle, ms", "what it is"]
    return [Picture(_TITLE, plot_step(parts, path=folder / "step.png"), wide=True), Table(_TITLE, columns, rows, note)]


def _thread(waited: float | None) -> float | None:
    return None if waited is None else 1e3 * waited

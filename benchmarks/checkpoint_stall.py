"""How long training stands still while a checkpoint of a 100 M parameter model with AdamW state (1.2 GB) is saved.

python -m benchmarks.checkpoint_stall            about three minutes; needs 6 GB of memory and 5 GB of disk
"""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import ROOT, Goal, Options, Report, median_text, run_alone, seconds
from mlcore.data.batch import MicroBatch
from mlcore.training.checkpoint import CheckpointStore
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.optim import build_optimizer

_SHARE, _TOTAL = 0.1, 1.5  # of a plain save: the stall, and all that it costs
_THREADS = 2
_BASELINE_STEPS = 5


class _Training:
    """A model of `layers` x 4.2 M parameters, and its steps."""

    def __init__(self, layers: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(layers)))
        optimizer = build_optimizer([{"params": list(self.model.parameters()), "lr": 1e-6, "weight_decay": 0.0}])
        self.engine = Engine(self.model, optimizer, learning_rates=np.full((2, 1), 1e-6), max_grad_norm=1.0)
        self._window = [MicroBatch(torch.randn(8, 2048))]
        self.step()

    def step(self) -> None:
        self.engine.run_window(self._forward, self._window)

    @staticmethod
    def _forward(model: nn.Module, batch: Tensor) -> StepOutput:
        return StepOutput(model(batch).square().sum(), len(batch))

    def state(self) -> dict[str, Any]:
        """What the trainer hands to the store, as far as it is large."""
        return {"model": self.model.state_dict(), "engine": self.engine.state_dict()}

    def seconds_per_step(self) -> float:
        """Median over a few steps with nothing else going on."""
        return statistics.median(seconds(self.step) for _ in range(_BASELINE_STEPS))


def measure(options: Options) -> Report:
    """Stalls of plain saves and of ours, in turns, on the disk that holds this project."""
    torch.set_num_threads(_THREADS)
    training = _Training(2 if options.quick else 24)
    torch.save(training.model[0].state_dict(), io.BytesIO())  # imports
    figures: dict[str, list[float]] = {}
    (ROOT / "outputs").mkdir(exist_ok=True)
    for number in range(1 if options.quick else 7):
        with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as folder:
            found = {**_plain(training, Path(folder)), **_ours(training, Path(folder))}
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
        print(f"round {number + 1}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    return _report(figures, sum(parameter.numel() for parameter in training.model.parameters()))


def _report(figures: dict[str, list[float]], parameters: int) -> Report:
    share, total = (statistics.median(_shares(figures, name)) for name in ("ours_later", "ours_total"))
    return Report(
        title="Checkpoint stall",
        method=(
            f"A model of {parameters / 1e6:.0f} M parameters with AdamW's state, {12 * parameters / 1e9:.1f} GB, saved "
            "to the disk that holds the project; nothing is waiting to be written when a measurement begins. Seconds, "
            f"{_THREADS} threads, median (smallest..largest) of {len(figures['plain'])} rounds; shares are of the "
            "plain `torch.save` of the same round, which leaves the data in the page cache (mlcore's files are synced)."
        ),
        header=["what the loop waits for", "seconds", "share of a plain save"],
        rows=[
            [title, median_text(figures[name], digits=2), median_text(_shares(figures, name), digits=2)]
            for name, title in _TITLES.items()
        ],
        goals=[
            Goal(f"a stall of at most {_SHARE} of a plain `torch.save`", f"{share:.2f}", share <= _SHARE),
            Goal(f"all that a save costs at most {_TOTAL} of it", f"{total:.2f}", total <= _TOTAL),
        ],
        notes=[
            "While the thread writes, a step takes "
            f"{median_text(figures['slowdown'], digits=2)} times as long: the writer computes checksums on one of the "
            "cores; the disk fetches what is written by itself. The last line adds that to the stall."
        ],
        raw=figures,
    )


_TITLES = {
    "plain": "plain `torch.save`",
    "plain_synced": "plain `torch.save` with fsync",
    "ours_first": "mlcore, first save of a run (allocates the buffers)",
    "ours_later": "mlcore, later saves",
    "ours_busy": "mlcore, a save that comes right after another (waits for that one)",
    "ours_total": "mlcore, a later save and all it slows down until it is on the disk",
}


def _shares(figures: Mapping[str, Sequence[float]], name: str) -> list[float]:
    return [mine / plain for mine, plain in zip(figures[name], figures["plain"], strict=True)]


def _plain(training: _Training, folder: Path) -> dict[str, float]:
    path = folder / "plain.pth"
    torch.save(training.state(), path)  # not counted: memory that a virtual machine must first get back takes seconds
    path.unlink()
    os.sync()
    plain = seconds(lambda: torch.save(training.state(), path))
    path.unlink()
    os.sync()
    synced = seconds(lambda: _save_synced(training.state(), path))
    path.unlink()
    return {"plain": plain, "plain_synced": synced}


def _save_synced(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _ours(training: _Training, folder: Path) -> dict[str, float]:
    store = CheckpointStore(folder / "checkpoints", keep_last=1)
    try:
        os.sync()
        first = seconds(lambda: store.save(training.state(), step=1))
        store.wait()
        os.sync()
        usual = training.seconds_per_step()
        later = seconds(lambda: store.save(training.state(), step=2))
        during = _steps_until_written(training, store)
        os.sync()
        store.save(training.state(), step=3)
        busy = seconds(lambda: store.save(training.state(), step=4))
    finally:
        store.close()
    return {
        "ours_first": first,
        "ours_later": later,
        "ours_busy": busy,
        "ours_total": later + sum(during) - usual * len(during),
        "slowdown": statistics.median(during) / usual,
    }


def _steps_until_written(training: _Training, store: CheckpointStore) -> list[float]:
    """Seconds of every step that begins while the file is being written."""
    name = "step_00000002.pth"
    times: list[float] = []
    deadline = time.monotonic() + 600
    while not (store.folder / name).exists() and time.monotonic() < deadline:
        times.append(seconds(training.step))
    return times or [seconds(training.step)]


if __name__ == "__main__":
    run_alone(measure)

"""A dry run of a whole run in seconds: every stage once, on the real data and configuration; nothing stays."""

import logging
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlcore.base.console import format_duration
from mlcore.base.distributed import World, barrier
from mlcore.base.env import child_environment
from mlcore.base.errors import UserError
from mlcore.base.signals import check
from mlcore.data.loader import SizedDataset
from mlcore.run.advice import warn_of_settings
from mlcore.run.build import CoreConfig, Data, TrainingSetup, build_trainer
from mlcore.training.checkpoint import CheckpointStore
from mlcore.training.diagnose import peak_memory_bytes
from mlcore.training.progress import Cadence, Limits

_log = logging.getLogger(__name__)

_EXPORT_TIMEOUT_S = 600


class _Pace:
    """A tracker that keeps the highest throughput; the first window, which starts the workers, is the slowest."""

    samples_per_s = 0.0

    def log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002
        self.samples_per_s = max(self.samples_per_s, values.get("perf/samples_per_s", 0.0))

    def image(self, step: int, name: str, path: Path) -> None:
        """Not kept."""

    def close(self, *, status: str) -> None:
        """Nothing to close."""

    def state(self) -> dict[str, str]:
        """Nothing to keep."""
        return {}


class _First:
    """The first samples of a data set."""

    def __init__(self, dataset: SizedDataset, count: int) -> None:
        self._dataset = dataset
        self._count = min(count, len(dataset))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> object:
        return self._dataset[index]


def dry_run(config: CoreConfig, setup: TrainingSetup, *, world: World, extra: Mapping[str, Any]) -> int:
    """Train a full window and a short one, evaluate, save, load in a fresh process, export; say what would happen.

    Returns:
        Exit code 0; whatever fails raises as it would in the real run.

    Raises:
        UserError: A stage failed.
    """
    whole = build_trainer(config, setup, world=world)
    warn_of_settings(config, whole)
    steps, per_epoch = whole.total_steps, whole.steps_per_epoch
    batch, windows = config.train.batch_size * world.size, config.train.gradient_accumulation_steps
    # Two full windows and a short one whose last batch is short too, as at the end of an epoch.
    train_size = 2 * batch * windows + max(1, batch // 2)
    held_out = {name: data for name, data in setup.evaluation.items() if name == "val"}
    held_out = {k: replace(v, dataset=_First(v.dataset, 2 * batch), lengths=None) for k, v in held_out.items()}
    small = replace(setup, train=_shortened(setup, train_size), evaluation=held_out)
    with tempfile.TemporaryDirectory(prefix="dry_run_") as name:
        trainer = build_trainer(config, small, world=world, folder=Path(name) / "checkpoints", extra=extra)
        trainer.limits, trainer.cadence, trainer.tracker = Limits(epochs=1), Cadence(log_every=1), (pace := _Pace())
        outcome = trainer.fit()
        check()
        checkpoint = Path(name) / "checkpoints" / CheckpointStore.LATEST
        size = checkpoint.stat().st_size if world.is_main else 0
        _log.info("trained %d windows, the last one short; %d skipped", outcome.progress.step, outcome.skipped)
        _log.info("evaluated: %s", "  ".join(f"{key} {value:.4g}" for key, value in outcome.metrics.items()))
        if setup.export_command is not None and world.is_main:
            _export(setup.export_command(checkpoint, Path(name) / "export"))
            _log.info("saved, loaded in a fresh process, exported and verified")
        barrier()
    _log.info(
        "a real run would train %d steps (%d an epoch) on %d samples with %d workers: about %s at this pace, "
        "peak memory %.2f GiB, %.1f MiB a checkpoint",
        steps,
        per_epoch,
        whole.loader.order.size,
        whole.loader.num_workers,
        format_duration(steps / per_epoch * whole.loader.order.size / max(pace.samples_per_s, 1e-9)),
        peak_memory_bytes(world.device) / 2**30,
        size / 2**20,
    )
    _log.info("dry run passed; nothing was kept")
    return 0


def _shortened(setup: TrainingSetup, size: int) -> Data:
    lengths = setup.train.lengths
    dataset = _First(setup.train.dataset, size)
    return replace(setup.train, dataset=dataset, lengths=None if lengths is None else lengths[: len(dataset)])


def _export(command: list[str]) -> None:
    done = subprocess.run(  # noqa: S603 (our own command)
        command, capture_output=True, text=True, timeout=_EXPORT_TIMEOUT_S, check=False, env=child_environment()
    )
    if done.returncode:
        raise UserError(f"the export failed ({' '.join(command)}):\n{done.stderr.strip() or done.stdout.strip()}")

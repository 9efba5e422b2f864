"""A dry run of a whole run in seconds: every stage once, on the real data and configuration; nothing stays."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from mlcore.base.console import format_duration
from mlcore.base.distributed import barrier
from mlcore.base.env import child_environment
from mlcore.base.errors import UserError
from mlcore.base.files import format_bytes
from mlcore.base.signals import check
from mlcore.data.loader import SizedDataset
from mlcore.run.build import Data, TrainingSetup, build_trainer
from mlcore.run.opened import OpenRun
from mlcore.run.preflight import origin, start
from mlcore.trackers.table import TableTracker, read_history
from mlcore.training.checkpoint import CheckpointStore
from mlcore.training.diagnose import peak_memory_bytes
from mlcore.training.memory import available_bytes, plan_memory
from mlcore.training.progress import Cadence, Limits
from mlcore.training.trainer import Trainer

_log = logging.getLogger(__name__)

_EXPORT_TIMEOUT_S = 600


def dry_run(run: OpenRun, *, scratch: Path) -> int:
    """Start the run, train a full window and a short one, evaluate, save, load in a fresh process, export; tell.

    Args:
        run: Where the run would be; nothing is written there.
        scratch: A folder that goes afterwards.

    Returns:
        Exit code 0; whatever fails raises as it would in the real run.

    Raises:
        UserError: A stage failed.
    """
    started = start(run, rehearsal=True)
    config, world, whole, setup = run.config, run.world, started.trainer, started.setup
    _tell_memory(whole)
    steps, per_epoch = whole.total_steps, whole.steps_per_epoch
    batch, windows = config.train.batch_size * world.size, config.train.gradient_accumulation_steps
    # Two full windows and a short one whose last batch is short too, as at the end of an epoch.
    train_size = 2 * batch * windows + max(1, batch // 2)
    held_out = {name: data for name, data in setup.evaluation.items() if name == "val"}
    held_out = {k: replace(v, dataset=_first(v.dataset, 2 * batch), lengths=None) for k, v in held_out.items()}
    small = replace(setup, train=_shortened(setup, train_size), evaluation=held_out)
    trainer = build_trainer(config, small, world=world, folder=scratch / "checkpoints", extra=origin(run.app, config))
    trainer.limits, trainer.cadence = Limits(epochs=1), Cadence(log_every=1)
    trainer.tracker = table = TableTracker(scratch)
    outcome = trainer.fit()
    table.close(status=outcome.status)
    check()
    checkpoint = scratch / "checkpoints" / CheckpointStore.LATEST
    size = checkpoint.stat().st_size if world.is_main else 0
    _log.info("trained %d windows, the last one short; %d skipped", outcome.progress.step, outcome.skipped)
    _log.info("evaluated: %s", "  ".join(f"{key} {value:.4g}" for key, value in outcome.metrics.items()))
    script = run.app.source / "export.py"
    if script.is_file() and world.is_main:
        given = ["--model_path", str(checkpoint), "--output_dir", str(scratch / "export")]
        _export([sys.executable, str(script), *given])
        _log.info("saved, loaded in a fresh process, exported and verified")
    # The first window, which starts the workers, is the slowest.
    pace = max((values.get("perf/samples_per_s", 0.0) for _, values in read_history(scratch)), default=0.0)
    barrier()
    _log.info(
        "a real run in %s would train %d steps (%d an epoch) on %d samples with %d workers: about %s at this pace, "
        "peak memory %.2f GiB, %.1f MiB a checkpoint",
        run.folder,
        steps,
        per_epoch,
        whole.loader.order.size,
        whole.loader.num_workers,
        format_duration(steps / per_epoch * whole.loader.order.size / max(pace, 1e-9)),
        peak_memory_bytes(world.device) / 2**30,
        size / 2**20,
    )
    _log.info("dry run passed; nothing was kept")
    return 0


def _tell_memory(trainer: Trainer) -> None:
    """What the run is going to need of memory at its peak, before anything of its size is tried."""
    size, accumulation, device = trainer.loader.order.batch_size, trainer.accumulation, trainer.engine.device
    plan = plan_memory(trainer)
    trainer.engine.optimizer.state.clear()  # what is rehearsed has moments of its own
    parts, free = plan.parts(size, accumulation=accumulation), available_bytes(device)
    told = ", ".join(f"{what} {format_bytes(value)}" for what, value in parts.items())
    _log.info("planned peak memory of %s: %s (%s)", device, format_bytes(sum(parts.values())), told)
    more = sum(parts.values()) - sum(plan.held.values())
    if more > free:
        _log.warning("%s more than now, and %s are free: try --batch_size auto", *map(format_bytes, (more, free)))


def _shortened(setup: TrainingSetup, size: int) -> Data:
    lengths = setup.train.lengths
    dataset = _first(setup.train.dataset, size)
    return replace(setup.train, dataset=dataset, lengths=None if lengths is None else lengths[: len(dataset)])


def _first(dataset: SizedDataset, count: int) -> "Subset[Any]":
    return Subset(dataset, range(min(count, len(dataset))))  # type: ignore[arg-type]


def _export(command: list[str]) -> None:
    done = subprocess.run(  # noqa: S603 (our own command)
        command, capture_output=True, text=True, timeout=_EXPORT_TIMEOUT_S, check=False, env=child_environment()
    )
    if done.returncode:
        raise UserError(f"the export failed ({' '.join(command)}):\n{done.stderr.strip() or done.stdout.strip()}")

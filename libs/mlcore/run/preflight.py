"""The start of a run, up to its first step; a dry run rehearses exactly this.

What can be known to be wrong is said here, several things at once, before a file of the run is touched. `check_around`
looks at what is around a run (bucket, W&B, memory) before anything that takes long; `start` takes up the checkpoint,
builds the trainer, and looks at the disk and whether the settings suit the run.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlcore.base.distributed import World, barrier, broadcast_object
from mlcore.base.errors import UserError, listed
from mlcore.base.files import format_bytes, free_bytes
from mlcore.base.seeding import rng_state, seed_everything
from mlcore.base.version import code_version
from mlcore.cli.app import App
from mlcore.config.dump import to_values
from mlcore.config.layers import Rank
from mlcore.data.loader import SHARED_MEMORY, shared_memory_bytes
from mlcore.remote.s3 import check_bucket
from mlcore.run.advice import Finding, unsuitable
from mlcore.run.auto_batch import fit_batch
from mlcore.run.build import CoreConfig, TrainingSetup, build_trainer
from mlcore.run.continued import Resumed, accepted_changes, adopt_changes
from mlcore.run.folder import has_ended
from mlcore.run.opened import OpenRun
from mlcore.trackers.wandb import check_wandb
from mlcore.training.checkpoint import CheckpointError, CheckpointStore, State, inference_weights, load_checkpoint
from mlcore.training.memory import checkpoint_bytes
from mlcore.training.task import check_metadata
from mlcore.training.trainer import Trainer

__all__ = ["Started", "check_around", "seed", "start"]

_log = logging.getLogger(__name__)

_BESIDES = 16 << 20  # bytes of a run besides its checkpoints: log, figures, report
_WORKER = 64 << 20  # bytes that a loader worker has for itself, at least


@dataclass(frozen=True)
class Started:
    """A run that is ready for its first step.

    Attributes:
        trainer: Where the run is.
        setup: What the app built.
        resume_step: Step from which trackers go on; None for a run of its own.
        known: Trackers' state of the run that goes on.
    """

    trainer: Trainer
    setup: TrainingSetup
    resume_step: int | None
    known: Mapping[str, str]


def seed(config: CoreConfig, world: World) -> None:
    """Set all generators of this process to the run's beginning."""
    seed_everything(config.run.seed, rank=world.rank, deterministic=config.run.deterministic)


def origin(app: App[Any], config: Any) -> dict[str, Any]:
    """What every checkpoint says of where it comes from."""
    return {"app": app.name, "config": to_values(config), "code_version": code_version(app.source)}


def check_around(run: OpenRun) -> None:
    """Look whether bucket and W&B take what they are to get, and memory the workers; every rank calls it.

    A new run is refused what it asks for and cannot get. One that goes on goes on: it trains without them, as it would
    if they had failed later.

    Raises:
        UserError: What is wrong, with all there is.
    """
    config, found = run.config, list[Finding]()
    checks: list[Callable[[], None]] = []
    if (place := config.checkpoint.upload_to) is not None:
        checks.append(lambda: check_bucket(place))
    if config.tracking.use_wandb and config.tracking.wandb_mode == "online":
        checks.append(check_wandb)
    for check in checks if run.world.is_main else ():
        try:
            check()
        except (UserError, ImportError) as error:
            found.append((not run.goes_on, str(error)))
    if run.world.is_main and config.run.num_workers != "auto":
        found += _workers(config.run.num_workers)
    _settle(broadcast_object(found))


def _settle(found: list[Finding]) -> None:
    for fatal, text in found:
        if not fatal:
            _log.warning("%s", text)
    problems = [text for fatal, text in found if fatal]
    if problems:
        raise UserError(problems[0] if len(problems) == 1 else listed("the run cannot start:", problems))


def start(run: OpenRun, *, rehearsal: bool = False) -> Started:
    """Everything of a run before its first step; every rank calls it.

    Args:
        run: The opened folder.
        rehearsal: Leave nothing: no checkpoints, and the app builds what `App.dry_run_config` says.

    Raises:
        UserError: The checkpoint does not fit, data or settings are of no use, or the disk is too full.
    """
    if run.group is not None:
        gc.collect()  # a trainer's callbacks refer to it; of an earlier run nothing is to stay in memory
    app, config, world = run.app, run.config, run.world
    resumed = _resumed(run)  # first, so that settings that do not fit are refused before anything is built
    if config.train.auto_batch_size:
        fit_batch(run, state=None if resumed is None else resumed.state, rehearsal=rehearsal)
        config = run.config
    seed(config, world)
    begun = rng_state()
    rehearsed = app.dry_run_config if rehearsal else None
    setup: TrainingSetup = app.build(config if rehearsed is None else rehearsed(config), world)
    barrier()  # a rank may have worked alone for hours, which what waits on the device would take for a fault
    trainer = build_trainer(
        config,
        setup,
        world=world,
        folder=None if rehearsal else run.place.checkpoints,
        extra=origin(app, config),
        on_saved=None if rehearsal else run.submit(),
    )
    trainer.limits = run.remaining(trainer.limits)
    # A library may draw when it is imported, which is once a process: that is no part of a run. Weights are torch's.
    now = rng_state()
    trainer.rng = {**begun, "torch": now["torch"], "cuda": now["cuda"]}
    if resumed is not None:
        _take_over(run, trainer, setup, resumed)
    _check(run, trainer)  # what does not fit is refused before any file of the run is touched
    if resumed is None:
        return Started(trainer, setup, None, {})
    _move_names(run, trainer, resumed)
    state = resumed.state
    # The row of a step whose evaluation is due is made by this process.
    step = int(state["progress"]["step"]) - (state.get("due") is not None)
    branch = run.place.checkpoint is not None  # a branch is a run of its own for trackers, too
    return Started(trainer, setup, step, {} if branch else state["tracker"])


def _check(run: OpenRun, trainer: Trainer) -> None:
    """Whether disk and settings suit the built trainer."""
    ranks = {path: source.rank for path, source in run.invocation.composed.sources.items()}
    # What a command line makes of a file's settings, such as `--epochs 1` for a look at them, is meant so.
    least = max(Rank.FILE, ranks["train.epochs"], ranks["train.max_steps"])
    found = [*unsuitable(run.config, trainer, chosen=lambda path: ranks[path] >= least)]
    try:
        trainer.check_monitor()
    except UserError as error:
        found.append((True, str(error)))
    if run.world.is_main:
        found += _space(run, trainer)
    _settle(broadcast_object(found))


def _workers(workers: int) -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    if workers * _WORKER > available:
        needed, free = format_bytes(workers * _WORKER), format_bytes(available)
        yield True, f"--num_workers {workers} needs {needed} of memory, {free} are free: lower it, or leave it out"
    if workers and (shared := shared_memory_bytes()) < SHARED_MEMORY:
        yield (
            False,
            f"{format_bytes(shared)} are free in /dev/shm, through which {workers} workers pass their batches; if they "
            "fail, start the container with --shm-size=8g, or set --num_workers 0",
        )


def _space(run: OpenRun, trainer: Trainer) -> Iterator[Finding]:
    """Whether the disk takes the run's checkpoints, and those of the runs after it."""
    settings, size = run.config.checkpoint, checkpoint_bytes(trainer)
    every = settings.keep_every_epochs
    kept = settings.keep_last + 1 + (0 if every is None else trainer.limits.epochs // every)
    files = {path.stat().st_ino: path.stat().st_size for path in run.place.checkpoints.glob("*.pth")}
    needed = size * (run.runs * kept + 1) + _BESIDES - sum(files.values())
    free = free_bytes(run.folder)
    if needed > free:
        runs = f"{run.runs} runs with " if run.runs > 1 else ""
        yield (
            True,
            f"{run.folder}: {runs}{kept} checkpoints of {format_bytes(size)} and one being written need "
            f"{format_bytes(needed)}, {format_bytes(free)} are free: free some space, give --output_dir on another "
            "disk, or lower --keep_last",
        )


# ---------------------------------------------------------------------------------------------------------- going on


def _resumed(run: OpenRun) -> Resumed | None:
    """The checkpoint to go on from; rank 0 chooses it, so that all ranks read the same."""
    if not run.place.resume:
        return None
    found: tuple[Path, State] | None = None
    if run.world.is_main and run.place.checkpoint is None:
        found = CheckpointStore(run.place.checkpoints, asynchronous=False).newest_good()
    path = broadcast_object(run.place.checkpoint if found is None else found[0])
    if path is None:
        return None
    state = load_checkpoint(path) if found is None else found[1]
    inference_weights(state, source=path)  # says so if it is no training checkpoint
    if state.get("app") != run.app.name:
        raise CheckpointError(
            f"{path}: a checkpoint of the app '{state.get('app')}', not of {run.app.name}; --resume one of this app"
        )
    return Resumed(path, state, accepted_changes(run.config, state, source=path))


def _take_over(run: OpenRun, trainer: Trainer, setup: TrainingSetup, resumed: Resumed) -> None:
    path, changed = resumed.path, resumed.changed
    check_metadata(setup.task, resumed.state, source=path)
    trainer.load_state_dict(resumed.state, source=path)
    run.note = adopt_changes(resumed, trainer)
    if not trainer.complete():
        return
    if run.place.checkpoint is not None:
        _log.warning("%s: with these settings a run ends there, so it is only evaluated; raise --epochs to train", path)
    if changed and path.parent == run.place.checkpoints and has_ended(run.folder):
        raise UserError(
            f"{run.folder} holds a run that is finished ({'; '.join(map(str, changed))}), and these settings leave "
            "nothing to train; give --output_dir another folder for a new run, or raise --epochs"
        )


def _move_names(run: OpenRun, trainer: Trainer, resumed: Resumed) -> None:
    """Let the names of the run's checkpoints say what is the latest and the best now."""
    path, state = resumed.path, resumed.state
    own = path.parent == run.place.checkpoints
    barrier()
    now = trainer.progress
    if not own and now.best_step not in (-1, now.step):
        _log.info("the best weights, of step %d, are not in %s: the next evaluation is its best", now.best_step, path)
        trainer.forget_best(alike=True)
    if run.world.is_main and trainer.store is not None and own:
        if now.best_step != state["progress"]["best_step"]:
            trainer.store.keep_best(step=now.step)
        trainer.store.take_over(path, step=now.step, is_best=now.best_step == now.step)
    barrier()
    _log.info("resuming %s at step %d (epoch %d, sample %d)", path, now.step, now.epoch, now.position)

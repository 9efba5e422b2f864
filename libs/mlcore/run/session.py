"""One call of an app's training script: run folder, resuming, training, final evaluation, report.

The apps differ in the `TrainingSetup` they build; everything around it is here, once.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlcore.base.console import setup_logging
from mlcore.base.distributed import World, barrier, broadcast_object, start_world
from mlcore.base.env import env_notes, load_env
from mlcore.base.errors import UserError
from mlcore.base.signals import EXIT_INTERRUPTED, EXIT_TIME_IS_UP, Interrupted, deferred, interrupted_by, interruptible
from mlcore.base.version import code_version
from mlcore.cli.app import App
from mlcore.cli.invocation import Invocation
from mlcore.config.dump import to_values
from mlcore.remote.s3 import CACHE, fetch, is_remote
from mlcore.report.page import Picture
from mlcore.report.plots.curves import plot_lr_finder
from mlcore.run.aside import train_aside
from mlcore.run.build import TrainingSetup, build_trainer, configure_torch, describe
from mlcore.run.check_data import check_data
from mlcore.run.copy import copy_of
from mlcore.run.doctor import check_system, exit_code, format_checks
from mlcore.run.dry_run import dry_run
from mlcore.run.final_evaluation import Results, evaluate_best, pages_of_run, read_results
from mlcore.run.folder import ENDED, RunFolder, RunRecord, choose_run_folder, finished_run, reason_of, try_folder
from mlcore.run.group import ITSELF, RunGroup
from mlcore.run.member import keep_baselines, keeping
from mlcore.run.opened import OpenRun
from mlcore.run.preflight import Started, check_around, seed, start
from mlcore.run.tracking import build_tracker
from mlcore.trackers.base import Tracker, Trackers
from mlcore.training.evaluator import Predictions
from mlcore.training.lr_finder import find_learning_rate
from mlcore.training.profile import profiled
from mlcore.training.progress import Outcome
from mlcore.training.trainer import Trainer

_log = logging.getLogger(__name__)

_EXIT_CODES = {"interrupted": EXIT_INTERRUPTED, "time is up": EXIT_TIME_IS_UP}
"""Of runs that the same command continues; of all others that did not fail it is 0."""


def run(app: App[Any], invocation: Invocation[Any]) -> int:
    """Do what the command line asks for; returns the exit code.

    0: done (finished or stopped early). 75: interrupted by a signal. 76: the time limit came. After both, all there was
    to save is saved, and the same command continues.

    Raises:
        UserError: Anything the user has to mend.
    """
    load_env()
    # Deferred but for the blocks that have nothing to save: once a run is noted as finished, no signal turns that into
    # an interruption, after which the same command would train it again.
    with deferred():
        try:
            return _act(app, invocation)
        except BaseException as error:
            if not interrupted_by(error):
                raise
            if not isinstance(error, Interrupted):  # another process may have ended of the signal before this one
                _log.warning("interrupted; what came after it: %s", reason_of(error))
            left = getattr(error, "__notes__", ["before the work began, and the same command does all of it"])
            _log.info("interrupted: %s", left[0])
            return EXIT_INTERRUPTED


def _act(app: App[Any], invocation: Invocation[Any]) -> int:
    config = invocation.config
    if invocation.action == "test":
        with interruptible():
            checks = check_system(Path("outputs"), upload_to=config.checkpoint.upload_to)
            print(format_checks(checks))
            return exit_code(checks)
    with start_world(config.run.device) as world:
        with interruptible():
            configure_torch(config)
            seed(config, world)
            # What is said about the choice of the folder is shown, too.
            setup_logging(is_main=world.is_main, package=app.package)
            if invocation.composed.demo:
                why = "as asked" if invocation.demo_requested else "because no data set was given"
                _log.info(
                    "this is the %s demo on generated data, %s. For your own data: %s", app.title, why, app.own_data
                )
            if hasattr(invocation.extra, "check_data") and (bad := check_data(app, config, world)):
                raise UserError(bad)
            if invocation.action == "check_data":
                return 0
            if invocation.action == "dry_run":
                with tempfile.TemporaryDirectory(prefix="dry_run_") as scratch:
                    return dry_run(_rehearsed(app, invocation, world, Path(scratch)), scratch=Path(scratch))
        status = _run_in_folder(app, invocation, world)
    return _EXIT_CODES.get(status, 0)


def _rehearsed(app: App[Any], invocation: Invocation[Any], world: World, scratch: Path) -> OpenRun:
    """The run that the real start would train first, in its folder, which is only looked at."""
    place = broadcast_object(_choose_folder(app, invocation, cache=scratch) if world.is_main else None)
    name, config = app.name_of_run(invocation), invocation.config
    run = OpenRun(app=app, name=name, config=config, invocation=invocation, world=world, place=place)
    try_folder(place.path)
    check_around(run)
    group: RunGroup[Any] | None = None if app.group is None else app.group(config)
    members = {} if group is None else group.configs
    for where, member in members.items():
        if where == ITSELF:
            return replace(run, runs=len(members))
        folder = place.path / where
        if not finished_run(folder, member):
            place = choose_run_folder(folder, config=member, output_dir=folder)
            return replace(run, config=member, place=place, group=run, runs=len(members))
    return run


# ------------------------------------------------------------------------------------------------------- the run folder


def _run_in_folder(app: App[Any], invocation: Invocation[Any], world: World) -> str:
    """Choose the folder, hold it, and train or try learning rates there; returns the status."""
    with interruptible():
        place = broadcast_object(_choose_folder(app, invocation) if world.is_main else None)
    record = RunRecord(place.path) if world.is_main else None
    setup_logging(log_file=place.path / "train.log", is_main=world.is_main, package=app.package)
    for note in env_notes():
        _log.debug("%s", note)  # for train.log; the terminal has it already
    name, config = app.name_of_run(invocation), invocation.config
    run = OpenRun(app=app, name=name, config=config, invocation=invocation, world=world, place=place, record=record)
    return _closed_after(run, _do_in_folder)


def _do_in_folder(run: OpenRun) -> str:
    """What the command line asks for; returns the status."""
    config, app = run.config, run.app
    if run.invocation.action == "lr_find":
        if run.record is not None:
            run.record.start(to_values(config), code=code_version(app.source))
        return _find_rate(run)
    check_around(run)
    upload_to = config.checkpoint.upload_to if run.world.is_main else None
    run.copy = copy_of(run.folder, upload_to=upload_to, app=app.name, root=app.runs_folder, name=run.name)
    group = None if app.group is None else app.group(config)
    return _train(run) if group is None else _train_group(group, run)


def _closed_after(run: OpenRun, work: Callable[[OpenRun], str]) -> str:
    """Do `work`, which returns a status, and close the run, which nothing interrupts; returns the status."""
    status, reason = "failed", None
    try:
        with interruptible():
            status = work(run)
    except BaseException as error:
        if interrupted_by(error):
            status = "interrupted"
            error.add_note(run.left)
        else:
            reason = reason_of(error)
            # For train.log; the script says it on the terminal.
            _log.debug("the run failed: %s", reason, exc_info=not isinstance(error, UserError))
        raise
    finally:
        run.close(status, reason)
    return status


def _choose_folder(app: App[Any], invocation: Invocation[Any], *, cache: Path = CACHE) -> RunFolder:
    config = invocation.config
    root, resume = app.folder_of_runs(invocation), config.run.resume
    if invocation.action == "lr_find":  # it leaves other runs alone
        root, resume = root / "lr_find", "never"
    remote = fetch(resume, cache_dir=cache) if is_remote(resume) else None
    if remote is not None:
        _log.info("%s -> %s", resume, remote)
    return choose_run_folder(root, config=config, output_dir=config.run.output_dir, resume=resume, start=remote)


def _find_rate(run: OpenRun) -> str:
    app, config, world = run.app, run.config, run.world
    setup: TrainingSetup = app.build(config if app.dry_run_config is None else app.dry_run_config(config), world)
    barrier()
    trainer = build_trainer(config, setup, world=world)
    curve = find_learning_rate(trainer)
    picture = plot_lr_finder(
        curve.rates[: len(curve.losses)],
        losses=curve.losses,
        path=run.folder / "lr_finder.png",
        suggestion=curve.suggestion,
    )
    _log.info("suggested: --lr %.2g   (curve: %s)", curve.suggestion, picture)
    return "finished"


# ---------------------------------------------------------------------------------------------------------------- group


def _train_group(group: RunGroup[Any], whole: OpenRun) -> str:
    """Train the runs that are not finished, then aggregate all of them; returns the status of the whole."""
    status, results = "finished", dict[str, Results]()
    for number, count, place, config in _members(group, whole):
        folder = whole.folder / place
        own = place == ITSELF
        done = finished_run(folder, config) if whole.world.is_main and not own else False
        _log.info(
            "%s %d of %d: %s%s",
            group.what,
            number,
            count,
            whole.name if own else folder.name,
            " is finished" if (done := broadcast_object(done)) else "",
        )
        whole.runs = count - number + 1
        if not done:
            ended = _train(whole) if own else _train_member(whole, config, folder)
            if ended not in ENDED:
                return ended  # the same command goes on with this one and the rest
            if own:
                status = ended
        if not own:
            results[folder.name] = read_results(folder)
    whole.begin()  # where all runs were there already
    if whole.world.is_main:
        whole.write(group.aggregate(whole.folder, results, whole.pages))
        _log.info("%s", whole.last_words())
    barrier()
    return status


def _members(group: RunGroup[Any], whole: OpenRun) -> Iterator[tuple[int, int, str, Any]]:
    """Number, count, place and configuration of each run; the last ones are known when the others are finished.

    Where several are to be trained at a time, all but one may be finished when they come.
    """
    count, jobs = len(group.configs), group.jobs if whole.world.size == 1 else 1
    if jobs > 1:
        train_aside(whole, {place: config for place, config in group.configs.items() if place != ITSELF}, jobs=jobs)
    for number, (place, config) in enumerate(group.configs.items(), 1):
        yield number, count, place, config
    if group.last is not None:
        further = group.last(whole.folder)
        if jobs > 1:
            train_aside(whole, further, jobs=jobs)
        for number, (place, config) in enumerate(further.items(), count + 1):
            yield number, count + len(further), place, config


def _train_member(whole: OpenRun, config: Any, folder: Path) -> str:
    """Train a run of a group in its folder; returns the status."""
    place = choose_run_folder(folder, config=config, output_dir=folder)
    barrier()  # every rank has looked before anything is written
    with deferred():
        run = OpenRun(
            app=whole.app,
            name=f"{whole.name}, {folder.name}",
            config=config,
            invocation=whole.invocation,
            world=whole.world,
            place=place,
            record=RunRecord(folder) if whole.world.is_main else None,
            group=whole,
            runs=whole.runs,
        )
        status = _closed_after(run, _train)
    barrier()  # the main rank has written the results
    return status


# -------------------------------------------------------------------------------------------------------------- one run


def _train(run: OpenRun) -> str:
    """Train (or go on training), evaluate the best checkpoint, write the report; returns the status."""
    started = start(run)
    trainer, setup = started.trainer, keeping(started.setup)
    tracker = trainer.tracker = _tracker(run, started)
    trainer.on_evaluation = _picture_logger(run, trainer, setup, tracker)
    store, status = trainer.store, "failed"
    try:
        run.begin()
        _log.info("%s: %s", run.folder, describe(trainer))
        is_profiled = run.config.tracking.profile and run.world.is_main
        with profiled(trainer, folder=run.folder) if is_profiled else nullcontext():
            outcome = trainer.fit()
        if outcome.status in ENDED:
            _evaluate_and_report(run, trainer, setup, outcome)
        status = outcome.status
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        with deferred():
            if store is not None:
                store.close()
            tracker.close(status="finished" if status in ENDED else status)
    return status


def _evaluate_and_report(run: OpenRun, trainer: Trainer, setup: TrainingSetup, outcome: Outcome) -> None:
    evaluation = evaluate_best(trainer, setup, config=run.config, folder=run.folder, checkpoints=run.place.checkpoints)
    if run.world.is_main:
        keep_baselines(run.folder, evaluation.baselines, setup.held_out)
        pages = pages_of_run(
            outcome,
            evaluation,
            setup,
            title=f"{run.app.title}: {run.name}",
            monitor=trainer.monitor,
            config=to_values(run.config),
            demo=run.invocation.composed.demo,
            folder=run.folder,
        )
        run.write(pages)
        if setup.finish is not None:
            setup.finish(run.folder, pages.summary)
        _log.info("%s", run.last_words())
    barrier()


def _tracker(run: OpenRun, started: Started) -> Tracker:
    if not run.world.is_main:
        return Trackers({})
    return build_tracker(
        run.config, app=run.app.name, folder=run.folder, resume_step=started.resume_step, known=started.known
    )


def _picture_logger(
    run: OpenRun, trainer: Trainer, setup: TrainingSetup, tracker: Tracker
) -> Callable[[int, Mapping[str, float], Predictions], None] | None:
    """With `log_images`, trackers get the pictures of an evaluation each `log_freq` epochs."""
    settings, analyse = run.config.tracking, setup.analyse
    if not settings.log_images or analyse is None:
        return None

    def log_pictures(step: int, _metrics: Mapping[str, float], predictions: Predictions) -> None:
        if trainer.progress.epoch % settings.log_freq:
            return
        for section in analyse(predictions, run.folder, ""):
            if isinstance(section, Picture):
                tracker.image(step, section.title, section.path)

    return log_pictures

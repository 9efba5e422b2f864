"""One call of an app's training script: run folder, resuming, training, final evaluation, report.

The apps differ in the `Problem` they build; everything around it is here, once.
"""

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlcore.app import App, identity, root_of_runs, run_name, runs_folder, trial
from mlcore.assemble import Problem, build_tracker, build_trainer, configure_torch, describe
from mlcore.checkpoint import CheckpointError, CheckpointStore, State, inference_weights, load_checkpoint
from mlcore.cli.spec import Invocation
from mlcore.cli.stored import stored_file
from mlcore.conclusion import Conclusion, Pages, Results, judge, read_results, write_conclusion, write_pages
from mlcore.config.dump import to_values, to_yaml
from mlcore.console import setup_logging
from mlcore.distributed import World, barrier, broadcast_object, start_world
from mlcore.doctor import check_system, exit_code, format_checks
from mlcore.dry_run import dry_run
from mlcore.env import load_env
from mlcore.errors import UserError
from mlcore.evaluator import Predictions
from mlcore.files import write_text
from mlcore.lr_finder import find_learning_rate
from mlcore.mirror import Copied, RunMirror, mirror_of
from mlcore.plots.curves import plot_lr_finder
from mlcore.progress import Outcome
from mlcore.report import Picture
from mlcore.runs import ENDED, RunFolder, RunRecord, choose_run_folder, config_differences, finished_run, reason_of
from mlcore.seeding import seed_everything
from mlcore.storage import is_remote
from mlcore.task import check_facts
from mlcore.trackers.base import Tracker, Trackers
from mlcore.trainer import Trainer

_log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 75
"""Exit code after SIGTERM or SIGINT: the state is saved, and the same command continues (EX_TEMPFAIL)."""


def run(app: App[Any], invocation: Invocation[Any]) -> int:
    """Do what the command line asks for; returns the exit code.

    0: done (finished, stopped early, or the time limit came). 75: interrupted and saved; the same command continues.

    Raises:
        UserError: Anything the user has to mend.
    """
    load_env()
    config = invocation.config
    if invocation.action == "test":
        checks = check_system(Path("outputs"), upload_to=config.checkpoint.upload_to, extra=app.checks)
        print(format_checks(checks))
        return exit_code(checks)
    with start_world(config.run.device) as world:
        configure_torch(config)
        seed_everything(config.run.seed, rank=world.rank, deterministic=config.run.deterministic)
        setup_logging(is_main=world.is_main)  # what is said about the choice of the folder is shown, too
        if invocation.action == "dry_run":
            return dry_run(config, trial(app, config, world), world=world, extra=identity(app, config))
        status = _run_in_folder(app, invocation, world)
    return EXIT_INTERRUPTED if status == "interrupted" else 0


def _run_in_folder(app: App[Any], invocation: Invocation[Any], world: World) -> str:
    """Choose the folder, hold it, and train or try learning rates there; returns the status."""
    folder = broadcast_object(_choose_folder(app, invocation) if world.is_main else None)
    record = RunRecord(folder.path) if world.is_main else None
    setup_logging(log_file=folder.path / "train.log", is_main=world.is_main)
    status, session, reason = "failed", None, None
    try:
        if invocation.composed.demo:
            _say_demo(app, invocation)
        if invocation.action == "lr_find":
            if record is not None:
                record.start(to_values(invocation.config))
            status = _find_rate(app, invocation.config, world=world, folder=folder.path)
        else:
            name = run_name(app, invocation)
            place = invocation.config.checkpoint.upload_to if world.is_main else None
            mirror = mirror_of(folder.path, upload_to=place, app=app.name, root=runs_folder(app), name=name)
            session = _Session(app, invocation, name=name, world=world, folder=folder, record=record, mirror=mirror)
            parts = {} if app.parts is None else app.parts(invocation.config)
            status = session.train_parts(parts) if parts else session.train()
    except BaseException as error:
        reason = reason_of(error)
        # For train.log; the script says it on the terminal.
        _log.debug("the run failed: %s", reason, exc_info=not isinstance(error, UserError))
        raise
    finally:
        if record is not None:
            record.end(status=status, reason=reason)  # before it is copied
            if session is not None:
                session.finish_copy(status)
            record.close(status=status, reason=reason)
    return status


def _choose_folder(app: App[Any], invocation: Invocation[Any]) -> RunFolder:
    config = invocation.config
    root = root_of_runs(app, invocation)
    resume = config.run.resume
    if invocation.action == "lr_find":  # a trial leaves other runs alone
        root, resume = root / "lr_find", "never"
    start = stored_file(resume) if is_remote(resume) else None
    return choose_run_folder(
        root, config=to_values(config), output_dir=config.run.output_dir, resume=resume, start=start
    )


def _say_demo(app: App[Any], invocation: Invocation[Any]) -> None:
    why = "as asked" if invocation.demo_requested else "because no data set was given"
    _log.info("running the %s demo on generated data, %s. Your own data: %s", app.title, why, app.own_data)


def _find_rate(app: App[Any], config: Any, *, world: World, folder: Path) -> str:
    trainer = build_trainer(config, trial(app, config, world), world=world)
    curve = find_learning_rate(trainer)
    picture = plot_lr_finder(
        curve.rates[: len(curve.losses)],
        losses=curve.losses,
        path=folder / "lr_finder.png",
        suggestion=curve.suggestion,
    )
    _log.info("suggested: --lr %.2g   (curve: %s)", curve.suggestion, picture)
    return "finished"


class _Session:
    """A training run in its folder."""

    def __init__(
        self,
        app: App[Any],
        invocation: Invocation[Any],
        *,
        name: str,
        world: World,
        folder: RunFolder,
        record: RunRecord | None,
        mirror: RunMirror | None,
        whole: "_Session | None" = None,
    ) -> None:
        self._whole = whole
        self._begun = False
        self._app = app
        self._name = name
        self._config: Any = invocation.config
        self._invocation = invocation
        self._world = world
        self._place = folder
        self._record = record
        self._mirror = mirror
        self._folder = folder.path
        self._written: Pages | None = None

    def train(self) -> str:
        """Train (or go on training), judge the best checkpoint, write the report; returns the status."""
        problem = self._app.build(self._config, self._world)
        trainer = build_trainer(
            self._config,
            problem,
            world=self._world,
            folder=self._place.checkpoints,
            extra=identity(self._app, self._config),
            on_saved=None if self._mirror is None else self._mirror.submit,
        )
        resumed = self._resumed_state()
        self._take_over(trainer, problem, resumed)  # what does not fit is refused before any file of the run is touched
        tracker = self._tracker(None if resumed is None else resumed[1])
        trainer.tracker = tracker
        trainer.on_evaluation = self._picture_logger(trainer, problem, tracker)
        store, status = trainer.store, "failed"
        try:
            self._begin()
            _log.info("%s: %s", self._folder, describe(trainer))
            outcome = trainer.fit()
            if outcome.status == "interrupted":
                status = outcome.status
            else:
                end = self._conclude(trainer, problem, outcome)
                del trainer  # variants need its memory
                status = self._compare(end, problem)
        finally:
            if store is not None:
                store.close()
            tracker.close(status="finished" if status in ("finished", "stopped early") else status)
        return status

    def train_parts(self, parts: Mapping[str, Any]) -> str:
        """Train the parts that are not finished, then join all of them; returns the status."""
        status, _ = self._train_others(parts, what="part")
        if status != "finished":
            return status  # the same command goes on with those that are not
        self._begin()  # where all parts were there already
        if self._world.is_main and self._app.join is not None:
            self._written = self._app.join(self._config, self._folder)
            _log.info("report: %s", write_pages(self._written, folder=self._folder, copied=self._copy()))
        barrier()
        return status

    def _begin(self) -> None:
        """Note in the run folder, and in that of the run this one belongs to, that it is under way; tell the bucket."""
        if self._begun:
            return
        self._begun = True
        if self._whole is not None:
            self._whole._begin()  # not before its first part is sure to start
        if self._record is not None:
            self._record.start(to_values(self._config))
            write_text(self._folder / "config.yaml", to_yaml(self._config, self._invocation.composed.sources))
        if self._mirror is not None:
            self._mirror.begin()

    # ------------------------------------------------------------------------------------------------------ resuming

    def _resumed_state(self) -> tuple[Path, State] | None:
        """The checkpoint to go on from; rank 0 chooses it, so that all ranks read the same."""
        if not self._place.resume:
            return None
        found: tuple[Path, State] | None = None
        if self._world.is_main and self._place.checkpoint is None:
            found = CheckpointStore(self._place.checkpoints, asynchronous=False).newest_good()
        path = broadcast_object(self._place.checkpoint if found is None else found[0])
        if path is None:
            return None
        state = load_checkpoint(path) if found is None else found[1]
        inference_weights(state, source=path)  # says so if it is no training checkpoint
        if state.get("app") != self._app.name:
            raise CheckpointError(f"{path}: a checkpoint of the app '{state.get('app')}'")
        return path, state

    def _take_over(self, trainer: Trainer, problem: Problem, resumed: tuple[Path, State] | None) -> None:
        if resumed is None:
            return
        path, state = resumed
        check_facts(problem.task, state, keys=problem.identity, source=path)
        trainer.load_state_dict(state, source=path)
        changed = config_differences(state["config"], to_values(self._config))
        if changed and trainer.is_complete and path.parent == self._place.checkpoints:
            raise UserError(
                f"{self._folder} holds a run that is finished ({'; '.join(changed)}), and these settings leave nothing "
                "to train; give --output_dir another folder for a new run, or raise --epochs"
            )
        barrier()
        if self._world.is_main and trainer.store is not None and path.parent == trainer.store.folder:
            now = trainer.progress
            trainer.store.take_over(path, step=now.step, is_best=now.best_step == now.step)
        barrier()
        if changed:
            _log.warning("going on with other settings than before: %s", "; ".join(changed))
        now = trainer.progress
        _log.info("resuming %s at step %d (epoch %d, sample %d)", path, now.step, now.epoch, now.position)

    def _tracker(self, state: State | None) -> Tracker:
        if not self._world.is_main:
            return Trackers({})
        branch = self._place.checkpoint is not None  # a branch is a run of its own for trackers, too
        return build_tracker(
            self._config,
            app=self._app.name,
            folder=self._folder,
            resume_step=None if state is None else int(state["progress"]["step"]),
            known={} if state is None or branch else state["tracker"],
        )

    def _picture_logger(
        self, trainer: Trainer, problem: Problem, tracker: Tracker
    ) -> Callable[[int, Mapping[str, float], Predictions], None] | None:
        """With `log_images`, trackers get the pictures of an evaluation each `log_freq` epochs."""
        settings, analyse = self._config.tracking, problem.analyse
        if not settings.log_images or analyse is None:
            return None

        def log_pictures(step: int, _metrics: Mapping[str, float], predictions: Predictions) -> None:
            if trainer.progress.epoch % settings.log_freq:
                return
            for section in analyse(predictions, self._folder, ""):
                if isinstance(section, Picture):
                    tracker.image(step, section.title, section.path)

        return log_pictures

    # --------------------------------------------------------------------------------------------------- conclusion

    def _conclude(self, trainer: Trainer, problem: Problem, outcome: Outcome) -> Conclusion:
        """Judge the best checkpoint and write summary and report, before variants can fail."""
        verdict = judge(trainer, problem, config=self._config, folder=self._folder, checkpoints=self._place.checkpoints)
        end = Conclusion(
            title=f"{self._app.title}: {self._name}",
            outcome=outcome,
            verdict=verdict,
            variants={},
            monitor=trainer.monitor,
            config=to_values(self._config),
            demo=self._invocation.composed.demo,
            copied=self._copy(),
        )
        self._write(end, problem)
        return end

    def _write(self, end: Conclusion, problem: Problem) -> None:
        if self._world.is_main:
            self._written = write_conclusion(end, problem, folder=self._folder, device=self._world.device)
        barrier()

    def _copy(self) -> Copied | None:
        """The run's copy, of which nothing is known to be missing yet; that of a part is told with the whole."""
        return None if self._mirror is None or self._whole is not None else Copied(self._mirror.address, {})

    def finish_copy(self, status: str) -> None:
        """Wait a while for the copy in the bucket; summary and report tell what it lacks."""
        if self._mirror is None:
            return
        copied = self._mirror.close(status=status)
        if copied.missing and self._written is not None:
            write_pages(self._written, folder=self._folder, copied=copied)

    def _compare(self, end: Conclusion, problem: Problem) -> str:
        """Train the app's variants, if it has any, and add the comparison; returns the status."""
        configs = {} if self._app.variants is None else self._app.variants(self._config)
        if not configs:
            return end.outcome.status
        problem.task.model.cpu()  # nothing is computed with it any more
        gc.collect()  # a trainer's callbacks refer to it
        places = {f"variants/{name}": config for name, config in configs.items()}
        status, variants = self._train_others(places, what="variant")
        if status == "interrupted":
            return status
        self._write(replace(end, variants=variants), problem)
        return end.outcome.status

    def _train_others(self, configs: Mapping[str, Any], *, what: str) -> tuple[str, dict[str, Results]]:
        """Train runs in folders of the run's; a status, and what they reached, by name.

        "finished" means that all of them have ended by themselves; "interrupted" that the rest was not begun.
        """
        whole, results = "finished", dict[str, Results]()
        for number, (place, config) in enumerate(configs.items(), 1):
            folder = self._folder / place
            if broadcast_object(finished_run(folder, to_values(config)) if self._world.is_main else None):
                _log.info("%s %d of %d: %s is finished", what, number, len(configs), folder.name)
            else:
                _log.info("%s %d of %d: %s", what, number, len(configs), folder.name)
                status = self._train_other(f"{self._name}, {folder.name}", config, folder)
                if status == "interrupted":
                    return status, results
                whole = status if status not in ENDED else whole
            results[folder.name] = read_results(folder)
        return whole, results

    def _train_other(self, name: str, config: Any, folder: Path) -> str:
        seed_everything(config.run.seed, rank=self._world.rank, deterministic=config.run.deterministic)
        place = choose_run_folder(folder, config=to_values(config), output_dir=folder)
        barrier()  # every rank has looked before anything is written
        record = RunRecord(folder) if self._world.is_main else None
        app = replace(self._app, variants=None, parts=None)
        invocation = replace(self._invocation, composed=replace(self._invocation.composed, config=config))
        status, reason = "failed", None
        try:
            status = _Session(
                app,
                invocation,
                name=name,
                world=self._world,
                folder=place,
                record=record,
                mirror=self._mirror,
                whole=self,
            ).train()
        except BaseException as error:
            reason = reason_of(error)
            raise
        finally:
            if record is not None:
                record.close(status=status, reason=reason)
        barrier()  # the main rank has written the results
        gc.collect()  # a trainer's callbacks refer to it
        return status

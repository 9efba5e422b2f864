"""The ensemble experiment: find or train the members, let them predict, compare all methods, and write it down."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlcore.base.console import setup_logging
from mlcore.base.distributed import pick_device
from mlcore.base.errors import UserError
from mlcore.base.files import write_text
from mlcore.base.signals import EXIT_INTERRUPTED, Interrupted, deferred, interrupted_by, interruptible
from mlcore.base.version import code_version
from mlcore.cli.app import App
from mlcore.cli.invocation import Invocation
from mlcore.config.dump import to_values, to_yaml
from mlcore.run.build import configure_torch
from mlcore.run.copy import Copied, RunCopy, copy_of
from mlcore.run.decision import check_rule, choose, write_decision
from mlcore.run.final_evaluation import Pages, write_pages
from mlcore.run.folder import RunRecord, choose_run_folder, reason_of
from mlcore.run.session import run as run_session
from quartet.apps.doc_ensemble.config import DocConfig, EnsembleConfig
from quartet.apps.doc_ensemble.ensemble.artefact import STACKING
from quartet.apps.doc_ensemble.ensemble.combine import normalise_weights
from quartet.apps.doc_ensemble.ensemble.folds_job import train_folds
from quartet.apps.doc_ensemble.ensemble.members import check_members
from quartet.apps.doc_ensemble.ensemble.methods import (
    Outcome,
    apply_methods,
    best_member,
    chosen_method,
    member_methods,
    methods_of,
)
from quartet.apps.doc_ensemble.ensemble.out_of_fold import without_predictions
from quartet.apps.doc_ensemble.ensemble.predicting import SplitPredictions, predict_splits, views_of
from quartet.apps.doc_ensemble.ensemble.recording import Experiment, Metadata, record_experiment
from quartet.apps.doc_ensemble.ensemble.sources import Source, data_of, find_sources, out_of_fold, trained_on
from quartet.apps.doc_ensemble.ensemble.stacking import Stacker, fit_stacker
from quartet.apps.doc_ensemble.ensemble.view_choice import ViewChoice, choose_views
from quartet.apps.doc_ensemble.splits import Splits, load_splits

__all__ = ["compare", "run"]

_log = logging.getLogger(__name__)

_PAGES_OF_DRY_RUN = 8  # pages of a dry run


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What is known before the members predict."""

    data: DocConfig
    splits: Splits
    notes: Sequence[str]
    shares: Sequence[float]
    stacker: Stacker | None


def run(app: App[DocConfig], invocation: Invocation[DocConfig]) -> int:
    """Do what the command line asks for; returns the exit code.

    75: interrupted, 76: the time limit of a member came; the same command goes on with the training of members, and
    compares them anew.

    Raises:
        UserError: Anything the user has to mend.
    """
    with deferred():
        try:
            return _run(app, invocation)
        except Interrupted:
            return EXIT_INTERRUPTED


def _run(app: App[DocConfig], invocation: Invocation[DocConfig]) -> int:
    setup_logging()
    config = invocation.config
    settings = config.ensemble
    trains = not settings.models and settings.run is None
    if invocation.action == "lr_find":
        raise UserError("--lr_find belongs to train.py: an ensemble experiment has no learning rate of its own")
    if invocation.action == "test" or (invocation.action == "dry_run" and trains):
        return run_session(app, invocation)
    configure_torch(config)
    check_rule(config.decision, kind="multiclass")
    if settings.tta.enabled:
        views_of(settings.tta)  # a mistake there is told before anything is trained
    if trains:
        code, job = _train(app, invocation)
        if code or int(os.environ.get("RANK", "0")):
            return code  # the first process predicts for all
        settings = settings.model_copy(update={"run": job})
    with interruptible():
        sources = find_sources(settings)
        if invocation.action == "dry_run":
            return _dry_run(invocation, settings, sources)
    _run_in_folder(app, invocation, settings, sources)
    return 0


def compare(
    settings: EnsembleConfig,
    sources: Sequence[Source],
    predicted: SplitPredictions,
    *,
    stacker: Stacker | None,
    seed: int,
) -> tuple[list[Outcome], str, SplitPredictions, ViewChoice | None]:
    """Choose the views of the chosen method, and apply all methods with these.

    Args:
        settings: Whether and how members are combined.
        sources: The members.
        predicted: What they said.
        stacker: Fitted on their out-of-fold predictions, where there are any.
        seed: Draws the halves of the validation pages.

    Returns:
        The methods' outcomes, the name of the chosen one, what was said of the views that count, and how these were
        chosen (None: they were not).
    """
    methods = member_methods(predicted.member_names)
    if settings.enabled:
        methods += methods_of(settings, shares=_shares(settings, sources), stacker=stacker)
        name = chosen_method(settings)
    else:
        name = best_member(apply_methods(methods, predicted.votes, view_weights=None, seed=seed))
    choice = None
    if settings.tta.choose and predicted.view_weights is not None:
        method = next(method for method in methods if method.name == name)
        choice = choose_views(method, predicted.votes["val"], views=predicted.views, seed=seed)
        predicted = predicted.looking(choice.chosen)
        _log.info("views that help on the validation pages: %s", ", ".join(choice.names[1:]) or "none")
    outcomes = apply_methods(methods, predicted.votes, view_weights=predicted.view_weights, seed=seed)
    return outcomes, name, predicted, choice


def _train(app: App[DocConfig], invocation: Invocation[DocConfig]) -> tuple[int, Path]:
    """Cross-validate the configured model; how members are combined is no part of that, nor where this one writes."""
    config = invocation.config
    if config.kfold.folds < 2:
        raise UserError("no members: give ensemble.models or ensemble.run, or kfold.folds of at least 2 to train some")
    plain = config.model_copy(
        update={
            "ensemble": EnsembleConfig(),
            "kfold": config.kfold.model_copy(update={"fold": None}),
            "run": config.run.model_copy(update={"output_dir": None}),
        }
    )
    _log.info("no members are given: %d models are trained first", config.kfold.folds)
    code, job = train_folds(app, replace(invocation, composed=replace(invocation.composed, config=plain)))
    setup_logging()
    return code, job


def _dry_run(invocation: Invocation[DocConfig], settings: EnsembleConfig, sources: Sequence[Source]) -> int:
    """Let the members predict a few pages, and write nothing."""
    data, splits, _ = _pages(invocation, sources)
    few = replace(splits, validation=splits.validation[:_PAGES_OF_DRY_RUN], test=None)
    predicted = _predict(invocation.config, settings, sources, few, data=data, scratch=None)
    shape = "x".join(map(str, predicted.votes["val"].by_view.shape))
    _log.info("fine: members x views x pages x classes: %s; nothing was written", shape)
    return 0


def _run_in_folder(
    app: App[DocConfig], invocation: Invocation[DocConfig], settings: EnsembleConfig, sources: Sequence[Source]
) -> None:
    config, composed = invocation.config, invocation.composed
    name = config.run.name or composed.experiment or ("demo" if composed.demo else settings.method)
    settled = config.model_copy(update={"ensemble": settings})
    values = to_values(settled)
    place = choose_run_folder(
        app.runs_folder / "ensembles" / name, config=settled, output_dir=config.run.output_dir, resume="never"
    )
    record = RunRecord(place.path)
    setup_logging(log_file=place.path / "train.log")
    copy = _copy(app, config, place.path, name)
    status, pages, reason = "failed", None, None
    try:
        with interruptible():
            prepared = _prepare(invocation, settings, sources)  # what cannot be is refused before anything is written
            record.start(values, code=code_version(app.source))
            write_text(place.path / "config.yaml", to_yaml(config, composed.sources))
            if copy is not None:
                copy.begin()
            pages = _conducted(invocation, settings, sources, prepared, values=values, name=name, folder=place.path)
            report = write_pages(pages, folder=place.path, copied=None if copy is None else Copied(copy.address, {}))
            print(f"report: {report}")
            status = "finished"
    except BaseException as error:
        if interrupted_by(error):
            status = "interrupted"
            raise Interrupted from None
        reason = reason_of(error)
        _log.debug("the experiment failed: %s", reason, exc_info=not isinstance(error, UserError))  # for train.log
        raise
    finally:
        record.end(status=status, reason=reason)
        if copy is not None:
            copied = copy.close(status=status)
            if copied.missing and pages is not None:
                write_pages(pages, folder=place.path, copied=copied)
        record.close(status=status, reason=reason)


def _conducted(
    invocation: Invocation[DocConfig],
    settings: EnsembleConfig,
    sources: Sequence[Source],
    prepared: _Prepared,
    *,
    values: Mapping[str, Any],
    name: str,
    folder: Path,
) -> Pages:
    """Conduct the experiment and record it; returns what summary and report say."""
    begun = time.perf_counter()
    experiment = _conduct(invocation, settings, sources, prepared, folder=folder)
    _decide(invocation.config, experiment, folder)
    seconds, seed = time.perf_counter() - begun, prepared.data.data.split_seed
    metadata = _metadata(invocation, values, name, seconds=seconds, seed=seed)
    return record_experiment(experiment, folder=folder, data=prepared.data, metadata=metadata)


def _decide(config: DocConfig, experiment: Experiment, folder: Path) -> None:
    """Keep what the validation pages choose for the chosen method; its probabilities stay as they are."""
    predicted, chosen = experiment.predicted, experiment.outcome(experiment.chosen, "val", tta=experiment.tta)
    decision = choose(
        config.decision,
        labels=predicted.votes["val"].labels,
        probabilities=chosen.probabilities,
        class_names=predicted.class_names,
        kind="multiclass",
    )
    write_decision(folder, decision)


def _copy(app: App[DocConfig], config: DocConfig, folder: Path, name: str) -> RunCopy | None:
    return copy_of(
        folder,
        upload_to=config.checkpoint.upload_to,
        app=app.name,
        root=app.runs_folder,
        name=f"ensembles/{name}",
        again="--output_dir",  # --resume is for the members that are trained
    )


def _metadata(
    invocation: Invocation[DocConfig], values: Mapping[str, Any], name: str, *, seconds: float, seed: int
) -> Metadata:
    config = invocation.config
    return Metadata(
        name=name,
        demo=invocation.composed.demo,
        config=values,
        device=pick_device(config.run.device),
        seconds=seconds,
        seed=seed,
    )


def _prepare(invocation: Invocation[DocConfig], settings: EnsembleConfig, sources: Sequence[Source]) -> _Prepared:
    stacker = _stacker(settings, sources)
    shares = _shares(settings, sources, say=settings.enabled and settings.method == "weighted")
    data, splits, notes = _pages(invocation, sources)
    return _Prepared(data=data, splits=splits, notes=notes, shares=shares, stacker=stacker)


def _conduct(
    invocation: Invocation[DocConfig],
    settings: EnsembleConfig,
    sources: Sequence[Source],
    prepared: _Prepared,
    *,
    folder: Path,
) -> Experiment:
    predicted = _predict(invocation.config, settings, sources, prepared.splits, data=prepared.data, scratch=folder)
    stacker, seed = prepared.stacker, prepared.data.data.split_seed
    outcomes, chosen, predicted, choice = compare(settings, sources, predicted, stacker=stacker, seed=seed)
    if stacker is not None:
        stacker.save(folder / STACKING)
    bad = predicted.problems
    unread = [f"{len(bad)} pages could not be read and are left out; the first: {bad[0]}"] if bad else []
    return Experiment(
        settings=settings,
        sources=sources,
        shares=prepared.shares,
        predicted=predicted,
        outcomes=outcomes,
        chosen=chosen,
        choice=choice,
        notes=[*prepared.notes, *unread],
    )


def _stacker(settings: EnsembleConfig, sources: Sequence[Source]) -> Stacker | None:
    classes = check_members([part for source in sources for part in source.parts])
    if not settings.enabled:
        return None
    data = out_of_fold(sources)
    if data is None:
        if settings.method == "stacking":
            plain = [source.name for source in sources if not source.whole]
            raise without_predictions(f"of these members there are none: {', '.join(plain)}")
        return None
    if data.class_names != classes:
        raise UserError(
            f"the out-of-fold predictions are of the classes {list(data.class_names)}, the members' models of "
            f"{list(classes)}; cross-validate them anew"
        )
    return fit_stacker(data)


def _shares(settings: EnsembleConfig, sources: Sequence[Source], *, say: bool = False) -> list[float]:
    """The configured weights, normalised; the log says so only where they are used."""
    weights = [source.weight for source in sources]
    if say and not settings.fit_weights:
        return [float(share) for share in normalise_weights(weights, members=len(sources))]
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else [1 / len(weights)] * len(weights)


def _pages(invocation: Invocation[DocConfig], sources: Sequence[Source]) -> tuple[DocConfig, Splits, list[str]]:
    """The configuration of the pages, the pages, and what the reader must know of them."""
    classes = check_members([part for source in sources for part in source.parts])
    data = data_of(invocation.composed, sources)
    splits = load_splits(data, classes=classes)
    evaluated = (*splits.validation, *(splits.test or ()))
    notes = list(splits.notes)
    for name, pages in trained_on(sources).items():
        known = sum(page.digest in pages or page.key in pages for page in evaluated)
        if known:
            notes.append(
                f"{name!r} was trained on {known} of the {len(evaluated)} evaluated pages: its figures flatter it"
            )
            _log.warning("%s", notes[-1])
    return data, splits, notes


def _predict(
    config: DocConfig,
    settings: EnsembleConfig,
    sources: Sequence[Source],
    splits: Splits,
    *,
    data: DocConfig,
    scratch: Path | None,
) -> SplitPredictions:
    device = pick_device(config.run.device)
    count = len(splits.validation) + len(splits.test or ())
    models = sum(len(source.parts) for source in sources)
    _log.info("%d pages, %d members of %d models, on %s", count, len(sources), models, device)
    return predict_splits(
        sources,
        splits,
        config=data,
        settings=settings,
        device=device,
        scratch=scratch,
        batch_size=config.train.eval_batch_size or config.train.batch_size,
    )

"""A finished run evaluated once more: on its own held-out data or on other data, at its decision or at another one.

What the `evaluation` of an app builds goes the way of the end of a training (`mlcore.run.final_evaluation`), so that
figures, pictures and files are those that the run itself leaves.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlcore.base.console import setup_logging
from mlcore.base.distributed import World, barrier, start_world
from mlcore.base.errors import UserError
from mlcore.base.files import output_folder, write_json
from mlcore.base.reading import reading
from mlcore.cli.app import App
from mlcore.cli.apps import load_app
from mlcore.config.decision import DecisionConfig
from mlcore.config.dump import to_values
from mlcore.config.layers import Rank, Source, Value
from mlcore.config.names import NameTable
from mlcore.config.section import Section
from mlcore.config.text import read_document
from mlcore.config.validation import validate
from mlcore.report.page import RunReport, describe_environment, write_report
from mlcore.run.build import EvaluationSetup, configure_torch
from mlcore.run.decision import Decision, parse_operating_point
from mlcore.run.exported import ABOUT
from mlcore.run.final_evaluation import Evaluation, evaluate_splits, headlines, plain_intervals, result_table
from mlcore.run.folder import ENDED
from mlcore.run.predictor import ENSEMBLE, checkpoint_of, located
from mlcore.run.restore import RunCheckpoint, read_run_checkpoint, run_folder
from mlcore.training.engine import autocast

__all__ = ["FIGURES", "Asked", "Request", "evaluate"]

_log = logging.getLogger(__name__)

FIGURES = "metrics.json"
"""In the folder of an evaluation: its figures, by split, with intervals, and of which run they are."""

_SECTIONS = ("data", "run")  # what may differ from the training run


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an app is to evaluate of a run; its configuration has what else was asked for.

    Attributes:
        data: By name and in this order: what stands in place of the run's own split; None: the run's own.
        choose: Whether the validation data chooses a decision, by the configuration; otherwise it is the run's.
        threshold: Text of a threshold in place of the run's; "" for none.
    """

    data: Mapping[str, Path | None]
    choose: bool = False
    threshold: str = ""

    def kept(self, run: RunCheckpoint[Any]) -> Decision | None:
        """The run's decision, without figures of other data; None where another one is to be chosen, or it has none."""
        return None if self.choose or run.decision is None else run.decision.model_copy(update={"figures": {}})

    def pick(self, own: Mapping[Any, Any]) -> dict[str, Any]:
        """The run's own parts of those that are asked for.

        Raises:
            UserError: It does not have one of them.
        """
        if missing := [name for name, data in self.data.items() if data is None and name not in own]:
            there = ", ".join(own) or "no other"
            raise UserError(f"the run's data has no {missing[0]} part; there is {there}; --data names other data")
        return {name: own[name] for name, data in self.data.items() if data is None}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A command line that asks for an evaluation.

    Attributes:
        run: Folder of the run, or a checkpoint of it.
        data: Other data in place of the split.
        split: "val", "test", for some apps "train"; None: val of the run's own data, test of other data.
        point: Operating point to choose on validation, see `parse_operating_point`; None: the run's decision.
        output: Folder of the results; None: one in the run's folder.
        batch_size: Samples that go through the network together; None: as in the run.
        settings: Changes of the run's sections data and run: `--name VALUE`, `--name=VALUE`, `name=VALUE`.
        threshold: See `Asked`.
        called: What the name of that folder begins with; the split or the data's name follows.
    """

    run: str
    data: Path | None = None
    split: str | None = None
    point: str | None = None
    output: Path | None = None
    batch_size: int | None = None
    settings: Sequence[str] = ()
    threshold: str = ""
    called: str = "evaluation_"

    @property
    def role(self) -> str:
        """Which split is evaluated.

        Raises:
            UserError: Other data as validation data, which has nothing to choose.
        """
        if self.data is not None and self.split == "val" and self.point is None:
            raise UserError(
                "--split val: validation data is what a decision is chosen on; give --operating_point, or leave out "
                "--split to look at the data at the run's own decision"
            )
        return self.split or ("val" if self.data is None else "test")


def evaluate(request: Request, *, app: App[Any] | None = None) -> Path:
    """Evaluate a run and write figures, predictions, pictures and report; every rank must call it.

    Args:
        request: What is asked for.
        app: The run has to be of it; None: of any.

    Returns:
        The folder that they are in: `metrics.json`, `report.html`, `decision.json` and what else the app leaves.

    Raises:
        UserError: The run, a setting, the data or the output folder cannot be used.
    """
    role = request.role
    found, run = _opened(located(request.run), app)
    config = _config(found, run, request)
    with start_world(config.run.device) as world:
        setup_logging(is_main=world.is_main)
        configure_torch(config)
        name = role if request.data is None else request.data.resolve().stem
        folder = request.output or run_folder(run.path) / f"{request.called}{name}"
        if (folder / "run.json").exists():
            raise UserError(f"{folder}: holds a run, whose files would be overwritten; give another --output")
        assert found.evaluation is not None  # noqa: S101 - looked at when it was opened
        run = replace(run, config=config)
        setup: EvaluationSetup = found.evaluation(run, _asked(request, role), world)
        metric = config.train.early_stopping.monitored
        with output_folder(folder) if world.is_main else nullcontext(), autocast(config.train.precision, world.device):
            done = evaluate_splits(setup, metric, config=config, folder=folder, world=world)
            if world.is_main:
                _write(done, setup, run, found, request, folder, world)
        barrier()
    return folder


def _unfinished(run: Path) -> list[str]:
    """What is to be said of a run that has not come to its end; nothing of one that has, or has no record."""
    path = run / "run.json"
    if not path.is_file():
        return []
    with reading(path, "the record of a run"):
        status = str(read_document(path).values["status"])
    return [] if status in ENDED else [f"The run is not finished ({status}): these are its best weights so far."]


def _opened(path: Path, app: App[Any] | None) -> tuple[App[Any], RunCheckpoint[Any]]:
    for name, what in ((ABOUT, "an export"), (ENSEMBLE, "an ensemble")):
        if (path / name).is_file():
            raise UserError(f"{path}: is {what}; evaluate the run that it was made of, which knows its data")
    found, run = read_run_checkpoint(checkpoint_of(path), load_app)
    if app is not None and found.name != app.name:
        raise UserError(f"{path}: a run of {found.name}, not of {app.name}; quartet evaluate takes any")
    if found.evaluation is None:
        raise UserError(f"{path}: the app '{found.name}' does not say how it is evaluated (`App.evaluation`)")
    return found, run


def _asked(request: Request, role: str) -> Asked:
    data = {role: request.data}
    if request.point is not None and role != "val":
        data = {"val": None, **data}  # which chooses
    return Asked(data=data, choose=request.point is not None, threshold=request.threshold)


def _config(app: App[Any], run: RunCheckpoint[Any], request: Request) -> Any:
    """The run's configuration with what was asked for."""
    given = _changed(app, request.settings)
    if request.data is not None and "data.base_dir" in NameTable(app.config_cls).leaves:
        given = {"data.base_dir": None, **given}  # other data lies elsewhere
    if request.batch_size is not None:
        given["train.eval_batch_size"] = request.batch_size
    config = _checked(app.config_cls, run.config, given)
    return config.model_copy(update={"decision": _rule(config, app, request.point)})


def _rule(config: Any, app: App[Any], point: str | None) -> Section:
    """The section `decision` for an operating point; without one nothing is chosen."""
    section: Section = config.decision
    if isinstance(section, DecisionConfig):
        return parse_operating_point(point or "none")
    try:
        return type(section).model_validate({"rule": point or "none"})
    except ValueError:
        rules = NameTable(app.config_cls).leaves["decision.rule"].choices
        raise UserError(f"operating point '{point}': {app.name} has {', '.join(rules)}") from None


def _changed(app: App[Any], settings: Sequence[str]) -> dict[str, Any]:
    """Settings given as `--name VALUE`, `--name=VALUE` or `name=VALUE`, by path."""
    table = NameTable(app.config_cls)
    values: dict[str, Any] = {}
    tokens = iter(settings)
    for token in tokens:
        head, equals, text = token.partition("=")
        name = head.removeprefix("--").replace("-", "_")
        if not equals:
            text = next(tokens, "") if token.startswith("--") else ""
        leaf = table.resolve(name)
        if leaf is None:
            raise UserError(
                f"command line: unknown flag or setting '{head}'{table.suggest(name)}; --help lists the flags"
            )
        if leaf.path.split(".")[0] not in _SECTIONS:
            raise UserError(f"command line: {leaf.path} belongs to the trained model; data and run settings can change")
        if not text:
            raise UserError(f"command line: {head} needs a value; expected {leaf.expects}")
        values[leaf.path] = leaf.read(text)
    return values


def _checked(config_cls: type[Section], config: Section, values: Mapping[str, Any]) -> Any:
    table, plain = NameTable(config_cls), config.model_dump(mode="json")
    given: dict[str, Value] = {}
    for path in table.leaves:
        value: Any = plain
        for key in path.split("."):
            value = value[key]
        given[path] = Value(value, Source(Rank.FILE, "checkpoint"))
    given |= {path: Value(value, Source(Rank.COMMAND_LINE, "command line")) for path, value in values.items()}
    return validate(config_cls, table, given)


# ---------------------------------------------------------------------------------------------------------- the files


def _write(
    done: Evaluation,
    setup: EvaluationSetup,
    run: RunCheckpoint[Any],
    app: App[Any],
    request: Request,
    folder: Path,
    world: World,
) -> None:
    home, metric = run_folder(run.path), run.config.train.early_stopping.monitored
    what = "its own data" if request.data is None else str(request.data)
    values = {
        "app": app.name,
        "checkpoint": str(run.path),
        "weights": run.digest,
        "step": run.step,
        "data": what,
        "results": done.results,
        "intervals": plain_intervals(done, metric),
        "difference_from_float32": done.departure,
    }
    if setup.finish is not None:
        setup.finish(folder, values)
    write_json(folder / FIGURES, values)
    report = RunReport(
        title=f"{app.title}: {home.name}, evaluated",
        subtitle=f"{run.path}, step {run.step}, on {what}",
        headlines=headlines(done, metric),
        warnings=[*_unfinished(home), *setup.warnings],
        sections=[result_table(done.results, which="evaluated"), *done.sections],
        config=to_values(run.config),
        environment={**describe_environment(world.device), **done.told_departure()},
    )
    write_report(folder, report=report)
    for warning in report.warnings:
        _log.warning("%s", warning)
    for name, figures in done.results.items():
        _log.info("%s  %s", name, "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    _log.info("written: %s", folder)

"""What an application tells the session, and what follows from that and a command line: names, places, identity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mlcore.assemble import CoreConfig, Problem
from mlcore.cli.spec import Invocation
from mlcore.conclusion import Pages
from mlcore.config.dump import to_values
from mlcore.config.section import Section as ConfigSection
from mlcore.distributed import World
from mlcore.doctor import CheckFunction
from mlcore.runs import code_version

__all__ = ["App", "identity", "root_of_runs", "run_name", "runs_folder", "trial"]


class AppConfig(CoreConfig, Protocol):
    """A typed app configuration."""


ConfigT = TypeVar("ConfigT", bound=ConfigSection)


@dataclass(frozen=True, kw_only=True)
class App(Generic[ConfigT]):
    """What the session must know of an app.

    Attributes:
        name: Folder name; runs go below `outputs/<name>` unless `root` says otherwise.
        title: For people.
        build: From configuration and world to the problem.
        run_name: Default name of a run, from the configuration.
        own_data: The command for own data, shown with the demo.
        checks: The app's own system checks for `--test`.
        root: Where runs go; None for `outputs/<name>`.
        rehearse: The configuration with which trials (`--dry_run`, `--lr_find`) build, so that they do no lasting work,
            such as filling a cache; None for the run's own.
        variants: Configurations, by name, that are trained besides for comparison, each in `variants/<name>` of the run
            folder; the report then holds the comparison.
        parts: Configurations, by folder within the run's, that are trained one after the other in place of the run
            itself, such as the folds of a cross-validation; none where the run is a run.
        join: Writes the app's files of what the parts are together into the run folder, once all of them are finished,
            and returns what summary and report say; on the main rank.
    """

    name: str
    title: str
    build: Callable[[ConfigT, World], Problem]
    run_name: Callable[[ConfigT], str]
    own_data: str
    checks: Sequence[CheckFunction] = ()
    root: Path | None = None
    rehearse: Callable[[ConfigT], ConfigT] | None = None
    variants: Callable[[ConfigT], Mapping[str, ConfigT]] | None = None
    parts: Callable[[ConfigT], Mapping[str, ConfigT]] | None = None
    join: Callable[[ConfigT, Path], Pages] | None = None


def root_of_runs(app: App[Any], invocation: Invocation[Any]) -> Path:
    """The folder in which the invocation's run gets its own, unless it names one."""
    return runs_folder(app) / run_name(app, invocation)


def runs_folder(app: App[Any]) -> Path:
    """The folder of all runs of the app."""
    return app.root or Path("outputs") / app.name


def run_name(app: App[Any], invocation: Invocation[Any]) -> str:
    """What the run is called: its own name, the experiment's, or what it is trained on."""
    config, composed = invocation.config, invocation.composed
    name: str = config.run.name or composed.experiment or ("demo" if composed.demo else app.run_name(config))
    return name


def identity(app: App[Any], config: Any) -> dict[str, Any]:
    """What every checkpoint says of its origin."""
    return {"app": app.name, "config": to_values(config), "code_version": code_version()}


def trial(app: App[Any], config: Any, world: World) -> Problem:
    """The problem of a run that nobody goes on with."""
    return app.build(config if app.rehearse is None else app.rehearse(config), world)

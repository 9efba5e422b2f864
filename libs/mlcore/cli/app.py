"""The one description of an application: what the command line, the session and people must know of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from mlcore.cli.invocation import Invocation
from mlcore.config.compose import Request, compose
from mlcore.config.dump import to_values
from mlcore.config.layers import Source
from mlcore.config.names import NameTable, flatten
from mlcore.config.text import dump_value
from mlcore.config.validation import ConfigT

if TYPE_CHECKING:
    from mlcore.base.distributed import World

__all__ = ["App"]


@dataclass(frozen=True, kw_only=True)
class App(Generic[ConfigT]):
    """An application.

    It is imported before the command line is parsed, so `build` and `group` import torch and the like when called.

    Attributes:
        name: Name of the app's folder, e.g. "perceiver".
        title: For people.
        description: What its training script does, the first lines of `--help`.
        config_cls: Its typed configuration.
        config_dir: Folder with default.yaml, demo.yaml, experiment/ and one folder for each group; `shared/` beside it
            has groups for all apps.
        build: From configuration and world to a `mlcore.run.build.TrainingSetup`.
        run_name: Default name of a run, from the configuration.
        own_data: The arguments for own data, shown with the demo.
        demo_unless: Dotted paths of the settings that say what to train on; while none has a value, the demo preset is
            applied.
        base: Files of `config_dir` that every run starts from, the later one winning.
        root: Where runs and sweeps go; None for outputs/<name>.
        dry_run_config: The configuration with which `--dry_run` and `--lr_find` build, so that they do no lasting work,
            such as filling a cache; None for the run's own.
        samples: What `--check_data` opens: for each split a data set whose items are read from its files, before
            anything is left out or prepared; what an item raises is what is wrong with its file. None: those of the
            built setup.
        group: The `mlcore.run.group.RunGroup` that a configuration asks for (folds, seeds, ablations); None, or a
            function that returns None, where a run is one run.
        evaluation: From a run's `mlcore.run.restore.RunCheckpoint`, a `mlcore.run.evaluating.Asked` and a world to a
            `mlcore.run.build.EvaluationSetup`; None: its runs cannot be evaluated again.
        use: Gives the `mlcore.run.scorer.Use` of the app, which is a module with its functions; None: its models
            cannot be put to use.
        ensemble: From a folder with `ensemble.json` and a device to the scorer of what it names and a digest of that;
            None: the app chooses none.
        options: What people can choose when a model of this app predicts, by name, with a line of help.
        purpose: What a trained model does, in a sentence, for its model card.
        limits: What people must know before they use one, a sentence each, for the card.
        pipeline_tag: What the Hugging Face hub calls the task; empty where it has no name for it.
        rehearsal: Arguments of a run of seconds on generated data that has all of the app's stages; `quartet chaos`
            disturbs it.
    """

    name: str
    title: str
    description: str
    config_cls: type[ConfigT]
    config_dir: Path
    build: Callable[[ConfigT, World], Any]
    run_name: Callable[[ConfigT], str]
    own_data: str
    demo_unless: tuple[str, ...] = ()
    base: tuple[str, ...] = ("default.yaml",)
    root: Path | None = None
    dry_run_config: Callable[[ConfigT], ConfigT] | None = None
    samples: Callable[[ConfigT], Mapping[str, Any]] | None = None
    group: Callable[[ConfigT], Any] | None = None
    evaluation: Callable[[Any, Any, World], Any] | None = None
    use: Callable[[], Any] | None = None
    ensemble: Callable[[Path, Any], tuple[Any, str]] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    purpose: str = ""
    limits: tuple[str, ...] = ()
    pipeline_tag: str = ""
    rehearsal: tuple[str, ...] = ("--demo", "--epochs", "2")

    @property
    def package(self) -> str:
        """The top-level package of its code, e.g. "quartet"."""
        return self.config_cls.__module__.partition(".")[0]

    @property
    def source(self) -> Path:
        """The folder that its code is in."""
        module = sys.modules[self.config_cls.__module__]
        return Path(module.__file__ or ".").parent

    @property
    def runs_folder(self) -> Path:
        """The folder of all its runs."""
        return self.root or Path("outputs") / self.name

    def defaults(self) -> dict[str, Any]:
        """Default of every setting by dotted path, once the base files are applied; secrets are masked."""
        composed = compose(self.config_cls, self.config_dir, Request(base=self.base), environ={})
        return flatten(to_values(composed.config), NameTable(self.config_cls).leaves)

    def changed(self, config: ConfigT, sources: Mapping[str, Source]) -> list[tuple[str, str, str, str]]:
        """Settings that are not at their default, as (setting, value, default, who says so), what was asked for first.

        Args:
            config: The resolved configuration.
            sources: Origin of every setting, by dotted path.
        """
        values, defaults = flatten(to_values(config), NameTable(self.config_cls).leaves), self.defaults()
        paths = [path for path, value in values.items() if value != defaults[path]]
        paths.sort(key=lambda path: -sources[path].rank)
        origins = {path: sources[path].where.removeprefix(f"{self.config_dir.parent}{os.sep}") for path in paths}
        return [(path, dump_value(values[path]), dump_value(defaults[path]), origins[path]) for path in paths]

    def name_of_run(self, invocation: Invocation[Any]) -> str:
        """What a run is called: its own name, the experiment's, or what it is trained on."""
        config, composed = invocation.config, invocation.composed
        name: str = config.run.name or composed.experiment or ("demo" if composed.demo else self.run_name(config))
        return name

    def folder_of_runs(self, invocation: Invocation[Any]) -> Path:
        """The folder in which the invocation's run gets its own, unless it names one."""
        return self.runs_folder / self.name_of_run(invocation)

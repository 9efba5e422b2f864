"""What an application tells the command line, and what the command line tells the application."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal

from mlcore.config.compose import Composed
from mlcore.config.validation import ConfigT

__all__ = ["Action", "AppSpec", "Invocation"]

Action = Literal["train", "dry_run", "test", "lr_find", "print_config", "multirun"]


@dataclass(frozen=True, kw_only=True)
class AppSpec(Generic[ConfigT]):
    """The face of one application.

    Attributes:
        name: Name of the app's folder, e.g. "perceiver".
        config_cls: Its typed configuration.
        config_dir: Folder with default.yaml, demo.yaml, experiment/ and one folder for each group.
        description: What the script does, the first lines of `--help`.
        root: Where runs and sweeps go; None for outputs/<name>.
        demo_unless: Dotted paths of the settings that say what to train on; while none has a value, the demo preset is
            applied.
        base: Files of `config_dir` that every run starts from, the later one winning.
    """

    name: str
    config_cls: type[ConfigT]
    config_dir: Path
    description: str
    root: Path | None = None
    demo_unless: tuple[str, ...] = ()
    base: tuple[str, ...] = ("default.yaml",)


@dataclass(frozen=True, kw_only=True)
class Invocation(Generic[ConfigT]):
    """A parsed command line.

    Attributes:
        action: What to do.
        composed: The configuration and the origin of its values; of the first job in a sweep.
        demo_requested: Whether the user asked for the demo (`composed.demo` is true also when it was applied unasked).
        overrides: Settings of the command line as (name, text).
        jobs: With -m, the overrides of each job; empty otherwise.
        passed_on: Arguments that are no settings (`--config FILE`, `--demo`, ...), for the jobs of a sweep.
        extra: The script's own arguments.
    """

    action: Action
    composed: Composed[ConfigT]
    demo_requested: bool
    overrides: tuple[tuple[str, str], ...] = ()
    jobs: tuple[tuple[tuple[str, str], ...], ...] = ()
    passed_on: tuple[str, ...] = ()
    extra: argparse.Namespace = field(default_factory=argparse.Namespace)

    @property
    def config(self) -> ConfigT:
        """The typed configuration."""
        return self.composed.config

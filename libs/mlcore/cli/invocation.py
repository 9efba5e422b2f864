"""What a command line asks of an application."""

import argparse
from dataclasses import dataclass, field
from typing import Generic, Literal

from mlcore.config.compose import Composed
from mlcore.config.validation import ConfigT

__all__ = ["Action", "Invocation"]

Action = Literal["train", "dry_run", "test", "lr_find", "print_config", "multirun"]


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

"""What a command line asks of an application, and which jobs a sweep has: the cartesian product of its comma lists."""

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal

from mlcore.config.compose import Composed
from mlcore.config.text import ConfigError
from mlcore.config.validation import ConfigT

__all__ = ["Action", "Invocation", "Override", "expand", "split", "varied"]

Action = Literal["train", "dry_run", "check_data", "test", "lr_find", "print_config", "multirun"]
Override = tuple[str, str]

_MOST_JOBS = 1000
_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "'\""


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
    overrides: tuple[Override, ...] = ()
    jobs: tuple[tuple[Override, ...], ...] = ()
    passed_on: tuple[str, ...] = ()
    extra: argparse.Namespace = field(default_factory=argparse.Namespace)

    @property
    def config(self) -> ConfigT:
        """The typed configuration."""
        return self.composed.config


def expand(overrides: Iterable[Override]) -> tuple[tuple[Override, ...], ...]:
    """All combinations of the comma lists among the overrides; the last list varies fastest.

    Args:
        overrides: (name, text) pairs; `lr=1e-3,1e-4` has two alternatives, `seq_len_range=[5,9]` has one.

    Returns:
        The overrides of each job.

    Raises:
        ConfigError: There are more than 1,000.
    """
    last = dict(overrides)  # a repeated name counts once, with its last value
    alternatives = [[(name, part) for part in split(text)] for name, text in last.items()]
    count = math.prod(map(len, alternatives))
    if count > _MOST_JOBS:
        raise ConfigError(f"command line: a sweep of {count:,} jobs; at most {_MOST_JOBS:,}: shorten the comma lists")
    return tuple(itertools.product(*alternatives))


def split(text: str) -> list[str]:
    """Split at commas that stand outside brackets and quotes; quotes around a whole part are taken off."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES and not parts[-1].strip():
            quote = char
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
        elif char == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    parts = [part.strip() for part in parts]
    return [part[1:-1] if "," in part and part[0] in _QUOTES and part[0] == part[-1] else part for part in parts]


def varied(jobs: Sequence[Sequence[Override]]) -> list[list[Override]]:
    """The overrides of each job that are not the same in all of them."""
    jobs_with = Counter(pair for job in jobs for pair in job)
    return [[pair for pair in job if jobs_with[pair] < len(jobs)] for job in jobs]

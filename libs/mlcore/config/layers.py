"""Layers of settings and the order in which they win.

Values are collected in rising rank. A *choice* in a section (a group file such as `scheduler/cosine.yaml`, or another
value of a field that `selects`) opens a shelf: what is said afterwards about that section belongs to that choice and
disappears, without an error, when a higher-ranking source chooses differently.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from mlcore.config.names import Leaf

__all__ = ["Rank", "Settings", "Source", "Value"]


class Rank(IntEnum):
    """Where a value can come from, lowest first."""

    MODEL = 0
    DEFAULTS = 1
    DEMO = 2
    GROUP = 3
    EXPERIMENT = 4
    FILE = 5
    ENVIRONMENT = 6
    COMMAND_LINE = 7


@dataclass(frozen=True)
class Source:
    """Origin of a value.

    Attributes:
        rank: Its place in the order of precedence.
        where: For messages: "configs/app/default.yaml:3", "environment variable NAME", "command line", "default".
    """

    rank: Rank
    where: str


@dataclass(frozen=True)
class Value:
    """A raw value and its origin."""

    raw: Any
    source: Source


class _Shelves:
    """The values of one top-level section, by the choice they were written for; "" is before any choice."""

    def __init__(self, choice: str) -> None:
        self.current = choice
        self.by_choice: dict[str, dict[str, Value]] = {"": {}, choice: {}}

    def select(self, choice: str) -> None:
        self.current = choice
        self.by_choice.setdefault(choice, {})

    def visible(self) -> dict[str, Value]:
        return {**self.by_choice[""], **self.by_choice[self.current]}


class Settings:
    """What all sources said; later calls win over earlier ones."""

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        """Start empty.

        Args:
            leaves: All settings; the defaults of those that select are the first choices.
        """
        defaults = {_section(leaf.path): str(leaf.info.default) for leaf in leaves if leaf.meta.selects}
        self._shelves = {section: _Shelves(choice) for section, choice in defaults.items()}

    def put(self, leaf: Leaf, value: Value, *, in_group: bool = False) -> None:
        """Take one value. Values that select must be put before the others of the same source.

        Args:
            leaf: The setting.
            value: Its raw value and origin.
            in_group: Whether a group choice's file says so; its values stay on that choice's shelf.
        """
        shelves = self._of(_section(leaf.path))
        if leaf.meta.selects and not in_group:
            known = shelves.visible().get(leaf.path)
            if str(value.raw) != (shelves.current if known is None else str(known.raw)):
                shelves.select(str(value.raw))
        shelves.by_choice[shelves.current][leaf.path] = value

    def select(self, section: str, choice: str) -> None:
        """Open the shelf of a group choice."""
        self._of(section).select(choice)

    def result(self) -> Mapping[str, Value]:
        """The winning value of every setting that any source gave, by dotted path."""
        return {path: value for shelves in self._shelves.values() for path, value in shelves.visible().items()}

    def _of(self, section: str) -> _Shelves:
        return self._shelves.setdefault(section, _Shelves(""))


def _section(path: str) -> str:
    return path.partition(".")[0]

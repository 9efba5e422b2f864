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


class Settings:
    """What all sources said; later calls win over earlier ones."""

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        """Start empty.

        Args:
            leaves: All settings; the defaults of those that select are the first choices.
        """
        self._choice = {leaf.path.partition(".")[0]: str(leaf.info.default) for leaf in leaves if leaf.meta.selects}
        self._shelves: dict[str, dict[str, dict[str, Value]]] = {}  # section, choice ("": before any), dotted path

    def put(self, leaf: Leaf, value: Value, *, in_group: bool = False) -> None:
        """Take one value. Values that select must be put before the others of the same source.

        Args:
            leaf: The setting.
            value: Its raw value and origin.
            in_group: Whether a group choice's file says so; its values stay on that choice's shelf.
        """
        section = leaf.path.partition(".")[0]
        if leaf.meta.selects and not in_group:
            known = self._visible(section).get(leaf.path)
            if str(value.raw) != (self._choice[section] if known is None else str(known.raw)):
                self.select(section, str(value.raw))
        shelves = self._shelves.setdefault(section, {})
        shelves.setdefault(self._choice.get(section, ""), {})[leaf.path] = value

    def select(self, section: str, choice: str) -> None:
        """Open the shelf of a choice."""
        self._choice[section] = choice

    def result(self) -> Mapping[str, Value]:
        """The winning value of every setting that any source gave, by dotted path."""
        return {path: value for section in self._shelves for path, value in self._visible(section).items()}

    def _visible(self, section: str) -> dict[str, Value]:
        shelves = self._shelves.get(section, {})
        return {**shelves.get("", {}), **shelves.get(self._choice.get(section, ""), {})}

"""The name table: every setting of an application, by its dotted path and by its short names.

The same table serves flags, `key=value` overrides and the keys of configuration files.
"""

import json
import types
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mlcore.base.errors import nearest
from mlcore.config.section import Meta, Section
from mlcore.config.text import ConfigError, parse_scalar

__all__ = ["Leaf", "NameTable", "flatten"]

_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", SecretStr: "text"}


@dataclass(frozen=True)
class Leaf:
    """One setting.

    Attributes:
        path: Dotted path, e.g. "train.lr".
        info: The pydantic field.
    """

    path: str
    info: FieldInfo

    @cached_property
    def meta(self) -> Meta:
        """Unit, aliases and the like."""
        return next((item for item in self.info.metadata if isinstance(item, Meta)), Meta())

    @cached_property
    def types(self) -> tuple[Any, ...]:
        """The alternatives of the field's type, without None."""
        return tuple(kind for kind in _alternatives(self.info.annotation) if kind is not type(None))

    @property
    def is_bool(self) -> bool:
        """Whether the flag works as a switch."""
        return bool in self.types

    @property
    def is_list(self) -> bool:
        """Whether the flag takes several values."""
        return any(get_origin(kind) in (list, tuple) for kind in self.types)

    @property
    def secret(self) -> bool:
        """Whether the value must not be shown."""
        return SecretStr in self.types

    @property
    def choices(self) -> tuple[str, ...]:
        """Names the field accepts, where it is a choice."""
        return tuple(str(choice) for kind in self.types if get_origin(kind) is Literal for choice in get_args(kind))

    @property
    def expects(self) -> str:
        """What a value must be, for help and messages: "a whole number, at least 1 (samples)"."""
        names = ["null" if kind is type(None) else _type_name(kind) for kind in _alternatives(self.info.annotation)]
        unit = f" ({self.meta.unit})" if self.meta.unit else ""
        return ", ".join([" or ".join(names), *_limits(self.info.metadata)]) + unit

    def read(self, text: str) -> Any:
        """The value that `text` means here: by YAML's scalar rules, or the text as it stands if only that fits.

        A value that fits neither way is returned as YAML reads it, for the validation to refuse.
        """
        kind: Any = Annotated[self.info.annotation, self.info]
        adapter, parsed = TypeAdapter(kind), parse_scalar(text)
        for value in [parsed] if text == parsed else [parsed, text]:
            with suppress(ValidationError, TypeError):
                adapter.validate_json(json.dumps(value), strict=True)
                return value
        return parsed


_LIMITS = (
    ("ge", "at least {}"),
    ("gt", "above {}"),
    ("le", "at most {}"),
    ("lt", "below {}"),
    ("min_length", "at least {} long"),
    ("max_length", "at most {} long"),
    ("pattern", "that fits {}"),
)


class NameTable:
    """All names of one application's configuration.

    Attributes:
        leaves: Every setting by dotted path, in order of declaration.
        sections: Every section class by dotted path.
        order: Dotted paths of sections and settings as they are declared.
        presets: Values, by dotted path, that the application's model gives its sections in place of their own defaults.
        short: The shortest declared name of each setting, by path; what help and flags show.
    """

    def __init__(self, config_cls: type[Section]) -> None:
        fields = list(_walk(config_cls))
        self.leaves = {path: Leaf(path, info) for path, info, section in fields if section is None}
        self.sections = {path: section for path, _, section in fields if section is not None}
        self.order = [path for path, *_ in fields]
        self.presets: dict[str, Any] = {}
        for path, info, _ in reversed(fields):  # what an outer section gives an inner one counts
            if isinstance(info.default, Section):
                given = info.default.model_dump(mode="json", exclude_unset=True)
                self.presets |= flatten(given, self.leaves, f"{path}.")
        self._paths: dict[str, str] = {path: path for path in self.leaves}
        self._ambiguous: dict[str, list[str]] = {}
        self._add_aliases()
        self._add_short_names()
        self.short = {path: self._shortest(path) for path in self.leaves}

    def resolve(self, name: str) -> Leaf | None:
        """The setting behind a dotted path, a short name or an alias; hoisted parts (`.params.`) may be named too.

        Raises:
            ConfigError: The name stands for several settings.
        """
        if name in self._ambiguous:
            raise ConfigError(f"'{name}' could be any of {', '.join(self._ambiguous[name])}; write the full name")
        path = self._paths.get(name)
        head, _, key = name.rpartition(".")
        section, _, hoisted = head.rpartition(".")
        if path is None and section in self.sections and hoisted in self.sections[section].hoisted:
            path = self._paths.get(f"{section}.{key}")
        return None if path is None else self.leaves[path]

    def by_section(self) -> dict[str, list[Leaf]]:
        """The settings of each section, by its path; those of none under "settings"."""
        sections: dict[str, list[Leaf]] = {}  # a nested section may stand in the middle of its parent
        for path, leaf in self.leaves.items():
            sections.setdefault(path.rpartition(".")[0] or "settings", []).append(leaf)
        return sections

    def names(self) -> list[str]:
        """Every name that `resolve` knows."""
        return sorted(self._paths)

    def suggest(self, name: str, *, inside: str = "") -> str:
        """`", did you mean '...'?"` with the nearest name, looking inside one section first."""
        if inside:
            own = [known[len(inside) + 1 :] for known in self._paths if known.startswith(f"{inside}.")]
            if close := nearest(name, own):
                return close
        return nearest(name, [*self._paths, *self.sections])

    def _add_aliases(self) -> None:
        for path, leaf in self.leaves.items():
            section = path.rpartition(".")[0]
            for alias in leaf.meta.aliases:
                local = f"{section}.{alias}" if section and "." not in alias else alias
                for full in (alias, local):
                    if self._paths.setdefault(full, path) != path:
                        raise ValueError(f"alias '{full}' of {path} already names {self._paths[full]}")

    def _add_short_names(self) -> None:
        by_name: dict[str, list[str]] = {}
        for path in self.leaves:
            by_name.setdefault(path.rpartition(".")[2], []).append(path)
        for name, paths in by_name.items():
            if name in self._paths or name in self.sections:
                continue
            if len(paths) == 1:
                self._paths[name] = paths[0]
            else:
                self._ambiguous[name] = paths

    def _shortest(self, path: str) -> str:
        """The leaf's own name where it is unique or claimed, else its first alias, else the path."""
        name = path.rpartition(".")[2]
        if self._paths.get(name) == path:
            return name
        return next((alias for alias in self.leaves[path].meta.aliases if "." not in alias), path)


def flatten(values: Mapping[str, Any], leaves: Container[str] = (), prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted path.

    Args:
        values: Mappings of mappings.
        leaves: Paths below which nothing is taken apart, such as `NameTable.leaves`.
        prefix: What all paths begin with.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        inner = isinstance(value, Mapping) and path not in leaves
        flat |= flatten(value, leaves, f"{path}.") if inner else {path: value}
    return flat


def _walk(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[Section] | None]]:
    """Every field below a section with its dotted path, and the section that it holds, if it does."""
    for name, info in section.model_fields.items():
        kinds = [kind for kind in _alternatives(info.annotation) if isinstance(kind, type)]
        inner = next((kind for kind in kinds if issubclass(kind, Section)), None)
        yield f"{prefix}{name}", info, inner
        if inner is not None:
            yield from _walk(inner, f"{prefix}{name}.")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Members of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _limits(metadata: list[Any]) -> list[str]:
    """Constraints in words."""
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    return [text.format(getattr(part, key)) for part in flat for key, text in _LIMITS if hasattr(part, key)]


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind))) if len(get_args(kind)) > 1 else f"'{get_args(kind)[0]}'"
    if get_origin(kind) is Annotated:
        inner, *metadata = get_args(kind)
        return " ".join([_type_name(inner), *_limits(metadata)])
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        return "a list of " + " and ".join(map(_type_name, get_args(kind)))
    if get_origin(kind) in (list, tuple):
        return f"a list, each {_type_name(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "key: value pairs"
    return "a path" if kind is Path else _TYPE_NAMES.get(kind) or str(getattr(kind, "__name__", kind))

"""YAML and JSON in and out: YAML 1.2 scalars, duplicate keys refused, line numbers kept.

PyYAML follows YAML 1.1, where `1e-4` is text, `on` is true and `010` is eight. Here scalars follow the core schema of
YAML 1.2.2 (section 10.3.2): `1e-4` is a number, only `true`/`false` are booleans, and there are no dates. Text may name
environment variables. What cannot be read is a `ConfigError`.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlcore.base.errors import UserError

__all__ = [
    "ConfigError",
    "Document",
    "Text",
    "dump_value",
    "interpolate",
    "nearest",
    "parse_scalar",
    "read_document",
    "shown",
]

_INT = re.compile(r"[-+]?[0-9]+$|0x[0-9a-fA-F]+$|0o[0-7]+$")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_CORE_SCHEMA = (
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL)?$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789.")),
)
_PLACEHOLDER = re.compile(r"\$\{([^{}]*)\}")


class ConfigError(UserError):
    """A file, key, value or flag that does not fit the application's typed configuration.

    The message names where the value came from (file and line where known), the key, the value, what was expected and,
    for a name that does not exist, the nearest one that does.
    """


class Text(str):
    """Text whose type only the field knows: from the command line or an environment variable."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """SafeLoader (never builds objects) with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own class attribute, replaced on purpose)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML would read as something other than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True)
class Document:
    """A configuration file as plain values.

    Attributes:
        name: The file's path as messages show it.
        values: Nested dict of its content.
        lines: 1-based line of each key, by the tuple of keys that leads to it.
    """

    name: str
    values: dict[str, Any]
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, keys: tuple[str, ...]) -> str:
        """`file:line` of a key (or of the nearest mapping around it), or the file alone."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.name}:{self.lines[keys]}" if keys else self.name


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`", did you mean 'lr'?"` for the candidate most like `name`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def shown(path: Path) -> str:
    """A path for messages: relative to the working directory when it lies below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_document(path: Path) -> Document:
    """Read a `.json` file as JSON and any other as YAML; an empty file has no values.

    Raises:
        ConfigError: The file is missing, not text, not well-formed (the line is given), no mapping at the top, or has a
            key twice.
    """
    name = shown(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not readable as UTF-8 text ({error})") from None
    return _read_json(name, text) if path.suffix.lower() == ".json" else _read_yaml(name, text)


def parse_scalar(text: str) -> Any:
    """One value as on the command line, by the rules of YAML: `3`, `1e-4`, `true`, `null`, `[50, 200]`, else text."""
    if text.lstrip().startswith("#") or " #" in text:
        return text  # a comment in a file, but a value here
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (_Loader is a SafeLoader)
    except (yaml.YAMLError, ValueError):
        return text


def dump_value(value: Any) -> str:
    """A value as YAML on one line; `parse_scalar` reads it back."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1 << 30)
    return text.removesuffix("\n").removesuffix("\n...")


def interpolate(value: Any, environ: Mapping[str, str], *, where: str) -> Any:
    """Fill in `${env:NAME}` and `${env:NAME,default}` in `value`, which may be a list or mapping of values.

    `${oc.env:...}` means the same.

    Args:
        value: A plain value.
        environ: The environment.
        where: Place and key of the value, for messages.

    Returns:
        The value; text that had a placeholder comes back as `Text`, so that `${env:EPOCHS}` can fill a number.

    Raises:
        ConfigError: A variable without a default is not set, or `${...}` holds something else.
    """
    if isinstance(value, list):
        return [interpolate(item, environ, where=where) for item in value]
    if isinstance(value, dict):
        return {key: interpolate(item, environ, where=where) for key, item in value.items()}
    if not isinstance(value, str) or "${" not in value:
        return value
    return Text(_PLACEHOLDER.sub(lambda match: _look_up(match.group(1), environ, where), value))


def _read_yaml(name: str, text: str) -> Document:
    builder = _Builder(name, _Loader(""))
    try:
        values = builder.build(yaml.compose(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: an anchor of this file contains itself, or it is nested too deeply") from None
    return Document(name, _expect_mapping(name, values), builder.lines)


@dataclass(frozen=True)
class _Builder:
    """Turns the node tree of one file into plain values, noting each key's line and refusing duplicates."""

    name: str
    loader: _Loader
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    def build(self, node: yaml.Node | None, keys: tuple[str, ...] = ()) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*keys, str(index))) for index, item in enumerate(node.value)]
        return None if node is None else self.loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, keys: tuple[str, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self.name}:{line}: a key must be a plain name")
            key = str(key_node.value)
            if key in own:
                first = self.lines[(*keys, key)]
                raise ConfigError(f"{self.name}:{line}: key '{key}' appears twice (first in line {first})")
            value = self.build(value_node, (*keys, key))
            if key == "<<":  # YAML's merge key: the mapping's own keys win, then the first of several bases
                for base in reversed(value if isinstance(value, list) else [value]):
                    merged.update(_expect_mapping(f"{self.name}:{line}", base))
                continue
            own[key] = value
            self.lines[(*keys, key)] = line
        return {**merged, **own}


def _read_json(name: str, text: str) -> Document:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ConfigError(f"{name}: key '{twice}' appears twice")
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=unique) if text.strip() else None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    builder = _Builder(name, _Loader(""))
    # JSON is YAML but for tabs, which occur between tokens only; should it not parse, messages name the file alone.
    with contextlib.suppress(yaml.YAMLError, ConfigError, ValueError):
        builder.build(yaml.compose(text.replace("\t", " "), Loader=_Loader))
    return Document(name, _expect_mapping(name, values), builder.lines)


def _expect_mapping(name: str, values: Any) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected `key: value` pairs at the top, found a {type(values).__name__}")
    return values


def _look_up(content: str, environ: Mapping[str, str], where: str) -> str:
    resolver, _, rest = content.partition(":")
    if resolver.strip() not in ("env", "oc.env") or not rest:
        raise ConfigError(f"{where}: '${{{content}}}' is not understood; write ${{env:NAME}} or ${{env:NAME,default}}")
    name, comma, default = rest.partition(",")
    name = name.strip()
    if name in environ:
        return environ[name]
    if comma:
        return default.strip()
    raise ConfigError(
        f"{where}: environment variable {name} is not set; set it (`export {name}=...` or a line in .env) "
        f"or write ${{env:{name},default}}"
    )

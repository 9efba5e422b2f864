"""YAML and JSON in and out: YAML 1.2 scalars, duplicate keys refused, line numbers kept.

PyYAML follows YAML 1.1, where `1e-4` is text, `on` is true and `010` is eight. Here scalars follow the core schema of
YAML 1.2.2 (section 10.3.2): `1e-4` is a number, only `true`/`false` are booleans, and there are no dates. Text may name
environment variables. What cannot be read is a `ConfigError`; files have budgets, so that none takes long to read.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import yaml

from mlcore.base.errors import UserError
from mlcore.base.reading import reading

__all__ = ["ConfigError", "Document", "Text", "dump_value", "interpolate", "parse_scalar", "read_document"]

_INT = re.compile(r"[-+]?[0-9]+$|0x[0-9a-fA-F]+$|0o[0-7]+$")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_MERGE = "tag:yaml.org,2002:merge"
_CORE_SCHEMA = (
    (_MERGE, re.compile(r"<<$"), ["<"]),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL)?$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789.")),
)
_LARGEST_FILE = 4 * 2**20  # characters
_MOST_VALUES = 20_000  # of a YAML file once its anchors are written out; 2 s
_DEEPEST = 100  # levels
_LONGEST_NUMBER = 100  # characters
_BREAKS = re.compile("[\x85\u2028\u2029]")
_JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?')
_PLACEHOLDER = re.compile(r"\$\{(?:\s*(?:oc\.)?env\s*:([^{},]+)(,[^{}]*)?|[^{}]*)\}")


class ConfigError(UserError):
    """A file, key, value or flag that does not fit the application's typed configuration.

    The message names where the value came from (file and line where known), the key, the value, what was expected and,
    for a name that does not exist, the nearest one that does.
    """


class Text(str):
    """Text whose type only the field knows: from the command line or an environment variable."""

    __slots__ = ()


class Key(str):
    """A key of a file, which knows its place.

    Attributes:
        where: "configs/app/default.yaml:3", or the file alone.
    """

    __slots__ = ("where",)
    where: str


class _Loader(yaml.SafeLoader):
    """SafeLoader (never builds objects) with the scalars of YAML 1.2 and keys that know their place, none twice."""

    # PyYAML's own class attributes, replaced on purpose: the core schema has no dates, sets, pairs or bytes.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (f"tag:yaml.org,2002:{k}" for k in ("map", "seq", "str"))
    }

    _depth = _count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._depth > _DEEPEST or self._count > _MOST_VALUES:
            what = "nested too deeply" if self._depth > _DEEPEST else f"more than {_MOST_VALUES:,} values"
            raise ConfigError(f"{self.name}: {what}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self.name}:{line}: a key must be a plain name")
            if key.tag != _MERGE and key.value in lines:
                first = lines[key.value]
                raise ConfigError(f"{self.name}:{line}: key '{key.value}' appears twice (first in line {first})")
            lines[key.value] = line
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: ARG002
        self.flatten_mapping(node)  # merge keys: what they bring comes first, so that the mapping's own pairs win
        own = {key.value: (key, value) for key, value in node.value}
        values = {}
        for name, (key, value) in own.items():
            placed = Key(name)
            placed.where = f"{self.name}:{key.start_mark.line + 1}"
            values[placed] = self.construct_object(value, deep=True)
        return values


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML would read as something other than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Text; with ends of lines in double quotes, which escape them: readers of YAML take some for others."""
        style = '"' if "\n" in data or _BREAKS.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


def _int(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits; at most {_LONGEST_NUMBER} are read")
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _scalar(pattern: re.Pattern[str], build: Callable[[str], Any]) -> Callable[[yaml.SafeLoader, yaml.ScalarNode], Any]:
    """A constructor of values whose text fits `pattern`, also where a tag (`!!bool maybe`) claims that it does."""

    def construct(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        try:
            if not pattern.match(text):
                # Not quoted: it may be a secret, and whose value it is, is not known yet.
                raise ValueError(f"the value is no {node.tag.rpartition(':')[2]}, though its tag says so")
            return build(text)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None

    return construct


def _refuse_tag(_loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    problem = f"the tag {node.tag} is not read; write the value itself"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_BUILD: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: text.lower() == "true",
    "null": lambda _: None,
    "int": _int,
    "float": lambda text: float(re.sub(r"(?i)\.(inf|nan)", r"\1", text)),
}
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
    if (_kind := _tag.rpartition(":")[2]) in _BUILD:
        _Loader.add_constructor(_tag, _scalar(_pattern, _BUILD[_kind]))
_Loader.add_constructor(None, _refuse_tag)  # any other tag
for _add in (_Dumper.add_representer, _Dumper.add_multi_representer):
    _add(str, _Dumper.represent_text)  # keys and texts of ours are text, too


@dataclass(frozen=True)
class Document:
    """A configuration file as plain values.

    Attributes:
        name: The file's path as messages show it.
        values: Nested dict of its content.
    """

    name: str
    values: dict[str, Any]

    def where(self, key: str) -> str:
        """`file:line` of a key, or the file alone where the line is not known."""
        return key.where if isinstance(key, Key) else self.name


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
    name, is_json = shown(path), path.suffix.lower() == ".json"
    with reading(name, "the name of a file", error=ConfigError):  # it may be too long for one
        if not path.exists():
            raise ConfigError(f"{name}: no such configuration file")
    with reading(name, f"valid {'JSON' if is_json else 'YAML'} in UTF-8", error=ConfigError):
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_LARGEST_FILE + 1)  # also of what has no size, such as pipes and devices
        if len(text) > _LARGEST_FILE:
            raise ConfigError(f"{name}: larger than {_LARGEST_FILE // 2**20} MiB; expected a file of settings")
        values = _read_json(name, text if text.strip() else "null") if is_json else _read_yaml(name, text)
    if not isinstance(values, dict | None):
        raise ConfigError(f"{name}: expected `key: value` pairs at the top, found a {type(values).__name__}")
    return Document(name, values or {})


def parse_scalar(text: str) -> Any:
    """One value as on the command line, by the rules of YAML: `3`, `1e-4`, `true`, `null`, `[50, 200]`, else text."""
    try:
        # What would be a comment in a file is part of a value here; within quotes it is none.
        return text if "#" in text and _has_comment(text) else _load_yaml("", text)
    except Exception:  # noqa: BLE001 - what is no YAML is text
        return text


def _has_comment(text: str) -> bool:
    """Whether YAML would leave out an end of the text; of several lines any may have one, whatever is quoted."""
    if "\n" in text.strip():
        return " #" in text or text.lstrip().startswith("#")
    known = (token for token in yaml.scan(text, Loader=yaml.SafeLoader) if not isinstance(token, yaml.StreamEndToken))
    return bool(text[max(token.end_mark.index for token in known) :].strip())


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

    def found(match: re.Match[str]) -> str:
        name, default = (match[1] or "").strip(), match[2]
        if not name:
            raise ConfigError(f"{where}: '{match[0]}' is not understood; write ${{env:NAME}} or ${{env:NAME,default}}")
        if name not in environ and default is None:
            raise ConfigError(
                f"{where}: environment variable {name} is not set; set it (`export {name}=...` or a line in .env) "
                f"or write ${{env:{name},default}}"
            )
        return environ[name] if name in environ else default[1:].strip()

    return Text(_PLACEHOLDER.sub(found, value))


def _load_yaml(name: str, text: str) -> Any:
    loader = _Loader(text)
    loader.name = name
    node = loader.get_single_node()
    if node is None:
        return None
    if _size(node, {}) > _MOST_VALUES:
        raise ConfigError(f"{name}: more than {_MOST_VALUES:,} values once its anchors are written out")
    return loader.construct_document(node)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below `node`, those of an anchor counted at each place that names it."""
    if id(node) not in known:
        known[id(node)] = 1  # an anchor that contains itself is found by the constructor
        if isinstance(node, yaml.MappingNode):
            known[id(node)] += sum(_size(value, known) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            known[id(node)] += sum(_size(value, known) for value in node.value)
    return known[id(node)]


def _read_yaml(name: str, text: str) -> Any:
    try:
        return _load_yaml(name, text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context)
        problem = problem.replace("found unconstructable recursive node", "an anchor of this file contains itself")
        raise ConfigError(f"{name}{line}: not valid YAML: {problem}") from None


def _read_json(name: str, text: str) -> Any:
    try:
        json.loads(text, parse_int=_int)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    return json.loads(_numbered(text), parse_int=_int, object_pairs_hook=partial(_placed, name))


def _numbered(text: str) -> str:
    """JSON whose keys begin with the number of their line, which the reader of JSON does not tell."""
    parts, start, line = [], 0, 1
    for string in _JSON_STRING.finditer(text):
        if string[1] is not None:
            line += text.count("\n", start, string.start())
            parts += [text[start : string.start()], f'"{line}:']
            start = string.start() + 1
    return "".join([*parts, text[start:]])


def _placed(name: str, pairs: list[tuple[str, Any]]) -> dict[Key, Any]:
    values: dict[Key, Any] = {}
    for numbered, value in pairs:
        line, _, text = numbered.partition(":")
        key = Key(text)
        key.where = f"{name}:{line}"
        if key in values:
            first = next(known for known in values if known == key).where.rpartition(":")[2]
            raise ConfigError(f"{key.where}: key '{key}' appears twice (first in line {first})")
        values[key] = value
    return values

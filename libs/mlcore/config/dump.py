"""Configuration as values and text: YAML that reads back equal, its JSON Schema, and in what two of them differ."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from mlcore.base.secrets import mask_secrets
from mlcore.config.layers import Rank, Source
from mlcore.config.names import Leaf, NameTable, flatten
from mlcore.config.section import Section
from mlcore.config.text import dump_value

__all__ = ["to_schema", "to_values", "to_yaml"]


def to_values(config: Section) -> dict[str, Any]:
    """The configuration as nested plain values in order of declaration, for whatever is written: secrets are masked."""
    return mask_secrets(config.model_dump(mode="json"), reload=True)


def to_yaml(config: Section, sources: Mapping[str, Source] | None = None, *, explain: bool = False) -> str:
    """The configuration as YAML; reads back equal, but for masked secrets.

    Args:
        config: The configuration.
        sources: Origins by dotted path; values that are no built-in defaults then carry theirs as a comment.
        explain: Say of each setting what it means and may be, and leave secrets out: for a file to be edited.
    """
    table, lines = NameTable(type(config)), []
    values = flatten(to_values(config), table.leaves)
    for path in table.order:
        indent, key = "  " * path.count("."), path.rpartition(".")[2]
        if path in table.sections:
            lines += ["", *_comment(table.sections[path].meaning(), indent)] if explain else []
            lines.append(f"{indent}{key}:")
            continue
        leaf, source = table.leaves[path], (sources or {}).get(path)
        hidden = explain and leaf.secret and values[path] is not None
        if explain:
            note = "; a secret, left out here" if hidden else ""
            lines += _comment(f"{leaf.info.description} [{leaf.expects}{note}]", indent)
        origin = f"  # {source.where}" if source is not None and source.rank > Rank.MODEL else ""
        lines.append(f"{indent}{'# ' if hidden else ''}{key}: {dump_value(values[path])}{origin}")
    return "".join(f"{line}\n" for line in lines)


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def to_schema(config_cls: type[Section], choices: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The JSON Schema of configuration files in their nested form, for editors: descriptions, defaults, units, limits.

    Args:
        config_cls: The application's configuration.
        choices: The choices of each group, any of which may stand in place of its section.
    """
    schema = config_cls.model_json_schema()
    sections = {config_cls, *NameTable(config_cls).sections.values()}
    for section, part in ((cls, schema if cls is config_cls else schema["$defs"][cls.__name__]) for cls in sections):
        part.pop("required", None)  # another file, or the command line, may give it
        for name, info in section.model_fields.items():
            for alias in Leaf(name, info).meta.aliases:
                part["properties"].setdefault(alias, part["properties"][name])
    groups = {group: {"enum": list(names)} for group, names in choices.items() if group in schema["properties"]}
    for group, names in groups.items():
        schema["properties"][group] = {"anyOf": [names, schema["properties"][group]]}
    what = "The choice of each group"
    chosen = {"type": "object", "description": what, "properties": groups, "additionalProperties": False}
    return {**schema, "properties": {"defaults": chosen, **schema["properties"]}}

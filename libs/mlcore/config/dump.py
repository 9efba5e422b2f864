"""Configuration as text: YAML that reads back to an equal configuration, JSON, and YAML annotated with origins."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mlcore.config.layers import Rank, Source
from mlcore.config.section import Section
from mlcore.config.text import dump_value

__all__ = ["to_json", "to_values", "to_yaml"]


def to_values(config: Section) -> dict[str, Any]:
    """The configuration as nested plain values in order of declaration; secrets (`SecretStr`) are masked."""
    return config.model_dump(mode="json")


def to_json(config: Section) -> str:
    """The configuration as indented JSON; reads back equal, but for masked secrets."""
    return json.dumps(to_values(config), indent=2, ensure_ascii=False) + "\n"


def to_yaml(config: Section, sources: Mapping[str, Source] | None = None) -> str:
    """The configuration as YAML; reads back equal, but for masked secrets.

    Args:
        config: The configuration.
        sources: Origins by dotted path; values that are no built-in defaults then carry theirs as a comment.
    """
    return "".join(f"{line}\n" for line in _lines(to_values(config), config, "", sources or {}))


def _lines(values: Mapping[str, Any], section: Section, prefix: str, sources: Mapping[str, Source]) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        inner = getattr(section, key)
        if isinstance(inner, Section):
            yield f"{indent}{key}:"
            yield from _lines(value, inner, f"{prefix}{key}.", sources)
            continue
        source = sources.get(f"{prefix}{key}")
        comment = f"  # {source.where}" if source is not None and source.rank > Rank.MODEL else ""
        yield f"{indent}{key}: {dump_value(value)}{comment}"

"""From raw values to the typed configuration, with errors that name origin, key, value and expectation."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mlcore.base.errors import nearest
from mlcore.config.layers import Rank, Value
from mlcore.config.names import Leaf, NameTable
from mlcore.config.section import Section
from mlcore.config.text import ConfigError, dump_value

_LONGEST_SHOWN = 200  # characters of a value in a message

ConfigT = TypeVar("ConfigT", bound=Section)


def validate(config_cls: type[ConfigT], table: NameTable, values: Mapping[str, Value]) -> ConfigT:
    """Build the configuration; types are strict ("32" is no number, true is no 1), whole numbers may stand for floats.

    Args:
        config_cls: The application's configuration.
        table: Its names.
        values: Raw values by dotted path; settings that are left out keep their defaults.

    Raises:
        ConfigError: One line for each value that does not fit.
    """
    nested: dict[str, dict[str, Any]] = {"": {}}  # by section
    for path in table.sections:  # all of them, so that a missing setting is told by its own name
        section, _, name = path.rpartition(".")
        nested[path] = nested[section][name] = {}
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        nested[section][name] = value.raw
        if not _is_text(value.raw):
            raise ConfigError(f"{value.source.where}: {path} is not UTF-8 text; rename the file, or correct the value")
    try:
        # JSON mode: paths and tuples are written as text and lists in every source, and pass in strict mode only there.
        return config_cls.model_validate_json(json.dumps(nested[""], default=str), strict=True)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(detail, table, values) for detail in error.errors())
        # Each member of a union complains; keep the most precise line.
        kept = [line for line in lines if not any(other != line and other.startswith(line) for other in lines)]
        raise ConfigError("\n".join(kept)) from None


def _is_text(raw: Any) -> bool:
    """Whether what is text in `raw` can be written; names of files need not be UTF-8 and come with lone surrogates."""
    try:
        json.dumps(raw, default=str, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _explain(detail: ErrorDetails, table: NameTable, values: Mapping[str, Value]) -> str:
    parts = [str(part) for part in detail["loc"]]
    problem = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "rejected":
        parts.append(detail["ctx"]["key"])
    path = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in table.leaves), None)
    if path is None:  # a validator of a whole section
        section = ".".join(parts)
        origins = dict.fromkeys(v.source.where for key, v in values.items() if key.startswith(f"{section}."))
        return ": ".join(filter(None, [", ".join(origins), section or "configuration", problem]))
    leaf = table.leaves[path]
    if detail["type"] == "missing" and path == ".".join(parts):
        return f"{path} is missing; give it as --{table.short[path]} or in a file; expected {leaf.expects}"
    told = problem
    if detail["type"] not in ("rejected", "value_error", "assertion_error"):
        # Which item of a list has the problem; union members in the location are of no interest.
        item = next((part for part in parts[path.count(".") + 1 :] if part.isdigit() and leaf.is_list), None)
        told = _expected(leaf, values.get(path)) + (f" (item {item}: {problem})" if item is not None else "")
    if path not in values:  # nobody gave it: say how to
        return f"{path} (--{table.short[path]}): {told}"
    shown = "***" if leaf.secret else _shortened(dump_value(values[path].raw))
    return f"{values[path].source.where}: {path} = {shown}: {told}"


def _expected(leaf: Leaf, value: Value | None) -> str:
    raw = value.raw if value is not None else None
    if not isinstance(raw, str) or value is None:
        return f"expected {leaf.expects}"
    sweep = value.source.rank is Rank.COMMAND_LINE and "," in raw and not leaf.is_list
    hint = "; a comma list needs -m (multirun)" if sweep else nearest(raw, leaf.choices)
    return f"expected {leaf.expects}{hint}"

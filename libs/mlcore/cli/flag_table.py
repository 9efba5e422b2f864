"""The Markdown table of an application's settings, made from its typed configuration for the app's page in docs/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.cli.app import App
from mlcore.config.compose import Request, compose
from mlcore.config.dump import to_values
from mlcore.config.names import Leaf, NameTable
from mlcore.config.text import dump_value

__all__ = ["flag_tables", "insert_flag_tables"]

BEGIN, END = "<!-- flags: begin -->", "<!-- flags: end -->"


def flag_tables(app: App[Any]) -> str:
    """One table for each section: flag, default (with `default.yaml`), unit or choices, meaning, other names."""
    return "\n".join(_lines(app)) + "\n"


def insert_flag_tables(page: Path, app: App[Any]) -> str:
    """The text of a page with the tables put between its two marks; the file is left alone.

    Raises:
        UserError: The page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise UserError(f"{page}: expected the lines {BEGIN} and {END}")
    return text[: text.index(BEGIN)] + f"{BEGIN}\n{flag_tables(app)}" + text[text.index(END) :]


def _lines(app: App[Any]) -> Iterator[str]:
    table = NameTable(app.config_cls)
    values = to_values(compose(app.config_cls, app.config_dir, Request(base=app.base), environ={}).config)
    rows: dict[str, list[str]] = {}  # by section; a nested section may stand in the middle of its parent
    for path, leaf in table.leaves.items():
        default: Any = values
        for key in path.split("."):
            default = default[key]
        rows.setdefault(path.rpartition(".")[0], []).append(_row(leaf, table.short[path], default))
    for section, lines in rows.items():
        yield f"\n**{section}**\n"
        yield "| flag | default | values | meaning |"
        yield "|---|---|---|---|"
        yield from lines


def _row(leaf: Leaf, short: str, default: Any) -> str:
    also = ", ".join(f"`--{name}`" for name in dict.fromkeys(leaf.meta.aliases) if name != short)
    choices = leaf.choices or (("true", "false") if leaf.is_bool else ())
    values = ", ".join([*(f"`{choice}`" for choice in choices), *([leaf.meta.unit] if leaf.meta.unit else [])])
    meaning = (leaf.info.description or "") + (f". Also {also}" if also else "")
    meaning += f". Environment: `{leaf.meta.env}`" if leaf.meta.env else ""
    shown = "***" if leaf.secret and default is not None else dump_value(default)
    return f"| `--{short}` | `{shown}` | {values} | {_escaped(meaning)} |"


def _escaped(text: str) -> str:
    """Without characters that Markdown takes for a cell's end or a tag."""
    return text.replace("|", "&#124;").replace("<", "&lt;").replace(">", "&gt;")

"""Bring the tables of flags in docs/ up to date with the typed configurations.

.venv/bin/python scripts/flag_tables.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.cli.app import App
from mlcore.config.names import Leaf, NameTable
from mlcore.config.text import dump_value
from quartet.command import app_names, load_app

__all__ = ["BEGIN", "flag_tables", "insert_flag_tables"]

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
    table, defaults = NameTable(app.config_cls), app.defaults()
    for section, leaves in table.by_section().items():
        yield f"\n**{section}**\n"
        yield "| flag | default | values | meaning |"
        yield "|---|---|---|---|"
        yield from (_row(leaf, table.short[leaf.path], defaults[leaf.path]) for leaf in leaves)


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


if __name__ == "__main__":
    for page in (Path(__file__).resolve().parents[1] / "docs" / f"{name}.md" for name in app_names()):
        if page.is_file() and BEGIN in page.read_text(encoding="utf-8"):
            page.write_text(insert_flag_tables(page, load_app(page.stem)), encoding="utf-8")

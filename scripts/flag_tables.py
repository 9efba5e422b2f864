"""Bring the tables of flags in docs/, and that of what continued runs do, up to date with the typed configurations.

.venv/bin/python scripts/flag_tables.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.cli.app import App
from mlcore.cli.apps import app_names, load_app
from mlcore.config.names import Leaf, NameTable
from mlcore.config.text import dump_value

__all__ = ["BEGIN", "CONTINUED", "flag_tables", "insert_continued_table", "insert_flag_tables"]

BEGIN, END = "<!-- flags: begin -->", "<!-- flags: end -->"
CONTINUED, CONTINUED_END = "<!-- continued: begin -->", "<!-- continued: end -->"


def flag_tables(app: App[Any]) -> str:
    """One table for each section: flag, default (with `default.yaml`), unit or choices, meaning, other names."""
    return "\n".join(_lines(app)) + "\n"


def insert_flag_tables(page: Path, app: App[Any]) -> str:
    """The text of a page with the tables put between its two marks; the file is left alone.

    Raises:
        UserError: The page has no marks.
    """
    return _insert(page, flag_tables(app), begin=BEGIN, end=END)


def insert_continued_table(page: Path, apps: Sequence[App[Any]]) -> str:
    """The text of a page with the table of what a continued run does with another value of each setting.

    Raises:
        UserError: The page has no marks.
    """
    return _insert(page, "\n".join(_continued(apps)) + "\n", begin=CONTINUED, end=CONTINUED_END)


def _insert(page: Path, table: str, *, begin: str, end: str) -> str:
    text = page.read_text(encoding="utf-8")
    if not 0 <= text.find(begin) < text.find(end):
        raise UserError(f"{page}: expected the lines {begin} and {end}")
    return text[: text.index(begin)] + f"{begin}\n{table}" + text[text.index(end) :]


def _continued(apps: Sequence[App[Any]]) -> Iterator[str]:
    """A row for each section: of all apps, then of each app what it alone has."""
    tables = {app.name: NameTable(app.config_cls).leaves for app in apps}
    first, *others = tables.values()
    shared = {path: leaf for path, leaf in first.items() if all(path in other for other in others)}
    shared = {path: leaf for path, leaf in shared.items() if all(other[path].meta == leaf.meta for other in others)}
    yield "\n| app | section | applied | reset: what | refused |"
    yield "|---|---|---|---|---|"
    for name, leaves in {"all": shared, **tables}.items():
        sections: dict[str, dict[str, list[str]]] = {}
        for path, leaf in leaves.items():
            if name == "all" or path not in shared:
                section, _, key = path.rpartition(".")
                outcome = leaf.meta.resets or leaf.meta.continued
                sections.setdefault(section, {}).setdefault(outcome, []).append(f"`{key}`")
        for section, outcomes in sections.items():
            applied, refused = (", ".join(outcomes.pop(outcome, ())) for outcome in ("applied", "refused"))
            reset = "; ".join(f"{', '.join(keys)}: {what}" for what, keys in outcomes.items())
            yield f"| {name} | {section} | {applied} | {reset} | {refused} |"


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
    docs = Path(__file__).resolve().parents[1] / "docs"
    settings = docs / "SETTINGS.md"
    settings.write_text(insert_continued_table(settings, [load_app(name) for name in app_names()]), encoding="utf-8")
    for page in (docs / f"{name}.md" for name in app_names()):
        if page.is_file() and BEGIN in page.read_text(encoding="utf-8"):
            page.write_text(insert_flag_tables(page, load_app(page.stem)), encoding="utf-8")

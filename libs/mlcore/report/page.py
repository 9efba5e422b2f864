"""The report of a run: one HTML file that needs nothing else, and a Markdown summary.

`write_report` puts `report.html` and `summary.md` into the run folder. The HTML holds its pictures, asks the network
for nothing and runs no script (its content policy forbids both); it follows the reader's light or dark setting and fits
a phone. Everything shown is escaped, and secrets are masked, wherever they stand.
"""

from __future__ import annotations

import base64
import html
import math
import numbers
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from mlcore.base.env import mask_secrets, mask_text
from mlcore.base.errors import UserError
from mlcore.base.files import write_text
from mlcore.base.version import code_version

__all__ = ["Headline", "Picture", "RunReport", "Section", "Table", "Text", "describe_environment", "write_report"]


@dataclass(frozen=True)
class Headline:
    """One number at the top.

    Attributes:
        label: what it is, such as "validation accuracy".
        value: a number (shown with four digits) or ready text such as "97.3 %".
        hint: small print: the unit, the goal, the step it was reached at.
    """

    label: str
    value: object
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under column names; cells are numbers, text or None (shown as a dash, as NaN is)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file; pictures that follow each other stand side by side where there is room, a wide one by itself."""

    title: str
    path: Path
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph, or with `code` a block kept as it is."""

    title: str
    body: str
    code: bool = False


Section = Table | Picture | Text


@dataclass(frozen=True)
class RunReport:
    """What a report says; plain values only.

    Attributes:
        title: what was done, such as "Perceiver on CIFAR-10".
        subtitle: one line below it: status, data, date.
        headlines: the numbers that matter, best first.
        warnings: what the reader must know: skipped samples and steps, undefined metrics.
        sections: tables, pictures and texts, in order.
        config: the resolved configuration, nested; values of secret keys are masked.
        environment: name to value: versions, device, commit, command (`describe_environment`), wall time, throughput,
            peak memory.
    """

    title: str
    subtitle: str = ""
    headlines: Sequence[Headline] = ()
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)


def write_report(run_dir: Path, *, report: RunReport) -> Path:
    """Write `report.html` and `summary.md` into the run folder, each all or nothing.

    A picture whose file is missing is named as missing; a finished run must not fail for it.

    Args:
        run_dir: the run folder; it must exist.
        report: what to say.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: a row of a table has another length than its columns, or a file cannot be written.
    """
    for table in report.sections:
        if isinstance(table, Table):
            _check(table)
    write_text(run_dir / "summary.md", _markdown(report, run_dir))
    path = run_dir / "report.html"
    write_text(path, _page(report))
    return path


def describe_environment(device: torch.device) -> dict[str, str]:
    """What the result depends on besides the configuration: versions, device, commit, command.

    Args:
        device: the device of the run.
    """
    if device.type == "cuda":
        name = (
            f"{torch.cuda.get_device_name(device)} ({torch.cuda.get_device_properties(device).total_memory >> 30} GiB)"
        )
    else:
        name = f"{device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return {
        "Python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "torch": str(torch.__version__),
        "device": name,
        "commit": code_version(),
        "command": mask_text(shlex.join(sys.argv)),
    }


def _page(report: RunReport) -> str:
    body = [
        f"<header><h1>{_text(report.title)}</h1>",
        f"<p class='muted'>{_text(report.subtitle)}</p></header>" if report.subtitle else "</header>",
        _headlines(report.headlines),
        _warnings(report.warnings),
        *_sections(report.sections),
        _config(report.config),
        _environment(report.environment),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<meta name='color-scheme' content='light dark'><title>{_text(report.title)}</title>"
        f"<style>{_STYLE}</style></head>\n<body><main>\n" + "\n".join(filter(None, body)) + "\n</main></body></html>\n"
    )


def _headlines(headlines: Sequence[Headline]) -> str:
    cards = "".join(
        f"<div class='card'><dt>{_text(item.label)}</dt><dd>{_cell(item.value)}</dd>"
        + (f"<small>{_text(item.hint)}</small>" if item.hint else "")
        + "</div>"
        for item in headlines
    )
    return f"<dl class='cards'>{cards}</dl>" if cards else ""


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(warning)}</li>" for warning in warnings)
    return f"<section class='warn' role='note'><h2>Please note</h2><ul>{items}</ul></section>" if items else ""


def _sections(sections: Sequence[Section]) -> Iterator[str]:
    row: list[Picture] = []  # pictures that follow each other
    for section in sections:
        if isinstance(section, Picture):
            row.append(section)
            continue
        yield _pictures(row)
        row = []
        yield _table(section) if isinstance(section, Table) else _words(section)
    yield _pictures(row)


def _words(text: Text) -> str:
    body = f"<pre>{_text(text.body)}</pre>" if text.code else f"<p>{_text(text.body)}</p>"
    return f"<section><h2>{_text(text.title)}</h2>{body}</section>"


def _table(table: Table) -> str:
    # A column is set flush right when all its cells are numbers.
    numeric = [all(_is_number(cell) for cell in column) for column in zip(*table.rows, strict=True)]
    numeric = numeric or [False] * len(table.columns)
    marks = [" class='n'" if right else "" for right in numeric]
    head = "".join(f"<th{mark}>{_text(name)}</th>" for mark, name in zip(marks, table.columns, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{mark}>{_cell(cell)}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    note = f"<p class='muted'>{_text(table.note)}</p>" if table.note else ""
    return (
        f"<section><h2>{_text(table.title)}</h2><div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{note}</section>"
    )


def _pictures(pictures: Sequence[Picture]) -> str:
    figures = "".join(
        f"<figure{' class=wide' if picture.wide else ''}><div class='scroll'>{_image(picture)}</div>"
        f"<figcaption><b>{_text(picture.title)}</b> {_text(picture.note)}</figcaption></figure>"
        for picture in pictures
    )
    return f"<section class='pictures'>{figures}</section>" if figures else ""


def _image(picture: Picture) -> str:
    try:
        data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    except OSError as error:
        return f"<p class='muted'>{_text(picture.path.name)} is missing ({_text(error.strerror)}).</p>"
    return f"<img alt='{_text(picture.title)}' src='data:image/png;base64,{data}'>"


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    block = f"<details><summary>show</summary><pre>{_text(_yaml(config))}</pre></details>"
    return f"<section><h2>Configuration</h2>{block}</section>"


def _environment(environment: Mapping[str, object]) -> str:
    if not environment:
        return ""
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_cell(value)}</td></tr>" for name, value in environment.items())
    return f"<section><h2>Environment</h2><div class='scroll'><table class='facts'>{rows}</table></div></section>"


def _markdown(report: RunReport, run_dir: Path) -> str:
    return "\n\n".join(_blocks(report, run_dir)) + "\n"


def _blocks(report: RunReport, run_dir: Path) -> Iterator[str]:
    yield f"# {_plain(report.title)}"
    if report.subtitle:
        yield _plain(report.subtitle)
    if report.headlines:
        yield _grid(["result", "value", ""], [(item.label, item.value, item.hint) for item in report.headlines])
    if report.warnings:
        yield "\n".join(f"- **Note:** {_plain(warning)}" for warning in report.warnings)
    for section in report.sections:
        if isinstance(section, Picture):
            yield f"![{_plain(section.title)}](<{os.path.relpath(section.path, run_dir)}>)"
            continue
        yield f"## {_plain(section.title)}"
        if isinstance(section, Table):
            yield _grid(section.columns, section.rows)
            if section.note:
                yield _plain(section.note)
        else:
            yield _indented(section.body) if section.code else _plain(section.body)
    if report.environment:
        yield "## Environment"
        yield _grid(["", ""], list(report.environment.items()))
    if report.config:
        yield "## Configuration"
        yield _indented(_yaml(report.config))


def _grid(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, *([_number(cell) for cell in row] for row in rows)]
    cells = [[_plain(str(cell)) for cell in line] for line in lines]
    cells.insert(1, ["---"] * len(columns))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _indented(text: str) -> str:
    """A code block without a fence, which the text could close."""
    return "\n".join(f"    {line}" for line in mask_text(text).splitlines())


def _plain(text: str) -> str:
    """One line of text that Markdown takes literally, also inside a table."""
    line = " ".join(mask_text(text).split())
    for character in "\\`*_[]<>|#":
        line = line.replace(character, f"\\{character}")
    return line


def _text(value: object) -> str:
    return html.escape(mask_text(str(value)), quote=True)


def _cell(value: object) -> str:
    # Numbers hold no secrets and no markup, and per-sample tables have many of them.
    return _number(value) if _is_number(value) else _text(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _number(value: object) -> str:
    """For reading: 1234567 as 1,234,567; 0.5 as 0.5000; NaN and None as a dash; everything else as it is."""
    if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
        return "–"
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        size = abs(float(value))
        form = ".4f" if 1e-3 <= size < 10 or size == 0 else ",.2f" if 10 <= size < 1e9 else ".3g"
        return format(float(value), form)
    return str(value)


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(mask_secrets(config), sort_keys=False, allow_unicode=True, width=100)


def _check(table: Table) -> None:
    for number, row in enumerate(table.rows, start=1):
        if len(row) != len(table.columns):
            raise UserError(
                f"table {table.title!r}, row {number} has {len(row)} cells, expected {len(table.columns)} as columns"
            )


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6875; --paper: #ffffff; --back: #f3f5f7; --line: #dfe4e9;
  --accent: #2f6fd0; --warn: #fff6e0; --warn-line: #e0a526; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaee; --soft: #9aa7b4; --paper: #1b222a; --back: #12171d; --line: #303a45; --accent: #78a9f2;
    --warn: #33290f; --warn-line: #b98a1e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK KR", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 10px; overflow-wrap: anywhere; }
p { margin: 0 0 8px; overflow-wrap: anywhere; white-space: pre-line; }
.muted, small, figcaption { color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-top: 18px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 20px 0 0; }
.card { background: var(--paper); border: 1px solid var(--line); border-top: 3px solid var(--accent);
  border-radius: 10px; padding: 12px 16px; }
.card dt { color: var(--soft); font-size: .85rem; }
.card dd { margin: 2px 0 0; font-size: 1.55rem; font-weight: 650; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.warn { background: var(--warn); border-color: var(--warn-line); }
.warn ul { margin: 0; padding-left: 20px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
thead th { white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
.facts th { width: 170px; }
.facts td { overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 18px;
  background: none; border: 0; padding: 0; align-items: start; }
figure { margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
figure img { display: block; width: 100%; height: auto; max-height: 620px; object-fit: contain; background: #ffffff; }
.wide { grid-column: 1 / -1; }
.wide img { min-width: 640px; max-height: none; }
.scroll + p { margin: 10px 0 0; }
figure p { padding: 16px; margin: 0; }
figcaption { padding: 8px 14px 10px; font-size: .88rem; border-top: 1px solid var(--line); }
figcaption b { color: var(--ink); }
pre { margin: 8px 0 0; overflow-x: auto; font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 520px) { main { padding: 18px 12px 40px; } section { padding: 14px; } .facts th { width: 96px; }
  .cards { grid-template-columns: repeat(2, 1fr); } .card dd { font-size: 1.25rem; } }
@media print { body { background: #ffffff; } section, figure { break-inside: avoid; } }
"""

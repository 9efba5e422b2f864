"""The report of a run: one HTML file that needs nothing else, and a Markdown summary.

`write_report` puts `report.html` and `summary.md` into the run folder. The HTML holds its pictures, asks the network
for nothing and runs no script (its content policy forbids both); it follows the reader's light or dark setting, fits a
phone, and prints on few pages. Everything shown is escaped, and secrets are masked, wherever they stand. The page's
outline and look are in `templates/`.
"""

from __future__ import annotations

import base64
import io
import math
import numbers
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.base.files import write_text
from mlcore.base.secrets import mask_arguments, mask_secrets, mask_text, shown
from mlcore.base.version import code_version
from mlcore.report.tile import Tile

__all__ = [
    "Headline",
    "Picture",
    "RunReport",
    "Section",
    "Table",
    "Text",
    "describe_environment",
    "literal",
    "readable",
    "write_report",
]


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

    @classmethod
    def of_parts(cls, parts: Mapping[str, Iterable[tuple[str, object]]], *, note: str = "") -> Table:
        """What the data holds, a column for each part ("train", "val"); all have the same labels, in one order."""
        tables = {name: dict(rows) for name, rows in parts.items()}
        labels = next(iter(tables.values()))
        return cls("Data", ["", *tables], [[label, *(one[label] for one in tables.values())] for label in labels], note)


@dataclass(frozen=True)
class Picture:
    """A PNG file; pictures that follow each other stand side by side where there is room, a wide one by itself.

    Attributes:
        title: above it.
        path: the file.
        note: small print.
        wide: whether it takes the whole width, and scrolls on a phone.
        photo: whether it keeps its colours in dark mode, in which those of a drawing are turned from light to dark.
        tiles: what the file is a sheet of; the page shows these in its place.
    """

    title: str
    path: Path
    note: str = ""
    wide: bool = False
    photo: bool = False
    tiles: Sequence[Tile] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph, or with `code` a block kept as it is."""

    title: str
    body: str
    code: bool = False


Section = Table | Picture | Text

_NO_NAMES = ("", "")
_CHANGED = ("setting", "value", "default", "from")
_THE_REST = "These are not at their default. All settings:"


@dataclass(frozen=True)
class RunReport:
    """What a report says; plain values only.

    Attributes:
        title: what was done, such as "Perceiver on CIFAR-10".
        subtitle: one line below it: status, data, date.
        headlines: the numbers that matter, best first.
        warnings: what the reader must know: skipped samples and steps, undefined metrics.
        places: what lies where, as (what, where).
        commands: what can be done with the run, as (what for, command).
        sections: tables, pictures and texts, in order; one with the title of the one before it goes on with that.
        changed: settings that are not at their default, as (setting, value, default, who says so).
        config: the resolved configuration, nested; values of secret keys are masked.
        environment: name to value: versions, device, commit, command (`describe_environment`), wall time, throughput,
            peak memory.
    """

    title: str
    subtitle: str = ""
    headlines: Sequence[Headline] = ()
    warnings: Sequence[str] = ()
    places: Sequence[tuple[str, str]] = ()
    commands: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    changed: Sequence[tuple[str, str, str, str]] = ()
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
    called, *arguments = mask_arguments(sys.argv)
    called = called if called.startswith("quartet ") else shlex.quote(called)  # "quartet train perceiver" is no file
    return {
        "Python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "torch": str(torch.__version__),
        "device": name,
        "commit": code_version(),
        "command": " ".join([called, *map(shlex.quote, arguments)]),
    }


def _page(report: RunReport) -> str:
    sections = _sections(report)
    titles = _titles(sections)
    anchors = [f"s{place}" if title else "" for place, title in enumerate(titles)]
    contents = [(anchor, title) for anchor, title in zip(anchors, titles, strict=True) if title]
    # Pictures that follow each other are one row.
    anchored = zip(sections, anchors, strict=True)
    rows = [list(row) for _, row in groupby(anchored, key=lambda pair: isinstance(pair[0], Picture))]
    return _templates().get_template("report.html.j2").render(report=report, rows=rows, contents=contents)


def _sections(report: RunReport) -> list[Section]:
    """Those of the report, between what can be done with the run and what it depends on."""
    use, settings = "Using this run", "Settings"
    commands = "\n\n".join(f"# {what}\n{command}" for what, command in report.commands)
    return [
        *([Table(use, _NO_NAMES, report.places)] if report.places else []),
        *([Text(use, commands, code=True)] if commands else []),
        *report.sections,
        *([Table(settings, _CHANGED, report.changed, note=_THE_REST)] if report.changed else []),
        *([Text(settings, _yaml(report.config), code=True)] if report.config else []),
        *([Table("Environment", _NO_NAMES, list(report.environment.items()))] if report.environment else []),
    ]


def _titles(sections: Sequence[Section]) -> list[str]:
    """Title of each section; empty where it is that of the one before."""
    before = ["", *(section.title for section in sections)]
    return ["" if own.title == last else own.title for own, last in zip(sections, before, strict=False)]


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlcore.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error, not an empty place
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["picture"] = lambda section: isinstance(section, Picture)
    environment.tests["table"] = lambda section: isinstance(section, Table)
    environment.filters["encoded"] = _encoded
    environment.filters["thumbnail"] = _thumbnail
    environment.filters["numeric_columns"] = _numeric_columns
    return environment


class _Base64(str):
    """A picture as text: megabytes with no words in which to look for secrets."""

    __slots__ = ()


def _shown(value: object) -> str:
    """What the template says for a value, before it is escaped."""
    if isinstance(value, _Base64):
        return value
    # Numbers hold no secrets either, and per-sample tables have many of them.
    return readable(value) if _is_number(value) else shown(str(value))


def _encoded(picture: Picture) -> tuple[_Base64, str]:
    """The picture's file and, where it cannot be read, the reason."""
    try:
        return _Base64(base64.b64encode(picture.path.read_bytes()), "ascii"), ""
    except OSError as error:
        return _Base64(), str(error.strerror)


def _thumbnail(pixels: NDArray[np.uint8]) -> _Base64:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG", optimize=True)
    return _Base64(base64.b64encode(encoded.getvalue()), "ascii")


def _numeric_columns(table: Table) -> list[bool]:
    """Whether all cells of a column are numbers, which are then set flush right."""
    columns = [all(map(_is_number, column)) for column in zip(*table.rows, strict=True)]
    return columns or [False] * len(table.columns)


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
    sections = _sections(report)
    for section, title in zip(sections, _titles(sections), strict=True):
        if isinstance(section, Picture):
            yield f"![{_plain(section.title)}](<{os.path.relpath(section.path, run_dir)}>)"
            continue
        if title:
            yield f"## {_plain(title)}"
        if isinstance(section, Table):
            yield _grid(section.columns, section.rows)
            if section.note:
                yield _plain(section.note)
        else:
            yield _indented(section.body) if section.code else _plain(section.body)


def _grid(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, *([readable(cell) for cell in row] for row in rows)]
    cells = [[_plain(str(cell)) for cell in line] for line in lines]
    cells.insert(1, ["---"] * len(columns))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _indented(text: str) -> str:
    """A code block without a fence, which the text could close."""
    return "\n".join(f"    {line}" for line in shown(text).splitlines())


def _plain(text: str) -> str:
    """One line of text that Markdown takes literally, also inside a table."""
    line = " ".join(shown(text).split())
    for character in "\\`*_[]<>|#":
        line = line.replace(character, f"\\{character}")
    return line


def literal(text: str) -> str:
    """One line that Markdown shows as it is, in a table too: no markup, no tag, no image, no link of an address."""
    line = " ".join("".join(c if c.isprintable() else " " for c in mask_text(text)).split())
    return re.sub(r"([\\`*_\[\]{}<>|#!&$~:@=^]|(?<=www)\.)", r"\\\1", line, flags=re.IGNORECASE)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def readable(value: object) -> str:
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

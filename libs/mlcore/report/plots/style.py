"""One look for every picture, drawn without pyplot (no global figures, no display) and written atomically.

Class names may be Korean, Chinese or anything else: `displayable` finds an installed font that has every glyph, also
one that was installed after matplotlib made its list of fonts, and where there is none gives class indices and a note
instead of empty boxes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontPath

from mlcore.base.files import atomic_write

__all__ = [
    "BAD",
    "DASHED",
    "GOOD",
    "INK",
    "MUTED",
    "PALETTE",
    "SUBTITLE",
    "TRAIN",
    "VAL",
    "Names",
    "displayable",
    "note",
    "picture",
]

INK, MUTED = "#1f2933", "#667381"
TRAIN, VAL = "#2f6fd0", "#e0700d"  # blue and orange stay apart for every kind of colour vision
GOOD, BAD = "#1d9a78", "#cf3f56"
PALETTE = (TRAIN, VAL, GOOD, "#8a5cc2", BAD, "#b08900", "#3aa6c4", "#6b7785")
SUBTITLE: dict[str, Any] = {"fontsize": 10, "color": MUTED, "fontweight": "normal"}
DASHED = (0, (3, 2))  # line style of what is compared with: a mean, a threshold, chance

_BASE_FONT = "DejaVu Sans"  # comes with matplotlib
_PREFERRED_FONTS = (
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "NanumGothic",
    "NanumBarunGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "Microsoft YaHei",
    "PingFang SC",
)
_LONGEST_NAME = 28
_SHARED = 6  # characters that all names begin with, of long ones: fewer are not worth a word
_STYLE: dict[Any, Any] = {  # matplotlib's stubs spell every key as a Literal
    "axes.axisbelow": True,
    "axes.edgecolor": "#b6bfc8",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.titlesize": 12.0,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.hspace": 0.03,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.wspace": 0.03,
    "figure.dpi": 144.0,
    "figure.facecolor": "white",
    "font.family": [_BASE_FONT],
    "font.size": 9.5,
    "grid.color": "#e4e8ec",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.color": MUTED,
    "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
}


@dataclass(frozen=True)
class Names:
    """Class names as they can be drawn.

    Attributes:
        labels: one per class: the name (shortened where long), or its index when no font has the glyphs.
        fonts: font families that together have every glyph, first choice first; pass them as ``fontfamily``.
        note: what to tell the reader when the labels are indices, or lack what all names begin with; else empty.
    """

    labels: tuple[str, ...]
    fonts: tuple[str, ...]
    note: str


@contextmanager
def picture(path: Path, *, width: float, height: float, title: str = "") -> Iterator[Figure]:
    """Draw on an empty figure in the house style; it is written to `path` as a PNG when the block ends.

    Args:
        path: the PNG to write; its folder must exist. A reader never sees half a file.
        width: inches, at 144 pixels each.
        height: inches.
        title: above all panels; a single panel mostly has its own.

    Raises:
        UserError: the file cannot be written.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        yield figure
        drawn = _png(figure)
    with atomic_write(path) as file:
        file.write(drawn)


def _png(figure: Figure) -> bytes:
    """Lay out once and draw: `savefig` alone would go through the whole figure a second time for its layout."""
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    figure.set_layout_engine("none")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})  # the same values give the same bytes
    return drawn.getvalue()


def displayable(names: Sequence[str], *, room: int = _LONGEST_NAME) -> Names:
    """Choose fonts that have every glyph of `names`, or fall back to indices.

    Args:
        names: one per class, any text.
        room: longest label, characters; longer names lose a beginning that all share, or their middle.

    Returns:
        Labels that can be drawn without a missing glyph.
    """
    clean = [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in names]
    labels, note = _short(clean, room)
    missing = {ord(c) for c in "".join(clean)} - _glyphs(font_manager.findfont(_BASE_FONT))
    if not missing:
        return Names(labels, (_BASE_FONT,), note)
    family = _family_with(missing)
    if family is None:
        _add_new_fonts()
        family = _family_with(missing)
    if family is None:
        hint = "Numbers are class indices: no installed font has the names' glyphs (install Noto Sans CJK)."
        return Names(tuple(map(str, range(len(names)))), (_BASE_FONT,), hint)
    return Names(labels, (_BASE_FONT, family), note)


def note(axes: Axes, text: str) -> None:
    """Add a line of small print below the picture; nothing when `text` is empty."""
    figure = axes.get_figure(root=True)
    if text and figure is not None:
        figure.supxlabel(text, fontsize=8, color=MUTED, x=0.01, ha="left")


def _short(names: list[str], room: int) -> tuple[tuple[str, ...], str]:
    """Labels that fit and still tell the names apart, and what was taken off all of them."""
    note = ""
    if max(map(len, names), default=0) > room:
        least, most = min(names), max(names)  # what these share, all between them do
        length = next(
            (place for place, (one, other) in enumerate(zip(least, most, strict=False)) if one != other), len(least)
        )
        shared = least[:length]
        shared = shared[: max(shared.rfind(mark) for mark in " _-/.:") + 1]  # whole words
        if len(set(names)) > 1 and len(shared) >= _SHARED and shared not in names:
            names, note = [name.removeprefix(shared) for name in names], f"All names begin with “{shared.strip()}”."
    short = [_fitting(name, room) for name in names]
    if len(set(short)) < len(set(names)):
        short = [f"{index}: {_fitting(name, room - 5)}" for index, name in enumerate(names)]
    return tuple(name.replace("$", r"\$") for name in short), note  # otherwise two dollars make a formula


def _fitting(name: str, room: int) -> str:
    """The name, or its beginning and its end: names may differ at either."""
    half = (room - 1) // 2
    return name if len(name) <= room else f"{name[:half].rstrip()}…{name[-half:].lstrip()}"


def _family_with(characters: set[int]) -> str | None:
    for entry in _by_preference(font_manager.fontManager.ttflist):
        # Matplotlib brings a "last resort" font, which claims every character and draws each as a box.
        is_real = entry.name != _BASE_FONT and not entry.name.startswith("Last Resort")
        if is_real and characters <= _glyphs(FontPath(entry.fname, entry.index)):
            return entry.name
    return None


def _by_preference(entries: Iterable[font_manager.FontEntry]) -> list[font_manager.FontEntry]:
    """Known good fonts first, plain upright faces before others, then by name, so that machines agree."""
    order = {family: place for place, family in enumerate(_PREFERRED_FONTS)}
    return sorted(
        entries,
        key=lambda entry: (order.get(entry.name, len(order)), entry.style != "normal", entry.name, str(entry.fname)),
    )


@cache
def _add_new_fonts() -> None:
    """Make fonts known that were installed after matplotlib kept its list of them; once in a process, as it takes time.

    The kept list stays as it is: another process may be reading it.
    """
    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with suppress(OSError, RuntimeError, ValueError, LookupError):  # a bitmap or broken font
            manager.addfont(path)


@lru_cache(maxsize=256)
def _glyphs(path: FontPath) -> frozenset[int]:
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a bitmap or broken font: not ours to mend
        return frozenset()

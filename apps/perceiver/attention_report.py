"""Attention over some samples of an evaluation, as sections of its report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import nn

from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.style import BAD, INK, MUTED, PALETTE, displayable, picture
from mlcore.run.build import Data
from mlcore.training.evaluator import Predictions
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.seen import LOOKED, Seen, of_modalities, shares_of

__all__ = ["AttentionReport"]

_SAMPLES, _MEASURED = 4, 32  # drawn, and looked at for the table
_LINES, _LINE = 9, 120  # of a drawn text as wide as the page
_CHANNELS, _CAPTION = 4, 90  # drawn of a series; characters
_SHADE: Mapping[str, Any] = {"cmap": "Reds", "vmin": 0, "vmax": 1.5}  # what is drawn on it stays legible


@dataclass(frozen=True, kw_only=True)
class AttentionReport:
    """Attention over some samples of an evaluation, as sections of its report.

    Attributes:
        model: A Perceiver of any kind.
        data: What is evaluated, by split.
        modalities: Of raw samples; none: samples are sequences.
        layout: How sequences were cut from pictures; None: they are series.
        class_names: Of a classifier.
    """

    model: nn.Module
    data: Mapping[str, Data]
    modalities: Sequence[Modality] = ()
    layout: PatchLayout | None = None
    class_names: Sequence[str] = ()

    def after(self, analyse: Callable[[Predictions, Path, str], Sequence[Section]]) -> Callable[..., list[Section]]:
        """The same sections, and those of attention; of the validation data, or what there is in its place."""

        def found(predictions: Predictions, folder: Path, prefix: str) -> list[Section]:
            split = prefix.removesuffix("_") or "val"
            chosen = "val" if "val" in self.data else next(iter(self.data))
            more = self._sections(split, predictions, folder, prefix) if split == chosen else []
            return [*analyse(predictions, folder, prefix), *more]

        return found

    def _sections(self, split: str, predictions: Predictions, folder: Path, prefix: str) -> list[Section]:
        size = len(self.data[split].dataset)
        several = len(self.modalities) > 1
        places = np.unique(np.linspace(0, size - 1, _MEASURED if several else _SAMPLES).round().astype(int)).tolist()
        seen = {place: self._seen(split, place) for place in places}
        chosen = places[:: -(-len(places) // _SAMPLES)]
        rows = [(self._caption(predictions, place), seen[place]) for place in chosen]
        path, title = folder / f"{prefix}attention.png", "Attention"
        sections: list[Section] = [
            Picture(
                title, _draw(rows, path), note=f"{LOOKED}; in each panel the largest share is the densest.", wide=True
            )
        ]
        return [*sections, _table([*seen.values()], title)] if several else sections

    def _seen(self, split: str, place: int) -> list[Seen]:
        data = self.data[split]
        sample: Any = data.dataset[place]
        sample = sample if data.prepare is None else data.prepare(sample)
        assert data.collate is not None  # noqa: S101 - data of this app has one
        batch: Any = data.collate([sample])
        shares = shares_of(self.model, batch)
        if self.modalities:
            return of_modalities(sample["input"], self.modalities, shares)
        tokens, mask = (batch[name][0].numpy() for name in ("input", "mask"))
        if self.layout is not None:
            value, grid = self.layout.image(tokens), self.layout.grid
            return [Seen(name="image", kind="image", value=value, grid=grid, shares=shares)]
        encoder: Any = self.model.encoder
        values = np.where(mask[:, None], tokens, np.nan)[:, : None if encoder.time_step is None else -1]
        return [Seen(name="series", kind="series", value=values, patch=encoder.patch, shares=shares)]

    def _caption(self, predictions: Predictions, place: int) -> tuple[str, bool]:
        """What was found of a sample, and whether it is wrong."""
        if not self.class_names:
            return f"sample {place}", False
        label, chances = int(predictions["label"][place]), predictions["probabilities"][place]
        said = int(chances.argmax())
        right = f", predicted {self.class_names[said]}" if said != label else ""
        return f"sample {place}: {self.class_names[label]}{right} ({float(chances[said]):.2f})", said != label


def _table(seen: Sequence[Sequence[Seen]], title: str) -> Table:
    """The mean share of each modality, beside that of its tokens."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for sample in seen:
        known = {one.name: one.shares for one in sample if one.shares is not None}
        tokens = sum(map(len, known.values()))
        for name, shares in known.items() if len(known) > 1 else ():
            parts.setdefault(name, []).append((float(shares.sum()), len(shares) / tokens))
    rows = [[name, len(pairs), *np.mean(pairs, axis=0).tolist()] for name, pairs in parts.items()]
    note = f"Means over those of {len(seen)} samples that have the modality and another one."
    return Table(title, ("modality", "samples", "share of attention", "share of tokens"), rows, note=note)


def _draw(rows: Sequence[tuple[tuple[str, bool], Sequence[Seen]]], path: Path) -> Path:
    """A row for each sample, a column for each modality; pictures alone side by side."""
    names = list(dict.fromkeys(one.name for _, sample in rows for one in sample))
    across = len(names) == 1 and rows[0][1][0].kind == "image"
    shape = (1, len(rows)) if across else (len(rows), len(names))
    with picture(path, width=10, height=0.3 + 2.3 * shape[0]) as figure:
        grid = figure.subplots(*shape, squeeze=False)
        for line, ((caption, wrong), sample) in zip(grid.T if across else grid, rows, strict=True):
            by_name = {one.name: one for one in sample}
            for axes, name in zip(line, names, strict=True):
                _panel(axes, by_name.get(name), columns=len(names))
            drawn = displayable([caption], room=_CAPTION // (2 if across else 1))
            line[0].set_title(
                drawn.labels[0] if not drawn.note else caption.encode("ascii", "replace").decode(),
                fontsize=9.5, fontweight="normal", color=BAD if wrong else INK, fontfamily=drawn.fonts,
            )  # fmt: skip
    return path


def _panel(axes: Axes, seen: Seen | None, *, columns: int) -> None:
    """One modality of a sample, which may lack it."""
    if seen is None or seen.shares is None:
        axes.axis("off")
        return
    if seen.kind == "text":
        _draw_text(axes, seen, line=_LINE // columns)
    elif seen.kind == "image":
        axes.imshow(seen.value)
        axes.imshow(seen.overlay)
    else:
        _draw_series(axes, seen)
    axes.grid(visible=False)
    if seen.kind != "series":
        axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{seen.name}: {seen.shares.sum():.0%} of the attention" if columns > 1 else "", fontsize=8.5)


def _draw_series(axes: Axes, seen: Seen) -> None:
    for number, channel in enumerate(seen.value.T[:_CHANNELS]):
        axes.plot(channel, color=PALETTE[number] if number else MUTED, linewidth=1)
    low, high = axes.get_ylim()
    shade = seen.by_position[None]
    axes.imshow(shade, extent=(-0.5, shade.shape[1] - 0.5, low, high), aspect="auto", **_SHADE)


def _draw_text(axes: Axes, seen: Seen, *, line: int) -> None:
    """Characters in cells of a grid; what no font has is a dot."""
    found = [(character if character.isprintable() else " ", share) for character, share in seen.characters]
    found = found[: _LINES * line]
    fonts = displayable(["".join(sorted({character for character, _ in found}))], room=len(found) + 1)
    cells = np.full((_LINES, line), np.nan)
    for place, (character, share) in enumerate(found):
        row, column = divmod(place, line)
        cells[row, column] = share
        glyph = character if not fonts.note or character.isascii() else "·"
        axes.text(
            column, row, glyph.replace("$", r"\$"), fontsize=7, ha="center", va="center", fontfamily=fonts.fonts
        )  # fmt: skip
    axes.imshow(cells, aspect="auto", **_SHADE)

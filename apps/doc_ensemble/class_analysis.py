"""Where a classifier goes wrong and how sure it is: classes it confuses, with their pages, and its calibration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.metrics.arrays import Array, as_labels, as_probabilities
from mlcore.metrics.calibration import reliability_bins
from mlcore.report.page import Picture, Section, Table, Text
from mlcore.report.plots.confidence import plot_reliability
from mlcore.report.plots.contact_sheet import plot_contact_sheet
from mlcore.report.tile import Tile
from quartet.apps.doc_ensemble.data.pages import Page, read_page
from quartet.apps.doc_ensemble.temperature import fit_temperature, measure_temperature, softmax

__all__ = ["ConfusedPair", "calibration_sections", "confused_sections", "most_confused"]

_PAIRS, _PAGES = 6, 4  # of a contact sheet, whose rows hold four pages
_SIDE = 320  # pixels, longer side of a page on it


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that are taken for each other.

    Attributes:
        first: Index of the class of which more pages are taken for the other one.
        second: Index of the other one.
        forth: Pages of `first` taken for `second`.
        back: Pages of `second` taken for `first`.
        rows: Those pages' rows, the most confident first.
    """

    first: int
    second: int
    forth: int
    back: int
    rows: tuple[int, ...]


def most_confused(labels: Array, *, probabilities: Array, most: int = _PAIRS) -> list[ConfusedPair]:
    """The pairs of classes with most confused pages, in both directions together.

    Args:
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``.
        most: Pairs at most.

    Returns:
        Those with any, most pages first; ties in the order of the classes.

    Raises:
        UserError: empty, lengths differ, or values that are no probabilities.
    """
    truth = as_labels(labels)
    chances = as_probabilities(probabilities, rows=len(truth))
    guess = chances.argmax(axis=1)
    groups: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero(guess != truth).tolist():
        low, high = sorted((int(truth[row]), int(guess[row])))
        groups.setdefault((low, high), []).append(row)
    ordered = sorted(groups.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    pairs = []
    for (low, high), rows in ordered[:most]:
        forth = sum(truth[row] == low for row in rows)
        first, second = (low, high) if 2 * forth >= len(rows) else (high, low)
        rows.sort(key=lambda row: -chances[row, guess[row]])
        more = max(forth, len(rows) - forth)
        pairs.append(ConfusedPair(first, second, int(more), int(len(rows) - more), tuple(rows)))
    return pairs


def confused_sections(
    pages: Sequence[Page],
    *,
    labels: Array,
    probabilities: Array,
    class_names: Sequence[str],
    folder: Path,
    max_pixels: int,
    prefix: str = "",
) -> list[Section]:
    """Table of the most confused pairs of classes, and `{prefix}confused_pairs.png` with their pages.

    Args:
        pages: N pages; of one that cannot be read the frame stays empty.
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``.
        class_names: C names.
        folder: Where the picture goes; it exists.
        max_pixels: Larger images are not decoded.
        prefix: Start of the file's name, such as "test_".

    Raises:
        UserError: as `most_confused`, or the file cannot be written.
    """
    title = f"{prefix.strip('_').capitalize()}: confused classes" if prefix else "Confused classes"
    truth = as_labels(labels)
    chances = as_probabilities(probabilities, rows=len(truth))
    pairs = most_confused(truth, probabilities=chances)
    if not pairs:
        return [Text(title, f"None: all {len(truth):,} pages are recognised.")]
    tiles = []
    for pair in pairs:
        for row in pair.rows[:_PAGES]:
            label, guess = int(truth[row]), int(chances[row].argmax())
            tiles.append(
                Tile(
                    image=_thumbnail(pages[row], max_pixels),
                    caption=f"{class_names[label]}\n→\N{NO-BREAK SPACE}{class_names[guess]}, {chances[row, guess]:.0%}",
                    text=pages[row].name,
                    alarm=True,
                )
            )
    wrong = int((chances.argmax(axis=1) != truth).sum())
    words = f"{len(tiles)} of {wrong:,} wrong pages: class → taken for, how sure; file"
    sheet = plot_contact_sheet(tiles, path=folder / f"{prefix}confused_pairs.png", title=words)
    columns = ("class", "taken for", "pages", "the other way")
    rows = [[class_names[pair.first], class_names[pair.second], pair.forth, pair.back] for pair in pairs]
    return [Table(title, columns, rows), Picture(title, sheet, note=words, wide=True, tiles=tiles)]


def _thumbnail(page: Page, max_pixels: int) -> NDArray[np.uint8] | None:
    try:
        image = read_page(page.path, page.number, max_pixels=max_pixels)
    except (UserError, OSError):
        return None
    small = Image.fromarray(image)
    small.thumbnail((_SIDE, _SIDE))
    return np.asarray(small, dtype=np.uint8)


def calibration_sections(
    logits: Array, *, labels: Array, folder: Path, test: tuple[Array, Array] | None = None
) -> list[Section]:
    """Fit a temperature on validation, and draw and tabulate what it does to the calibration.

    Writes `calibration.json` (the figures of `TemperatureFit` for "val", and for "test" where there is one),
    `reliability.png` and `reliability_scaled.png` (of the test pages if there are any, else of validation, where the
    fit looks somewhat better than it is).

    Args:
        logits: ``[N, C]`` of validation pages.
        labels: ``[N]``.
        folder: Where the files go; it exists.
        test: Logits and labels of pages that were not used for fitting.

    Raises:
        UserError: empty, shapes that do not fit, or a file cannot be written.
    """
    temperature = fit_temperature(logits, labels=labels)
    splits = {"val": (logits, labels)} | ({} if test is None else {"test": test})
    fits = {
        name: measure_temperature(scores, labels=truth, temperature=temperature)
        for name, (scores, truth) in splits.items()
    }
    write_json(folder / "calibration.json", {name: asdict(fit) for name, fit in fits.items()})
    shown = "test" if test is not None else "val"
    pictures = {"as trained": ("reliability.png", 1.0), "scaled": ("reliability_scaled.png", temperature)}
    return [
        Table(
            "Calibration",
            ("pages", *asdict(fits["val"])),
            [[name, *asdict(fit).values()] for name, fit in fits.items()],
        ),
        *(
            Picture(
                f"Reliability, {words}",
                _reliability(*splits[shown], folder / name, value),
                note=f"{shown} pages, temperature {value:.2f}",
            )
            for words, (name, value) in pictures.items()
        ),
    ]


def _reliability(logits: Array, labels: Array, path: Path, temperature: float) -> Path:
    bins = reliability_bins(labels, probabilities=softmax(logits, temperature=temperature))
    return plot_reliability(bins, path=path)

"""Which samples the model gets wrong: test_predictions.json, test_report.md with thumbnails, and the report's pictures.

Wrong ones come first, the most confident first, ties in the order of the data. Confidence is how far the log-odds are
from those of the threshold, so that it means the same on both sides of any threshold. Texts come from pictures, and
pictures from anybody: in Markdown all of it is literal, so that no text becomes an image, a link or a tag.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, ensure_folder, write_json, write_text
from mlcore.metrics.arrays import as_floats, as_labels
from mlcore.report.page import Picture, Section, Text, literal
from mlcore.report.plots.contact_sheet import plot_contact_sheet
from mlcore.report.tile import Tile
from quartet.apps.multimodal_ads.evaluation import CLASS_NAMES, probabilities_of
from quartet.apps.multimodal_ads.plots import plot_values_by_class

__all__ = [
    "Classified",
    "Listed",
    "ReadImage",
    "classify",
    "worst_first",
    "write_predictions",
    "write_report",
    "wrong_sections",
]

ReadImage = Callable[[Path], NDArray[np.uint8]]
"""From a path to RGB pixels ``[H, W, 3]``; raises UserError or OSError for what is no readable image."""

_TEXT = 300  # characters of a text that are kept
_WRONG, _RIGHT = 100, 20  # samples that test_report.md shows
_ON_SHEET = 12
_SIDE = 160  # pixels, longer side of a thumbnail
_EDGE = 1e-12  # keeps the log-odds of thresholds 0 and 1 finite


class Listed(Protocol):
    """A row of a table: where its picture is, its label (1: ad) and its text ("" for none)."""

    @property
    def image(self) -> Path: ...  # noqa: D102
    @property
    def label(self) -> int: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Classified:
    """A sample and what the model made of it.

    Attributes:
        index: Its place in the data.
        row: Where it is from.
        probability: Of an ad, 0..1.
        predicted: 1 where the probability is at least the threshold.
        confidence: Distance of its log-odds from the threshold's.
        gate: Share of the picture in the fused features, 0..1; None without a gated fusion.
    """

    index: int
    row: Listed
    probability: float
    predicted: int
    confidence: float
    gate: float | None

    @property
    def is_wrong(self) -> bool:
        """Whether label and prediction differ."""
        return self.predicted != self.row.label


def classify(predictions: Mapping[str, Tensor], rows: Sequence[Listed], *, threshold: float) -> list[Classified]:
    """Put predictions and rows together.

    Args:
        predictions: As `quartet.apps.multimodal_ads.evaluation` describes.
        rows: Those of the data set, in its order.
        threshold: Least probability of what is taken for an ad.

    Returns:
        One per row, in the order of the data.

    Raises:
        UserError: the rows are not those of the predictions, or a logit is not finite.
    """
    chances, labels = probabilities_of(predictions), as_labels(predictions["label"], classes=2)
    if len(rows) != len(labels) or any(row.label != label for row, label in zip(rows, labels, strict=True)):
        raise UserError(
            f"{len(rows)} rows and {len(labels)} predictions do not belong together; evaluate the table as it is now"
        )
    edge = np.clip(threshold, _EDGE, 1 - _EDGE)
    confidence = np.abs(as_floats(predictions["logit"], name="logit") - np.log(edge / (1 - edge)))
    gates = as_floats(predictions["gate"], name="gate", rows=len(rows)).tolist() if "gate" in predictions else None
    return [
        Classified(
            index=index,
            row=row,
            probability=float(chances[index]),
            predicted=int(chances[index] >= threshold),
            confidence=float(confidence[index]),
            gate=None if gates is None else gates[index],
        )
        for index, row in enumerate(rows)
    ]


def worst_first(classified: Sequence[Classified]) -> list[Classified]:
    """Wrong ones first, the most confident first; ties keep their order."""
    return sorted(classified, key=lambda sample: (not sample.is_wrong, -sample.confidence))


def write_predictions(path: Path, classified: Sequence[Classified]) -> None:
    """Write test_predictions.json: one object per sample, in the order of the data.

    Keys: "image", "label", "probability", "predicted" (0 or 1, at the threshold), "text" (its first 300 characters),
    "has_text", "gate" (null without a gated fusion).

    Raises:
        UserError: the file cannot be written.
    """
    rows = [
        {
            "image": _encodable(str(sample.row.image)),
            "label": sample.row.label,
            "probability": sample.probability,
            "predicted": sample.predicted,
            "text": _encodable(_cut(sample.row.text)),
            "has_text": bool(sample.row.text),
            "gate": sample.gate,
        }
        for sample in classified
    ]
    write_json(path, rows)


def write_report(
    path: Path,
    classified: Sequence[Classified],
    *,
    headlines: Mapping[str, object],
    threshold: float,
    read_image: ReadImage,
) -> Path:
    """Write test_report.md and, in the folder `thumbnails` next to it, small JPEG files that it shows.

    Args:
        path: The Markdown file; its folder exists. It is written last, when its pictures are there.
        classified: All samples, in the order of the data.
        headlines: Figures for its top, by name; floats are shown with four digits, None as a dash.
        threshold: The one that `classify` was given.
        read_image: Reads a picture; one that cannot be read is named as such.

    Returns:
        `path`.

    Raises:
        UserError: a file cannot be written.
    """
    ordered = worst_first(classified)
    wrong = [sample for sample in ordered if sample.is_wrong]
    right = [sample for sample in ordered if not sample.is_wrong]
    about = [
        f"Taken for an ad: probability at least {threshold:.4g}.",
        "All samples are in test_predictions.json, in the order of the data (row, from 0).",
        "gate: share of the picture in the fused features."
        if any(sample.gate is not None for sample in classified)
        else "",
    ]
    blocks = [
        "# Test report",
        " ".join(filter(None, about)),
        "\n".join(["| figure | value |", "| --- | ---: |", *_headline_rows(headlines)]),
    ]
    for name, samples, most in (("Wrong", wrong, _WRONG), ("Right", right, _RIGHT)):
        shown = samples[:most]
        some = f", the {most} most confident ones" if len(samples) > most else ", most confident first"
        blocks.append(f"## {name}: {len(samples):,} of {len(classified):,}{some if samples else ''}")
        if shown:
            thumbnails = ensure_folder(path.parent / "thumbnails")
            blocks.append(_sample_table(shown, thumbnails, read_image))
    write_text(path, "\n\n".join(blocks) + "\n")
    return path


def wrong_sections(
    classified: Sequence[Classified], *, folder: Path, prefix: str = "", read_image: ReadImage
) -> list[Section]:
    """Draw, for a gated fusion, the gate by class, and the most confident wrong ones.

    Writes `{prefix}wrong_ones.png` (if anything is wrong) and `{prefix}gate.png` (if there is a gate).

    Args:
        classified: All samples.
        folder: Where the files go; it exists.
        prefix: Start of every file's name, such as "test_".
        read_image: Reads a picture; for one that cannot be read the frame stays empty.

    Raises:
        UserError: a file cannot be written.
    """
    title = {"": "Validation"}.get(prefix, prefix.strip("_").capitalize())
    sections: list[Section] = []
    gates = [(sample.gate, sample.row.label) for sample in classified if sample.gate is not None]
    if gates:
        values, labels = zip(*gates, strict=True)
        drawn = plot_values_by_class(
            np.clip(values, 0.0, 1.0),  # a mean of sigmoids in half precision may leave the range by a rounding
            labels=labels,
            class_names=CLASS_NAMES,
            path=folder / f"{prefix}gate.png",
            x_label="share of the picture (0: text only, 1: picture only)",
        )
        sections.append(Picture(f"{title}: gate", drawn, note="what it lets through; dashed: mean of the class"))
    wrong = [sample for sample in worst_first(classified) if sample.is_wrong]
    if not wrong:
        return [*sections, Text(f"{title}: wrong ones", f"None of {len(classified):,} samples.")]
    tiles = [_tile(sample, read_image) for sample in wrong[:_ON_SHEET]]
    heading = f"Wrong, most confident first: {len(tiles)} of {len(wrong):,}"
    sheet = plot_contact_sheet(tiles, path=folder / f"{prefix}wrong_ones.png", title=heading)
    return [*sections, Picture(f"{title}: wrong ones", sheet, note=heading, wide=True, tiles=tiles)]


def _headline_rows(headlines: Mapping[str, object]) -> list[str]:
    shown = {
        name: "–" if value is None else f"{value:.4f}" if isinstance(value, float) else literal(str(value))
        for name, value in headlines.items()
    }
    return [f"| {literal(name)} | {value} |" for name, value in shown.items()]


def _sample_table(samples: Sequence[Classified], folder: Path, read_image: ReadImage) -> str:
    gated = any(sample.gate is not None for sample in samples)
    columns = ["picture", "label", "predicted", "probability", *(["gate"] if gated else []), "row", "file", "text"]
    lines = [columns, ["---"] * len(columns)]
    for sample in samples:
        lines.append(
            [
                _thumbnail(sample, folder, read_image),
                CLASS_NAMES[sample.row.label],
                CLASS_NAMES[sample.predicted],
                f"{sample.probability:.4f}",
                *([f"{sample.gate:.2f}"] if sample.gate is not None else []),
                str(sample.index),
                literal(_encodable(sample.row.image.name)),
                literal(_encodable(_cut(sample.row.text))) or "–",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _thumbnail(sample: Classified, folder: Path, read_image: ReadImage) -> str:
    """Write the sample's thumbnail; Markdown that shows it, or says that there is none."""
    pixels = _small(sample.row.image, read_image)
    if pixels is None:
        return "unreadable"
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="JPEG", quality=80)
    path = folder / f"{sample.index:06d}.jpg"
    with atomic_write(path) as file:
        file.write(encoded.getvalue())
    return f"![{sample.index}]({folder.name}/{path.name})"


def _small(path: Path, read_image: ReadImage) -> NDArray[np.uint8] | None:
    """The picture at no more than 160 pixels a side, or None where it cannot be read."""
    with contextlib.suppress(UserError, OSError):
        picture = Image.fromarray(read_image(path))
        picture.thumbnail((_SIDE, _SIDE))
        return np.asarray(picture, dtype=np.uint8)
    return None


def _tile(sample: Classified, read_image: ReadImage) -> Tile:
    gate = "" if sample.gate is None else f", gate {sample.gate:.2f}"
    return Tile(
        image=_small(sample.row.image, read_image),
        caption=f"{CLASS_NAMES[sample.row.label]}, predicted: {CLASS_NAMES[sample.predicted]}\n"
        f"p(ad) {sample.probability:.4f}{gate}\n{_encodable(sample.row.image.name)}",
        text=_encodable(sample.row.text[:_TEXT]),
        alarm=sample.is_wrong,
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def _encodable(text: str) -> str:
    """File names may hold bytes that are no UTF-8; they are shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

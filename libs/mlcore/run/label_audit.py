"""Labels that the out-of-fold predictions doubt, as a list to look through.

Confident learning (Northcutt, Jiang, Chuang 2021) as cleanlab has it says which labels are likely wrong. All samples
are in the list: copies with two labels, labels that are likely wrong, then those with the least support.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_text
from mlcore.metrics.arrays import FloatArray, IntArray
from mlcore.report.page import Picture, Section, Table
from mlcore.report.plots.contact_sheet import plot_contact_sheet
from mlcore.report.tile import Tile

__all__ = ["FILE", "LabelAudit", "audit_labels", "audit_sections"]

FILE = "label_audit.csv"
"""In the folder of a cross-validation."""

WRONG, AMBIGUOUS, COPY = "likely wrong", "ambiguous", "a copy has another label"

_SHOWN = 18
_CLOSE = 0.1  # two classes are as good as each other

Look = Callable[[str, str], NDArray[np.uint8]]
"""From a sample's name and unit to its picture, uint8 [H, W, 3]."""


@dataclass(frozen=True, kw_only=True)
class LabelAudit:
    """What is said of N labels, in the order of the list.

    Attributes:
        order: Index of each sample.
        label: Its label.
        rather: The class that the predictions hold for the likeliest beside it, or instead of it.
        support: Probability of the label less that of `rather`, -1..1.
        kind: "likely wrong", "a copy has another label", "ambiguous", or "".
    """

    order: IntArray
    label: IntArray
    rather: IntArray
    support: FloatArray
    kind: Sequence[str]


def audit_labels(labels: IntArray, probabilities: FloatArray, copies: NDArray[Any]) -> LabelAudit:
    """Order labels by how little speaks for them.

    Args:
        labels: [N], each of C classes.
        probabilities: [N, C], of models that did not know the sample.
        copies: [N], what names its content; "" is nobody's copy.
    """
    from cleanlab.filter import find_label_issues  # takes seconds to import

    every = np.arange(len(labels))
    others = probabilities.copy()
    others[every, labels] = -1.0
    rather = others.argmax(axis=1)
    support = probabilities[every, labels] - probabilities[every, rather]
    wrong = find_label_issues(labels, _whole(probabilities), filter_by="prune_by_noise_rate", n_jobs=1)
    apart = _differing(labels, copies)
    wrong &= support < 0
    kinds = np.full(len(labels), "", dtype=object)
    kinds[np.abs(support) < _CLOSE] = AMBIGUOUS
    kinds[wrong] = WRONG
    kinds[apart] = COPY
    order = np.lexsort((support, ~wrong, ~apart))  # copies with two labels first: one of these is wrong for sure
    return LabelAudit(
        order=order,
        label=labels[order],
        rather=rather[order],
        support=support[order],
        kind=[str(kind) for kind in kinds[order]],
    )


def _whole(probabilities: FloatArray) -> FloatArray:
    """Rows that sum to 1 in float64."""
    exact = probabilities.astype(np.float64).clip(min=1e-12)
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))


def _differing(labels: IntArray, copies: NDArray[Any]) -> NDArray[np.bool_]:
    known: dict[str, set[int]] = {}
    for copy, label in zip(copies.tolist(), labels.tolist(), strict=True):
        known.setdefault(copy, set()).add(label)
    return np.array([bool(copy) and len(known[copy]) > 1 for copy in copies.tolist()], dtype=bool)


def audit_sections(
    seeds: Sequence[Mapping[str, Any]], *, classes: Sequence[str], folder: Path, look: Look | None
) -> list[Section]:
    """Write `label_audit.csv` and the picture of the first ones; nothing for what is no classifier.

    Args:
        seeds: Out-of-fold rows of each seed.
        classes: Names, in label order.
        folder: The job's.
        look: Gives pictures; None where samples have none.
    """
    first = seeds[0]
    probabilities = _probabilities(seeds)
    labels = first["label"].astype(np.int64) if "label" in first else None
    if probabilities is None or labels is None or len(set(labels.tolist())) < 2:
        return []
    copies = first.get("copies", np.full(len(labels), ""))
    found = audit_labels(labels, probabilities, copies)
    names, units = first["name"][found.order].tolist(), first["unit"][found.order].tolist()
    rows = [
        (name, unit, classes[label], classes[rather], f"{support:.6f}", kind)
        for name, unit, label, rather, support, kind in zip(
            names, units, found.label.tolist(), found.rather.tolist(), found.support.tolist(), found.kind, strict=True
        )
    ]
    write_text(folder / FILE, csv_text([("sample", "unit", "label", "rather", "support", "kind"), *rows]))
    doubted = [row for row in rows if row[-1] in (WRONG, COPY)][:_SHOWN]
    if not doubted:
        return []
    counts = {kind: found.kind.count(kind) for kind in (WRONG, COPY, AMBIGUOUS)}
    note = f"Of {len(rows)}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}. {FILE} has all."
    table = Table(
        "Labels to look at",
        ["sample", "label", "rather", "support", "why"],
        [[row[0], row[2], row[3], float(row[4]), row[5]] for row in doubted],
        note=note,
    )
    if look is None:
        return [table]
    tiles = [_tile(row, look) for row in doubted]
    path = plot_contact_sheet(tiles, path=folder / "label_audit.png", title="Labels to look at, the surest first")
    return [Picture("Labels to look at", path, wide=True), table]


def _tile(row: tuple[str, ...], look: Look) -> Tile:
    name, unit, label, rather, support, _ = row
    try:
        image: NDArray[np.uint8] | None = look(name, unit)
    except UserError:
        image = None
    return Tile(image=image, caption=f"label: {label}\nrather: {rather} ({float(support):+.2f})", text=Path(name).name)


def _probabilities(seeds: Sequence[Mapping[str, Any]]) -> FloatArray | None:
    """Mean over seeds, [N, C]; of a logit that of two classes; None where there are neither."""
    if "probabilities" in seeds[0]:
        return np.asarray(np.mean([found["probabilities"] for found in seeds], axis=0, dtype=np.float64))
    if "logit" not in seeds[0]:
        return None
    from scipy.special import expit

    positive = np.mean([expit(found["logit"].astype(np.float64)) for found in seeds], axis=0)
    return np.stack([1 - positive, positive], axis=1)

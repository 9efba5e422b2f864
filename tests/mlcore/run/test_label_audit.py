"""Doubted labels: planted ones come first, copies that contradict each other before them, and a list has all."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.base.errors import UserError
from mlcore.run.label_audit import audit_labels, audit_sections

CLASSES = ("letter", "form", "email")


def planted(count: int = 400, *, share: float = 0.05, seed: int = 0) -> tuple[Any, Any, Any]:
    """Labels of which a share is wrong, probabilities of a model that is mostly right, and which are wrong."""
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % 3
    scores = rng.normal(size=(count, 3))
    scores[np.arange(count), truth] += 2.5
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    wrong = np.zeros(count, dtype=bool)
    wrong[rng.choice(count, round(share * count), replace=False)] = True
    return np.where(wrong, (truth + 1) % 3, truth), chances, wrong


def seeds(labels: Any, chances: Any, copies: Any = None) -> list[dict[str, Any]]:
    names = np.array([f"page {number}.png" for number in range(len(labels))])
    return [
        {"name": names, "unit": names, "copies": names if copies is None else copies, "label": labels,
         "probabilities": of.astype(np.float32)}
        for of in (chances, chances)
    ]  # fmt: skip


def test_planted_labels_come_first() -> None:
    labels, chances, wrong = planted()
    found = audit_labels(labels, chances, np.full(len(labels), ""))
    assert sorted(found.order.tolist()) == list(range(400))
    assert wrong[found.order[:40]].sum() / wrong.sum() >= 0.7, "of the first tenth"
    likely = np.array([kind == "likely wrong" for kind in found.kind])
    assert likely[: likely.sum()].all()
    assert all((np.diff(found.support[part]) >= 0).all() for part in (likely, ~likely))
    assert wrong[found.order[likely]].mean() > 0.5
    assert found.rather[0] != found.label[0]


def test_copies_with_two_labels_are_named_before_all_others() -> None:
    labels, chances, _ = planted(share=0)
    copies = np.array([str(number) for number in range(len(labels))])
    copies[10] = copies[11]
    found = audit_labels(labels, chances, copies)
    assert sorted(found.order[:2].tolist()) == [10, 11]
    assert found.kind[:2] == ["a copy has another label"] * 2
    assert "a copy has another label" not in found.kind[2:]
    unknown = audit_labels(labels, chances, np.full(len(labels), ""))
    assert "a copy has another label" not in unknown.kind


def test_the_list_has_all_and_the_report_the_surest(tmp_path: Path) -> None:
    labels, chances, wrong = planted()

    def look(name: str, _unit: str) -> Any:
        if name == "page 3.png":
            raise UserError("page 3.png: damaged")
        return np.full((30, 20, 3), 200, np.uint8)

    picture, table = audit_sections(seeds(labels, chances), classes=CLASSES, folder=tmp_path, look=look)
    assert picture.path.is_file()  # type: ignore[union-attr]
    with (tmp_path / "label_audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    assert {row["label"] for row in rows} == set(CLASSES)
    assert [row["sample"] for row in rows[:18]] == [row[0] for row in table.rows]  # type: ignore[union-attr]
    first = int(rows[0]["sample"].removeprefix("page ").removesuffix(".png"))
    assert wrong[first]
    assert CLASSES[labels[first]] == rows[0]["label"] != rows[0]["rather"]
    (alone,) = audit_sections(seeds(labels, chances), classes=CLASSES, folder=tmp_path, look=None)
    assert alone.title == table.title


def test_logits_of_two_classes_are_taken_too_and_masks_are_left_out(tmp_path: Path) -> None:
    labels = np.arange(40) % 2
    logits = np.where(labels == 1, 3.0, -3.0) + np.random.default_rng(0).normal(size=40)
    labels[5] = 0  # it was 1
    names = np.array([str(number) for number in range(40)])
    (table,) = audit_sections(
        [{"name": names, "unit": names, "label": labels, "logit": logits}], classes=("no", "yes"), folder=tmp_path,
        look=None,
    )  # fmt: skip
    assert table.rows[0][:3] == ["5", "no", "yes"]  # type: ignore[union-attr]
    assert not audit_sections([{"name": names, "unit": names, "dice": logits}], classes=(), folder=tmp_path, look=None)


def test_a_model_that_agrees_with_all_labels_doubts_none(tmp_path: Path) -> None:
    labels, _, _ = planted(share=0)
    sure = np.full((len(labels), 3), 0.01)
    sure[np.arange(len(labels)), labels] = 0.98
    assert not audit_sections(seeds(labels, sure), classes=CLASSES, folder=tmp_path, look=None)
    assert (tmp_path / "label_audit.csv").is_file()

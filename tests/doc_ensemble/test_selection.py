"""Greedy selection picks what an exhaustive look would, in a fixed order; the cost curve adds up what members cost."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from mlcore.base.errors import UserError
from mlcore.metrics.classification import accuracy, class_scores
from quartet.apps.doc_ensemble.ensemble.curve import cost_curve, plot_cost_curve, single_points, write_cost_curve
from quartet.apps.doc_ensemble.ensemble.selection import fast_macro_f1, log_loss, select

pytestmark = pytest.mark.pictures

C = 4
NAMES = ("resnet", "vit", "convnext", "합성곱")


@pytest.fixture
def library() -> tuple[np.ndarray, np.ndarray]:
    """Four members of different skill, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, 120)
    skill = np.array([1.5, 1.2, 0.3, 1.4])[:, None, None]
    return softmax(rng.normal(size=(4, 120, C)) + skill * np.eye(C)[labels], axis=2), labels


def score(mean: np.ndarray, labels: np.ndarray, goal: str) -> float:
    predicted = mean.argmax(axis=1)
    if goal == "accuracy":
        return accuracy(labels, predicted=predicted)
    if goal == "log_loss":
        return -log_loss(mean, labels)
    return class_scores(labels, predicted=predicted, classes=C).macro[2]


def test_the_quick_macro_f1_is_the_cores() -> None:
    rng = np.random.default_rng(4)
    for classes in (2, 3, 7):  # of seven classes some are neither labelled nor predicted
        labels, predicted = rng.integers(0, min(classes, 5), 30), rng.integers(0, min(classes, 4), 30)
        expected = class_scores(labels, predicted=predicted, classes=classes).macro[2]
        assert fast_macro_f1(predicted, labels, classes=classes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("goal", ["macro_f1", "accuracy", "log_loss"])
def test_every_round_adds_the_best_member(library: tuple[np.ndarray, np.ndarray], goal: str) -> None:
    chances, labels = library
    found = select(chances, labels, goal=goal, rounds=8)
    for size in range(1, len(found.order) + 1):
        chosen = found.order[: size - 1]
        options = [score(chances[[*chosen, member]].mean(axis=0), labels, goal) for member in range(4)]
        assert found.scores[size - 1] == pytest.approx(max(options), abs=1e-9)
        assert options[found.order[size - 1]] == pytest.approx(max(options), abs=1e-9)
    assert found.scores[-1] == max(found.scores)
    assert found.scores.index(max(found.scores)) == len(found.scores) - 1  # the earliest of the best rounds
    np.testing.assert_allclose(found.weights(4), np.bincount(found.order, minlength=4) / len(found.order))


def test_selection_is_no_worse_than_the_best_member_and_never_depends_on_chance(
    library: tuple[np.ndarray, np.ndarray],
) -> None:
    chances, labels = library
    found = select(chances, labels)
    assert found.scores[-1] >= max(score(member, labels, "macro_f1") for member in chances)
    assert found == select(chances, labels)


def test_equal_members_go_to_less_log_loss_and_then_to_the_first(library: tuple[np.ndarray, np.ndarray]) -> None:
    chances, labels = library
    perfect = softmax(3 * np.eye(C)[labels], axis=1)
    surer = softmax(9 * np.eye(C)[labels], axis=1)
    assert select(np.stack([chances[2], perfect, surer, surer]), labels).order == (2,)


def test_what_cannot_be_selected_from_is_refused(library: tuple[np.ndarray, np.ndarray]) -> None:
    chances, labels = library
    with pytest.raises(UserError, match="selection needs"):
        select(chances, labels, rounds=0)
    with pytest.raises(UserError, match="a label for each page"):
        select(chances, labels[:-1])


def test_the_cost_curve_counts_each_member_once(library: tuple[np.ndarray, np.ndarray]) -> None:
    chances, labels = library
    seconds = [0.1, 0.2, 0.3, 0.4]
    points = cost_curve(chances, labels, order=[1, 0, 1, 3], names=NAMES, member_seconds=seconds, reading_seconds=0.05)
    assert [point.members for point in points] == [1, 2, 2, 3]
    assert [point.added for point in points] == ["vit", "resnet", "vit", "합성곱"]
    np.testing.assert_allclose([1 / point.images_per_second for point in points], [0.25, 0.35, 0.35, 0.75])
    for size, point in enumerate(points, 1):
        mean = chances[[1, 0, 1, 3][:size]].mean(axis=0)
        assert point.accuracy == pytest.approx(score(mean, labels, "accuracy"))
        assert point.macro_f1 == pytest.approx(score(mean, labels, "macro_f1"))
    alone = single_points(chances, labels, names=NAMES, member_seconds=seconds)
    assert [point.added for point in alone] == list(NAMES)
    assert alone[1].macro_f1 == points[0].macro_f1


def test_the_cost_curve_as_a_table_and_a_picture(library: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    chances, labels = library
    costs = {"names": NAMES, "member_seconds": [0.01, 0.02, 0.03, 0.04], "reading_seconds": 0.005}
    points = cost_curve(chances, labels, order=[0, 3, 1], **costs)
    write_cost_curve(points, tmp_path / "cost.csv")
    with (tmp_path / "cost.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["added"] for row in rows] == ["resnet", "합성곱", "vit"]
    assert [float(row["images_per_second"]) for row in rows] == pytest.approx(
        [point.images_per_second for point in points], abs=1e-3
    )
    path = plot_cost_curve(points, path=tmp_path / "cost.png", singles=single_points(chances, labels, **costs))
    with Image.open(path) as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    with pytest.raises(UserError, match="no points"):
        plot_cost_curve([], path=tmp_path / "none.png")
    with pytest.raises(UserError, match="cost curve needs"):
        cost_curve(chances, labels, order=[], **costs)

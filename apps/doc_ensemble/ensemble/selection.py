"""Greedy selection of members with replacement: Caruana et al. 2004, Ensemble selection from libraries of models.

Begin with nothing; add, round after round, the member whose addition to the mean of those chosen so far scores best on
validation; a member may be added again, which raises its weight. The best round wins, the earliest of equal ones.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_floats, as_labels
from quartet.apps.doc_ensemble.ensemble.combine import combine

__all__ = ["Goal", "Selection", "fast_macro_f1", "growing_order", "log_loss", "select"]

Goal = Literal["macro_f1", "accuracy", "log_loss"]

_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Selection:
    """Who is in.

    Attributes:
        order: Members in the order of their addition, up to the best round; some more than once.
        scores: The score after each of these rounds; of log_loss, the negative, so that more is better.
    """

    order: tuple[int, ...]
    scores: tuple[float, ...]

    def weights(self, members: int) -> FloatArray:
        """How often each member was added, as shares [K] that sum to 1."""
        counts = np.bincount(self.order, minlength=members).astype(np.float64)
        shares: FloatArray = counts / counts.sum()
        return shares


def select(probabilities: Array, labels: Array, *, goal: Goal = "macro_f1", rounds: int = 25) -> Selection:
    """Choose members; of additions with equal scores, that of less log loss, then the first member.

    Args:
        probabilities: [K, N, C] on validation pages that no member was trained on.
        labels: [N] class indices.
        goal: What to raise; log_loss is lowered.
        rounds: Additions to try.

    Raises:
        UserError: Arrays that do not fit together, or `rounds` below 1.
    """
    chances = as_floats(probabilities, name="probabilities")
    combine(chances)  # checks them
    truth = as_labels(labels, classes=chances.shape[2])
    if rounds < 1 or len(truth) != chances.shape[1]:
        raise UserError(
            f"selection needs at least one round ({rounds} given) and a label for each page ({len(truth)} for "
            f"{chances.shape[1]})"
        )
    total = np.zeros(chances.shape[1:])
    order: list[int] = []
    scores: list[float] = []
    for size in range(1, rounds + 1):
        tried = [_score((total + member) / size, truth, goal) for member in chances]
        best = max(range(len(tried)), key=lambda place: tried[place])  # the first of equal ones
        order.append(best)
        scores.append(tried[best][0])
        total += chances[best]
    end = int(np.argmax(scores)) + 1
    return Selection(tuple(order[:end]), tuple(scores[:end]))


def growing_order(probabilities: Array, labels: Array, *, goal: Goal = "macro_f1") -> tuple[int, ...]:
    """All members, each once: the best one, then whoever makes the mean of those before it best; for a cost curve.

    Args:
        probabilities: As in `select`.
        labels: As in `select`.
        goal: As in `select`.

    Raises:
        UserError: As in `select`.
    """
    chances = as_floats(probabilities, name="probabilities")
    first = select(chances, labels, goal=goal, rounds=1).order[0]
    truth = as_labels(labels, classes=chances.shape[2])
    order, total = [first], chances[first].copy()
    while len(order) < len(chances):
        left = [member for member in range(len(chances)) if member not in order]
        order.append(max(left, key=lambda member: _score((total + chances[member]) / (len(order) + 1), truth, goal)))
        total += chances[order[-1]]
    return tuple(order)


def log_loss(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean negative log probability of the right class; [N, C] and [N]."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], _SMALLEST)).mean())


def fast_macro_f1(predicted: IntArray, labels: IntArray, *, classes: int) -> float:
    """`mlcore.metrics.classification.class_scores(...).macro[2]`, thousands of times per second."""
    right = np.bincount(labels[predicted == labels], minlength=classes)
    both = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * right[both > 0] / both[both > 0]).mean())


def _score(mean: FloatArray, truth: IntArray, goal: Goal) -> tuple[float, float]:
    """Score and tie-break, more is better."""
    loss = -log_loss(mean, truth)
    if goal == "log_loss":
        return loss, 0.0
    predicted = mean.argmax(axis=1)
    if goal == "accuracy":
        return float((predicted == truth).mean()), loss
    return fast_macro_f1(predicted, truth, classes=mean.shape[1]), loss

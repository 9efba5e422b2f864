"""Thresholds are what trying all of them gives, reproduce what was asked on their data, and say what cannot be had."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from mlcore.base.errors import UserError
from mlcore.metrics.operating_points import (
    OperatingPoint,
    Rate,
    at_fpr,
    at_precision,
    at_recall,
    best_f1,
    measure_kept,
    measure_point,
    reject_below,
    three_zones,
    wilson_interval,
)

Draw = tuple[NDArray[np.int64], NDArray[np.float64]]


def draw(seed: int, *, samples: int = 80, ties: int = 1) -> Draw:
    """Labels, and scores that suit them somewhat; many are equal with few decimals."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, samples)
    scores = 1 / (1 + np.exp(-(2.4 * labels - 1.2 + rng.normal(0, 1.3, samples))))
    return labels, np.round(scores, ties)


def all_points(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> list[OperatingPoint]:
    """Every way to decide that takes something, the highest threshold first."""
    return [measure_point(labels, scores=scores, threshold=at) for at in np.unique(scores)[::-1]]


def same_decisions(point: OperatingPoint, other: OperatingPoint) -> bool:
    return point.true_positives == other.true_positives and point.false_positives == other.false_positives


DRAWS = [draw(seed, ties=ties) for seed in range(6) for ties in (1, 2, 12)]


@pytest.mark.parametrize(("labels", "scores"), DRAWS)
def test_each_rule_is_what_trying_all_thresholds_gives(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
    tried = all_points(labels, scores)
    best = max(point.f1 for point in tried)
    assert same_decisions(best_f1(labels, scores=scores), next(point for point in tried if point.f1 == best))
    for asked in (0.6, 0.8, 0.9):
        precise = [point for point in tried if point.rates()["precision"].value >= asked]
        most = max(precise, key=lambda point: (point.true_positives, -point.false_positives), default=None)
        found = at_precision(labels, scores=scores, precision=asked)
        assert (found.shortfall == "") == (most is not None)
        if most is not None:
            assert same_decisions(found, most)

        sensitive = next(point for point in tried if point.rates()["recall"].value >= asked)
        assert same_decisions(at_recall(labels, scores=scores, recall=asked), sensitive)

        quiet = [point for point in tried if point.rates()["fpr"].value <= 1 - asked]
        most = max(quiet, key=lambda point: (point.true_positives, -point.false_positives), default=None)
        found = at_fpr(labels, scores=scores, fpr=1 - asked)
        assert (found.shortfall == "") == (most is not None)
        if most is not None:
            assert same_decisions(found, most)


@pytest.mark.parametrize(("labels", "scores"), DRAWS)
def test_zones_are_what_trying_all_pairs_gives(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
    found = three_zones(labels, scores=scores, precision=0.85, npv=0.85)
    upper = at_precision(labels, scores=scores, precision=0.85)
    if upper.shortfall:
        assert found.threshold == math.inf
        assert found.true_positives + found.false_positives == 0
    else:
        assert same_decisions(found, upper)
    lowers = [*np.unique(scores[scores < found.threshold]), min(found.threshold, 2.0)]
    pairs = [measure_point(labels, scores=scores, threshold=found.threshold, lower=lower) for lower in lowers]
    sure = [pair for pair in pairs if pair.rates()["npv"].of and pair.rates()["npv"].value >= 0.85]
    assert ("npv" in found.shortfall) == (not sure)
    expected = max((pair.true_negatives, -pair.false_negatives) for pair in sure) if sure else (0, 0)
    assert (found.true_negatives, -found.false_negatives) == expected
    shares = [found.rates()[name].hits for name in ("accepted", "reviewed", "rejected")]
    assert sum(shares) == len(labels)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_rejecting_is_what_trying_all_thresholds_gives(seed: int, per_class: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 90)
    chances = rng.dirichlet([1.0, 1.0, 1.0], 90) + 0.5 * np.eye(3)[labels]
    chances = np.round(chances / chances.sum(axis=1, keepdims=True), 2)
    chances[:, 2] = 1 - chances[:, :2].sum(axis=1)
    found = reject_below(labels, probabilities=chances, precision=0.9, class_names="abc", per_class=per_class)
    guess, sure = chances.argmax(axis=1), chances.max(axis=1)
    for own in [guess == label for label in range(3)] if per_class else [guess >= 0]:
        tried = [(own & (sure >= at)) for at in np.unique(sure[own])]
        right = [(int((guess == labels)[kept].sum()), int(kept.sum())) for kept in tried]
        best = max(((r, -n) for r, n in right if r / n >= 0.9), default=(0, 0))
        kept = own & (sure >= found.least[guess])
        assert (int((guess == labels)[kept].sum()), -int(kept.sum())) == best
    assert found.right.of == found.kept.hits == sum(rate.of for rate in found.by_class)
    assert per_class or found.right.value >= 0.9


@pytest.mark.parametrize("wobble", [-1e-7, 0.0, 1e-7])
def test_a_threshold_decides_alike_on_scores_that_differ_in_rounding(wobble: float) -> None:
    labels, scores = np.array([1, 1, 0, 1, 0, 0]), np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.2])
    point = at_precision(labels, scores=scores, precision=0.75)
    again = measure_point(labels, scores=scores + wobble, threshold=point.threshold)
    assert again.rates()["precision"] == Rate(3, 4)
    zones = three_zones(labels, scores=scores, precision=1.0, npv=1.0)
    again = measure_point(labels, scores=scores + wobble, threshold=zones.threshold, lower=zones.lower)
    assert (again.true_positives, again.true_negatives, again.samples) == (2, 2, 6)


def test_neighbouring_floats_are_told_apart() -> None:
    low = 0.5
    high = float(np.nextafter(low, 1.0))
    point = at_precision([1, 0], scores=[high, low], precision=1.0)
    assert (point.true_positives, point.false_positives) == (1, 0)
    zones = three_zones([1, 0], scores=[high, low], precision=1.0, npv=1.0)
    assert (zones.true_positives, zones.true_negatives) == (1, 1)


def test_equal_scores_are_taken_together() -> None:
    labels, scores = [1, 0, 1, 0], [0.8, 0.8, 0.3, 0.3]
    point = at_precision(labels, scores=scores, precision=0.5)
    assert (point.true_positives, point.false_positives) == (2, 2)
    assert "the highest is 0.5 (2 of 4)" in at_precision(labels, scores=scores, precision=0.6).shortfall


def test_what_cannot_be_reached_is_said_with_the_nearest() -> None:
    labels, scores = [0, 1, 1, 0], [0.9, 0.8, 0.7, 0.1]
    precise = at_precision(labels, scores=scores, precision=0.95)
    assert precise.shortfall == (
        "precision 0.95 is not reached on these data: the highest is 0.6667 (2 of 3) at threshold 0.7"
    )
    assert precise.rates()["precision"] == Rate(2, 3)
    assert at_fpr(labels, scores=scores, fpr=0.1).shortfall == (
        "fpr 0.1 is not reached on these data: the lowest is 0.5 (1 of 2)"
    )
    zones = three_zones(labels, scores=scores, precision=0.95, npv=0.95)
    assert (zones.threshold, zones.true_negatives, zones.false_negatives) == (math.inf, 1, 0)
    assert zones.shortfall.endswith("so nothing is accepted")
    zones = three_zones([1, 0, 1], scores=[0.9, 0.5, 0.1], precision=1.0, npv=0.9)
    assert (zones.lower, zones.true_positives) == (0.0, 1)
    assert "npv 0.9 is not reached on these data: the highest is 0.5 (1 of 2) at threshold 0.5" in zones.shortfall
    kept = reject_below(
        [1, 1], probabilities=[[0.9, 0.1], [0.2, 0.8]], precision=1.0, class_names=["x", "y"], per_class=True
    )
    assert kept.least[0] == math.inf
    assert kept.right == Rate(1, 1)
    assert kept.shortfall.startswith("x: precision 1 is not reached")
    never = reject_below([1], probabilities=[[0.2, 0.8]], precision=1.0, class_names=["x", "y"], per_class=True)
    assert never.shortfall == "x: never predicted on these data; none is kept"


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "choose",
    [
        best_f1,
        lambda labels, scores: at_precision(labels, scores=scores, precision=0.9),
        lambda labels, scores: at_recall(labels, scores=scores, recall=0.9),
        lambda labels, scores: at_fpr(labels, scores=scores, fpr=0.1),
    ],
)
def test_with_one_class_there_is_nothing_to_choose_by(choose: Callable[..., OperatingPoint], label: int) -> None:
    point = choose([label] * 3, scores=[0.1, 0.2, 0.9])
    assert point.threshold == 0.5
    assert point.shortfall == f"every sample is of class {label}: nothing to choose by"


def test_a_perfect_model_leaves_nothing_to_a_person() -> None:
    zones = three_zones([1, 1, 0, 0], scores=[0.9, 0.8, 0.2, 0.1], precision=0.95, npv=0.95)
    assert zones.rates()["reviewed"] == Rate(0, 4)
    assert (zones.f1, zones.shortfall) == (1.0, "")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: at_precision([1, 0], scores=[0.5, 0.1], precision=0.0), "precision is 0"),
        (lambda: at_recall([1, 0], scores=[0.5, 0.1], recall=1.5), "recall is 1.5"),
        (lambda: at_fpr([1, 0], scores=[0.5, 0.1], fpr=1.0), "fpr is 1"),
        (lambda: measure_point([1, 0], scores=[0.5, 0.1], threshold=0.2, lower=0.3), "above the upper"),
        (lambda: best_f1([1, 0, 1], scores=np.full((3, 3), 1 / 3)), "3 columns"),
        (lambda: best_f1([2, 0], scores=[0.5, 0.1]), r"labels\[0\] is 2"),
        (lambda: measure_kept([3], probabilities=[[0.5, 0.5]], least=[0, 0]), r"labels\[0\] is 3"),
        (lambda: wilson_interval(3, 2), "3 of 2"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        call()


@pytest.mark.parametrize(("hits", "of"), [(0, 7), (7, 7), (1, 3), (95, 100), (499, 1000)])
def test_intervals_are_wilsons(hits: int, of: int) -> None:
    expected = binomtest(hits, of).proportion_ci(method="wilson")
    assert wilson_interval(hits, of) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert all(map(math.isnan, wilson_interval(0, 0)))


def test_intervals_cover_the_precision_of_a_fixed_threshold() -> None:
    """Of 1,000 data sets, about 95 % of the intervals hold the precision that the threshold has in truth."""
    rng = np.random.default_rng(20260101)
    covered = defined = 0
    spread, threshold = 1.0, 0.6
    # P(score >= 0.6 | class) of logits N(+-1, 1): the truth, from the normal distribution.
    edge = math.log(threshold / (1 - threshold))
    tail = [0.5 * math.erfc((edge - mean) / (spread * math.sqrt(2))) for mean in (-1.0, 1.0)]
    truth = 0.3 * tail[1] / (0.3 * tail[1] + 0.7 * tail[0])
    for _ in range(1000):
        labels = (rng.random(200) < 0.3).astype(np.int64)
        scores = 1 / (1 + np.exp(-(2.0 * labels - 1.0 + rng.normal(0, spread, 200))))
        rate = measure_point(labels, scores=scores, threshold=threshold).rates()["precision"]
        low, high = rate.interval
        defined += rate.of > 0
        covered += low <= truth <= high
    assert defined == 1000
    assert 0.93 <= covered / 1000 <= 0.98

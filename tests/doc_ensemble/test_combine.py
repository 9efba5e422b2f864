"""Voting, averaging and weighting are what direct computation says; bad weights are refused or normalised and said."""

import logging

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.ensemble.combine import average_views, combine, fit_weights, normalise_weights
from quartet.apps.doc_ensemble.ensemble.disagreement import disagreement

K, N, C = 4, 60, 5


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=2.0, size=(K, N, C))


@pytest.fixture
def chances(logits: np.ndarray) -> np.ndarray:
    return softmax(logits, axis=2)


def skilled(skill: list[float], *, pages: int = 300, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Members' probabilities, the better the higher their skill, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, pages)
    logits = rng.normal(size=(len(skill), pages, C)) + np.array(skill)[:, None, None] * np.eye(C)[labels]
    return softmax(logits, axis=2), labels


def test_averaging_is_the_mean(chances: np.ndarray, logits: np.ndarray) -> None:
    np.testing.assert_allclose(combine(chances), chances.mean(axis=0), rtol=1e-12)
    expected = softmax(logits.mean(axis=0), axis=1)
    np.testing.assert_allclose(combine(chances, average="logits"), expected, rtol=1e-12)


def test_weighted_is_the_weighted_mean(chances: np.ndarray, logits: np.ndarray) -> None:
    weights = [0.1, 0.2, 0.3, 0.4]
    expected = sum(weight * chances[k] for k, weight in enumerate(weights))
    np.testing.assert_allclose(combine(chances, method="weighted", weights=weights), expected, rtol=1e-12)
    expected = softmax(sum(weight * logits[k] for k, weight in enumerate(weights)), axis=1)
    found = combine(chances, method="weighted", weights=weights, average="logits")
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_equal_weights_are_averaging_and_one_weight_is_that_member(chances: np.ndarray) -> None:
    np.testing.assert_allclose(combine(chances, method="weighted", weights=[0.25] * K), combine(chances), rtol=1e-12)
    np.testing.assert_allclose(combine(chances, method="weighted", weights=[0, 1, 0, 0]), chances[1], rtol=1e-12)


def test_voting_is_the_share_of_votes(chances: np.ndarray) -> None:
    votes = np.stack([np.bincount(chances[:, page].argmax(axis=1), minlength=C) for page in range(N)])
    found = combine(chances, method="voting")
    np.testing.assert_allclose(found, votes / K, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    clear = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]
    assert clear.any()
    assert (found.argmax(axis=1) == votes.argmax(axis=1))[clear].all()


def test_a_tie_of_votes_goes_to_the_larger_mean_probability() -> None:
    # One vote for each of the first two classes; the third has none, though it is the likeliest on average.
    chances = np.array([[[0.48, 0.05, 0.47]], [[0.01, 0.50, 0.49]]])
    assert combine(chances, method="voting").argmax() == 1
    assert combine(chances[:, :, [1, 0, 2]], method="voting").argmax() == 0
    assert combine(chances).argmax() == 2


def test_probabilities_that_float32_rounded_to_zero_can_be_averaged_as_logits() -> None:
    chances = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=np.float32)
    np.testing.assert_allclose(combine(chances, average="logits"), [[0.5, 0.5]])


def test_views_are_averaged_by_weight_for_each_member(chances: np.ndarray) -> None:
    views = chances.reshape(2, 2, N, C)
    found = average_views(views, weights=[1.0, 0.5])
    np.testing.assert_allclose(found, (views[:, 0] + 0.5 * views[:, 1]) / 1.5, rtol=1e-12)
    np.testing.assert_allclose(average_views(views, weights=[1.0, 0.0]), views[:, 0], rtol=1e-12)
    twice = np.stack([views[:, 0], views[:, 0]], axis=1)
    np.testing.assert_allclose(average_views(twice, weights=[1, 0.3], average="logits"), views[:, 0], rtol=1e-12)


def test_weights_that_do_not_sum_to_one_are_normalised_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(normalise_weights([1.0, 3.0], members=2), [0.25, 0.75])
    assert "sum to 4" in caplog.text
    assert "0.25, 0.75" in caplog.text
    caplog.clear()
    normalise_weights([0.4, 0.6], members=2)
    assert not caplog.records


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, -0.1, 0.3, 0.3], "weight 1 is -0.1"),
        ([0.5, float("nan"), 0.3, 0.3], "weight 1 is nan"),
        ([0, 0, 0, 0], "all weights are 0"),
        ([1.0], "1 weights for 4 members"),
        (None, "needs a weight for each"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(chances: np.ndarray, weights: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        combine(chances, method="weighted", weights=weights)


def test_what_does_not_fit_is_refused(chances: np.ndarray, logits: np.ndarray) -> None:
    with pytest.raises(UserError, match="takes no weights"):
        combine(chances, weights=[0.25] * K)
    with pytest.raises(UserError, match=r"expected \[members, pages, classes"):
        combine(chances[0])
    with pytest.raises(UserError, match="no probabilities"):
        combine(logits)
    with pytest.raises(UserError, match="59 labels for 60 pages"):
        fit_weights(chances, np.zeros(N - 1))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_fitted_weights_are_the_minimum(average: str) -> None:
    chances, labels = skilled([0.5, 2.0])

    def loss(weight: float) -> float:
        weights = [weight, 1 - weight]
        mixed = combine(chances, method="weighted", weights=weights, average=average)
        return -np.log(mixed[np.arange(len(labels)), labels]).mean()

    found = fit_weights(chances, labels, average=average)
    expected = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    assert loss(found[0]) <= expected.fun + 1e-8
    assert found[0] == pytest.approx(expected.x, abs=1e-3)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_fitted_weights_lie_on_the_simplex_and_no_other_point_of_it_is_better(average: str) -> None:
    chances, labels = skilled([1.0, 2.5, 0.0, 2.0])
    found = fit_weights(chances, labels, average=average)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)

    def loss(weights: np.ndarray) -> float:
        mixed = combine(chances, method="weighted", weights=weights, average=average)
        return -np.log(mixed[np.arange(len(labels)), labels]).mean()

    others = np.random.default_rng(3).dirichlet(np.ones(4), 200)
    assert loss(found) <= min(map(loss, others)) + 1e-9
    assert loss(found) <= min(map(loss, np.eye(4))) + 1e-9  # no member alone is better


def test_a_member_that_knows_nothing_gets_no_weight() -> None:
    chances, labels = skilled([3.0, 0.0])
    chances[1] = chances[1][np.random.default_rng(5).permutation(len(labels))]
    assert fit_weights(chances, labels)[1] < 0.05


def test_disagreement_counts_pairs_and_votes() -> None:
    votes = np.array([[0, 1, 2, 2], [0, 1, 0, 2], [0, 2, 1, 2]])
    found = disagreement(np.eye(3)[votes])
    np.testing.assert_array_equal(found.votes, votes)
    np.testing.assert_allclose(found.pairs, [[0, 1 / 4, 2 / 4], [1 / 4, 0, 2 / 4], [2 / 4, 2 / 4, 0]])
    assert found.mean == pytest.approx(5 / 12)
    expected = [0, -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)), np.log(3), 0]
    np.testing.assert_allclose(found.entropy, expected, atol=1e-15)

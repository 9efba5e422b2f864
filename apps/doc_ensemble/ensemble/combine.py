"""Several models' probabilities to one: voting, averaging, weighted averaging; pure NumPy in float64.

K members, N pages, C classes. What comes out are probabilities whose largest one is the decision.
"""

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, as_floats, as_labels, as_probabilities

__all__ = ["Average", "Method", "average_views", "combine", "fit_weights", "log_probabilities", "normalise_weights"]

_log = logging.getLogger(__name__)

Method = Literal["voting", "averaging", "weighted"]
Average = Literal["probabilities", "logits"]

# Beside votes, which differ by whole numbers, the mean probability decides ties only; what it adds is below 1e-6.
_TIE_BREAK = 1e-6
# A softmax in float32 underflows to 0, and the logit that made it is lost: it counts as the smallest one left.
_SMALLEST = float(np.finfo(np.float32).tiny)


def combine(
    probabilities: Array,
    *,
    method: Method = "averaging",
    weights: Sequence[float] | FloatArray | None = None,
    average: Average = "probabilities",
) -> FloatArray:
    """Put the members' probabilities together.

    Args:
        probabilities: [K, N, C], rows summing to 1.
        method: "voting": shares of the members' votes, ties going to the larger mean probability (whose 1e-6-fold is
            added for that); "averaging": their mean; "weighted": their weighted mean.
        weights: "weighted": [K], normalised to sum to 1.
        average: What is averaged: probabilities (arithmetic mean), or logits (then softmax; as a softmax forgets what
            is added to all logits of a row, this is the normalised geometric mean of the probabilities).

    Returns:
        [N, C] float64, rows summing to 1.

    Raises:
        UserError: No probabilities, weights for another method, or none for "weighted", or as in `normalise_weights`.
    """
    chances = _checked(probabilities)
    members = len(chances)
    if (weights is not None) != (method == "weighted"):
        raise UserError(
            "method weighted needs a weight for each member: give them, or have them fitted (fit_weights: true)"
            if weights is None
            else f"method {method} takes no weights; choose method weighted"
        )
    if method == "voting":
        return _vote(chances)
    shares = np.full(members, 1 / members) if weights is None else normalise_weights(weights, members=members)
    return _mean(chances, shares, average)


def average_views(
    probabilities: Array, *, weights: Sequence[float] | FloatArray, average: Average = "probabilities"
) -> FloatArray:
    """Each member's mean over the views of a page.

    Args:
        probabilities: [K, V, N, C].
        weights: [V], at least 0; `View.weight`.
        average: What is averaged, as in `combine`.

    Returns:
        [K, N, C] float64.

    Raises:
        UserError: As in `combine`.
    """
    shares = _shares(weights)
    return np.stack([_mean(_checked(views), shares, average) for views in as_floats(probabilities, name="views")])


def normalise_weights(weights: Sequence[float] | FloatArray, *, members: int) -> FloatArray:
    """Weights [K] that sum to 1; where the given ones do not, the log says what they became.

    Raises:
        UserError: Not one per member, one is negative or not finite, or all are 0.
    """
    if len(weights) != members:
        raise UserError(f"{len(weights)} weights for {members} members; give one for each")
    shares, total = _shares(weights), float(np.sum(weights))
    if abs(total - 1) > 1e-6:
        _log.warning("the weights sum to %g, not to 1; used: %s", total, ", ".join(f"{share:.4g}" for share in shares))
    return shares


def fit_weights(probabilities: Array, labels: Array, *, average: Average = "probabilities") -> FloatArray:
    """The weights, at least 0 and summing to 1, whose weighted mean has the least log loss; a convex problem.

    Fit them on pages that no member was trained on. A weight per member is little to learn, but it is learned: a score
    on the same pages flatters.

    Args:
        probabilities: [K, N, C] on validation pages.
        labels: [N] class indices.
        average: What will be averaged, as in `combine`.

    Returns:
        [K] float64.

    Raises:
        UserError: Lengths differ, or as in `combine`.
    """
    from scipy.optimize import minimize

    logs = log_probabilities(_checked(probabilities))
    members, pages, classes = logs.shape
    truth = as_labels(labels, classes=classes)
    if len(truth) != pages:
        raise UserError(f"{len(truth)} labels for {pages} pages; give one for each")
    own = logs[:, np.arange(pages), truth]  # [K, N]: each member's log probability of the right class

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        if average == "probabilities":
            right = np.exp(own)
            mixed = np.maximum(weights @ right, _SMALLEST)
            return float(-np.log(mixed).mean()), -(right / mixed).mean(axis=1)
        scores = np.tensordot(weights, logs, axes=1)  # [N, C]
        chances = _softmax(scores)
        gradient = (np.einsum("nc,knc->kn", chances, logs) - own).mean(axis=1)
        return float(-np.log(np.maximum(chances[np.arange(pages), truth], _SMALLEST)).mean()), gradient

    found = minimize(
        loss,
        np.full(members, 1 / members),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 500},
    )
    if not found.success:
        _log.warning("fitting the weights ended early (%s); the best found so far are used", found.message)
    return _shares(np.where(found.x < 1e-6, 0.0, found.x))  # a solver's noise is no vote


def log_probabilities(probabilities: FloatArray) -> FloatArray:
    """Logarithms, finite also where float32 had rounded a probability to 0."""
    logs: FloatArray = np.log(np.maximum(probabilities, _SMALLEST))
    return logs


def _vote(chances: FloatArray) -> FloatArray:
    members, _, classes = chances.shape
    votes = (chances.argmax(axis=2)[..., None] == np.arange(classes)).sum(axis=0)  # [N, C]
    shares: FloatArray = (votes + _TIE_BREAK * chances.mean(axis=0)) / (members + _TIE_BREAK)
    return shares


def _mean(chances: FloatArray, shares: FloatArray, average: Average) -> FloatArray:
    if len(shares) != len(chances):
        raise UserError(f"{len(shares)} weights for {len(chances)} predictions; give one for each")
    if average == "probabilities":
        mean: FloatArray = np.tensordot(shares, chances, axes=1)
        return mean
    return _softmax(np.tensordot(shares, log_probabilities(chances), axes=1))


def _softmax(scores: FloatArray) -> FloatArray:
    raised: FloatArray = np.exp(scores - scores.max(axis=-1, keepdims=True))
    raised /= raised.sum(axis=-1, keepdims=True)
    return raised


def _shares(weights: Sequence[float] | FloatArray) -> FloatArray:
    values = np.asarray(weights, dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(wrong):
        raise UserError(f"weight {wrong[0]} is {values[wrong[0]]:g}; a weight is a number of at least 0")
    if values.sum() <= 0:
        raise UserError("all weights are 0; at least one must be larger")
    shares: FloatArray = values / values.sum()
    return shares


def _checked(probabilities: Array) -> FloatArray:
    array = as_floats(probabilities, name="probabilities")
    if array.ndim != 3 or array.shape[2] < 2:
        raise UserError(f"probabilities have shape {array.shape}, expected [members, pages, classes]")
    members, pages, classes = array.shape
    flat = as_probabilities(array.reshape(members * pages, classes), rows=members * pages)
    return flat.reshape(members, pages, classes)

"""Temperature scaling: one number, fitted on held-out samples, that makes a classifier's confidence honest.

Logits are divided by a temperature before the softmax (Guo et al. 2017, https://arxiv.org/abs/1706.04599). Above 1 it
lowers every confidence, below 1 it raises them; the order of the classes, and with it the accuracy, stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_floats, as_labels
from mlcore.metrics.calibration import expected_calibration_error

__all__ = ["TemperatureFit", "fit_temperature", "measure_temperature", "softmax"]

LOWEST, HIGHEST = 0.05, 20.0
"""Between these a temperature is looked for."""


@dataclass(frozen=True)
class TemperatureFit:
    """What a temperature does to a set of samples.

    Attributes:
        temperature: Above 0.
        samples: N.
        ece_before: Expected calibration error (15 bins) at temperature 1, 0..1.
        ece_after: At `temperature`.
        nll_before: Mean negative log-likelihood at temperature 1, in nats.
        nll_after: At `temperature`.
    """

    temperature: float
    samples: int
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float


def softmax(logits: Array, *, temperature: float = 1.0) -> FloatArray:
    """Probabilities ``[N, C]`` float64 of logits at a temperature.

    Args:
        logits: ``[N, C]``; logarithms of probabilities will do.
        temperature: Above 0.

    Raises:
        UserError: empty, not ``[N, C]`` with at least two classes, or not finite (row named).
    """
    exponent = np.exp(_log_softmax(_logits(logits), temperature))
    probabilities: FloatArray = exponent / exponent.sum(axis=1, keepdims=True)
    return probabilities


def fit_temperature(logits: Array, *, labels: Array) -> float:
    """The temperature that makes held-out samples most likely, between 0.05 and 20.

    The likelihood is concave in 1 / temperature, so that a search along the line finds the only optimum. Where all
    samples are classified rightly there is none (the lower the temperature, the better), and where all logits of each
    sample are equal it makes no difference; both give 1.

    Args:
        logits: ``[N, C]`` of samples that the model was not trained on; logarithms of probabilities will do.
        labels: ``[N]`` class indices, 0..C-1.

    Raises:
        UserError: as `softmax`, or lengths differ, or a label out of range.
    """
    from scipy.optimize import minimize_scalar  # scripts that only train do not pay for the import

    scores, truth = _inputs(logits, labels)
    own = scores[np.arange(len(truth)), truth]
    if np.all(own >= scores.max(axis=1)):  # all are right (or all logits equal): no optimum at a finite temperature
        return 1.0
    found = minimize_scalar(
        lambda exponent: _likelihood(scores, truth, float(np.exp(exponent))),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = float(np.exp(found.x))
    return temperature if float(found.fun) < _likelihood(scores, truth, 1.0) else 1.0


def measure_temperature(logits: Array, *, labels: Array, temperature: float) -> TemperatureFit:
    """Compare a temperature with 1 on a set of samples; on other ones than it was fitted on, that is a fair test.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices, 0..C-1.
        temperature: Above 0, from `fit_temperature`.

    Raises:
        UserError: as `fit_temperature`, or `temperature` is not above 0.
    """
    scores, truth = _inputs(logits, labels)
    before, after = (softmax(scores, temperature=value) for value in (1.0, temperature))
    return TemperatureFit(
        temperature=temperature,
        samples=len(truth),
        ece_before=expected_calibration_error(truth, probabilities=before),
        ece_after=expected_calibration_error(truth, probabilities=after),
        nll_before=_likelihood(scores, truth, 1.0),
        nll_after=_likelihood(scores, truth, temperature),
    )


def _likelihood(scores: FloatArray, truth: IntArray, temperature: float) -> float:
    return float(-_log_softmax(scores, temperature)[np.arange(len(truth)), truth].mean())


def _log_softmax(scores: FloatArray, temperature: float) -> FloatArray:
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}, expected a number above 0")
    shifted = (scores - scores.max(axis=1, keepdims=True)) / temperature
    log_probabilities: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def _inputs(logits: Array, labels: Array) -> tuple[FloatArray, IntArray]:
    scores = _logits(logits)
    truth = as_labels(labels, classes=scores.shape[1])
    if len(truth) != len(scores):
        raise UserError(f"{len(scores)} rows of logits and {len(truth)} labels, expected one label per row")
    return scores, truth


def _logits(values: Array) -> FloatArray:
    scores = as_floats(values, name="logits")
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise UserError(f"logits have shape {scores.shape}, expected [samples, classes] with at least 2 classes")
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        raise UserError(f"logits of {len(broken)} of {len(scores)} samples are not finite (first: row {broken[0]})")
    return scores

"""Stacking (Wolpert 1992): a regression that learns on the members' probabilities how far to trust whom, and for what.

It begins as the plain mean and is held there: scores are the logarithm of the mean, sharpened or softened, plus a
linear function of all members' probabilities whose coefficients are kept small. How small is chosen by cross-validation
over the folds that the predictions come from: the strongest hold whose log loss is no worse than the best one's by more
than the standard error of their difference. Few pages give the decisions of the mean, many those of a free regression.

It is fitted on out-of-fold predictions and nothing else, see `out_of_fold`.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.base.reading import reading
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_floats, as_labels
from quartet.apps.doc_ensemble.ensemble.combine import log_probabilities
from quartet.apps.doc_ensemble.ensemble.out_of_fold import OutOfFold, without_predictions

__all__ = ["STRENGTHS", "Stacker", "fit_stacker", "read_stacker"]

_log = logging.getLogger(__name__)

STRENGTHS = (math.inf, 1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Of the hold, strongest first: half of it times the squared coefficients is added to the summed log loss."""

_FORMAT = "doc_ensemble stacking 2"
_HOLD_OF_SHARPNESS = 1.0  # as of one page: without it, pages that are all right would sharpen without end


@dataclass(frozen=True, kw_only=True)
class Stacker:
    """Scores are `sharpness` * log of the mean + `coefficients` * probabilities + `intercept`; a softmax follows.

    Attributes:
        coefficients: float64 [C, K * C]; column k * C + c is for member k's probability of class c.
        intercept: float64 [C].
        sharpness: At least 0; 1 leaves the mean as it is.
        class_names: C.
        member_names: K, in the order in which their probabilities are expected.
        strength: How strongly coefficients were held at 0; infinite: they are 0.
    """

    coefficients: FloatArray
    intercept: FloatArray
    sharpness: float
    class_names: tuple[str, ...]
    member_names: tuple[str, ...]
    strength: float

    def __post_init__(self) -> None:
        """Raise `UserError` where shapes do not fit together or a value is not finite."""
        members, classes = len(self.member_names), len(self.class_names)
        finite = bool(np.isfinite(self.coefficients).all() and np.isfinite(self.intercept).all())
        finite = finite and 0 <= self.sharpness < math.inf and self.strength > 0
        if self.coefficients.shape != (classes, members * classes) or self.intercept.shape != (classes,) or not finite:
            raise UserError(
                f"a stacking model of {members} members and {classes} classes cannot have coefficients "
                f"{self.coefficients.shape} and intercept {self.intercept.shape}, or values that are not finite"
            )

    def __call__(self, probabilities: Array, *, member_names: Sequence[str], class_names: Sequence[str]) -> FloatArray:
        """Probabilities [N, C] from the members' [K, N, C].

        Raises:
            UserError: Other members, classes, or another order of them than it was fitted on.
        """
        for what, given, own in (
            ("members", tuple(member_names), self.member_names),
            ("classes", tuple(class_names), self.class_names),
        ):
            if given != own:
                raise UserError(f"the stacking model was fitted on the {what} {list(own)}, not on {list(given)}")
        features, mean = _inputs(probabilities)
        return np.exp(_log_softmax(self.sharpness * mean + features @ self.coefficients.T + self.intercept))

    def save(self, path: Path) -> None:
        """Write JSON, all or nothing; every float is written so that it comes back bit by bit.

        Raises:
            UserError: It cannot be written.
        """
        write_json(
            path,
            {
                "format": _FORMAT,
                "class_names": self.class_names,
                "member_names": self.member_names,
                "strength": self.strength if math.isfinite(self.strength) else None,
                "sharpness": self.sharpness,
                "coefficients": self.coefficients.tolist(),
                "intercept": self.intercept.tolist(),
            },
        )


def fit_stacker(data: OutOfFold, *, strengths: Sequence[float] = STRENGTHS) -> Stacker:
    """Fit a stacking model on out-of-fold probabilities.

    Args:
        data: It has refused leaks already.
        strengths: Among these the hold is chosen, strongest first; see `STRENGTHS`.

    Raises:
        UserError: `data` is something else, such as bare validation probabilities, or has no page of a class.
    """
    if not isinstance(data, OutOfFold):
        raise without_predictions(f"a {type(data).__name__} does not tell which pages its models were trained on")
    classes = len(data.class_names)
    labels = as_labels(data.labels, classes=classes)
    absent = sorted(set(range(classes)) - set(labels.tolist()))
    if absent:
        names = ", ".join(repr(data.class_names[index]) for index in absent[:5])
        raise UserError(f"the out-of-fold predictions have no page of {names}; stacking needs pages of every class")
    features, mean = _inputs(data.probabilities)
    strength = strengths[0] if len(strengths) == 1 else _chosen(features, mean, labels, data.folds, strengths)
    solution = _fitted(features, mean, labels, strength=strength)
    return Stacker(
        coefficients=solution.coefficients,
        intercept=solution.intercept,
        sharpness=solution.sharpness,
        class_names=data.class_names,
        member_names=data.member_names,
        strength=strength,
    )


def read_stacker(path: Path) -> Stacker:
    """What `Stacker.save` wrote.

    Raises:
        UserError: It is missing or damaged, or an earlier version wrote it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; method stacking writes it when it is fitted")
    with reading(path, "a stacking model"):
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise UserError(
                f"{path}: written by another version ({values['format']!r}, expected {_FORMAT!r}); repeat the ensemble "
                "experiment, which fits it anew"
            )
        return Stacker(
            coefficients=np.asarray(values["coefficients"], dtype=np.float64),
            intercept=np.asarray(values["intercept"], dtype=np.float64),
            sharpness=float(values["sharpness"]),
            class_names=tuple(map(str, values["class_names"])),
            member_names=tuple(map(str, values["member_names"])),
            strength=math.inf if values["strength"] is None else float(values["strength"]),
        )


@dataclass(frozen=True)
class _Solution:
    """Coefficients [C, D], intercept [C] and sharpness as one vector, as a solver has them."""

    vector: FloatArray
    classes: int

    @property
    def coefficients(self) -> FloatArray:
        return self.vector[: -self.classes - 1].reshape(self.classes, -1)

    @property
    def intercept(self) -> FloatArray:
        return self.vector[-self.classes - 1 : -1]

    @property
    def sharpness(self) -> float:
        return float(self.vector[-1])

    def losses(self, features: FloatArray, mean: FloatArray, labels: IntArray) -> FloatArray:
        """Log loss of each page, in nats."""
        logs = _log_softmax(self.sharpness * mean + features @ self.coefficients.T + self.intercept)
        own: FloatArray = -logs[np.arange(len(labels)), labels]
        return own


def _chosen(
    features: FloatArray, mean: FloatArray, labels: IntArray, folds: IntArray, strengths: Sequence[float]
) -> float:
    """The strength, by cross-validation over the folds of the out-of-fold predictions, which tear no copies apart."""
    losses = np.empty((len(strengths), len(labels)))
    for fold in np.unique(folds):
        inside = folds != fold
        known = None
        for row, strength in enumerate(strengths):
            known = _fitted(features[inside], mean[inside], labels[inside], strength=strength, start=known)
            losses[row, ~inside] = known.losses(features[~inside], mean[~inside], labels[~inside])
    worse = losses - losses[losses.mean(axis=1).argmin()]
    allowed = worse.std(axis=1, ddof=1) / math.sqrt(len(labels))
    row = int((worse.mean(axis=1) <= allowed).argmax())  # the first, and so the strongest
    _log.info(
        "stacking: coefficients are held with strength %g, chosen among %d by cross-validation over %d pages",
        strengths[row], len(strengths), len(labels),
    )  # fmt: skip
    return float(strengths[row])


def _fitted(
    features: FloatArray, mean: FloatArray, labels: IntArray, *, strength: float, start: _Solution | None = None
) -> _Solution:
    """The minimum of a convex function: the summed log loss and what holds coefficients and sharpness.

    Args:
        features: [N, D].
        mean: [N, C] logarithms of the members' mean.
        labels: [N].
        strength: See `STRENGTHS`.
        start: Solution of a like problem.
    """
    from scipy.optimize import minimize

    classes = mean.shape[1]
    truth = np.eye(classes)[labels]
    free = math.isfinite(strength)
    hold = strength if free else 0.0

    def loss(vector: FloatArray) -> tuple[float, FloatArray]:
        at = _Solution(vector, classes)
        logs = _log_softmax(at.sharpness * mean + features @ at.coefficients.T + at.intercept)
        wrong = np.exp(logs) - truth  # [N, C]
        held, off = vector[:-1], at.sharpness - 1
        value = -(truth * logs).sum() + hold / 2 * (held @ held) + _HOLD_OF_SHARPNESS / 2 * off**2
        slopes = [(wrong.T @ features).ravel(), wrong.sum(axis=0)]
        return float(value), np.concatenate(
            [np.concatenate(slopes) + hold * held, [(wrong * mean).sum() + _HOLD_OF_SHARPNESS * off]]
        )

    size = classes * (features.shape[1] + 1)
    begin = np.append(np.zeros(size), 1.0) if start is None else start.vector
    bounds = [(None, None) if free else (0.0, 0.0)] * size + [(0.0, None)]
    found = minimize(
        loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-8}
    )
    return _Solution(np.asarray(found.x, dtype=np.float64), classes)


def _inputs(probabilities: Array) -> tuple[NDArray[np.float64], FloatArray]:
    """The members' probabilities side by side [N, K * C], and the logarithm of their mean [N, C]."""
    array = as_floats(probabilities, name="probabilities")
    if array.ndim != 3 or not np.isfinite(array).all():
        raise UserError(f"stacking needs finite probabilities [members, pages, classes], not {array.shape}")
    return array.transpose(1, 0, 2).reshape(array.shape[1], -1), log_probabilities(array.mean(axis=0))


def _log_softmax(scores: FloatArray) -> FloatArray:
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs

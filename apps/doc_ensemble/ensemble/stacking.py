"""Stacking (Wolpert 1992): a logistic regression that learns on the members' probabilities how far to trust whom.

It is fitted on out-of-fold predictions and nothing else, see `out_of_fold`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.metrics.arrays import Array, FloatArray, as_floats, as_labels
from quartet.apps.doc_ensemble.ensemble.out_of_fold import OutOfFold, without_predictions

__all__ = ["Stacker", "fit_stacker", "read_stacker"]

_FORMAT = "doc_ensemble stacking 1"


@dataclass(frozen=True, kw_only=True)
class Stacker:
    """Multinomial logistic regression on the members' probabilities, side by side.

    Attributes:
        coefficients: float64 [C, K * C]; column k * C + c is for member k's probability of class c.
        intercept: float64 [C].
        class_names: C.
        member_names: K, in the order in which their probabilities are expected.
    """

    coefficients: FloatArray
    intercept: FloatArray
    class_names: tuple[str, ...]
    member_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raise `UserError` where shapes do not fit together or a value is not finite."""
        members, classes = len(self.member_names), len(self.class_names)
        finite = np.isfinite(self.coefficients).all() and np.isfinite(self.intercept).all()
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
        scores = _features(probabilities) @ self.coefficients.T + self.intercept
        raised: FloatArray = np.exp(scores - scores.max(axis=1, keepdims=True))
        raised /= raised.sum(axis=1, keepdims=True)
        return raised

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
                "coefficients": self.coefficients.tolist(),
                "intercept": self.intercept.tolist(),
            },
        )


def fit_stacker(data: OutOfFold, *, inverse_strength: float = 1.0) -> Stacker:
    """Fit scikit-learn's `LogisticRegression` on out-of-fold probabilities.

    Args:
        data: It has refused leaks already.
        inverse_strength: scikit-learn's `C`: the smaller, the closer the coefficients are kept to 0.

    Raises:
        UserError: `data` is something else, such as bare validation probabilities, or has no page of a class.
    """
    from sklearn.linear_model import LogisticRegression

    if not isinstance(data, OutOfFold):
        raise without_predictions(f"a {type(data).__name__} does not tell which pages its models were trained on")
    classes = len(data.class_names)
    labels = as_labels(data.labels, classes=classes)
    absent = sorted(set(range(classes)) - set(labels.tolist()))
    if absent:
        names = ", ".join(repr(data.class_names[index]) for index in absent[:5])
        raise UserError(f"the out-of-fold predictions have no page of {names}; stacking needs pages of every class")
    model = LogisticRegression(C=inverse_strength, max_iter=5000).fit(_features(data.probabilities), labels)
    coefficients, intercept = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if classes == 2:  # scikit-learn keeps the difference of the two only
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercept = np.concatenate([-intercept / 2, intercept / 2])
    return Stacker(
        coefficients=coefficients,
        intercept=intercept,
        class_names=data.class_names,
        member_names=data.member_names,
    )


def read_stacker(path: Path) -> Stacker:
    """What `Stacker.save` wrote.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise UserError(f"{path}: written by another version ({values['format']!r}, expected {_FORMAT!r})")
        return Stacker(
            coefficients=np.asarray(values["coefficients"], dtype=np.float64),
            intercept=np.asarray(values["intercept"], dtype=np.float64),
            class_names=tuple(map(str, values["class_names"])),
            member_names=tuple(map(str, values["member_names"])),
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; method stacking writes it when it is fitted") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a stacking model, or damaged ({error!r})") from None


def _features(probabilities: Array) -> NDArray[np.float64]:
    array = as_floats(probabilities, name="probabilities")
    if array.ndim != 3 or not np.isfinite(array).all():
        raise UserError(f"stacking needs finite probabilities [members, pages, classes], not {array.shape}")
    return array.transpose(1, 0, 2).reshape(array.shape[1], -1)

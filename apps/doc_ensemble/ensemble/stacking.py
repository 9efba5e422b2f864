"""Stacking (Wolpert 1992): a logistic regression that learns on the members' probabilities how far to trust whom.

It may only ever see probabilities of pages that the predicting model was not trained on, or it learns to trust whoever
remembers best. Cross-validation gives them: the model of fold f predicts fold f's pages, which it was trained without.
`FoldPredictions` says which pages a model was trained on, `gather` refuses a model that predicts one of these, and
`OutOfFold` carries on, row by row, which fold the row's model was trained without.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, write_json
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_floats, as_labels, as_probabilities

__all__ = [
    "FoldPredictions",
    "OutOfFold",
    "Stacker",
    "fit_stacker",
    "gather",
    "join_members",
    "read_out_of_fold",
    "read_stacker",
    "without_predictions",
]

_FORMAT = "doc_ensemble stacking 1"
_ARRAYS = ("probabilities", "labels", "folds", "left_out", "pages", "class_names", "member_names")


@dataclass(frozen=True, kw_only=True)
class FoldPredictions:
    """What one model of a cross-validation says of the pages of its fold.

    Attributes:
        member: Which member of the ensemble this is a part of; all of its folds have the same name.
        fold: The fold that it was trained without.
        trained_on: Ids of the pages that it was trained on.
        pages: Ids of the N pages that it predicts.
        probabilities: [N, C].
        labels: [N] class indices.
    """

    member: str
    fold: int
    trained_on: Sequence[str]
    pages: Sequence[str]
    probabilities: Array
    labels: Array


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Probabilities of pages by models that were trained without them.

    Attributes:
        probabilities: float64 [K, N, C].
        labels: int64 [N] class indices.
        folds: int64 [N] the fold that a page is in.
        left_out: int64 [K, N] the fold that the model behind these probabilities was trained without.
        pages: N ids, each once.
        class_names: C.
        member_names: K.
    """

    probabilities: FloatArray
    labels: IntArray
    folds: IntArray
    left_out: IntArray
    pages: tuple[str, ...]
    class_names: tuple[str, ...]
    member_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse rows whose page the model was trained on.

        Raises:
            UserError: There is one, or the shapes do not fit together.
        """
        shape = (len(self.member_names), len(self.pages), len(self.class_names))
        given = (self.probabilities.shape, self.labels.shape, self.folds.shape, self.left_out.shape)
        if given != (shape, shape[1:2], shape[1:2], shape[:2]) or len(set(self.pages)) != shape[1]:
            raise UserError(f"out-of-fold predictions of shapes {given} do not fit members, pages and classes {shape}")
        leaks = np.argwhere(self.left_out != self.folds)
        if len(leaks):
            member, page = leaks[0]
            raise UserError(
                f"{len(leaks)} out-of-fold predictions leak; the first: page {self.pages[page]!r} of fold "
                f"{self.folds[page]} was predicted by the model of {self.member_names[member]!r} that was trained "
                f"without fold {self.left_out[member, page]}, and so with that page; stacking needs the one without it"
            )

    def save(self, path: Path) -> None:
        """Write a .npz file, all or nothing; `read_out_of_fold` reads it.

        Raises:
            UserError: It cannot be written.
        """
        with atomic_write(path) as file:
            np.savez(file, allow_pickle=False, **{name: np.asarray(getattr(self, name)) for name in _ARRAYS})


def gather(predicted_folds: Sequence[FoldPredictions], *, class_names: Sequence[str]) -> OutOfFold:
    """Put the folds of all members together; pages in the order of the first member's folds.

    Raises:
        UserError: A model was trained on a page that it predicts; a page is predicted twice or not at all by some
            member; or members differ in a page's fold or label.
    """
    for part in predicted_folds:
        known = set(part.pages) & set(part.trained_on)
        if known:
            raise UserError(
                f"the model of {part.member!r} for fold {part.fold} was trained on {len(known)} of the pages that it "
                f"is to predict, such as {min(known)!r}; stacking takes out-of-fold predictions only"
            )
    names = tuple(dict.fromkeys(part.member for part in predicted_folds))
    tables = [_by_page([part for part in predicted_folds if part.member == name]) for name in names]
    if not tables:
        raise without_predictions("no fold has been predicted")
    for name, table in zip(names, tables, strict=True):
        odd = table.keys() ^ tables[0].keys() or {p for p in table if table[p][:2] != tables[0][p][:2]}
        if odd:
            raise UserError(
                f"the members {names[0]!r} and {name!r} were not cross-validated alike: page {min(odd)!r} is missing, "
                "or in another fold, or of another class; train them on the same folds (same data, folds and seed)"
            )
    pages = tuple(tables[0])
    folds = np.array([tables[0][page][0] for page in pages], dtype=np.int64)
    return OutOfFold(
        probabilities=np.array([[table[page][2] for page in pages] for table in tables], dtype=np.float64),
        labels=np.array([tables[0][page][1] for page in pages], dtype=np.int64),
        folds=folds,
        left_out=np.array([[table[page][0] for page in pages] for table in tables], dtype=np.int64),
        pages=pages,
        class_names=tuple(class_names),
        member_names=names,
    )


def _by_page(parts: Sequence[FoldPredictions]) -> dict[str, tuple[int, int, FloatArray]]:
    """Fold, label and probabilities of each page, by one member."""
    table: dict[str, tuple[int, int, FloatArray]] = {}
    for part in parts:
        labels = as_labels(part.labels)
        chances = as_probabilities(part.probabilities, rows=len(labels))
        for page, label, row in zip(part.pages, labels.tolist(), chances, strict=True):
            if page in table:
                raise UserError(f"page {page!r} is in folds {table[page][0]} and {part.fold} of {part.member!r}")
            table[page] = (part.fold, label, row)
    return table


def join_members(parts: Sequence[OutOfFold], *, member_names: Sequence[str]) -> OutOfFold:
    """Out-of-fold predictions of several cross-validations, of one member each, as those of one ensemble.

    Args:
        parts: [K], each of a single member.
        member_names: [K] what the members are called from here on.

    Raises:
        UserError: They have other classes, pages, folds or labels, or none is given.
    """
    if not parts:
        raise without_predictions("no cross-validation is given")
    predicted_folds = []
    for name, part in zip(member_names, parts, strict=True):
        if part.class_names != parts[0].class_names:
            raise UserError(
                f"the cross-validations of {member_names[0]!r} and {name!r} have other classes, or another order of "
                f"them: {list(parts[0].class_names)} and {list(part.class_names)}"
            )
        for fold in np.unique(part.folds).tolist():
            rows = np.flatnonzero(part.folds == fold)
            predicted_folds.append(
                FoldPredictions(
                    member=name,
                    fold=fold,
                    trained_on=[part.pages[row] for row in np.flatnonzero(part.left_out[0] != fold)],
                    pages=[part.pages[row] for row in rows],
                    probabilities=part.probabilities[0, rows],
                    labels=part.labels[rows],
                )
            )
    return gather(predicted_folds, class_names=parts[0].class_names)


def read_out_of_fold(path: Path) -> OutOfFold:
    """What `OutOfFold.save` wrote; nothing in the file is executed.

    Raises:
        UserError: It is missing (the message says how to make it) or damaged, or its rows leak.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except FileNotFoundError:
        raise without_predictions(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: not a file of out-of-fold predictions, or damaged ({error})") from None
    return OutOfFold(
        probabilities=arrays["probabilities"].astype(np.float64),
        labels=arrays["labels"].astype(np.int64),
        folds=arrays["folds"].astype(np.int64),
        left_out=arrays["left_out"].astype(np.int64),
        pages=tuple(map(str, arrays["pages"])),
        class_names=tuple(map(str, arrays["class_names"])),
        member_names=tuple(map(str, arrays["member_names"])),
    )


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


def without_predictions(reason: str) -> UserError:
    """The error of method stacking without out-of-fold predictions; it says how to make them."""
    return UserError(
        f"method stacking needs out-of-fold predictions, and {reason}. Cross-validate the members (kfold.folds: 5, "
        "with the same data and seed for each): every fold's model then predicts the pages that it was trained without"
    )

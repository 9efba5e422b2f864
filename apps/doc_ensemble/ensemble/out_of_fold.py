"""Out-of-fold predictions: probabilities of pages by models that were trained without them.

Stacking may only ever see these, or it learns to trust whoever remembers best. Cross-validation gives them: the model
of fold f predicts fold f's pages, which it was trained without. `FoldPredictions` says which pages a model was trained
on, `gather` refuses a model that predicts one of these, whatever its file is called, and `OutOfFold` carries on, row by
row, which fold the row's model was trained without.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write
from mlcore.base.reading import reading
from mlcore.data.packed import read_arrays
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_labels, as_probabilities

__all__ = ["FoldPredictions", "OutOfFold", "gather", "join_members", "read_out_of_fold", "without_predictions"]

_Key = tuple[str, int]
_Said = tuple[int, int, FloatArray, str]
"""Fold, label, probabilities [C] and name of a page."""
_ARRAYS = ("probabilities", "labels", "folds", "left_out", "pages", "class_names", "member_names")
_DIGESTS = "digests"  # older files have none


@dataclass(frozen=True, kw_only=True)
class FoldPredictions:
    """What one model of a cross-validation says of the pages of its fold.

    Attributes:
        member: Which member of the ensemble this is a part of; all of its folds have the same name.
        fold: The fold that it was trained without.
        trained_on: Digests of the pages that it was trained on; without `digests`, their names.
        pages: Names of the N pages that it predicts.
        probabilities: [N, C].
        labels: [N] class indices.
        digests: [N] of their content, by which pages are known however their paths are spelled; None: they are known
            by their names, as in older files.
    """

    member: str
    fold: int
    trained_on: Sequence[str]
    pages: Sequence[str]
    probabilities: Array
    labels: Array
    digests: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Probabilities of pages by models that were trained without them.

    Attributes:
        probabilities: float64 [K, N, C].
        labels: int64 [N] class indices.
        folds: int64 [N] the fold that a page is in.
        left_out: int64 [K, N] the fold that the model behind these probabilities was trained without.
        pages: N names, each once.
        class_names: C.
        member_names: K.
        digests: N, of the pages' content; None: not known (older files).
    """

    probabilities: FloatArray
    labels: IntArray
    folds: IntArray
    left_out: IntArray
    pages: tuple[str, ...]
    class_names: tuple[str, ...]
    member_names: tuple[str, ...]
    digests: tuple[str, ...] | None = None

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
        names = _ARRAYS if self.digests is None else (*_ARRAYS, _DIGESTS)
        with atomic_write(path) as file:
            np.savez(file, allow_pickle=False, **{name: np.asarray(getattr(self, name)) for name in names})


def gather(predicted_folds: Sequence[FoldPredictions], *, class_names: Sequence[str]) -> OutOfFold:
    """Put the folds of all members together; pages in the order of the first member's folds.

    Raises:
        UserError: A model was trained on a page that it predicts; a page is predicted twice or not at all by some
            member; or members differ in a page's fold or label.
    """
    for part in predicted_folds:
        trained_on = set(part.trained_on)
        known = [page for page, content in zip(part.pages, _contents(part), strict=True) if content in trained_on]
        if known:
            raise UserError(
                f"the model of {part.member!r} for fold {part.fold} was trained on {len(known)} of the pages that it "
                f"is to predict, such as {min(known)!r}; stacking takes out-of-fold predictions only"
            )
    names = tuple(dict.fromkeys(part.member for part in predicted_folds))
    by_name = any(part.digests is None for part in predicted_folds)
    tables = [_by_page([part for part in predicted_folds if part.member == name], by_name=by_name) for name in names]
    if not tables:
        raise without_predictions("no fold has been predicted")
    for name, table in zip(names, tables, strict=True):
        odd = table.keys() ^ tables[0].keys() or {p for p in table if table[p][:2] != tables[0][p][:2]}
        if odd:
            raise UserError(
                f"the members {names[0]!r} and {name!r} were not cross-validated alike: page "
                f"{_name_of(min(odd), tables[0], table)!r} is missing, or in another fold, or of another class; train "
                "them on the same folds (same data, kfold.folds and data.split_seed)"
            )
    pages = tuple(tables[0])
    folds = np.array([tables[0][page][0] for page in pages], dtype=np.int64)
    return OutOfFold(
        probabilities=np.array([[table[page][2] for page in pages] for table in tables], dtype=np.float64),
        labels=np.array([tables[0][page][1] for page in pages], dtype=np.int64),
        folds=folds,
        left_out=np.array([[table[page][0] for page in pages] for table in tables], dtype=np.int64),
        pages=tuple(tables[0][page][3] for page in pages),
        class_names=tuple(class_names),
        member_names=names,
        digests=None if by_name else tuple(content for content, _ in pages),
    )


def _contents(part: FoldPredictions) -> Sequence[str]:
    """What each page of a part is known by."""
    return part.pages if part.digests is None else part.digests


def _by_page(parts: Sequence[FoldPredictions], *, by_name: bool) -> dict[_Key, _Said]:
    """What one member says of each page, by its content (or name) and its place among those of the same content.

    Pages of one content are in one fold, so that there is no telling them apart, and no need to.
    """
    table: dict[_Key, _Said] = {}
    for part in parts:
        labels = as_labels(part.labels)
        chances = as_probabilities(part.probabilities, rows=len(labels))
        contents = part.pages if by_name else _contents(part)
        met: Counter[str] = Counter()
        for page, content, label, row in zip(part.pages, contents, labels.tolist(), chances, strict=True):
            key = (content, met[content])
            if key in table:
                raise UserError(f"page {page!r} is in folds {table[key][0]} and {part.fold} of {part.member!r}")
            table[key] = (part.fold, label, row, page)
            met[content] += 1
    return table


def _name_of(key: _Key, *tables: Mapping[_Key, _Said]) -> str:
    return next(table[key][3] for table in tables if key in table)


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
            contents = part.pages if part.digests is None else part.digests
            predicted_folds.append(
                FoldPredictions(
                    member=name,
                    fold=fold,
                    trained_on=[contents[row] for row in np.flatnonzero(part.left_out[0] != fold)],
                    pages=[part.pages[row] for row in rows],
                    digests=None if part.digests is None else [part.digests[row] for row in rows],
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
    if not path.exists():
        raise without_predictions(f"{path} does not exist")
    arrays = read_arrays(path)
    with reading(path, "a file of out-of-fold predictions"):
        return OutOfFold(
            probabilities=arrays["probabilities"].astype(np.float64),
            labels=arrays["labels"].astype(np.int64),
            folds=arrays["folds"].astype(np.int64),
            left_out=arrays["left_out"].astype(np.int64),
            pages=tuple(map(str, arrays["pages"])),
            class_names=tuple(map(str, arrays["class_names"])),
            member_names=tuple(map(str, arrays["member_names"])),
            digests=tuple(map(str, arrays[_DIGESTS])) if _DIGESTS in arrays else None,
        )


def without_predictions(reason: str) -> UserError:
    """The error of method stacking without out-of-fold predictions; it says how to make them."""
    return UserError(
        f"method stacking needs out-of-fold predictions, and {reason}. Cross-validate the members (kfold.folds: 5, "
        "with the same data and data.split_seed for each): every fold's model then predicts the pages "
        "that it was trained without"
    )

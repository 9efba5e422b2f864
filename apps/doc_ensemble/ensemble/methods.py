"""All ways to combine the members' votes, side by side, each evaluated on pages that it was not fitted on.

Weights and selections are fitted on the validation pages. Their figures of the test pages are fair; their figures of
the validation pages come from cross-fitting: fitted on one half, evaluated on the other, and the other way round.
Stacking is fitted on out-of-fold predictions of the training pages, and the rest is not fitted at all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.seeding import numpy_rng
from mlcore.metrics.arrays import FloatArray, IntArray
from quartet.apps.doc_ensemble.config import EnsembleConfig
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.ensemble import combine as combining
from quartet.apps.doc_ensemble.ensemble.combine import Average, average_views, combine
from quartet.apps.doc_ensemble.ensemble.selection import fast_macro_f1, log_loss, select
from quartet.apps.doc_ensemble.ensemble.stacking import Stacker

__all__ = [
    "Alone",
    "Combined",
    "CrossFitted",
    "Method",
    "Outcome",
    "Rule",
    "Stacked",
    "Votes",
    "apply_methods",
    "best_member",
    "chosen_method",
    "cross_fit",
    "halves",
    "is_voting",
    "member_methods",
    "methods_of",
]

Kind = Literal["member", "ensemble"]


class Rule(Protocol):
    """The members' probabilities [K, N, C] to the ensemble's, [N, C]."""

    def __call__(self, chances: FloatArray, /) -> FloatArray:
        """Combine them."""


@dataclass(frozen=True)
class Alone:
    """One member."""

    index: int

    def __call__(self, chances: FloatArray, /) -> FloatArray:
        """Its probabilities."""
        own: FloatArray = chances[self.index]
        return own


@dataclass(frozen=True)
class Combined:
    """`combine.combine` with fixed arguments."""

    method: combining.Method
    average: Average = "probabilities"
    weights: tuple[float, ...] | None = None

    def __call__(self, chances: FloatArray, /) -> FloatArray:
        """The combined probabilities."""
        return combine(chances, method=self.method, weights=self.weights, average=self.average)


@dataclass(frozen=True)
class Stacked:
    """A stacking model."""

    stacker: Stacker

    def __call__(self, chances: FloatArray, /) -> FloatArray:
        """What the model makes of the probabilities."""
        return self.stacker(chances, member_names=self.stacker.member_names, class_names=self.stacker.class_names)


@dataclass(frozen=True)
class CrossFitted:
    """Two rules for the validation pages, each for the half that it was not fitted on.

    Attributes:
        half: bool [N] which half a page is in.
        rules: For the pages of half False, and of half True.
    """

    half: NDArray[np.bool_]
    rules: tuple[Rule, Rule]

    def __call__(self, chances: FloatArray, /) -> FloatArray:
        """Each half by the other half's rule."""
        mixed = np.empty(chances.shape[1:])
        for side, rule in zip((False, True), self.rules, strict=True):
            rows = self.half == side
            mixed[rows] = rule(chances[:, rows])
        return mixed


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to decide.

    Attributes:
        name: For tables.
        kind: A member alone, or several together.
        fit: From probabilities [K, N, C] and labels [N] of validation pages to the rule.
        learns: Whether `fit` looks at them; otherwise the rule is the same for all.
    """

    name: str
    fit: Callable[[FloatArray, IntArray], Rule]
    kind: Kind = "ensemble"
    learns: bool = False


@dataclass(frozen=True, kw_only=True)
class Votes:
    """What the members say of the pages of one split.

    Attributes:
        split: "val" or "test".
        pages: N.
        labels: int64 [N].
        by_view: [K, V, N, C]; the first view is the page as it is.
    """

    split: str
    pages: Sequence[Page]
    labels: IntArray
    by_view: FloatArray

    def chances(self, view_weights: FloatArray | None) -> FloatArray:
        """[K, N, C] of the pages as they are (None), or the mean over the views."""
        if view_weights is None:
            return self.by_view[:, 0]
        return average_views(self.by_view, weights=view_weights)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method makes of a split.

    Attributes:
        method: The method.
        tta: Whether the views were averaged.
        split: "val" or "test".
        rule: For these pages; where it is `CrossFitted`, for no others.
        fitted: Fitted on all validation pages: the rule to use from here on.
        probabilities: [N, C].
        accuracy: 0..1.
        macro_f1: 0..1.
        log_loss: In nats; None for votes, whose shares are 0 wherever no member is right.
    """

    method: Method
    tta: bool
    split: str
    rule: Rule
    fitted: Rule
    probabilities: FloatArray
    accuracy: float
    macro_f1: float
    log_loss: float | None

    @property
    def evaluated_on(self) -> str:
        """For tables: which pages the figures are of, and how the rule came about."""
        words = {"val": "validation", "test": "test"}[self.split]
        return f"{words}, cross-fitted" if isinstance(self.rule, CrossFitted) else words


def member_methods(names: Sequence[str]) -> list[Method]:
    """Each member alone."""
    return [_fixed(name, Alone(index), kind="member") for index, name in enumerate(names)]


def methods_of(settings: EnsembleConfig, *, shares: Sequence[float], stacker: Stacker | None) -> list[Method]:
    """The ways to decide together, the configured one among them (`chosen_method` tells its name).

    Args:
        settings: What is averaged in weighted means.
        shares: [K] the members' configured weights, normalised.
        stacker: Fitted on out-of-fold predictions; None where there are none.
    """
    average, given = settings.average, tuple(shares)
    found = [
        _fixed("voting", Combined("voting")),
        _fixed("averaging of probabilities", Combined("averaging", "probabilities")),
        _fixed("averaging of logits", Combined("averaging", "logits")),
    ]
    if settings.method == "weighted" or len(set(given)) > 1:
        found.append(_fixed("weighted, as given", Combined("weighted", average, given)))

    def weigh(chances: FloatArray, labels: IntArray) -> Rule:
        return Combined("weighted", average, tuple(combining.fit_weights(chances, labels, average=average)))

    def choose(chances: FloatArray, labels: IntArray) -> Rule:
        return Combined("weighted", "probabilities", tuple(select(chances, labels).weights(len(chances))))

    found.append(Method(name="weighted, fitted", fit=weigh, learns=True))
    found.append(Method(name="greedy selection", fit=choose, learns=True))
    if stacker is not None:
        found.append(_fixed("stacking", Stacked(stacker)))
    return found


def chosen_method(settings: EnsembleConfig) -> str:
    """Name of the configured method in `methods_of`."""
    match settings.method:
        case "averaging":
            return f"averaging of {settings.average}"
        case "weighted":
            return "weighted, fitted" if settings.fit_weights else "weighted, as given"
    return settings.method


def apply_methods(
    methods: Sequence[Method], votes: Mapping[str, Votes], *, view_weights: FloatArray | None, seed: int
) -> list[Outcome]:
    """Every method on every split, without views and (where there are any) with them.

    Args:
        methods: `member_methods`, `methods_of`.
        votes: By split; "val", and "test" where there is one.
        view_weights: [V]; None: only the pages as they are.
        seed: Draws the halves of the validation pages.

    Raises:
        UserError: Too few validation pages to fit on one half and evaluate the other.
    """
    learns = any(method.learns for method in methods)
    half = halves(votes["val"].pages, seed=seed) if learns else np.zeros(0, dtype=bool)
    found = []
    for weights in (None, view_weights)[: 1 if view_weights is None else 2]:
        chances = {split: said.chances(weights) for split, said in votes.items()}
        for method in methods:
            fitted = method.fit(chances["val"], votes["val"].labels)
            crossed = cross_fit(method, chances["val"], votes["val"].labels, half) if method.learns else fitted
            for split, said in votes.items():
                rule = crossed if split == "val" else fitted
                found.append(
                    _outcome(method, said, rule(chances[split]), rules=(rule, fitted), tta=weights is not None)
                )
    return found


def best_member(outcomes: Sequence[Outcome]) -> str:
    """Name of the member with the best macro F1 on the validation pages as they are; of equal ones, less log loss."""
    members = [o for o in outcomes if o.method.kind == "member" and not o.tta and o.split == "val"]
    return max(members, key=lambda outcome: (outcome.macro_f1, -(outcome.log_loss or 0.0))).method.name


def halves(pages: Sequence[Page], *, seed: int) -> NDArray[np.bool_]:
    """Deal validation pages to two halves of the same mixture of classes; pages of one group or file stay together.

    Where that would leave a half empty, single pages are dealt.

    Returns:
        bool [N].

    Raises:
        UserError: There are less than two pages.
    """
    if len(pages) < 2:
        raise UserError(f"{len(pages)} validation page(s): weights and selections need at least two, better hundreds")
    half = _dealt([page.bundle for page in pages], pages, seed=seed)
    return half if 0 < half.sum() < len(half) else _dealt([page.key for page in pages], pages, seed=seed)


def _dealt(bundles: Sequence[str], pages: Sequence[Page], *, seed: int) -> NDArray[np.bool_]:
    rows: dict[str, list[int]] = {}
    for row, bundle in enumerate(bundles):
        rows.setdefault(bundle, []).append(row)
    groups = list(rows.values())
    half = np.zeros(len(pages), dtype=bool)
    sizes: dict[tuple[int | None, bool], int] = {}
    totals = [0, 0]
    for place in numpy_rng(seed, len(groups)).permutation(len(groups)):
        label = pages[groups[place][0]].label
        side = min((False, True), key=lambda s: (sizes.get((label, s), 0), totals[s]))
        half[groups[place]] = side
        sizes[label, side] = sizes.get((label, side), 0) + len(groups[place])
        totals[side] += len(groups[place])
    return half


def is_voting(rule: Rule) -> bool:
    """Whether what a rule gives are shares of votes, no probabilities."""
    return isinstance(rule, Combined) and rule.method == "voting"


def _fixed(name: str, rule: Rule, *, kind: Kind = "ensemble") -> Method:
    return Method(name=name, fit=lambda _chances, _labels: rule, kind=kind)


def cross_fit(method: Method, chances: FloatArray, labels: IntArray, half: NDArray[np.bool_]) -> CrossFitted:
    """What is fitted on one half (see `halves`) combines the other."""
    first, second = (method.fit(chances[:, half == side], labels[half == side]) for side in (True, False))
    return CrossFitted(half, (first, second))


def _outcome(
    method: Method, votes: Votes, probabilities: FloatArray, *, rules: tuple[Rule, Rule], tta: bool
) -> Outcome:
    predicted = probabilities.argmax(axis=1)
    return Outcome(
        method=method,
        tta=tta,
        split=votes.split,
        rule=rules[0],
        fitted=rules[1],
        probabilities=probabilities,
        accuracy=float((predicted == votes.labels).mean()),
        macro_f1=fast_macro_f1(predicted, votes.labels, classes=probabilities.shape[1]),
        log_loss=None if is_voting(rules[1]) else log_loss(probabilities, votes.labels),
    )

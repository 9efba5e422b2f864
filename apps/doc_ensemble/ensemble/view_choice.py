"""Which views of a page help: chosen on the validation pages, by the figures that also tell the best member.

Begin with the page as it is; add, step after step, the view that makes the method best: in macro F1, at equal ones in
log loss. It has to help on both halves of the validation pages, so that what helps some pages by chance is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlcore.metrics.arrays import FloatArray, IntArray
from quartet.apps.doc_ensemble.ensemble.methods import Method, Votes, cross_fit, halves, is_voting
from quartet.apps.doc_ensemble.ensemble.selection import fast_macro_f1, log_loss
from quartet.apps.doc_ensemble.ensemble.views import View

__all__ = ["Judgement", "ViewChoice", "choose_views"]

_LEAST = 1e-3  # nats; a smaller difference of log loss is none


@dataclass(frozen=True)
class Judgement:
    """How good a method is with some views: macro F1 and log loss (0 of votes) of all validation pages and of halves.

    Attributes:
        macro_f1: Of all, and of either half.
        log_loss: Likewise.
    """

    macro_f1: tuple[float, float, float]
    log_loss: tuple[float, float, float]

    def better_than(self, other: "Judgement") -> bool:
        """Whether it is on all pages and on both halves."""
        f1 = np.subtract(self.macro_f1, other.macro_f1)
        loss = np.subtract(other.log_loss, self.log_loss)
        return bool(np.where(np.abs(f1) > 1e-12, f1 > 0, loss > _LEAST).all())


@dataclass(frozen=True, kw_only=True)
class ViewChoice:
    """What was chosen.

    Attributes:
        views: V, of which the first is the page as it is.
        chosen: Places of those that count, ascending; the first is among them.
        plain: The method on the page as it is.
        tried: For each view, in their order, the method with it: of a chosen one when it was added, of another beside
            all that were chosen; `plain` of the first.
        together: The method with all views.
    """

    views: tuple[View, ...]
    chosen: tuple[int, ...]
    plain: Judgement
    tried: tuple[Judgement, ...]
    together: Judgement

    @property
    def names(self) -> list[str]:
        """Of the chosen views."""
        return [self.views[place].name for place in self.chosen]


def choose_views(method: Method, votes: Votes, *, views: Sequence[View], seed: int) -> ViewChoice:
    """Choose the views with which a method is best.

    Args:
        method: The one whose decisions are meant; what it learns is cross-fitted.
        votes: Of the validation pages.
        views: V of `votes.by_view`.
        seed: Draws the halves.

    Raises:
        UserError: There are less than two pages.
    """
    half = halves(votes.pages, seed=seed)
    weights = np.array([view.weight for view in views])

    def judged(places: Sequence[int]) -> Judgement:
        some = Votes(
            split=votes.split, pages=votes.pages, labels=votes.labels, by_view=votes.by_view[:, sorted(places)]
        )
        chances = some.chances(weights[sorted(places)] if len(places) > 1 else None)
        return _judged(method, chances, votes.labels, half)

    plain = now = judged([0])
    chosen, tried = [0], {0: plain}
    while left := [place for place in range(len(views)) if place not in chosen]:
        found = {place: judged([*chosen, place]) for place in left}
        tried |= found
        helpful = [place for place in left if found[place].better_than(now)]
        if not helpful:
            break
        best = max(helpful, key=lambda place: (found[place].macro_f1[0], -found[place].log_loss[0]))
        chosen, now = [*chosen, best], found[best]
    return ViewChoice(
        views=tuple(views),
        chosen=tuple(sorted(chosen)),
        plain=plain,
        tried=tuple(tried[place] for place in range(len(views))),
        together=judged(range(len(views))),
    )


def _judged(method: Method, chances: FloatArray, labels: IntArray, half: NDArray[np.bool_]) -> Judgement:
    rule = cross_fit(method, chances, labels, half) if method.learns else method.fit(chances, labels)
    votes = not method.learns and is_voting(rule)
    answers = rule(chances)
    scores = [
        (
            fast_macro_f1(answers[rows].argmax(axis=1), labels[rows], classes=answers.shape[1]),
            0.0 if votes else log_loss(answers[rows], labels[rows]),
        )
        for rows in (np.full(len(half), fill_value=True), ~half, half)
    ]
    f1, loss = zip(*scores, strict=True)
    return Judgement(f1, loss)

"""Which views of a page help: chosen on the validation pages, by the figures that also tell the best member.

Begin with the page as it is; add, step after step, the view that makes the method best: in macro F1, at equal ones in
log loss. It has to help on both halves of the validation pages, so that what helps some pages by chance is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlcore.metrics.arrays import FloatArray, IntArray
from quartet.apps.doc_ensemble.ensemble.combine import average_views
from quartet.apps.doc_ensemble.ensemble.methods import Method, Votes, cross_fit, halves, is_voting
from quartet.apps.doc_ensemble.ensemble.selection import fast_macro_f1, log_loss
from quartet.apps.doc_ensemble.ensemble.views import View

__all__ = ["ViewChoice", "better", "choose_views"]

_LEAST = 1e-3  # nats; a smaller difference of log loss is none


@dataclass(frozen=True, kw_only=True)
class ViewChoice:
    """What was chosen; figures are macro F1 and log loss (0 of votes), of all validation pages and of halves, [3, 2].

    Attributes:
        views: V, of which the first is the page as it is.
        chosen: Places of those that count, ascending; the first is among them.
        tried: [V, 3, 2] the method with each view: a chosen one when it was added, another beside all that were chosen;
            the first: the page as it is.
        together: The method with all views.
    """

    views: tuple[View, ...]
    chosen: tuple[int, ...]
    tried: FloatArray
    together: FloatArray

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
    half, weights = halves(votes.pages, seed=seed), np.array([view.weight for view in views])

    def judged(places: Sequence[int]) -> FloatArray:
        kept = sorted(places)
        chances = average_views(votes.by_view[:, kept], weights=weights[kept])
        return _judged(method, chances, votes.labels, half)

    chosen, tried = [0], {0: judged([0])}
    while left := [place for place in range(len(views)) if place not in chosen]:
        now = tried[chosen[-1]]
        tried |= {place: judged([*chosen, place]) for place in left}
        helpful = [place for place in left if better(tried[place], now)]
        if not helpful:
            break
        chosen.append(max(helpful, key=lambda place: (tried[place][0, 0], -tried[place][0, 1])))
    return ViewChoice(
        views=tuple(views),
        chosen=tuple(sorted(chosen)),
        tried=np.stack([tried[place] for place in range(len(views))]),
        together=judged(range(len(views))),
    )


def better(new: FloatArray, old: FloatArray) -> bool:
    """Whether figures [3, 2] are better than others on all pages and on both halves."""
    gained, lost = (new - old).T
    return bool(np.where(np.abs(gained) > 1e-12, gained > 0, lost < -_LEAST).all())


def _judged(method: Method, chances: FloatArray, labels: IntArray, half: NDArray[np.bool_]) -> FloatArray:
    rule = cross_fit(method, chances, labels, half) if method.learns else method.fit(chances, labels)
    answers = rule(chances)

    def figures(rows: NDArray[np.bool_]) -> tuple[float, float]:
        f1 = fast_macro_f1(answers[rows].argmax(axis=1), labels[rows], classes=answers.shape[1])
        return f1, 0.0 if is_voting(rule) else log_loss(answers[rows], labels[rows])

    return np.array([figures(rows) for rows in (half | True, ~half, half)])

"""Which views of a page help: chosen on the validation pages, by the figures that also tell the best member.

Begin with the page as it is; add, step after step, the view that makes the method best: in macro F1, and where no
decision changes in log loss. Each step has to gain more than chance does: the 95 % interval of its gain lies above 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlcore.metrics.arrays import FloatArray, IntArray
from mlcore.metrics.ranking import bootstrap_interval
from mlcore.metrics.resampled import resampled_macro_f1
from quartet.apps.doc_ensemble.ensemble.combine import average_views
from quartet.apps.doc_ensemble.ensemble.methods import Method, Votes, cross_fit, halves, is_voting
from quartet.apps.doc_ensemble.ensemble.selection import fast_macro_f1, log_loss
from quartet.apps.doc_ensemble.ensemble.views import View

__all__ = ["ViewChoice", "choose_views"]


@dataclass(frozen=True, kw_only=True)
class ViewChoice:
    """What was chosen.

    Attributes:
        views: V, of which the first is the page as it is.
        chosen: Places of those that count, ascending; the first is among them.
        figures: [V + 1, 4] macro F1, log loss (NaN of votes), and the 95 % interval of the gain (NaN where nothing
            differs) of the page as it is; of each view beside those taken before it, or all that were; of all views.
    """

    views: tuple[View, ...]
    chosen: tuple[int, ...]
    figures: FloatArray

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
    labels, units = votes.labels, [page.bundle for page in votes.pages]

    def answers(places: Sequence[int]) -> FloatArray:
        kept = sorted(places)
        chances = average_views(votes.by_view[:, kept], weights=weights[kept])
        return (cross_fit(method, chances, labels, half) if method.learns else method.fit(chances, labels))(chances)

    def figures(new: FloatArray, old: FloatArray) -> list[float]:
        f1 = fast_macro_f1(new.argmax(axis=1), labels, classes=new.shape[1])
        loss = float("nan") if is_voting(method.fit(votes.by_view[:, 0], labels)) else log_loss(new, labels)
        return [f1, loss, *_gain(new, old, labels, units=units)]

    now = plain = answers([0])
    chosen, tried = [0], {0: figures(plain, plain)}
    while left := [place for place in range(len(views)) if place not in chosen]:
        found = {place: answers([*chosen, place]) for place in left}
        tried |= {place: figures(new, now) for place, new in found.items()}
        helpful = [place for place in left if tried[place][2] > 0]
        if not helpful:
            break
        chosen.append(max(helpful, key=lambda place: (tried[place][0], -tried[place][1])))
        now = found[chosen[-1]]
    together = figures(answers(range(len(views))), plain)
    rows = np.array([*(tried[place] for place in range(len(views))), together])
    return ViewChoice(views=tuple(views), chosen=tuple(sorted(chosen)), figures=rows)


def _gain(new: FloatArray, old: FloatArray, labels: IntArray, *, units: Sequence[str]) -> tuple[float, float]:
    """The 95 % interval of what some answers [N, C] gain over others: macro F1, or, with equal decisions, log loss."""
    guess, before, classes = new.argmax(axis=1), old.argmax(axis=1), new.shape[1]
    rows = np.arange(len(labels))
    less = np.log(np.maximum(new[rows, labels], 1e-12)) - np.log(np.maximum(old[rows, labels], 1e-12))

    def gained(times: IntArray) -> float:
        if (guess == before).all():
            return float(np.average(less, weights=times))
        f1, was = (resampled_macro_f1(labels, one, times=times, classes=classes) for one in (guess, before))
        return f1 - was

    return bootstrap_interval(gained, units=units)

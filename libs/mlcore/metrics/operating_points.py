"""Where to decide: thresholds chosen on held-out scores, what they give, and how sure that is.

A score from the threshold on is taken (``>=``); samples of one score are taken together. A threshold lies a hair below
the score that it was chosen for (at most 1e-5, and above the next score), so that it goes on deciding alike on scores
that differ in rounding: another batch, device or exported model. Its figures on the data that it was chosen on are
better than on others, and intervals say nothing of that: look at data that took no part.

Intervals are Wilson's (1927, J. Am. Stat. Assoc. 22), at 95 %; they hold for a threshold that is not of the same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_labels, as_probabilities
from mlcore.metrics.ranking import Interval

__all__ = [
    "Kept",
    "OperatingPoint",
    "Rate",
    "at_fpr",
    "at_precision",
    "at_recall",
    "best_f1",
    "measure_kept",
    "measure_point",
    "reject_below",
    "three_zones",
    "wilson_interval",
]

_HAIR = 1e-5  # what rounding may change in a probability between formats, generously


class Rate(NamedTuple):
    """A share of counted samples.

    Attributes:
        hits: Those that count.
        of: All; 0 makes the share undefined.
    """

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share, 0..1; NaN of none."""
        return self.hits / self.of if self.of else float("nan")

    @property
    def interval(self) -> Interval:
        """Its 95 % interval; NaN of none."""
        return wilson_interval(self.hits, self.of)

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.hits:,} of {self.of:,})" if self.of else "undefined (of none)"


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A decision between two classes, and what it gives on some data.

    Attributes:
        threshold: Scores from here on are taken for class 1; infinite: none is.
        lower: Scores below are taken for class 0; what lies between is left to a person. `threshold` where nothing is.
        true_positives: Right decisions for class 1; with the other three, counts of right and wrong ones.
        positives: All of class 1, those left to a person included; `samples` are all there are.
        shortfall: Why what was asked for is not reached; empty where it is, or nothing was asked.
    """

    threshold: float
    lower: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    positives: int
    samples: int
    shortfall: str = ""

    def rates(self) -> dict[str, Rate]:
        """Precision, recall, FPR (false-positive rate), NPV (negative predictive value), and shares of all samples.

        Those left to a person are missed in the recall, and are no false positives.
        """
        taken, left = self.true_positives + self.false_positives, self.true_negatives + self.false_negatives
        return {
            "precision": Rate(self.true_positives, taken),
            "recall": Rate(self.true_positives, self.positives),
            "fpr": Rate(self.false_positives, self.samples - self.positives),
            "npv": Rate(self.true_negatives, left),
            "accepted": Rate(taken, self.samples),
            "reviewed": Rate(self.samples - taken - left, self.samples),
            "rejected": Rate(left, self.samples),
        }

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN without positives and without anything taken for one."""
        total = self.positives + self.true_positives + self.false_positives
        return 2 * self.true_positives / total if total else float("nan")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which predictions of a classifier are kept, and how often those are right; the rest is left to a person.

    Attributes:
        least: ``[C]`` least probability of a predicted class that is kept; infinite: never.
        right: Right ones of all that are kept: the precision of what is kept.
        kept: Share of all samples.
        by_class: ``right`` of each predicted class.
        shortfall: Why what was asked for is not reached; empty where it is.
    """

    least: FloatArray
    right: Rate
    kept: Rate
    by_class: tuple[Rate, ...]
    shortfall: str = ""


@dataclass(frozen=True)
class _Curve:
    """All ways to decide: the different scores ``[K]``, highest first, and what is taken from each on."""

    at: FloatArray
    found: IntArray
    alarms: IntArray
    positives: int
    negatives: int

    def threshold(self, place: int) -> float:
        """A hair below the score, and above the next one."""
        score = float(self.at[place])
        below = float(self.at[place + 1]) if place + 1 < len(self.at) else score - 2 * _HAIR
        hair = score - min(_HAIR, (score - below) / 2)
        return hair if hair > below else score  # neighbouring floats have nothing between them


def wilson_interval(hits: int, of: int, *, level: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927); NaN where `of` is 0.

    Args:
        hits: Samples that count, 0..`of`.
        of: All samples.
        level: Coverage, above 0 and below 1.

    Raises:
        UserError: `hits` or `level` is out of range.
    """
    if not (0 <= hits <= of and 0.0 < level < 1.0):
        raise UserError(f"no interval of {hits} of {of} at level {level}: expected 0 <= hits <= of and 0 < level < 1")
    if of == 0:
        return Interval(float("nan"), float("nan"))
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = hits / of, z * z / of
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * float(np.sqrt(share * (1 - share) / of + weight / (4 * of)))
    return Interval(0.0 if hits == 0 else middle - half, 1.0 if hits == of else middle + half)


def measure_point(labels: Array, *, scores: Array, threshold: float, lower: float | None = None) -> OperatingPoint:
    """What given thresholds give on some data.

    Args:
        labels: ``[N]``, 0 or 1.
        scores: ``[N]`` probabilities of class 1 (or ``[N, 2]``).
        threshold: Taken for class 1 from here on.
        lower: Taken for class 0 below; None: as `threshold`.

    Raises:
        UserError: empty, lengths differ, a label other than 0 and 1, no probabilities, or `lower` above `threshold`.
    """
    truth, chances = _binary(labels, scores)
    lower = threshold if lower is None else lower
    if not lower <= threshold:
        raise UserError(f"the lower threshold, {lower:g}, is above the upper one, {threshold:g}")
    taken, left = chances >= threshold, chances < lower
    return OperatingPoint(
        threshold=threshold,
        lower=lower,
        true_positives=int(truth[taken].sum()),
        false_positives=int((1 - truth[taken]).sum()),
        true_negatives=int((1 - truth[left]).sum()),
        false_negatives=int(truth[left].sum()),
        positives=int(truth.sum()),
        samples=len(truth),
    )


def best_f1(labels: Array, *, scores: Array) -> OperatingPoint:
    """The largest F1 of class 1; of thresholds with the same F1 the highest, which has the fewest false positives.

    Arguments and errors are as in `measure_point`. Where only one class is labelled the threshold is 0.5, and the
    shortfall says so.
    """
    curve = _curve(*_binary(labels, scores))
    # Ratios of whole numbers: equal ones are equal floats, so ties are seen as such.
    place = int(np.argmax(2 * curve.found / (curve.found + curve.alarms + max(curve.positives, 1))))
    return _point(labels, scores, curve, place)


def at_precision(labels: Array, *, scores: Array, precision: float) -> OperatingPoint:
    """Most of class 1 found with at least this precision, and of equal ones the fewest false positives.

    Where no threshold has it, the one with the highest precision; the shortfall says so. The rest is as in
    `best_f1`; `precision` is above 0 and at most 1.
    """
    curve = _curve(*_binary(labels, scores))
    place, shortfall = _precise(curve, _asked("precision", precision))
    return _point(labels, scores, curve, place, shortfall)


def at_recall(labels: Array, *, scores: Array, recall: float) -> OperatingPoint:
    """The highest threshold that finds at least this share of class 1 (its sensitivity); one always does.

    The rest is as in `best_f1`; `recall` is above 0 and at most 1.
    """
    curve = _curve(*_binary(labels, scores))
    reached = curve.found / max(curve.positives, 1) >= _asked("recall", recall)
    return _point(labels, scores, curve, int(np.argmax(reached)))


def at_fpr(labels: Array, *, scores: Array, fpr: float) -> OperatingPoint:
    """Most of class 1 found with at most this share of class 0 taken for it (the Neyman-Pearson criterion, 1933).

    Where no threshold that takes anything has so few, the highest; the shortfall says so. The rest is as in
    `best_f1`; `fpr` is at least 0 and below 1.
    """
    if not 0.0 <= fpr < 1.0:
        raise UserError(f"fpr is {fpr:g}, expected a share of at least 0 and below 1, such as 0.01")
    curve = _curve(*_binary(labels, scores))
    shares = curve.alarms / max(curve.negatives, 1)
    place = _most(curve.found, shares <= fpr)
    if place is not None:
        return _point(labels, scores, curve, place)
    lowest = Rate(int(curve.alarms[0]), curve.negatives)
    return _point(labels, scores, curve, 0, f"fpr {fpr:g} is not reached on these data: the lowest is {lowest}")


def three_zones(labels: Array, *, scores: Array, precision: float, npv: float) -> OperatingPoint:
    """Accept, review, reject: two thresholds, so that few decisions are wrong and a person has the rest (Chow 1970).

    The accepted zone has at least the asked precision and finds as much of class 1 as it can with it (`at_precision`).
    Of what lies below, the rejected zone has at least the asked negative predictive value and as many of class 0 as it
    can. A zone that cannot have it is empty, and the shortfall says so: its samples are reviewed.

    Arguments and errors are as in `measure_point`; both shares are above 0 and at most 1.
    """
    truth, chances = _binary(labels, scores)
    curve = _curve(truth, chances)
    place, no_accept = _precise(curve, _asked("precision", precision))
    upper = float("inf") if no_accept else curve.threshold(place)
    below, lower, no_reject = chances < upper, 0.0, ""
    if below.any():
        mirror = _curve(1 - truth[below], -chances[below])
        place, no_reject = _precise(mirror, _asked("npv", npv), name="npv", sign=-1)
        # What has the score itself is rejected, too.
        lower = lower if no_reject else float(np.nextafter(-mirror.threshold(place), np.inf))
    told = {"nothing is accepted": no_accept, "nothing is rejected": no_reject}
    lacking = "; ".join(f"{why}, so {what}" for what, why in told.items() if why)
    # Where all below is rejected, nothing lies between.
    point = measure_point(truth, scores=chances, threshold=upper, lower=min(lower, upper))
    return replace(point, shortfall=lacking)


def measure_kept(labels: Array, *, probabilities: Array, least: Sequence[float] | FloatArray) -> Kept:
    """What is kept where a predicted class needs at least its probability, `least` ``[C]``; else as `reject_below`."""
    guess, sure, right = _guesses(labels, probabilities)
    needed = np.asarray(least, dtype=np.float64)
    kept = sure >= needed[guess]
    by_class = (kept & (guess == label) for label in range(len(needed)))
    return Kept(
        least=needed,
        right=Rate(int(right[kept].sum()), int(kept.sum())),
        kept=Rate(int(kept.sum()), len(kept)),
        by_class=tuple(Rate(int(right[own].sum()), int(own.sum())) for own in by_class),
    )


def reject_below(
    labels: Array, *, probabilities: Array, precision: float, class_names: Sequence[str], per_class: bool = False
) -> Kept:
    """Keep as many right predictions as possible, at least this share of the kept ones being right.

    Selective classification by the predicted class's probability (Chow 1970; Geifman & El-Yaniv 2017, arXiv
    1705.08500): one threshold for all, or one for each predicted class, each class then having the asked precision.
    Where none has it, nothing (of the class) is kept, and the shortfall says so.

    Args:
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``.
        precision: Asked of what is kept, above 0 and at most 1.
        class_names: C names, for the shortfall.
        per_class: One threshold for each class.

    Raises:
        UserError: empty, lengths differ, a label out of range, no probabilities, or `precision` out of range.
    """
    _asked("precision", precision)
    guess, sure, right = _guesses(labels, probabilities)
    least, lacking = np.full(len(class_names), np.inf), []
    for label, name in enumerate(class_names) if per_class else [(slice(None), "")]:
        own = guess == label if per_class else np.ones(len(guess), dtype=bool)
        if not own.any():
            lacking.append(f"{name}: never predicted on these data; none is kept")
            continue
        curve = _curve(right[own], sure[own])
        place, shortfall = _precise(curve, precision)
        if shortfall:
            lacking.append(f"{f'{name}: ' if name else ''}{shortfall}; none is kept")
        else:
            least[label] = curve.threshold(place)
    return replace(measure_kept(labels, probabilities=probabilities, least=least), shortfall="; ".join(lacking))


# ------------------------------------------------------------------------------------------------------------- choosing


def _binary(labels: Array, scores: Array) -> tuple[IntArray, FloatArray]:
    truth = as_labels(labels, classes=2)
    chances = as_probabilities(scores, rows=len(truth))
    if chances.shape[1] != 2:
        raise UserError(f"scores have {chances.shape[1]} columns; a threshold decides between two classes")
    return truth, chances[:, 1]


def _guesses(labels: Array, probabilities: Array) -> tuple[IntArray, FloatArray, IntArray]:
    """Predicted class, its probability, and whether it is right (1) or not (0), ``[N]`` each."""
    chances = as_probabilities(probabilities, rows=len(as_labels(labels)))
    truth = as_labels(labels, classes=chances.shape[1])
    guess = chances.argmax(axis=1)
    return guess, chances.max(axis=1), (guess == truth).astype(np.int64)


def _asked(name: str, value: float) -> float:
    if not 0.0 < value <= 1.0:
        raise UserError(f"{name} is {value:g}, expected a share above 0 and at most 1, such as 0.95")
    return value


def _curve(truth: IntArray, scores: FloatArray) -> _Curve:
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores go together
    found, taken = np.cumsum(truth[order])[last], last + 1
    positives = int(truth.sum())
    return _Curve(scores[order][last], found, taken - found, positives, len(truth) - positives)


def _most(gained: IntArray, allowed: NDArray[np.bool_]) -> int | None:
    """The first place of the allowed ones with the most gained; None where none is allowed."""
    return int(np.argmax(np.where(allowed, gained, -1))) if allowed.any() else None


def _precise(curve: _Curve, precision: float, *, name: str = "precision", sign: int = 1) -> tuple[int, str]:
    """Where most is found with the precision, or where the precision is highest, and why that is not enough."""
    shares = curve.found / (curve.found + curve.alarms)
    place = _most(curve.found, shares >= precision)
    if place is not None:
        return place, ""
    place = _most(curve.found, shares == shares.max()) or 0
    highest = Rate(int(curve.found[place]), int(curve.found[place] + curve.alarms[place]))
    at = sign * curve.threshold(place)
    return place, f"{name} {precision:g} is not reached on these data: the highest is {highest} at threshold {at:.4g}"


def _point(labels: Array, scores: Array, curve: _Curve, place: int, shortfall: str = "") -> OperatingPoint:
    threshold = curve.threshold(place)
    if not (curve.positives and curve.negatives):
        threshold, shortfall = 0.5, f"every sample is of class {int(curve.positives > 0)}: nothing to choose by"
    return replace(measure_point(labels, scores=scores, threshold=threshold), shortfall=shortfall)

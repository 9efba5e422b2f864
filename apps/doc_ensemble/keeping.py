"""What a student keeps of its teacher's gain over the teacher's best member, on the same pages."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.metrics.arrays import FloatArray, IntArray
from mlcore.metrics.ranking import bootstrap_interval
from mlcore.metrics.resampled import resampled_macro_f1
from mlcore.report.page import Section, Table
from mlcore.training.evaluator import Predictions
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.ensemble.selection import fast_macro_f1, log_loss
from quartet.apps.doc_ensemble.teaching import Teacher

__all__ = ["Keeping", "share_kept"]

Analyse = Callable[[Predictions, Path, str], Sequence[Section]]


class Keeping:
    """An `analyse` that also compares the student with its teacher.

    Args:
        analyse: Gives the other sections.
        teacher: What it says of the pages.
        parts: The pages by split.

    Attributes:
        figures: By split, for `summary.json`.
    """

    def __init__(self, analyse: Analyse, teacher: Teacher, parts: Mapping[str, Sequence[Page]]) -> None:
        self._analyse, self._teacher, self._parts = analyse, teacher, parts
        self.figures: dict[str, Any] = {}

    def __call__(self, predictions: Predictions, folder: Path, prefix: str) -> Sequence[Section]:
        """The sections, and for held-out pages a table of teacher, best member and student."""
        sections, split = self._analyse(predictions, folder, prefix), prefix.removesuffix("_") or "val"
        if split == "train":
            return sections
        pages, teacher, labels = self._parts[split], self._teacher, predictions["label"].numpy()
        said = {"teacher": teacher.of(pages)}
        if teacher.member:
            said["best member"] = np.stack([teacher.of_member[page.digest] for page in pages])
        said["student"] = predictions["probabilities"].double().numpy()
        found: dict[str, Any] = {name: _scores(chances, labels) for name, chances in said.items()}
        rows = [[name, *scores.values()] for name, scores in found.items()]
        words = "The teacher is no ensemble with members: there is no gain of which something could be kept."
        if teacher.member:
            units = [page.bundle for page in pages]
            kept = share_kept({name: chances.argmax(axis=1) for name, chances in said.items()}, labels, units=units)
            words = f"Best member: {teacher.member}. {kept['said']}"
            found |= {"member": teacher.member, **kept}
        self.figures[split] = found
        title = f"{'Validation' if split == 'val' else split.capitalize()}: teacher and student"
        return [*sections, Table(title, ("", "accuracy", "macro F1", "log loss"), rows, note=words)]


def share_kept(guesses: Mapping[str, IntArray], labels: IntArray, *, units: Sequence[object]) -> dict[str, Any]:
    """(student - member) / (teacher - member) in macro F1, where the teacher gains something.

    Args:
        guesses: Classes [N] by "teacher", "best member" and "student".
        labels: [N].
        units: N, what each page belongs to; drawn whole for intervals.

    Returns:
        "gain" of the teacher and its 95 % "gain_interval"; "kept" and "kept_interval", None where they mean nothing;
        "said", all that in words.
    """
    classes = int(max(labels.max(), *(guess.max() for guess in guesses.values()))) + 1

    def parts(times: IntArray) -> tuple[float, float]:
        f1 = partial(resampled_macro_f1, labels, times=times, classes=classes)
        member = f1(guesses["best member"])
        return f1(guesses["teacher"]) - member, f1(guesses["student"]) - member

    def share(times: IntArray) -> float:
        gain, own = parts(times)
        return own / gain if gain > 0 else float("nan")

    gain, own = parts(np.ones(len(labels), dtype=np.int64))
    low, high = (float(value) for value in bootstrap_interval(lambda times: parts(times)[0], units=units))
    found: dict[str, Any] = {"gain": gain, "gain_interval": [low, high], "kept": None, "kept_interval": None}
    where = f"(95 % interval {low:+.4f} to {high:+.4f})"
    if gain <= 0:
        said = f"The teacher gains nothing over it here: {gain:+.4f} in macro F1 {where}. There is nothing to keep."
        return {**found, "said": said}
    found["kept"] = own / gain
    said = f"The teacher gains {gain:+.4f} in macro F1 {where}; the student keeps {own / gain:.0%} of that"
    if not low > 0:
        return {**found, "said": f"{said}, which says little: it is not sure that there is a gain."}
    found["kept_interval"] = [float(value) for value in bootstrap_interval(share, units=units)]
    return {**found, "said": "{} (95 % interval {:.0%} to {:.0%}).".format(said, *found["kept_interval"])}


def _scores(chances: FloatArray, labels: IntArray) -> dict[str, float]:
    guess = chances.argmax(axis=1)
    f1 = fast_macro_f1(guess, labels, classes=chances.shape[1])
    return {"accuracy": float((guess == labels).mean()), "macro_f1": f1, "log_loss": log_loss(chances, labels)}

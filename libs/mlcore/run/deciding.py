"""A classifier's decision in its final evaluation: chosen on validation, applied to the other splits, shown for all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlcore.config.decision import DecisionConfig
from mlcore.metrics.arrays import Array, as_labels, as_probabilities
from mlcore.report.page import Picture, Section, Table, Text
from mlcore.report.plots.operating_points import plot_kept, plot_operating_point
from mlcore.run.decision import Decision, Figure, Kind, check_rule, choose, measured, write_decision

__all__ = ["NAMES", "Decider", "figure_table", "kind_of"]

NAMES = {
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "fpr": "false-positive rate",
    "npv": "negative predictive value",
    "accepted": "accepted, of all",
    "reviewed": "left to a person, of all",
    "rejected": "rejected, of all",
    "f1": "F1",
    "kept": "kept, of all",
}
_COLUMNS = ("figure", "value", "95 % from", "to", "counts")


class Decider:
    """Chooses a run's decision on its validation data, and shows what it gives there and elsewhere.

    Args:
        settings: What is asked for.
        class_names: In the order of the probabilities.
        kind: See `Decision`.
        positive: What samples of the second of two classes are called.
        kept: A run's decision, which is used as it is; None: one is to be chosen.

    Attributes:
        decision: The one in use: until validation is seen, the most probable class.

    Raises:
        UserError: The rule does not suit the classes.
    """

    def __init__(
        self,
        settings: DecisionConfig,
        *,
        class_names: Sequence[str],
        kind: Kind,
        positive: str | None = None,
        kept: Decision | None = None,
    ) -> None:
        check_rule(settings, kind=kind)
        self._settings, self._kind, self._positive = settings, kind, positive or f"'{class_names[-1]}'"
        why = "" if settings.rule == "none" else "there is no validation data: nothing was chosen"
        self._chosen = kept is not None
        self.decision = kept or Decision(kind=kind, class_names=tuple(class_names), note=why)

    def choose(self, labels: Array, probabilities: Array, *, temperature: float = 1.0) -> Decision:
        """The decision for validation data, see `mlcore.run.decision.choose`, unless there is one."""
        if self._chosen:
            return self.decision
        self.decision = choose(
            self._settings,
            labels=labels,
            probabilities=probabilities,
            class_names=self.decision.class_names,
            kind=self._kind,
            temperature=temperature,
        )
        return self.decision

    def sections(self, labels: Array, probabilities: Array, *, folder: Path, prefix: str = "") -> list[Section]:
        """Figures of the decision on some data, which it remembers, and `{prefix}operating_point.png`.

        Args:
            labels: ``[N]`` class indices.
            probabilities: ``[N, C]`` as the model gives them.
            folder: Where the picture goes; it exists.
            prefix: "" for validation, "test_", "train_".

        Raises:
            UserError: Labels or probabilities are not what they should be, or the file cannot be written.
        """
        split = prefix.removesuffix("_") or "val"
        title = f"{'Validation' if split == 'val' else split.capitalize()}: decision"
        truth = as_labels(labels)
        chances = self.decision.calibrated(as_probabilities(probabilities, rows=len(truth)))
        self.decision = self.decision.with_figures(split, measured(self.decision, labels=truth, probabilities=chances))
        decision, path = self.decision, folder / f"{prefix}operating_point.png"
        drawn: list[Section] = []
        if decision.kind == "multiclass":
            least = decision.least or [0.0] * len(decision.class_names)
            drawn = [Picture(title, plot_kept(truth, probabilities=chances, least=least, path=path))]
        elif 0 < truth.sum() < len(truth):
            picture = plot_operating_point(
                truth,
                scores=chances,
                threshold=decision.threshold,
                lower=decision.lower,
                path=path,
                positive=self._positive,
            )
            drawn = [Picture(title, picture, wide=True)]
        if decision.kind == "binary" or decision.least:
            zones = () if decision.can_review else ("reviewed", "rejected")
            figures = {name: figure for name, figure in decision.figures[split].items() if name not in zones}
            drawn.append(figure_table(title, figures, note=self._words(split)))
        return [*drawn, *([Text(title, f"Note: {decision.note}.")] if decision.note else [])]

    def write(self, folder: Path, _summary: Mapping[str, Any]) -> None:
        """Keep the decision in the run folder; a `TrainingSetup.finish`."""
        write_decision(folder, self.decision)

    def _words(self, split: str) -> str:
        decision = self.decision
        asked = {"none": "the most probable class", "f1": "largest F1"}.get(
            decision.rule, f"{decision.rule} {decision.value}"
        )
        asked += f", npv {decision.npv}" if decision.npv is not None else ""
        if decision.kind == "binary":
            asked += f"; threshold {decision.threshold:.6g}"
            asked += "" if decision.lower is None else f", rejected below {decision.lower:.6g}"
        elif decision.least:
            asked += "; least probability " + _short(decision.least)
        asked += "" if decision.temperature == 1.0 else f"; temperature {decision.temperature:.4g}"
        if decision.chosen_on is None:
            return asked
        here = "on these samples, so that the figures are better than on others"
        return f"{asked}; chosen {here if split == decision.chosen_on else 'on the validation data'}"


def kind_of(class_names: Sequence[str]) -> Kind:
    """Binary for two classes, multiclass for more."""
    return "binary" if len(class_names) == 2 else "multiclass"


def figure_table(title: str, figures: Mapping[str, Figure], *, note: str = "") -> Table:
    """Figures with their intervals and counts."""
    rows = [
        [
            NAMES.get(name, name),
            figure.value,
            figure.low,
            figure.high,
            None if figure.of is None else f"{figure.hits:,} of {figure.of:,}",
        ]
        for name, figure in figures.items()
    ]
    return Table(title, _COLUMNS, rows, note=note)


def _short(least: Sequence[float]) -> str:
    different = sorted(set(least))
    return f"{different[0]:.6g}" if len(different) == 1 else f"{different[0]:.4g} to {different[-1]:.4g} by class"

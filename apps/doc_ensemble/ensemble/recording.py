"""What an ensemble experiment leaves: predictions, tables, pictures, summary and report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlcore.base.console import format_duration
from mlcore.metrics.classification import ClassificationReport
from mlcore.report.page import Headline, RunReport, describe_environment
from mlcore.run.final_evaluation import Pages
from quartet.apps.doc_ensemble.config import DocConfig, EnsembleConfig
from quartet.apps.doc_ensemble.ensemble.artefact import write_chosen
from quartet.apps.doc_ensemble.ensemble.methods import CrossFitted, Outcome, best_member
from quartet.apps.doc_ensemble.ensemble.predicting import SplitPredictions
from quartet.apps.doc_ensemble.ensemble.sections import (
    class_sections,
    cost_sections,
    disagreement_section,
    member_section,
    method_sections,
    view_section,
    weights_of,
)
from quartet.apps.doc_ensemble.ensemble.sources import Source
from quartet.apps.doc_ensemble.ensemble.view_choice import ViewChoice
from quartet.apps.doc_ensemble.ensemble.writing import (
    EnsemblePredictions,
    write_ensemble_meta,
    write_ensemble_predictions,
    write_tta_predictions,
)

__all__ = ["Experiment", "Metadata", "record_experiment"]

_log = logging.getLogger(__name__)

_SPLITS = {"val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What was compared, and what came out.

    Attributes:
        settings: The ensemble section.
        sources: The members.
        shares: [K] configured weights, normalised.
        predicted: What the members said.
        outcomes: Of all methods on all splits.
        chosen: Name of the configured method; of the best member where members are only predicted.
        choice: How its views were chosen; None: all that are configured count.
        notes: What the reader must know.
    """

    settings: EnsembleConfig
    sources: Sequence[Source]
    shares: Sequence[float]
    predicted: SplitPredictions
    outcomes: Sequence[Outcome]
    chosen: str
    choice: ViewChoice | None
    notes: Sequence[str]

    @property
    def split(self) -> str:
        """The one whose predictions are written: "test", or "val" without test pages."""
        return "test" if "test" in self.predicted.votes else "val"

    @property
    def tta(self) -> bool:
        """Whether there are views."""
        return self.predicted.view_weights is not None

    def outcome(self, name: str, split: str, *, tta: bool) -> Outcome:
        """Of one method."""
        return next(o for o in self.outcomes if (o.method.name, o.split, o.tta) == (name, split, tta))


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """How the experiment was run.

    Attributes:
        name: Of the run.
        demo: Whether it was the demo.
        config: The resolved configuration, nested.
        device: Where the members ran.
        seconds: That the experiment took.
        seed: Drew the halves of the validation pages.
    """

    name: str
    demo: bool
    config: Mapping[str, Any]
    device: torch.device
    seconds: float
    seed: int


def record_experiment(experiment: Experiment, *, folder: Path, data: DocConfig, metadata: Metadata) -> Pages:
    """Write predictions, tables and pictures, and print the methods.

    Args:
        experiment: What was compared.
        folder: The run's.
        data: How pages are read.
        metadata: For the report.

    Returns:
        What summary and report say.

    Raises:
        UserError: A file cannot be written.
    """
    predicted = experiment.predicted
    chosen = {split: experiment.outcome(experiment.chosen, split, tta=experiment.tta) for split in predicted.votes}
    _write_predictions(experiment, chosen[experiment.split], folder)
    classes, reports = class_sections(
        chosen, predicted, folder=folder, max_pixels=round(data.data.max_megapixels * 1e6)
    )
    sections = method_sections(experiment.outcomes, folder=folder)
    if experiment.choice is not None:
        sections.append(view_section(experiment.choice, method=experiment.chosen, folder=folder))
    sections.append(
        member_section(experiment.sources, predicted, shares=experiment.shares, outcomes=experiment.outcomes)
    )
    if len(experiment.sources) > 1:
        sections += cost_sections(predicted, folder=folder, seed=metadata.seed)
        sections.append(disagreement_section(predicted, split=experiment.split))
    write_chosen(
        folder,
        sources=experiment.sources,
        class_names=predicted.class_names,
        rule=chosen["val"].fitted,
        tta=experiment.settings.tta,
        views=[view.name for view in predicted.views],
        best_member=best_member(experiment.outcomes),
        data=data.data,
        precision=data.train.precision,
    )
    print(_printed(experiment))
    return Pages(
        summary=_summary(experiment, reports, metadata),
        report=RunReport(
            title=f"Document ensemble: {metadata.name}",
            subtitle=_subtitle(experiment),
            headlines=_headlines(experiment, chosen[experiment.split]),
            warnings=[*_demo_warning(metadata), *experiment.notes],
            sections=[*sections, *classes],
            config=metadata.config,
            environment={
                **describe_environment(metadata.device),
                "the experiment took": format_duration(metadata.seconds),
            },
        ),
    )


def _write_predictions(experiment: Experiment, chosen: Outcome, folder: Path) -> None:
    """The decisions of the chosen method, how they came about, and what the views did."""
    predicted, settings = experiment.predicted, experiment.settings
    said = predicted.votes[experiment.split]
    predictions = EnsemblePredictions(
        pages=[page.key for page in said.pages],
        class_names=predicted.class_names,
        member_names=predicted.member_names,
        ensemble=np.asarray(chosen.probabilities, dtype=np.float64),
        members=said.chances(predicted.view_weights),
        labels=said.labels,
    )
    if settings.enabled:
        write_ensemble_predictions(folder, predictions)
        write_ensemble_meta(
            folder,
            predictions,
            method=settings.method,
            average=settings.average,
            views=predicted.views,
            members=_member_metadata(experiment, weights_of(chosen.fitted)),
            extra={
                "split": experiment.split,
                "decided_by": chosen.method.name,
                "cross_fitted": isinstance(chosen.rule, CrossFitted),
                "seconds_per_page": float(predicted.member_seconds.sum() + predicted.reading_seconds),
            },
        )
    if experiment.tta:
        by_view = np.stack([chosen.rule(said.by_view[:, view]) for view in range(len(predicted.views))])
        write_tta_predictions(folder, predictions, views=predicted.views, by_view=by_view)


def _member_metadata(experiment: Experiment, used: Sequence[float] | None) -> list[dict[str, Any]]:
    speeds = 1 / np.maximum(experiment.predicted.member_seconds, 1e-12)
    return [
        {
            "checkpoints": [str(part.path) for part in source.parts],
            "weight": None if used is None else float(used[number]),
            "images_per_second": float(speeds[number]),
        }
        for number, source in enumerate(experiment.sources)
    ]


def _summary(experiment: Experiment, reports: Mapping[str, ClassificationReport], metadata: Metadata) -> dict[str, Any]:
    """In the shape of a training run's, so that runs and ensembles can be compared with each other."""
    best = best_member(experiment.outcomes)
    results = {split: {"n": report.samples, **report.scalars()} for split, report in reports.items()}
    return {
        "status": "finished",
        "monitor": {"metric": "macro_f1", "mode": "max", "best": results["val"]["macro_f1"]},
        "results_of_best_checkpoint": results,
        "progress": {"seconds": metadata.seconds, "step": 0},
        "demo": metadata.demo,
        "method": experiment.chosen,
        "tta": experiment.tta,
        "views": [view.name for view in experiment.predicted.views],
        "best_member": best,
        "members": list(experiment.predicted.member_names),
        "methods": [
            {
                "method": o.method.name,
                "kind": o.method.kind,
                "tta": o.tta,
                "pages": o.evaluated_on,
                "accuracy": o.accuracy,
                "macro_f1": o.macro_f1,
                "log_loss": o.log_loss,
            }
            for o in experiment.outcomes
        ],
    }


def _subtitle(experiment: Experiment) -> str:
    predicted = experiment.predicted
    counts = " and ".join(f"{len(said.pages):,} {_SPLITS[split]}" for split, said in predicted.votes.items())
    views = f", {len(predicted.views)} views of each page" if experiment.tta else ""
    return f"{experiment.chosen}; {len(experiment.sources)} members{views}; {counts} pages"


def _headlines(experiment: Experiment, chosen: Outcome) -> list[Headline]:
    best = experiment.outcome(best_member(experiment.outcomes), experiment.split, tta=False)
    seconds = experiment.predicted.member_seconds.sum() + experiment.predicted.reading_seconds
    words = chosen.evaluated_on
    return [
        Headline("macro F1", chosen.macro_f1, words),
        Headline("accuracy", chosen.accuracy, words),
        Headline(
            "gain in macro F1", f"{chosen.macro_f1 - best.macro_f1:+.4f}", f"over {best.method.name}, the best member"
        ),
        Headline("pages per second", 1 / max(float(seconds), 1e-12), "all members and views, with reading"),
    ]


def _demo_warning(metadata: Metadata) -> list[str]:
    if not metadata.demo:
        return []
    return ["This is the demo: training and evaluation used generated data, so the figures say nothing of real data."]


def _printed(experiment: Experiment) -> str:
    """A short table for the terminal."""
    outcomes = [o for o in experiment.outcomes if o.split == experiment.split]
    best = experiment.outcome(best_member(experiment.outcomes), experiment.split, tta=False)
    width = max(len(o.method.name) for o in outcomes) + 6
    lines = [f"{'method':{width}} accuracy  macro F1  log loss      gain   pages"]
    for o in outcomes:
        name = f"{o.method.name}{' + TTA' if o.tta else ''}"
        loss = "" if o.log_loss is None else f"{o.log_loss:.4f}"
        figures = f"{o.accuracy:8.4f}  {o.macro_f1:8.4f}  {loss:>8}  {o.macro_f1 - best.macro_f1:+8.4f}"
        chosen = "  <- chosen" if (o.method.name, o.tta) == (experiment.chosen, experiment.tta) else ""
        lines.append(f"{name:{width}} {figures}   {o.evaluated_on}{chosen}")
    lines.append(f"gain: in macro F1 over {best.method.name}, the best member on the validation pages")
    return "\n".join(lines)

"""Tables and pictures of an ensemble experiment, for its report, and the files behind them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlcore.base.files import csv_text, write_text
from mlcore.metrics.classification import ClassificationReport
from mlcore.report.page import Picture, Section, Table
from quartet.apps.doc_ensemble.class_analysis import calibration_sections, confused_sections
from quartet.apps.doc_ensemble.class_metrics import class_report, write_class_files
from quartet.apps.doc_ensemble.ensemble.combine import log_probabilities
from quartet.apps.doc_ensemble.ensemble.curve import cost_curve, plot_cost_curve, single_points, write_cost_curve
from quartet.apps.doc_ensemble.ensemble.disagreement import disagreement
from quartet.apps.doc_ensemble.ensemble.methods import Combined, Outcome, Rule, halves, is_voting
from quartet.apps.doc_ensemble.ensemble.methods_plot import COLUMNS, method_rows, plot_methods, write_methods
from quartet.apps.doc_ensemble.ensemble.predicting import SplitPredictions
from quartet.apps.doc_ensemble.ensemble.selection import growing_order
from quartet.apps.doc_ensemble.ensemble.sources import Source
from quartet.apps.doc_ensemble.ensemble.view_choice import ViewChoice

__all__ = [
    "class_sections",
    "cost_sections",
    "disagreement_section",
    "member_section",
    "method_sections",
    "view_section",
    "weights_of",
]

_SPLITS = {"val": "validation", "test": "test"}


def method_sections(outcomes: Sequence[Outcome], *, folder: Path) -> list[Section]:
    """All methods, on the test pages (if any) and on validation; writes `methods.csv` and `methods.png`."""
    splits = sorted({outcome.split for outcome in outcomes})  # test, val
    write_methods(outcomes, folder / "methods.csv")
    drawn = plot_methods(outcomes, split=splits[0], path=folder / "methods.png")
    words = (
        "Gains are over the member that is best on the validation pages (macro F1), looked at without views. What is "
        "fitted is fitted on validation pages; cross-fitted: on the half of them that the figures are not of."
    )
    tables = [
        Table(f"Methods on the {_SPLITS[split]} pages", COLUMNS, method_rows(outcomes, split), note=words)
        for split in splits
    ]
    return [tables[0], Picture(tables[0].title, drawn, wide=True), *tables[1:]]


def view_section(choice: ViewChoice, *, method: str, folder: Path) -> Table:
    """What each view does to a method on the validation pages, and whether it was taken; writes `views.csv`."""
    taken = ["yes" if place in choice.chosen else "no" for place in range(len(choice.views))]
    what = [(view.name, view.weight, yes) for view, yes in zip(choice.views, taken, strict=True)]
    found = [[value if value == value else "" for value in row] for row in choice.figures.tolist()]  # NaN: none
    rows = [[*names, *values] for names, values in zip([*what, ("all of them", "", "")], found, strict=True)]
    columns = ("view", "weight", "taken", "macro F1", "log loss", "gain, 95 % from", "to")
    write_text(folder / "views.csv", csv_text([columns, *rows]))
    note = (
        f"{method} on the validation pages, with each view beside the page as it is and those taken before it. A view "
        "is taken if its gain in macro F1 (where no decision changes, in log loss) is more than chance: if the 95 % "
        "interval lies above 0. What is chosen on pages flatters their figures; those of the test pages are fair."
    )
    return Table("Views of a page", columns, rows, note=note)


def weights_of(rule: Rule) -> tuple[float, ...] | None:
    """The weights of a weighted mean; None for everything else."""
    return rule.weights if isinstance(rule, Combined) else None


def member_section(
    sources: Sequence[Source], predicted: SplitPredictions, *, shares: Sequence[float], outcomes: Sequence[Outcome]
) -> Table:
    """Where the members come from, what they weigh and what they cost.

    Args:
        sources: The members.
        predicted: What they said.
        shares: [K] configured weights, normalised.
        outcomes: The methods', of which the fitted weights are shown.
    """
    tta = predicted.view_weights is not None
    learned = {o.method.name: weights_of(o.fitted) for o in outcomes if o.tta == tta and o.method.learns}
    shown = {name: weights for name, weights in learned.items() if weights is not None}
    rows: list[list[object]] = []
    for number, source in enumerate(sources):
        path = source.job if source.whole and source.job is not None else source.parts[0].path
        weights = [round(found[number], 4) for found in shown.values()]
        speed = 1 / max(float(predicted.member_seconds[number]), 1e-12)
        rows.append([source.name, str(path), len(source.parts), shares[number], *weights, speed])
    note = "Weights are fitted on all validation pages. Pages per second: all views of all models, without reading"
    columns = ("member", "from", "models", "weight", *shown, "pages/s")
    return Table("Members", columns, rows, note=f"{note} ({predicted.reading_seconds * 1000:.1f} ms a page).")


def class_sections(
    chosen: Mapping[str, Outcome], predicted: SplitPredictions, *, folder: Path, max_pixels: int
) -> tuple[list[Section], dict[str, ClassificationReport]]:
    """Classes, confusions and calibration (not of votes) of the chosen method on each split, and their figures.

    Args:
        chosen: The method's outcome by split.
        predicted: Whose pages and labels are meant.
        folder: Where the files go.
        max_pixels: Larger pages are not decoded for the sheet of confused ones.
    """
    logits = {split: log_probabilities(outcome.probabilities) for split, outcome in chosen.items()}
    labels = {split: predicted.votes[split].labels for split in chosen}
    votes = any(is_voting(outcome.fitted) for outcome in chosen.values())
    reports, sections = {}, []
    for split, scores in logits.items():
        report = class_report(scores, labels=labels[split], class_names=predicted.class_names, with_loss=not votes)
        reports[split] = report
        sections += write_class_files(report, folder=folder, prefix=f"{split}_")
    last = "test" if "test" in chosen else "val"
    sections += confused_sections(
        predicted.votes[last].pages,
        labels=labels[last],
        probabilities=chosen[last].probabilities,
        class_names=predicted.class_names,
        folder=folder,
        max_pixels=max_pixels,
    )
    if not votes:
        test = (logits["test"], labels["test"]) if "test" in logits else None
        sections += calibration_sections(logits["val"], labels=labels["val"], folder=folder, test=test)
    return sections, reports


def cost_sections(predicted: SplitPredictions, *, folder: Path, seed: int) -> list[Section]:
    """What each further member costs and earns; writes `cost_curve.csv` and `cost_curve.png`.

    Members are added in the order that is best on the validation pages; the score is of the test pages or, without
    them, of the other half of the validation pages.

    Args:
        predicted: What the members said.
        folder: Where the files go.
        seed: Draws the halves.
    """
    said = predicted.votes["val"]
    weights = predicted.view_weights
    chances, labels = said.chances(weights), said.labels
    if "test" in predicted.votes:
        order = growing_order(chances, labels)
        chances, labels = predicted.votes["test"].chances(weights), predicted.votes["test"].labels
        words = "chosen on the validation pages, evaluated on the test pages"
    else:
        half = halves(said.pages, seed=seed)
        order = growing_order(chances[:, ~half], labels[~half])
        chances, labels = chances[:, half], labels[half]
        words = "chosen on one half of the validation pages, evaluated on the other"
    names, members, reading = predicted.member_names, predicted.member_seconds, predicted.reading_seconds
    points = cost_curve(chances, labels, order=order, names=names, member_seconds=members, reading_seconds=reading)
    singles = single_points(chances, labels, names=names, member_seconds=members, reading_seconds=reading)
    write_cost_curve(points, folder / "cost_curve.csv")
    drawn = plot_cost_curve(points, path=folder / "cost_curve.png", singles=singles)
    return [
        Picture("Cost of each further member", drawn, note=f"Members are {words}; mean of probabilities.", wide=True)
    ]


def disagreement_section(predicted: SplitPredictions, *, split: str) -> Table:
    """On which share of the pages two members choose different classes."""
    found = disagreement(predicted.votes[split].chances(predicted.view_weights))
    names = predicted.member_names
    rows = [[name, *(float(share) for share in shares)] for name, shares in zip(names, found.pairs, strict=True)]
    unanimous = float((found.votes == found.votes[0]).all(axis=0).mean())
    return Table(
        "Disagreement of the members",
        ("share of pages", *names),
        rows,
        note=f"{_SPLITS[split]} pages; mean {found.mean:.4f}; all members agree on {unanimous:.1%} of the pages.",
    )

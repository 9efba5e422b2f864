"""The model card of a run: Markdown below a header of metadata as the Hugging Face hub reads it.

Its figures are those that the run keeps: summary.json, decision.json and the checkpoint. Names from data and settings
are taken literally, secrets are masked, and of paths only the last part is told.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.base.secrets import shown
from mlcore.base.version import VERSION
from mlcore.cli.app import App
from mlcore.cli.apps import load_app
from mlcore.config.text import read_document
from mlcore.report.page import literal, readable
from mlcore.run.deciding import NAMES
from mlcore.run.decision import Decision
from mlcore.run.predictor import checkpoint_of, located
from mlcore.run.restore import RunCheckpoint, read_run_checkpoint, run_folder

__all__ = ["card"]

_LONGEST_LIST = 50  # classes that are named
_UNKNOWN = "other"
_GENERATED = ("generated", "phantoms", "synthetic")


@dataclass(frozen=True)
class _Known:
    """What a run keeps of itself."""

    app: App[Any]
    run: RunCheckpoint[Any]
    record: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return run_folder(self.run.path)

    @property
    def kind(self) -> str:
        """What the data is called."""
        data = self.run.config.data
        return str(getattr(data, "dataset", None) or getattr(data, "source", "own files"))

    @property
    def generated(self) -> bool:
        """Whether the figures say nothing of real data."""
        return bool(self.summary["demo"]) or self.kind in _GENERATED

    @property
    def splits(self) -> Mapping[str, Mapping[str, float | None]]:
        """Figures of data that was not trained on."""
        found: Mapping[str, Mapping[str, float | None]] = self.summary["results_of_best_checkpoint"]
        return {name: figures for name, figures in found.items() if name != "train"}

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes; empty for masks."""
        decision = self.run.decision
        return (() if decision is None else decision.class_names) or self.run.metadata.get("class_names", ())

    def interval(self, split: str, metric: str) -> tuple[float, float] | None:
        found = self.summary.get("intervals_of_best_checkpoint", {}).get(split, {}).get(metric)
        return None if found is None else (float(found["low"]), float(found["high"]))


def card(source: str, *, called: str = "") -> tuple[str, Path]:
    """The model card of a finished run, and the checkpoint that it is of.

    Args:
        source: Its folder, a checkpoint in it, or `s3://bucket/key`.
        called: How commands name the model, such as "hub:team/model"; empty: by its folder.

    Raises:
        UserError: There is no such run, or it is not finished.
    """
    app, run = read_run_checkpoint(checkpoint_of(located(source)), load_app)
    folder = run_folder(run.path)
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder}: the run is not finished (no summary.json); the command that trains it goes on")
    with reading(folder / "summary.json", "the summary of a run"):
        record, summary = (read_document(folder / name).values for name in ("run.json", "summary.json"))
        known = _Known(app, run, record, summary)
        header = yaml.safe_dump(_metadata(known), sort_keys=False, allow_unicode=True, width=2**20)
        blocks = [
            f"# {literal(f'{app.title}: {folder.name}')}",
            _purpose(known),
            "## Data",
            *_data(known),
            "## Results",
            *_results(known),
            "## Operating point",
            *_operating_point(run.decision),
            "## Limits",
            "\n".join(f"- {line}" for line in _limits(known)),
            "## How to load",
            *_loading(called or str(folder)),
            "## Versions",
            _versions(known),
        ]
    return shown(f"---\n{header}---\n\n" + "\n\n".join(blocks) + "\n"), run.path


def _metadata(known: _Known) -> dict[str, Any]:
    """What the hub reads: https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    app, task = known.app, known.app.pipeline_tag or _UNKNOWN
    results = [
        {
            "task": {"type": task},
            "dataset": {"name": known.kind, "type": known.kind, "split": split},
            "metrics": [
                {"type": name, "value": value, "name": name.replace("_", " ")}
                for name, value in figures.items()
                if name != "n" and value is not None and math.isfinite(value)
            ],
        }
        for split, figures in known.splits.items()
    ]
    tags = ["quartet", app.name.replace("_", "-"), *(["generated-data"] if known.generated else [])]
    found: dict[str, Any] = {"library_name": "quartet", "tags": tags}
    found |= {"pipeline_tag": app.pipeline_tag} if app.pipeline_tag else {}
    name = " ".join(known.folder.name.split())
    plain = json.loads(json.dumps({"name": name, "results": results}))  # numbers that YAML knows
    return {**found, "metrics": [str(known.summary["monitor"]["metric"])], "model-index": [plain]}


def _purpose(known: _Known) -> str:
    weights = sum(value.numel() for value in known.run.weights.values())
    words = f"{known.app.purpose} {weights:,} weights, of training step {known.run.step:,}"
    words += f"; trained with quartet (`{known.app.name}`)."
    if known.generated:
        words += "\n\n**A demo, trained and evaluated on generated data: it is of no use for real data.**"
    return words


def _data(known: _Known) -> list[str]:
    data = known.run.config.data
    given = ((name, getattr(data, name)) for name in type(data).model_fields)
    rows = [("kind", known.kind), *((name, value.name) for name, value in given if isinstance(value, Path))]
    samples = known.summary.get("samples") or {name: figures["n"] for name, figures in known.splits.items()}
    used = {"train": "trained on", "val": "held out; chose the weights", "test": "looked at once, after training"}
    sizes = [(name, int(count), used.get(name, "")) for name, count in samples.items()]
    blocks = [_table(("", "source"), rows), _table(("split", "samples", ""), sizes)]
    if classes := known.classes:
        rest = f", and {len(classes) - _LONGEST_LIST} more" if len(classes) > _LONGEST_LIST else ""
        blocks.append(f"{len(classes)} classes: {', '.join(map(literal, classes[:_LONGEST_LIST]))}{rest}.")
    return blocks


def _results(known: _Known) -> list[str]:
    splits, monitored = known.splits, str(known.summary["monitor"]["metric"])
    names = dict.fromkeys(name for figures in splits.values() for name in figures if name != "n")
    rows: list[list[object]] = []
    for name in [monitored, *(name for name in names if name != monitored)]:
        cells: list[object] = [name.replace("_", " ")]
        for split, figures in splits.items():
            value, interval = figures.get(name), known.interval(split, name)
            text = readable(value)
            cells.append(text if interval is None else f"{text} ({readable(interval[0])} to {readable(interval[1])})")
        rows.append(cells)
    if not splits:
        return ["No data was held out, so nothing is known of how good it is."]
    words = literal(monitored.replace("_", " "))
    note = f"{words} on the validation data chose the weights, so that its value there is better than on other data."
    known_ends = "In brackets: 95 % interval. " if known.summary.get("intervals_of_best_checkpoint") else ""
    return [_table(("figure", *splits), rows), known_ends + note]


def _operating_point(decision: Decision | None) -> list[str]:
    if decision is None or decision.chosen_on is None:
        words = "Nothing was chosen on data" + (f": {literal(decision.note)}." if decision and decision.note else ".")
        if decision is not None and decision.kind != "multiclass":
            words += f" The threshold is {decision.threshold:.6g}."
        return [words]
    asked = {"none": "the most probable class", "f1": "largest F1"}.get(decision.rule, decision.rule)
    asked += "" if decision.value is None else f" {decision.value:g}"
    asked += "" if decision.npv is None else f", negative predictive value {decision.npv:g}"
    words = (
        f"Chosen on the {'validation' if decision.chosen_on == 'val' else decision.chosen_on} data: {literal(asked)}."
    )
    if decision.kind != "multiclass":
        words += f" Threshold {decision.threshold:.6g}"
        words += "." if decision.lower is None else f", rejected below {decision.lower:.6g}; between, a person decides."
    elif any(decision.least):
        least = f"{min(decision.least):.4g} (by class up to {max(decision.least):.4g})"
        words += f" What is less probable than {least} is for a person."
    words += "" if decision.temperature == 1 else f" Temperature {decision.temperature:.4g}."
    words += f" {literal(decision.note)}." if decision.note else ""
    rows = [
        (split, NAMES.get(name, name), figure.value, figure.low, figure.high)
        for split, figures in decision.figures.items()
        for name, figure in figures.items()
    ]
    return [words, _table(("split", "figure", "value", "95 % from", "to"), rows)] if rows else [words]


def _limits(known: _Known) -> list[str]:
    lines = [*known.app.limits]
    if known.generated:
        lines.append("Trained and evaluated on generated data: the figures say nothing of real data.")
    if "test" not in known.splits:
        lines.append("No test data was looked at: the figures are of the data that chose weights and operating point.")
    lines.append("Not measured: data of other sources than the run's, and single groups in it (people, devices).")
    if skipped := int(known.summary["skipped_steps"]):
        lines.append(f"{skipped} steps of the training were skipped, as the loss or a gradient was not finite.")
    return lines


def _loading(where: str) -> list[str]:
    quoted = json.dumps(where, ensure_ascii=False)
    code = f'from mlcore.run import load_run\n\npredictor = load_run({quoted})\npredictions = predictor(["FILE"])'
    return [_code(code), "On the command line:", _code(f"quartet predict {shlex.quote(where)} FILE")]


def _versions(known: _Known) -> str:
    rows = [
        ("quartet", VERSION),
        ("code of the training", known.record.get("code", "unknown")),
        ("training", f"{known.record.get('started', '')} to {known.record.get('ended', '')}"),
        ("Python", known.record.get("host", {}).get("python", "unknown")),
        ("digest of the weights (BLAKE2b)", known.run.digest),
    ]
    return _table(("", ""), rows)


def _code(text: str) -> str:
    """A block without a fence, which the text could close."""
    return "\n".join(f"    {line}" if line else "" for line in shown(text).splitlines())


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [[*columns], ["---"] * len(columns), *([literal(readable(cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

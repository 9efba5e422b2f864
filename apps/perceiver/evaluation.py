"""What `inference.py` does: a checkpoint and its data to figures, pictures and tables."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.console import setup_logging
from mlcore.base.distributed import World, start_world
from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, output_folder, write_json, write_text
from mlcore.config.dump import to_values
from mlcore.config.layers import Rank, Source, Value
from mlcore.config.names import NameTable
from mlcore.config.validation import validate
from mlcore.metrics.classification import ClassificationReport
from mlcore.report.classification import classification_sections, measure
from mlcore.report.page import Headline, RunReport, Table, describe_environment, write_report
from mlcore.report.plots.classes import plot_confusion_matrix
from mlcore.report.plots.confidence import plot_accuracy_by_confidence, plot_confidence_histogram
from mlcore.run.build import Data, configure_torch, evaluation_loader
from mlcore.run.restore import run_folder
from mlcore.training.evaluator import Evaluator, Predictions
from quartet.apps.perceiver.build import load_part
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.data.samples import origin_of
from quartet.apps.perceiver.data.sources import Part
from quartet.apps.perceiver.restore import Restored, restore
from quartet.apps.perceiver.task import PerceiverTask

_log = logging.getLogger(__name__)

_SECTIONS = ("data", "run")  # what may differ from the training run
_COLUMNS = ("index", "origin", "label", "predicted", "probability", "loss")
_SHOWN = 20  # mistakes in the report


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's predictions on one part of its data.

    Attributes:
        restored: The model.
        checkpoint: Its file.
        config: The configuration that the data was read with.
        part: Which part of the data.
        data: The samples.
        skipped: One message for each sample left out.
        metrics: Figures, with the number of samples as "n".
        predictions: One row for each sample, in the data's order.
    """

    restored: Restored
    checkpoint: Path
    config: PerceiverConfig
    part: Part
    data: Data
    skipped: Sequence[str]
    metrics: Mapping[str, float]
    predictions: Predictions

    @property
    def class_names(self) -> Sequence[str]:
        """In the order of the probabilities."""
        return self.restored.class_names


def evaluate(
    checkpoint: Path,
    *,
    part: Part = "val",
    settings: Sequence[str] = (),
    output_dir: Path | None = None,
    batch_size: int | None = None,
    analyze: bool = False,
) -> int:
    """Evaluate a checkpoint and write the results.

    Args:
        checkpoint: `best_model.pth` or any other checkpoint of a run.
        part: Which part of the run's data.
        settings: Changes to the run's sections data and run, as on a command line.
        output_dir: Where the results go; None: `evaluation_<part>` in the run folder.
        batch_size: Samples per batch; None: as in the run.
        analyze: Also write figures per class, every prediction, and a report.

    Returns:
        Exit code 0.

    Raises:
        UserError: The checkpoint, a setting, the data or the output folder cannot be used.
    """
    restored = restore(checkpoint)
    config = changed(restored.config, settings)
    if batch_size is not None:
        config = _checked(config, {"train.eval_batch_size": batch_size})
    folder = output_dir or run_folder(checkpoint) / f"evaluation_{part}"
    with start_world(config.run.device) as world:
        setup_logging(is_main=world.is_main)
        configure_torch(config)
        data, skipped = load_part(restored, part, config=config)
        with output_folder(folder) if world.is_main else nullcontext():
            metrics, predictions = _run(restored, data, config=config, world=world)
        if world.is_main:
            done = Evaluation(
                restored=restored,
                checkpoint=checkpoint,
                config=config,
                part=part,
                data=data,
                skipped=skipped,
                metrics=metrics,
                predictions=predictions,
            )
            _write(done, folder, analyze=analyze, world=world)
    return 0


def changed(config: PerceiverConfig, settings: Sequence[str]) -> PerceiverConfig:
    """The configuration with settings given as `--name VALUE`, `--name=VALUE` or `name=VALUE`.

    Raises:
        UserError: A name is unknown or belongs to a section that a trained model has fixed, or a value does not fit.
    """
    table = NameTable(PerceiverConfig)
    values: dict[str, Any] = {}
    tokens = iter(settings)
    for token in tokens:
        head, equals, text = token.partition("=")
        name = head.removeprefix("--").replace("-", "_")
        if not equals:
            text = next(tokens, "") if token.startswith("--") else ""
        leaf = table.resolve(name)
        if leaf is None:
            raise UserError(
                f"command line: unknown flag or setting '{head}'{table.suggest(name)}; --help lists the flags"
            )
        if leaf.path.split(".")[0] not in _SECTIONS:
            raise UserError(f"command line: {leaf.path} belongs to the trained model; data and run settings can change")
        if not text:
            raise UserError(f"command line: {head} needs a value; expected {leaf.expects}")
        values[leaf.path] = leaf.read(text)
    return _checked(config, values)


def _checked(config: PerceiverConfig, values: Mapping[str, Any]) -> PerceiverConfig:
    table, plain = NameTable(PerceiverConfig), config.model_dump(mode="json")
    given: dict[str, Value] = {}
    for path in table.leaves:
        value: Any = plain
        for key in path.split("."):
            value = value[key]
        given[path] = Value(value, Source(Rank.FILE, "checkpoint"))
    given |= {path: Value(value, Source(Rank.COMMAND_LINE, "command line")) for path, value in values.items()}
    return validate(PerceiverConfig, table, given)


def _run(
    restored: Restored, data: Data, *, config: PerceiverConfig, world: World
) -> tuple[Mapping[str, float], Predictions]:
    """Exactly what the training run does at the end: the same batches, the same arithmetic."""
    task = PerceiverTask(model=restored.model.to(world.device), class_names=restored.class_names)
    evaluator = Evaluator(task, evaluation_loader(config, data, world=world), world=world)
    with restored.autocast(world.device):
        return evaluator.run(task.model)


# ---------------------------------------------------------------------------------------------------------- the files


def _write(done: Evaluation, folder: Path, *, analyze: bool, world: World) -> None:
    for message in done.skipped:
        _log.warning("left out: %s", message)
    figures = measure(done.predictions, class_names=done.class_names)
    if analyze:
        title = "Validation" if done.part == "val" else done.part.capitalize()
        sections = classification_sections(done.predictions, class_names=done.class_names, folder=folder, title=title)
        rows = _rows(done)
        write_text(folder / "predictions.csv", csv_text([_COLUMNS, *rows]))
        mistakes = [row for row in rows if row[2] != row[3]][:_SHOWN]
        table = Table("Most confident mistakes", _COLUMNS, mistakes, note="all predictions: predictions.csv")
        write_report(folder, report=_report(done, [*sections, table], world=world))
    else:
        _draw(done, figures, folder)
    write_json(folder / "results.json", _results(done, figures))
    _log.info("%s, %d samples of the %s split", done.checkpoint, figures.samples, done.part)
    for name, value in figures.scalars().items():
        _log.info("  %-18s %.4f", name, value)
    _log.info("results: %s", folder)


def _draw(done: Evaluation, figures: ClassificationReport, folder: Path) -> None:
    confidence, right = _confidence(done.predictions)
    plot_confusion_matrix(figures.confusion, class_names=done.class_names, path=folder / "confusion_matrix.png")
    plot_confidence_histogram(confidence, right=right, path=folder / "confidence_histogram.png")
    plot_accuracy_by_confidence(confidence, right=right, path=folder / "confidence_analysis.png")


def _confidence(predictions: Predictions) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    probabilities = predictions["probabilities"].numpy()
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == predictions["label"].numpy()


def _results(done: Evaluation, figures: ClassificationReport) -> Mapping[str, Any]:
    """All figures; undefined ones are null."""
    return {
        "checkpoint": str(done.checkpoint),
        "step": done.restored.step,
        "split": done.part,
        "n": figures.samples,
        "metrics": {name: value for name, value in done.metrics.items() if name != "n"},
        "classes": [asdict(row) for row in figures.rows],
        "confusion_matrix": figures.confusion.tolist(),
        "notes": figures.notes,
        "skipped": done.skipped,
        "data": to_values(done.config.data),
    }


def _rows(done: Evaluation) -> list[list[object]]:
    """One row for each sample: mistakes, the most confident first, then the rest, the least confident first."""
    confidence, right = _confidence(done.predictions)
    labels, losses = done.predictions["label"].tolist(), done.predictions["loss"].tolist()
    predicted = done.predictions["probabilities"].argmax(dim=1).tolist()
    order = np.lexsort((np.where(right, confidence, -confidence), right))
    return [
        [
            int(i),
            origin_of(done.data.dataset, int(i)),
            done.class_names[labels[i]],
            done.class_names[predicted[i]],
            float(confidence[i]),
            losses[i],
        ]
        for i in order
    ]


def _report(done: Evaluation, sections: Sequence[Any], *, world: World) -> RunReport:
    n = int(done.metrics["n"])
    names = ("accuracy", "macro_f1", "loss")
    rows = [[name, value] for name, value in done.metrics.items()]
    warnings = [f"{len(done.skipped)} samples were left out: {done.skipped[0]} ..."] if done.skipped else []
    return RunReport(
        title=f"Perceiver: {done.part} split",
        subtitle=f"{done.checkpoint}, step {done.restored.step}",
        headlines=[Headline(name.replace("_", " "), done.metrics[name], f"{n} samples") for name in names],
        warnings=warnings,
        sections=[Table("Figures", ["metric", done.part], rows), *sections],
        config=to_values(done.config),
        environment=describe_environment(world.device),
    )

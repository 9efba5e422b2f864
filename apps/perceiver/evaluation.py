"""A trained Perceiver and labelled data, ready to be evaluated, and the files that an evaluation leaves."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_json, write_text
from mlcore.config.dump import to_values
from mlcore.report.classification import measure, measure_interval
from mlcore.report.page import Section, Table
from mlcore.run.build import Data, EvaluationSetup
from mlcore.run.deciding import Decider, kind_of
from mlcore.run.evaluating import Asked
from mlcore.run.restore import RunCheckpoint, of_this_version, rebuild
from mlcore.training.evaluator import Predictions
from quartet.apps.perceiver.ablation import Ablation
from quartet.apps.perceiver.attention_report import AttentionReport
from quartet.apps.perceiver.build import evaluation_data, parts_of
from quartet.apps.perceiver.build_raw import ablated, raw_data
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.raw import modalities_of
from quartet.apps.perceiver.data.samples import origin_of
from quartet.apps.perceiver.data.sources import labelled_samples, load_sources
from quartet.apps.perceiver.data.targets import Targets
from quartet.apps.perceiver.judging import asking_of, interval, written
from quartet.apps.perceiver.output_task import OutputTask
from quartet.apps.perceiver.outputs import Outputs
from quartet.apps.perceiver.restore import make_model, needs_of
from quartet.apps.perceiver.task import PerceiverTask

__all__ = ["evaluation"]

_log = logging.getLogger(__name__)

_COLUMNS = ("index", "origin", "label", "predicted", "probability", "loss")
_SHOWN = 20  # mistakes in the report


def evaluation(run: RunCheckpoint[PerceiverConfig], asked: Asked, world: World) -> EvaluationSetup:
    """The model of a run with the data that is asked for; `App.evaluation`.

    Raises:
        UserError: There is no such part, it does not fit the model, or samples cannot be used.
    """
    model = rebuild(lambda: make_model(run.metadata["model"]), run.weights, source=run.path)
    if (outputs := Outputs.of(run.metadata)) is not None:
        return _of_outputs(run, asked, outputs, model.to(world.device))
    with of_this_version(run.path):
        names = tuple(str(name) for name in run.metadata["class_names"])
    data, skipped = _data(run, asked, classes=names)
    for message in skipped:
        _log.warning("left out: %s", message)
    decider = Decider(run.config.decision, class_names=names, kind=kind_of(names), kept=asked.kept(run))
    task = PerceiverTask(model=model.to(world.device), class_names=names)
    ablation = Ablation(task=task, modalities=modalities_of(run.metadata))
    attention = _attention(run, task.model, data, names)
    look = attention.after(partial(ablated, decider=decider, ablation=ablation))
    written = _Written(run, data, look, decider, skipped)
    return EvaluationSetup(
        task=task,
        evaluation=data,
        choose=ablation.choose if len(ablation.modalities) > 1 else None,
        analyse=written.analyse,
        interval=lambda _, predictions, metric: measure_interval(predictions, metric),
        finish=written.finish,
        warnings=[f"{len(skipped)} samples were left out: {skipped[0]} ..."] if skipped else [],
    )


def _of_outputs(
    run: RunCheckpoint[PerceiverConfig], asked: Asked, outputs: Outputs, model: nn.Module
) -> EvaluationSetup:
    """The same of other tasks than classification."""
    if asked.choose:
        raise UserError(f"{run.path}: --task {outputs.kind} has no decision; leave out --operating_point")
    data, skipped = _data(run, asked, classes=("0",), outputs=outputs)
    for message in skipped:
        _log.warning("left out: %s", message)
    about = {"checkpoint": str(run.path), "step": run.step, "skipped": skipped, "data": to_values(run.config.data)}
    look, finish = written(outputs, data, about)
    length = max(len(one.dataset[index]["input"]) for one in data.values() for index in range(len(one.dataset)))
    return EvaluationSetup(
        task=OutputTask(model=model, outputs=outputs, length=length),
        evaluation=data,
        analyse=_attention(run, model, data).after(look),
        interval=interval,
        finish=finish,
        warnings=[f"{len(skipped)} samples were left out: {skipped[0]} ..."] if skipped else [],
    )


def _attention(
    run: RunCheckpoint[PerceiverConfig], model: nn.Module, data: Mapping[str, Data], names: Sequence[str] = ()
) -> AttentionReport:
    pictures = run.metadata["preprocessing"]
    layout = PatchLayout.of(pictures) if pictures["kind"] == "image" else None
    return AttentionReport(
        model=model, data=data, modalities=modalities_of(run.metadata), layout=layout, class_names=names
    )


def _data(
    run: RunCheckpoint[PerceiverConfig], asked: Asked, *, classes: tuple[str, ...], outputs: Outputs | None = None
) -> tuple[dict[str, Data], list[str]]:
    """The parts that are asked for, and one message for each sample left out."""
    samples, skipped = {}, list[str]()
    config, pictures = run.config, run.metadata["preprocessing"]
    asking = None if outputs is None else asking_of(outputs, config)
    known = None if outputs is None else Targets(values=(), names=tuple(outputs.names), classes=outputs.classes)
    if None in asked.data.values():
        sources = load_sources(config.data, seed=config.run.seed, kind=config.task.kind)
        if outputs is None and tuple(sources.classes) != classes:
            here, there = (", ".join(names) for names in (sources.classes, classes))
            raise UserError(f"the data has the classes {here}; the model was trained on {there}")
        if known is not None and sources.targets is not None and sources.targets.names != known.names:
            here, there = (", ".join(names) for names in (sources.targets.names, known.names))
            raise UserError(f"the data asks for {here}; the model was trained on {there}")
        classes = tuple(sources.classes)
        if sources.preprocessing != pictures:
            raise UserError(f"the data is {sources.preprocessing}; the model was trained on {pictures}")
        parts = parts_of(sources, config)
        samples, skipped = asked.pick(parts), [*sources.skipped]
    for name, path in asked.data.items():
        if path is not None:
            samples[name], more = labelled_samples(
                path, config.data, classes=classes, preprocessing=pictures, kind=config.task.kind, targets=known
            )
            skipped += more
    data = {}
    for name in asked.data:
        if pictures["kind"] == "raw":
            read = partial(raw_data, modalities=modalities_of(run.metadata))
        else:
            read = partial(evaluation_data, needs=needs_of(run.metadata), asking=asking)
        data[name], problems = read(samples[name], name, settings=config.data, classes=classes)
        skipped += problems
    return data, skipped


class _Written:
    """The report's sections, and the files that tell of every sample."""

    def __init__(
        self,
        run: RunCheckpoint[PerceiverConfig],
        data: Mapping[str, Data],
        analyse: Callable[[Predictions, Path, str], list[Section]],
        decider: Decider,
        skipped: Sequence[str],
    ) -> None:
        self._run, self._data, self._analyse, self._decider, self._skipped = run, data, analyse, decider, skipped
        self._predictions: dict[str, Predictions] = {}

    def analyse(self, predictions: Predictions, folder: Path, prefix: str) -> list[Section]:
        """As in training, and the most confident mistakes."""
        split = prefix.removesuffix("_") or "val"
        self._predictions[split] = predictions
        mistakes = [row for row in self._rows(split) if row[2] != row[3]][:_SHOWN]
        note = f"all predictions: {prefix}predictions.csv"
        title = "Validation" if split == "val" else split.capitalize()
        table = Table(f"{title}: most confident mistakes", _COLUMNS, mistakes, note=note)
        return [*self._analyse(predictions, folder, prefix), table]

    def finish(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """Write `decision.json`, `results.json` of the split that was asked for, and `{split}_predictions.csv`."""
        self._decider.write(folder, summary)
        for split in self._data:
            prefix = "" if split == "val" else f"{split}_"
            write_text(folder / f"{prefix}predictions.csv", csv_text([_COLUMNS, *self._rows(split)]))
        write_json(folder / "results.json", self._results([*self._data][-1], summary))

    def _results(self, split: str, summary: Mapping[str, Any]) -> Mapping[str, Any]:
        """All figures; undefined ones are null."""
        figures = measure(self._predictions[split], class_names=self._decider.decision.class_names)
        return {
            "checkpoint": str(self._run.path),
            "step": self._run.step,
            "split": split,
            "n": figures.samples,
            "metrics": {name: value for name, value in summary["results"][split].items() if name != "n"},
            "classes": [asdict(row) for row in figures.rows],
            "confusion_matrix": figures.confusion.tolist(),
            "notes": figures.notes,
            "skipped": self._skipped,
            "data": to_values(self._run.config.data),
        }

    def _rows(self, split: str) -> list[list[object]]:
        """One row for each sample: mistakes, the most confident first, then the rest, the least confident first."""
        predictions, names = self._predictions[split], self._decider.decision.class_names
        chances: NDArray[np.float32] = predictions["probabilities"].numpy()
        labels, predicted = predictions["label"].numpy(), chances.argmax(axis=1)
        confidence, right = chances.max(axis=1), predicted == labels
        order = np.lexsort((np.where(right, confidence, -confidence), right))
        origin = partial(origin_of, self._data[split].dataset)
        losses = predictions["loss"].tolist()
        return [
            [i, origin(i), names[labels[i]], names[predicted[i]], float(confidence[i]), losses[i]]
            for i in order.tolist()
        ]

"""From the task section of a configuration to what is asked, how it is judged, and the files of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_json, write_text
from mlcore.metrics.ranking import Interval
from mlcore.report.page import Section
from mlcore.run.build import Data
from mlcore.training.evaluator import Predictions
from quartet.apps.perceiver.answers import listed
from quartet.apps.perceiver.config import PerceiverConfig, TaskConfig
from quartet.apps.perceiver.data.asking import Asking
from quartet.apps.perceiver.data.inspection import Inspection
from quartet.apps.perceiver.data.samples import SampleDataset, origin_of
from quartet.apps.perceiver.data.targets import Targets
from quartet.apps.perceiver.measures import intervals, sections
from quartet.apps.perceiver.output_baselines import output_baselines
from quartet.apps.perceiver.outputs import Outputs

__all__ = ["asking_of", "interval", "judged", "least_positions", "outputs_of", "written"]


def least_positions(settings: TaskConfig) -> int:
    """The shortest sequence of the task."""
    return Outputs(kind=settings.kind, names=(), horizon=settings.horizon or 0).least


def outputs_of(
    settings: TaskConfig,
    targets: Targets | None,
    train: SampleDataset,
    look: Inspection,
    *,
    channels: Sequence[str] = (),
) -> Outputs | None:
    """What a model gives; None: it classifies.

    Args:
        settings: The task.
        targets: Names of what the data's files ask; None: they ask nothing.
        train: Training samples, all of which can be used.
        look: What was found in them.
        channels: Names of the channels, where they have some.

    Raises:
        UserError: The data does not have what the task asks.
    """
    if settings.kind == "classification":
        return None
    if settings.kind in ("forecast", "masked"):
        return _of_channels(settings, look, channels)
    if targets is None:
        raise UserError(f"the data has no targets for --task {settings.kind}")
    if settings.kind == "multilabel" or targets.classes:
        return Outputs(kind=settings.kind, names=targets.names, classes=targets.classes)
    values = np.concatenate([np.atleast_2d(train[index]["target"]) for index in range(len(train))])
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    std = np.where(std > 0, std, 1.0)
    return Outputs(kind=settings.kind, names=targets.names, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _of_channels(settings: TaskConfig, look: Inspection, names: Sequence[str]) -> Outputs:
    mean, std = look.statistics.mean, look.statistics.std  # of all channels but time
    strange = [channel for channel in settings.covariates if channel >= len(mean)]
    channels = [channel for channel in range(len(mean)) if channel not in settings.covariates]
    if strange or not channels:
        raise UserError(
            f"task.covariates {settings.covariates}: the data has {len(mean)} channels, counted from 0, and one "
            "at least is to be predicted"
        )
    return Outputs(
        kind=settings.kind,
        names=tuple(names[channel] if names else f"channel_{channel}" for channel in channels),
        mean=tuple(mean[channel] for channel in channels),
        std=tuple(std[channel] for channel in channels),
        horizon=settings.horizon or 0,
        context=settings.context,
        covariates=tuple(settings.covariates),
        channels=tuple(channels),
        time_step=look.statistics.time_step,
    )


def asking_of(outputs: Outputs, config: PerceiverConfig) -> Asking:
    """What samples of training and evaluation are asked."""
    data, task = config.data, config.task
    cut = data.max_seq_len if data.on_too_long == "truncate" else None
    return Asking(outputs=outputs, max_seq_len=cut, share=task.masked_share, block=task.masked_block)


def judged(outputs: Outputs, samples: Mapping[str, Data], *, length: int) -> dict[str, Any]:
    """How a model is judged: what a `TrainingSetup` takes of it.

    Args:
        outputs: What it gives.
        samples: By split, with "train".
        length: The longest sequence, in positions.
    """
    return {
        "analyse": partial(analyse, outputs=outputs, samples=samples),
        "interval": interval,
        "baselines": output_baselines(samples, outputs=outputs, length=length),
    }


def interval(_split: str, predictions: Predictions, metric: str) -> Interval:
    """The 95 % interval of a figure."""
    return intervals(predictions).get(metric, Interval(np.nan, np.nan))


def analyse(
    predictions: Predictions, folder: Path, prefix: str, *, outputs: Outputs, samples: Mapping[str, Data]
) -> list[Section]:
    """Sections of a report on predictions."""
    data = samples[prefix.removesuffix("_") or "val"]
    assert data.prepare is not None  # noqa: S101 - it is what asks
    prepare = data.prepare
    return sections(
        outputs, predictions, sample=lambda index: prepare(data.dataset[index]), folder=folder, prefix=prefix
    )


def written(
    outputs: Outputs, samples: Mapping[str, Data], about: Mapping[str, Any]
) -> tuple[Callable[..., list[Section]], Callable[[Path, Mapping[str, Any]], None]]:
    """`analyse` and `finish` of an evaluation, which leaves `{split}_predictions.csv`, worst first, and `results.json`.

    Args:
        outputs: What the model gives.
        samples: What it is evaluated on, by split.
        about: More of `results.json`.
    """
    found: dict[str, Predictions] = {}

    def look(predictions: Predictions, folder: Path, prefix: str) -> list[Section]:
        found[prefix.removesuffix("_") or "val"] = predictions
        return analyse(predictions, folder, prefix, outputs=outputs, samples=samples)

    def finish(folder: Path, summary: Mapping[str, Any]) -> None:
        for split, rows in found.items():
            named = [
                "index",
                "origin",
                "loss",
                *(f"{what} {name}" for what in ("true", "predicted") for name in _parts(outputs)),
            ]
            name = "predictions.csv" if split == "val" else f"{split}_predictions.csv"
            write_text(folder / name, csv_text([named, *_rows(outputs, rows, samples[split].dataset)]))
        split = [*samples][-1]
        figures = {name: value for name, value in summary["results"][split].items() if name != "n"}
        write_json(
            folder / "results.json", {**about, "split": split, "n": len(found[split]["loss"]), "metrics": figures}
        )

    return look, finish


def _parts(outputs: Outputs) -> Sequence[object]:
    return ["class"] if outputs.classes else outputs.names


def _rows(outputs: Outputs, rows: Predictions, dataset: Any) -> list[list[object]]:
    losses = rows["loss"].numpy()
    pair = [rows[key].numpy() for key in ("target", "probabilities" if "probabilities" in rows else "predicted")]
    table = []
    for index in np.argsort(-losses, kind="stable").tolist():
        cells = [cell for values in pair for cell in _cells(outputs, values[index])]
        table.append([index, origin_of(dataset, index), float(losses[index]), *cells])
    return table


def _cells(outputs: Outputs, values: Any) -> list[object]:
    """One for each of `_parts`."""
    if outputs.classes:
        return [listed([outputs.names[place] if place >= 0 else None for place in values.tolist()])]
    return values.tolist() if values.ndim == 1 else [listed(column.tolist()) for column in values.T]

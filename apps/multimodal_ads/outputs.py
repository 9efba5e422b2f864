"""What a run leaves besides the shared files: results, predictions, the wrong ones, and copies under promised names."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mlcore.base.files import atomic_write, ensure_folder, write_json, write_text
from mlcore.config.dump import to_yaml
from mlcore.data.images import read_image
from mlcore.report.page import Section
from mlcore.run.deciding import Decider
from mlcore.run.decision import write_decision
from mlcore.run.final_evaluation import best_checkpoint
from mlcore.training.checkpoint import CheckpointStore
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.table import AdRow
from quartet.apps.multimodal_ads.evaluation import ad_sections, probabilities_of, results
from quartet.apps.multimodal_ads.wrong_ones import classify, write_predictions, write_report, wrong_sections

_log = logging.getLogger(__name__)

__all__ = ["Inspector", "write_outputs", "write_results"]

CHECKPOINT = "checkpoint_best.ckpt"
RESULTS = "results.json"

_HEADLINES = ("n", "positives", "auroc", "average_precision", "f1", "precision", "recall", "accuracy", "ece")


class Inspector:
    """Pictures and tables of an evaluation; remembers the predictions, from which the run's own files are written.

    Args:
        rows: By split: "val", and "test" where there is one.
        decider: Chooses the decision.
        max_pixels: Larger images are not decoded for thumbnails.
    """

    def __init__(self, rows: Mapping[str, Sequence[AdRow]], *, decider: Decider, max_pixels: int) -> None:
        self.rows = rows
        self.decider = decider
        self.read_image = partial(read_image, max_pixels=max_pixels)
        self.predictions: dict[str, Mapping[str, Tensor]] = {}

    def __call__(self, predictions: Mapping[str, Tensor], folder: Path, prefix: str) -> list[Section]:
        """Sections of the report; `prefix` is "" for validation, which comes first, and "test_" for the test."""
        split = prefix.removesuffix("_") or "val"
        self.predictions[split] = predictions
        labels, chances = predictions["label"].numpy(), probabilities_of(predictions)
        if split == "val":
            self.decider.choose(labels, chances)
        classified = classify(predictions, self.rows[split], threshold=self.threshold)
        return [
            *self.decider.sections(labels, chances, folder=folder, prefix=prefix),
            *ad_sections(predictions, threshold=self.threshold, folder=folder, prefix=prefix),
            *wrong_sections(classified, folder=folder, prefix=prefix, read_image=self.read_image),
        ]

    @property
    def threshold(self) -> float:
        """The probability from which a sample counts as an ad, chosen on validation."""
        return self.decider.decision.threshold


def write_outputs(inspector: Inspector, config: AdsConfig, folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what `write_results` does, and the run's checkpoint and settings under promised names.

    These are `checkpoint_best.ckpt` and `.hydra/config.yaml`.

    Args:
        inspector: It has seen the best checkpoint's predictions.
        config: The run's.
        folder: The run's.
        summary: Of the run.
    """
    write_results(inspector, folder, summary)
    best = best_checkpoint(folder / "checkpoints")
    if best is not None:
        if best.name != CheckpointStore.BEST:
            _log.warning("%s is the newest checkpoint: the metric that chooses the best was never defined", CHECKPOINT)
        _link(best, folder / CHECKPOINT)
    write_text(ensure_folder(folder / ".hydra") / "config.yaml", to_yaml(config))


def write_results(inspector: Inspector, folder: Path, _summary: Mapping[str, Any]) -> None:
    """Write `decision.json`, `results.json`, and of the test data `test_predictions.json` and `test_report.md`.

    Without test data the predictions and the report are those of validation.

    Args:
        inspector: It has seen the predictions.
        folder: Where they go.
    """
    known = inspector.predictions
    split = next(name for name in ("test", "val", "train") if name in known)
    decision = inspector.decider.decision
    write_decision(folder, decision)
    values = results(decision, known)
    write_json(folder / RESULTS, values)
    threshold, figures = inspector.threshold, values[split]
    classified = classify(known[split], inspector.rows[split], threshold=threshold)
    write_predictions(folder / "test_predictions.json", classified)
    headlines = {name: figures[name] for name in _HEADLINES}
    read = inspector.read_image
    write_report(folder / "test_report.md", classified, headlines=headlines, threshold=threshold, read_image=read)


def _link(source: Path, name: Path) -> None:
    """Give a file a second name; a copy where the file system has no hard links."""
    name.unlink(missing_ok=True)
    try:
        os.link(source, name)
    except OSError:
        with source.open("rb") as whole, atomic_write(name, size=source.stat().st_size) as copy:
            shutil.copyfileobj(whole, copy)

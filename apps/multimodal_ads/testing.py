"""What `test.py` does: a checkpoint and a labelled table to figures and the wrong ones."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from mlcore.base.console import setup_logging
from mlcore.base.distributed import World, pick_device
from mlcore.base.files import output_folder, write_json
from mlcore.data.images import read_image
from mlcore.data.loader import BatchLoader, worker_count
from mlcore.data.order import EpochOrder
from mlcore.run.restore import run_folder
from mlcore.training.engine import autocast
from mlcore.training.evaluator import Evaluator
from quartet.apps.multimodal_ads.data.batches import SampleSource, collate
from quartet.apps.multimodal_ads.data.table import AdRow, read_table
from quartet.apps.multimodal_ads.evaluation import split_results
from quartet.apps.multimodal_ads.outputs import write_test_files
from quartet.apps.multimodal_ads.restore import Restored, decision_of, restore
from quartet.apps.multimodal_ads.text.truncation import forewarn

_log = logging.getLogger(__name__)

__all__ = ["evaluate"]


def evaluate(
    *,
    model_path: Path,
    csv: Path,
    base_dir: Path | None,
    output_dir: Path | None,
    threshold: str | None,
    batch_size: int,
    device: str,
) -> int:
    """Write results.json, test_predictions.json and test_report.md; the help of `test.py` says what each argument is.

    Raises:
        UserError: The checkpoint or the table cannot be used, or the folder cannot be written to.
    """
    setup_logging()
    with output_folder(output_dir or run_folder(model_path) / f"test_{csv.stem}") as folder:
        rows = read_table(csv, base_dir=base_dir)
        restored = restore(model_path, device=pick_device(device))
        decision = decision_of(model_path, threshold)
        value, chosen_on = decision.threshold, decision.chosen_on
        for warning in forewarn([row.text for row in rows], restored.parts.text):
            _log.warning("%s", warning)
        predictions = _predictions(restored, rows, batch_size=batch_size)
        figures = split_results(predictions, threshold=value)
        write_json(folder / "results.json", {"threshold": {"value": value, "chosen_on": chosen_on}, "test": figures})
        read = partial(read_image, max_pixels=restored.max_pixels)
        write_test_files(folder, predictions, rows, threshold=value, figures=figures, read=read)
    shown = {name: figures[name] for name in ("auroc", "average_precision", "f1", "accuracy")}
    values = "  ".join(f"{name} {'undefined' if value is None else f'{value:.4f}'}" for name, value in shown.items())
    _log.info("%d samples  %s", len(rows), values)
    for name, reason in figures["undefined"].items():
        _log.warning("%s is undefined: %s", name, reason)
    _log.info("written: %s", folder)
    return 0


def _predictions(restored: Restored, rows: Sequence[AdRow], *, batch_size: int) -> Mapping[str, Tensor]:
    """Evaluation rows of a table's samples, in its order."""
    with_images, with_texts = restored.parts.vision is not None, restored.parts.text is not None
    loader = BatchLoader(
        SampleSource(rows, max_pixels=restored.max_pixels, with_images=with_images, with_texts=with_texts),
        EpochOrder(len(rows), batch_size, shuffle=False),
        prepare=restored.prepare,
        collate=collate,
        num_workers=worker_count("auto", samples=len(rows), batch_size=batch_size),
    )
    with autocast(restored.config.train.precision, restored.device):
        return Evaluator(restored.task, loader, world=World(device=restored.device)).predict(restored.model)

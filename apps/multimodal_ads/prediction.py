"""What `test.py` and `predict.py` do: a checkpoint and a table, or images, to figures and probabilities."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mlcore.base.console import setup_logging, with_progress
from mlcore.base.distributed import World, pick_device
from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, output_folder, write_json, write_text
from mlcore.data.batch import MicroBatch
from mlcore.data.images import find_images, read_image
from mlcore.data.loader import BatchLoader, worker_count
from mlcore.data.order import EpochOrder
from mlcore.run.restore import run_folder
from mlcore.training.engine import autocast
from mlcore.training.evaluator import Evaluator
from quartet.apps.multimodal_ads.data.batches import SampleSource, collate
from quartet.apps.multimodal_ads.data.dataset import AdDataset
from quartet.apps.multimodal_ads.data.table import AdRow, clean_text, read_rows, read_table
from quartet.apps.multimodal_ads.evaluation import probabilities_of, split_results
from quartet.apps.multimodal_ads.outputs import write_test_files
from quartet.apps.multimodal_ads.restore import Restored, chosen_threshold, restore
from quartet.apps.multimodal_ads.text.truncation import truncation

_log = logging.getLogger(__name__)

_COLUMNS = ("image", "probability", "predicted", "gate", "problem")

Wanted = tuple[str, AdRow | str]
"""What is to be scored, as it was named, and its row, or the reason why there is none."""


@dataclass(frozen=True, kw_only=True)
class TestRequest:
    """The command line of `test.py`; its help says what each means."""

    model_path: Path
    csv: Path
    base_dir: Path | None
    output_dir: Path | None
    threshold: float | None
    batch_size: int
    device: str


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The command line of `predict.py`; its help says what each means."""

    inputs: Sequence[Path]
    model_path: Path
    csv: Path | None
    base_dir: Path | None
    text: str
    output: Path
    threshold: float | None
    batch_size: int
    device: str


def evaluate(request: TestRequest) -> int:
    """Evaluate a checkpoint on a labelled table and write results.json, test_predictions.json and test_report.md.

    Raises:
        UserError: The checkpoint or the table cannot be used, or the folder cannot be written to.
    """
    setup_logging()
    with output_folder(request.output_dir or run_folder(request.model_path) / f"test_{request.csv.stem}") as folder:
        return _evaluate(request, folder)


def _evaluate(request: TestRequest, folder: Path) -> int:
    rows = read_table(request.csv, base_dir=request.base_dir)
    restored = restore(request.model_path, device=pick_device(request.device))
    threshold, chosen_on = _threshold(request.threshold, request.model_path)
    _tell_truncation(restored, rows)
    predictions = predict_rows(restored, rows, batch_size=request.batch_size)
    figures = split_results(predictions, threshold=threshold)
    about = {"value": threshold, "chosen_on": chosen_on}
    write_json(folder / "results.json", {"threshold": about, "test": figures})
    write_test_files(
        folder,
        predictions,
        rows,
        threshold=threshold,
        figures=figures,
        read=partial(read_image, max_pixels=_limit(restored)),
    )
    shown = ("auroc", "average_precision", "f1", "accuracy")
    _log.info("%d samples  %s", len(rows), "  ".join(f"{name} {_shown(figures[name])}" for name in shown))
    for name, reason in figures["undefined"].items():
        _log.warning("%s is undefined: %s", name, reason)
    _log.info("written: %s", folder)
    return 0


def predict_rows(restored: Restored, rows: Sequence[AdRow], *, batch_size: int) -> Mapping[str, Tensor]:
    """Evaluation rows of a table's samples, in its order."""
    source = _source(restored, rows)
    order = EpochOrder(len(rows), batch_size, shuffle=False)
    workers = worker_count("auto", samples=len(rows), batch_size=batch_size, processes=1)
    loader = BatchLoader(source, order, prepare=restored.prepare, collate=collate, num_workers=workers)
    device = next(restored.model.parameters()).device
    with autocast(restored.config.train.precision, device):
        return Evaluator(restored.task, loader, world=World(device=device)).predict(restored.model)


def predict(request: PredictRequest) -> int:
    """Score images and write a table, a row for each in the order given.

    Returns:
        Exit code 1 where some could not be scored (they are in the table with the reason), else 0.

    Raises:
        UserError: There is nothing to score, the checkpoint cannot be used, or the table cannot be written; or nothing
            could be scored: then the table with the reasons is there.
    """
    setup_logging()
    with output_folder(request.output.absolute().parent):  # a place that cannot be written to is told before the work
        return _predict(request)


def _predict(request: PredictRequest) -> int:
    wanted = _wanted(request)
    rows = [row for _, row in wanted if isinstance(row, AdRow)]
    restored = restore(request.model_path, device=pick_device(request.device))
    _warn_without_texts(restored, rows)
    _tell_truncation(restored, rows)
    threshold, _ = _threshold(request.threshold, request.model_path)
    chunks = [wanted[start : start + request.batch_size] for start in range(0, len(wanted), request.batch_size)]
    lines = [list(_COLUMNS)]
    for chunk in with_progress(chunks, total=len(chunks), what="batches"):
        lines += _score(restored, chunk, threshold=threshold)
    write_text(request.output, csv_text(lines))
    bad = sum(bool(line[-1]) for line in lines[1:])
    _log.info("written: %s (%d images, %d could not be read)", request.output, len(wanted), bad)
    if bad == len(wanted):
        raise UserError(f"nothing could be scored, {request.output} has the reasons; the first: {lines[1][-1]}")
    return 1 if bad else 0


def _wanted(request: PredictRequest) -> list[Wanted]:
    if request.csv is not None:
        if request.inputs:
            raise UserError("give images or --csv, not both")
        return read_rows(request.csv, base_dir=request.base_dir)
    paths = [path for given in request.inputs for path in (find_images(given) if given.is_dir() else [given])]
    if not paths:
        raise UserError("nothing to score: give images, folders of images, or --csv")
    text = clean_text(request.text)
    return [(str(path), AdRow(image=path, label=0, text=text, origin=str(path))) for path in paths]


def _warn_without_texts(restored: Restored, rows: Sequence[AdRow]) -> None:
    """Some pictures have no text, which the model knows how to take; that none has any is rather a thing forgotten."""
    if restored.parts.text is not None and not any(row.text for row in rows):
        _log.warning(
            "no texts are given, though the model was trained with them: every picture is classified without its text. "
            "Give --text, or --csv with the column text_info, which prepare.py --ocr fills"
        )


def _tell_truncation(restored: Restored, rows: Sequence[AdRow]) -> None:
    encoder = restored.parts.text
    if encoder is not None:
        found = truncation(encoder.count_tokens([row.text for row in rows]), encoder)
        if found.cut:
            _log.warning("%s", found)


def _score(restored: Restored, wanted: Sequence[Wanted], *, threshold: float) -> Iterator[list[str]]:
    """Lines of the table, one for each that is wanted."""
    answers = iter(_answers(restored, [row for _, row in wanted if isinstance(row, AdRow)]))
    for name, row in wanted:
        answer = row if isinstance(row, str) else next(answers)
        if isinstance(answer, str):
            yield [name, "", "", "", answer]
            continue
        chance, gate = answer
        yield [
            name,
            f"{chance:.6f}",
            "ad" if chance >= threshold else "not_ad",
            "" if gate is None else f"{gate:.4f}",
            "",
        ]


@torch.inference_mode()
def _answers(restored: Restored, rows: Sequence[AdRow]) -> list[tuple[float, float | None] | str]:
    """Probability and gate of each row, or the reason why it cannot be read."""
    source = _source(restored, rows)
    samples, found = [], dict[int, tuple[float, float | None] | str]()
    for index in range(len(rows)):
        try:
            sample = source[index]
            samples.append(sample if restored.prepare is None else restored.prepare(sample))
        except UserError as error:
            found[index] = str(error)
    if samples:
        device = next(restored.model.parameters()).device
        batch = MicroBatch(collate(samples)).to(device).data
        with autocast(restored.config.train.precision, device):
            output = restored.task.evaluation_step(restored.model, batch)
        gates = output["gate"].tolist() if "gate" in output else [None] * len(samples)
        chances = probabilities_of({key: value.cpu() for key, value in output.items()}).tolist()
        found |= {s["index"]: pair for s, pair in zip(samples, zip(chances, gates, strict=True), strict=True)}
    return [found[index] for index in range(len(rows))]


def _source(restored: Restored, rows: Sequence[AdRow]) -> SampleSource:
    dataset = AdDataset(rows, max_pixels=_limit(restored), with_images=restored.parts.vision is not None)
    return SampleSource(dataset, with_texts=restored.parts.text is not None)


def _limit(restored: Restored) -> int:
    return round(restored.config.data.max_megapixels * 1e6)


def _threshold(given: float | None, model_path: Path) -> tuple[float, str | None]:
    """The threshold, and the split that it was chosen on; None where it is the user's or nobody's choice."""
    if given is not None:
        return given, None
    chosen = chosen_threshold(run_folder(model_path))
    if chosen is None:
        _log.warning("no results.json beside %s: the threshold is 0.5; give --threshold for another", model_path)
        return 0.5, None
    return chosen


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"

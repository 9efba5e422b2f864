"""What `predict.py` does: a checkpoint and new data to a table of classes."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.console import Pace, format_duration, setup_logging
from mlcore.base.distributed import pick_device
from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, csv_text
from quartet.apps.perceiver.data.arrays import read_npz
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.gaps import OnMissing
from quartet.apps.perceiver.data.images import SUFFIXES, decode_image
from quartet.apps.perceiver.data.inspection import check_sample
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.samples import Array, SequenceDataset
from quartet.apps.perceiver.data.ts_files import read_ts
from quartet.apps.perceiver.restore import Restored, restore

_log = logging.getLogger(__name__)

OnBadSample = Literal["error", "skip"]

_REPORT_EVERY_S = 5.0
_READERS: dict[str, Callable[..., SequenceDataset]] = {".ts": read_ts, ".npz": read_npz}


@dataclass(frozen=True)
class Item:
    """One thing to classify.

    Attributes:
        name: How the table calls it: a file, perhaps with line or row.
        load: Gives its sequence, float32 [M, C].
        mask: Which positions are real, bool [M]; None: all.
    """

    name: str
    load: Callable[[], Array]
    mask: NDArray[np.bool_] | None = None


def predict(
    checkpoint: Path,
    inputs: Sequence[Path],
    *,
    output: Path,
    on_bad_sample: OnBadSample = "error",
    on_missing: OnMissing | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> int:
    """Classify new data and write a CSV file.

    Args:
        checkpoint: `best_model.pth` or any other checkpoint of a run.
        inputs: Files and folders.
        output: The CSV file; it appears complete or not at all.
        on_bad_sample: Stop at what cannot be used, or leave it out and count it.
        on_missing: What to do with gaps in sequences; None: as in training.
        batch_size: Samples per batch; None: as in the run's evaluations.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        Exit code 0.

    Raises:
        UserError: The checkpoint, an input or the output cannot be used, or nothing is left to classify.
    """
    setup_logging()
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {batch_size}")
    classifier = Classifier(restore(checkpoint), device=pick_device(device))
    problems = Problems(on_bad_sample)
    items = find_items(inputs, classifier.restored, problems=problems, on_missing=on_missing)
    train = classifier.restored.config.train
    size = batch_size or train.eval_batch_size or train.batch_size
    counts = np.zeros(len(classifier.restored.class_names), dtype=np.int64)
    with atomic_write(output) as file:
        _write_rows(
            file, [["input", "class", "probability", *(f"p_{name}" for name in classifier.restored.class_names)]]
        )
        for names, probabilities in classifier.run(items, batch_size=size, problems=problems):
            counts += np.bincount(probabilities.argmax(axis=1), minlength=len(counts))
            _write_rows(file, _rows(names, probabilities, classifier.restored.class_names))
        if not counts.any():
            raise UserError(f"none of the inputs can be used; the first: {problems.messages[0]}")
    found = ", ".join(f"{name} {n}" for name, n in zip(classifier.restored.class_names, counts, strict=True) if n)
    _log.info("%s: %d predictions, %d inputs left out; %s", output, counts.sum(), len(problems.messages), found)
    return 0


class Problems:
    """What to do with an input that cannot be used.

    Args:
        on_bad_sample: "error" raises; "skip" warns and keeps the message.
    """

    def __init__(self, on_bad_sample: OnBadSample) -> None:
        self._stop = on_bad_sample == "error"
        self.messages: list[str] = []

    def note(self, error: UserError, *, name: str = "") -> None:
        """Raise `error`, prefixed with the input's name, or count it."""
        message = f"{name}: {error}" if name and not str(error).startswith(name) else str(error)
        if self._stop:
            raise UserError(f"{message}\n--on_bad_sample skip leaves such inputs out") from None
        _log.warning("left out: %s", message)
        self.messages.append(message)


class Classifier:
    """A restored model that takes raw items.

    Args:
        restored: The model and its metadata.
        device: Where it runs.
    """

    def __init__(self, restored: Restored, *, device: torch.device) -> None:
        self.restored = restored
        self._device = device
        self._model = restored.model.to(device)
        data = restored.config.data
        self._collate = PadCollate(
            max_seq_len=data.max_seq_len or restored.model.encoder.positions.longest, on_too_long=data.on_too_long
        )

    def run(
        self, items: Sequence[Item], *, batch_size: int, problems: Problems
    ) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Names and class probabilities [B, classes] of batch after batch, in order, without what cannot be used."""
        batch: list[tuple[str, Any]] = []
        pace, reported = Pace(len(items)), time.monotonic()
        for done, item in enumerate(items, 1):
            try:
                batch.append((item.name, self._checked(item)))
            except UserError as error:
                problems.note(error, name=item.name)
            if len(batch) == batch_size:
                yield self._classify(batch)
                batch = []
            pace.update(done)
            if time.monotonic() - reported > _REPORT_EVERY_S:
                reported = time.monotonic()
                _log.info("%d of %d, %.0f/s, %s left", done, len(items), pace.per_second, format_duration(pace.eta_s))
        if batch:
            yield self._classify(batch)

    def _checked(self, item: Item) -> dict[str, Any]:
        sample = {"input": item.load(), "label": 0, **({} if item.mask is None else {"mask": item.mask})}
        check_sample(
            sample,
            num_classes=1,
            channels=self.restored.metadata["model"]["input_dim"],
            max_seq_len=self._collate.max_seq_len,
            on_too_long=self._collate.on_too_long,
        )
        return sample

    @torch.inference_mode()
    def _classify(self, batch: list[tuple[str, Any]]) -> tuple[list[str], NDArray[np.float32]]:
        data = self._collate([sample for _, sample in batch])
        with self.restored.autocast(self._device):
            logits = self._model(data["input"].to(self._device), data["mask"].to(self._device))
        return [name for name, _ in batch], torch.softmax(logits.float(), dim=1).cpu().numpy()


# --------------------------------------------------------------------------------------------------------- the inputs


def find_items(
    inputs: Sequence[Path], restored: Restored, *, problems: Problems, on_missing: OnMissing | None = None
) -> list[Item]:
    """Everything in files and folders that the model can read, in the order given, folders sorted by name.

    Lines of `.ts` files that cannot be read are noted as problems, like files. Gaps in sequences are treated as
    `on_missing` says; None: as in training.

    Raises:
        UserError: A path is missing or of another kind than the model's data.
    """
    preprocessing, on_missing = restored.metadata["preprocessing"], on_missing or restored.config.data.on_missing
    suffixes = SUFFIXES if preprocessing["kind"] == "image" else tuple(_READERS)
    paths = [path for given in inputs for path in _files(given, suffixes)]
    if preprocessing["kind"] == "image":
        shape = preprocessing["height"], preprocessing["width"]
        layout = PatchLayout(height=shape[0], width=shape[1], patch_size=preprocessing["patch_size"])
        return [Item(str(path), partial(_load_image, path, layout)) for path in paths]
    items: list[Item] = []
    for path in paths:
        try:
            data = _READERS[path.suffix.lower()](path, labelled=False, on_missing=on_missing, strict=False)
        except UserError as error:
            problems.note(error)
            continue
        for problem in data.problems.values():
            problems.note(UserError(problem))
        masks: Sequence[Any] = data.masks or [None] * len(data)
        items += [
            Item(data.origin(row), partial(data.sequences.__getitem__, row), masks[row])
            for row in range(len(data))
            if row not in data.problems
        ]
    if not items and problems.messages:
        raise UserError(f"none of the inputs can be used; the first: {problems.messages[0]}")
    return items


def _files(given: Path, suffixes: Sequence[str]) -> list[Path]:
    if given.is_dir():
        found = sorted(path for path in given.rglob("*") if path.is_file() and path.suffix.lower() in suffixes)
        if not found:
            raise UserError(f"{given}: holds no file that this model reads; expected {', '.join(suffixes)}")
        return found
    if not given.exists():
        raise UserError(f"{given}: no such file or folder")
    if given.suffix.lower() not in suffixes:
        raise UserError(f"{given}: this model reads {', '.join(suffixes)}")
    return [given]


def _load_image(path: Path, layout: PatchLayout) -> Array:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    image = decode_image(content, origin=str(path))
    if image.shape[:2] != (layout.height, layout.width):
        resized = Image.fromarray(image).resize((layout.width, layout.height), Image.Resampling.BICUBIC)
        image = np.asarray(resized, dtype=np.uint8)
    return layout.sequence(image)


# ---------------------------------------------------------------------------------------------------------- the table


def _rows(names: Sequence[str], probabilities: NDArray[np.float32], classes: Sequence[str]) -> list[list[object]]:
    return [
        [name, classes[int(row.argmax())], float(row.max()), *row.tolist()]
        for name, row in zip(names, probabilities, strict=True)
    ]


def _write_rows(file: BinaryIO, rows: Sequence[Sequence[object]]) -> None:
    file.write(csv_text(rows).encode("utf-8"))

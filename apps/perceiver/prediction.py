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
from mlcore.base.secrets import mask_known
from mlcore.data.images import SUFFIXES
from quartet.apps.perceiver.data.arrays import read_npz
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.gaps import OnMissing
from quartet.apps.perceiver.data.images import decode_image
from quartet.apps.perceiver.data.inspection import check_sample
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.samples import Array, SequenceDataset
from quartet.apps.perceiver.data.ts_files import read_ts
from quartet.apps.perceiver.restore import Restored, restore

_log = logging.getLogger(__name__)

OnBadSample = Literal["error", "skip"]

_REPORT_EVERY_S = 5.0
_READERS: dict[str, Callable[..., SequenceDataset]] = {".ts": read_ts, ".npz": read_npz}


Answer = tuple[str, NDArray[np.float32] | str]
"""An input's name, and the probabilities [classes], or the reason why it cannot be classified."""


@dataclass(frozen=True)
class Item:
    """One thing to classify.

    Attributes:
        name: How the table calls it: a file, perhaps with line or row.
        load: Gives its sequence, float32 [M, C]; raises `UserError` where it cannot be used.
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
        on_bad_sample: Stop at what cannot be used, or go on; it is then a row with the reason, and counted.
        on_missing: What to do with gaps in sequences; None: as in training.
        batch_size: Samples per batch; None: as in the run's evaluations.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        Exit code 0.

    Raises:
        UserError: The checkpoint, an input or the output cannot be used; or none of the inputs can be classified: then
            the file with the reasons is there.
    """
    setup_logging()
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {batch_size}")
    classifier = Classifier(restore(checkpoint), device=pick_device(device))
    problems = Problems(on_bad_sample)
    items = find_items(inputs, classifier.restored, problems=problems, on_missing=on_missing)
    if not items:
        raise UserError(f"nothing to classify: no sequences in {', '.join(map(str, inputs))}")
    train = classifier.restored.config.train
    size = batch_size or train.eval_batch_size or train.batch_size
    counts = np.zeros(len(classifier.restored.class_names), dtype=np.int64)
    with atomic_write(output) as file:
        columns = (f"p_{name}" for name in classifier.restored.class_names)
        _write_rows(file, [["input", "class", "probability", *columns, "problem"]])
        for answers in classifier.run(items, batch_size=size, problems=problems):
            chosen = [int(answer.argmax()) for _, answer in answers if not isinstance(answer, str)]
            counts += np.bincount(np.array(chosen, dtype=np.int64), minlength=len(counts))
            _write_rows(file, _rows(answers, classifier.restored.class_names))
    if not counts.any():
        raise UserError(f"none of the inputs can be used, {output} has the reasons; the first: {problems.messages[0]}")
    found = ", ".join(f"{name} {n}" for name, n in zip(classifier.restored.class_names, counts, strict=True) if n)
    _log.info("%s: %d predictions, %d inputs left out; %s", output, counts.sum(), len(problems.messages), found)
    return 0


class Problems:
    """What to do with an input that cannot be used.

    Args:
        on_bad_sample: "error" raises; "skip" warns and keeps the message.

    Attributes:
        messages: Of all that was noted.
    """

    def __init__(self, on_bad_sample: OnBadSample) -> None:
        self._stop = on_bad_sample == "error"
        self.messages: list[str] = []

    def check(self, error: UserError) -> None:
        """Raise `error`, unless one goes on after such."""
        if self._stop:
            raise UserError(f"{error}\n--on_bad_sample skip goes on after such inputs") from None

    def note(self, error: UserError, *, name: str = "") -> str:
        """Raise `error`, prefixed with the input's name, or count it and give the message."""
        message = f"{name}: {error}" if name and not str(error).startswith(name) else str(error)
        self.check(UserError(message))
        _log.warning("left out: %s", message)
        self.messages.append(message)
        return message


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

    def run(self, items: Sequence[Item], *, batch_size: int, problems: Problems) -> Iterator[list[Answer]]:
        """Answers to all items in order, those of a batch at a time."""
        batch: list[tuple[str, dict[str, Any] | str]] = []
        pace, reported = Pace(len(items)), time.monotonic()
        waiting = 0
        for done, item in enumerate(items, 1):
            try:
                batch.append((item.name, self._checked(item)))
                waiting += 1
            except UserError as error:
                batch.append((item.name, problems.note(error, name=item.name)))
            if waiting == batch_size:
                yield self._classify(batch)
                batch, waiting = [], 0
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

    def _classify(self, batch: Sequence[tuple[str, dict[str, Any] | str]]) -> list[Answer]:
        samples = [sample for _, sample in batch if not isinstance(sample, str)]
        found: Iterator[NDArray[np.float32]] = iter(self._probabilities(samples)) if samples else iter(())
        return [(name, sample if isinstance(sample, str) else next(found)) for name, sample in batch]

    @torch.inference_mode()
    def _probabilities(self, samples: list[dict[str, Any]]) -> NDArray[np.float32]:
        data = self._collate(samples)
        with self.restored.autocast(self._device):
            logits = self._model(data["input"].to(self._device), data["mask"].to(self._device))
        return torch.softmax(logits.float(), dim=1).cpu().numpy()


# --------------------------------------------------------------------------------------------------------- the inputs


def find_items(
    inputs: Sequence[Path], restored: Restored, *, problems: Problems, on_missing: OnMissing | None = None
) -> list[Item]:
    """Everything in files and folders that the model can read, in the order given, folders sorted by name.

    What is missing, of another kind, or no file of sequences is an item of its own, whose loading fails; so are lines
    of `.ts` files that cannot be read. Gaps in sequences are treated as `on_missing` says; None: as in training.

    Raises:
        UserError: There is such an item, and `problems` stops at it.
    """
    preprocessing, on_missing = restored.metadata["preprocessing"], on_missing or restored.config.data.on_missing
    images = preprocessing["kind"] == "image"
    items: list[Item] = []
    for given in inputs:
        try:
            paths = _files(given, SUFFIXES if images else tuple(_READERS))
        except UserError as error:
            items.append(_failing(str(given), error, problems))
            continue
        if images:
            shape = preprocessing["height"], preprocessing["width"]
            layout = PatchLayout(height=shape[0], width=shape[1], patch_size=preprocessing["patch_size"])
            limit = round(restored.config.data.max_megapixels * 1e6)
            items += [Item(str(path), partial(_load_image, path, layout, limit)) for path in paths]
        else:
            items += [item for path in paths for item in _sequences(path, on_missing, problems)]
    return items


def _sequences(path: Path, on_missing: OnMissing, problems: Problems) -> list[Item]:
    """The sequences of a file."""
    try:
        data = _READERS[path.suffix.lower()](path, labelled=False, on_missing=on_missing, strict=False)
    except UserError as error:
        return [_failing(str(path), error, problems)]
    masks: Sequence[Any] = data.masks or [None] * len(data)
    return [
        _failing(data.origin(row), UserError(data.problems[row]), problems)
        if row in data.problems
        else Item(data.origin(row), partial(data.sequences.__getitem__, row), masks[row])
        for row in range(len(data))
    ]


def _failing(name: str, error: UserError, problems: Problems) -> Item:
    """An item that cannot be used; where `problems` stops at such, it does so at once, before hours of others."""
    problems.check(error)

    def load() -> Array:
        raise error

    return Item(name, load)


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


def _load_image(path: Path, layout: PatchLayout, max_pixels: int) -> Array:
    image = decode_image(path, origin=str(path), max_pixels=max_pixels)
    if image.shape[:2] != (layout.height, layout.width):
        resized = Image.fromarray(image).resize((layout.width, layout.height), Image.Resampling.BICUBIC)
        image = np.asarray(resized, dtype=np.uint8)
    return layout.sequence(image)


# ---------------------------------------------------------------------------------------------------------- the table


def _rows(answers: Sequence[Answer], classes: Sequence[str]) -> list[list[object]]:
    return [
        [name, *[""] * (2 + len(classes)), answer]
        if isinstance(answer, str)
        else [name, classes[int(answer.argmax())], float(answer.max()), *answer.tolist(), ""]
        for name, answer in answers
    ]


def _write_rows(file: BinaryIO, rows: Sequence[Sequence[object]]) -> None:
    file.write(mask_known(csv_text(rows)).encode("utf-8"))

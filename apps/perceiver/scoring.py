"""How a trained Perceiver predicts: pictures, and the sequences of .ts and .npz files, to probabilities of classes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.data.images import SUFFIXES
from mlcore.run.predictor import ClassPrediction, Item
from mlcore.run.restore import RunCheckpoint
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.data.arrays import read_npz
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.gaps import OnMissing
from quartet.apps.perceiver.data.images import decode_image
from quartet.apps.perceiver.data.inspection import check_sample
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.samples import Array, SequenceDataset
from quartet.apps.perceiver.data.ts_files import read_ts
from quartet.apps.perceiver.restore import restored

__all__ = ["PerceiverScorer", "make_scorer"]

_SEQUENCES = (".ts", ".npz")


def make_scorer(
    run: RunCheckpoint[PerceiverConfig], device: torch.device, options: Mapping[str, str]
) -> "PerceiverScorer":
    """The scorer of a run; the option `on_missing` says what to do with gaps in sequences.

    Raises:
        CheckpointError: No model can be built of what the run notes.
        UserError: `on_missing` is none of its choices.
    """
    on_missing: Any = options.get("on_missing", run.config.data.on_missing)
    if on_missing not in get_args(OnMissing):
        raise UserError(f"on_missing={on_missing}: expected {', '.join(get_args(OnMissing))}")
    return PerceiverScorer(run, device, on_missing)


class PerceiverScorer:
    """A `mlcore.run.predictor.Scorer`; an item's content is a sequence float32 [M, C], or an image uint8 [H, W, 3]."""

    def __init__(self, run: RunCheckpoint[PerceiverConfig], device: torch.device, on_missing: OnMissing) -> None:
        self._found, self._device, self._on_missing = restored(run), device, on_missing
        self._model = self._found.model.to(device)
        data, train = run.config.data, run.config.train
        self._collate = PadCollate(
            max_seq_len=data.max_seq_len or self._found.model.encoder.positions.longest, on_too_long=data.on_too_long
        )
        about = self._found.metadata["preprocessing"]
        self._layout: PatchLayout | None = None
        if about["kind"] == "image":
            self._layout = PatchLayout(height=about["height"], width=about["width"], patch_size=about["patch_size"])
        self._max_pixels = round(data.max_megapixels * 1e6)
        self._decision = run.decision
        self.columns = ClassPrediction.columns(self._found.class_names, self._decision)
        self.suffixes: Sequence[str] = _SEQUENCES if self._layout is None else tuple(SUFFIXES)
        self.inputs = {"path": ("path", "input", "image", "file"), "part": ("row",)}
        self.batch_size = train.eval_batch_size or train.batch_size

    def items(self, path: Path) -> Sequence[Item]:
        """A picture is one, a file of sequences as many as are in it; the table names them by line or row."""
        if path.suffix.lower() not in self.suffixes:
            raise UserError(f"{path}: this model reads {', '.join(self.suffixes)}")
        if self._layout is not None:
            return [Item(str(path), path)]
        data = _sequences(path, self._on_missing)
        return [Item(data.origin(row), path, row) for row in range(len(data))]

    def load(self, item: Item) -> dict[str, Any]:
        """The sequence, checked as in training."""
        sample = self._sample(item)
        check_sample(
            sample,
            num_classes=1,
            channels=self._found.metadata["model"]["input_dim"],
            max_seq_len=self._collate.max_seq_len,
            on_too_long=self._collate.on_too_long,
        )
        return sample

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Padded to the longest: `input` float32 [B, M, C] and `mask` [B, M]."""
        return self._collate(list(samples))

    @torch.inference_mode()
    def predict(self, batch: dict[str, Tensor]) -> list[ClassPrediction]:
        """Probabilities in the arithmetic of the run's evaluations, and classes at the run's decision."""
        with self._found.autocast(self._device):
            logits = self._model(batch["input"].to(self._device), batch["mask"].to(self._device))
        chances = torch.softmax(logits.float(), dim=1).double().cpu().numpy()
        return ClassPrediction.of_batch(chances, self._found.class_names, self._decision)

    def save(self, item: Item, prediction: ClassPrediction, folder: Path) -> None:
        """Nothing beside the table."""

    def _sample(self, item: Item) -> dict[str, Any]:
        if self._layout is not None:
            return {"input": self._tokens(item, self._layout), "label": 0}
        if item.content is not None:
            return {"input": np.asarray(item.content, dtype=np.float32), "label": 0}
        data = _sequences(_path(item), self._on_missing)
        if not 0 <= item.part < len(data):
            raise UserError(f"{item.path}: has {len(data)} sequences, no row {item.part} (from 0)")
        return {**data[item.part]}

    def _tokens(self, item: Item, layout: PatchLayout) -> Array:
        """A picture, of any size, as the sequence that the model was trained on."""
        image = item.content
        if image is None:
            image = decode_image(_path(item), origin=item.name, max_pixels=self._max_pixels)
        if image.shape[:2] != (layout.height, layout.width):
            size = layout.width, layout.height
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)
        return layout.sequence(image)


def _path(item: Item) -> Path:
    if item.path is None:
        raise UserError(f"{item.name}: names no file; expected one in the column path")
    return item.path


@lru_cache(maxsize=2)
def _sequences(path: Path, on_missing: OnMissing) -> SequenceDataset:
    """A file's sequences; the one that items are read of, one after another, stays in memory."""
    read = read_ts if path.suffix.lower() == ".ts" else read_npz
    return read(path, labelled=False, on_missing=on_missing, strict=False)

"""How a trained Perceiver predicts: pictures, and the sequences of .ts and .npz files, to probabilities of classes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.data.images import SUFFIXES
from mlcore.run.networks import Eager, Network, Signature
from mlcore.run.restore import RunCheckpoint, of_this_version, rebuild
from mlcore.run.scorer import ClassPrediction, Item, Shown, decision_of
from quartet.apps.perceiver.answers import Answer, answers, columns
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.data.arrays import is_stored, read_npz
from quartet.apps.perceiver.data.asking import Asking
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.gaps import OnMissing
from quartet.apps.perceiver.data.images import decode_image
from quartet.apps.perceiver.data.inspection import check_extent, check_sample
from quartet.apps.perceiver.data.long_tables import LONG, LongColumns, read_long
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.samples import Array, SequenceDataset
from quartet.apps.perceiver.data.sources import check_timed
from quartet.apps.perceiver.data.ts_files import read_ts
from quartet.apps.perceiver.outputs import Outputs
from quartet.apps.perceiver.restore import make_model, needs_of
from quartet.apps.perceiver.scoring_raw import READ, RawScorer, is_raw, raw_module, raw_signature
from quartet.apps.perceiver.seen import Seen, shares_of, shown

__all__ = ["PerceiverScorer", "describe", "make_module", "make_scorer", "signature_of"]

_SEQUENCES = (".ts", ".npz")
_LONGEST_EXAMPLE = 33  # positions


def describe(run: RunCheckpoint[PerceiverConfig]) -> dict[str, Any]:
    """What the scorer of a run needs beside its network: plain values."""
    data, train = run.config.data, run.config.train
    with of_this_version(run.path):
        pictures = dict(run.metadata["preprocessing"])
        if pictures["kind"] == "image":
            pictures["positions"] = PatchLayout.of(pictures).positions.tolist()
        if pictures["kind"] == "raw":
            pictures["data"] = {key: run.config.model_dump(mode="json")["data"][key] for key in READ}
        return {
            "class_names": [str(name) for name in run.metadata.get("class_names", ())],
            **({"task": dict(run.metadata["task"])} if "task" in run.metadata else {}),
            "model": dict(run.metadata["model"]),
            "preprocessing": pictures,
            "data": {
                "max_seq_len": data.max_seq_len,
                "on_too_long": data.on_too_long,
                "on_missing": data.on_missing,
                "max_megapixels": data.max_megapixels,
            },
            "batch_size": train.eval_batch_size or train.batch_size,
        }


def make_module(about: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> nn.Module:
    """The network: `(input float32 [B, M, C], mask bool [B, M]) -> logits [B, classes]`, or `signature_of`."""
    if is_raw(about):
        return raw_module(about, weights, source)
    return rebuild(lambda: make_model(about["model"]), weights, source=source)


def signature_of(about: Mapping[str, Any]) -> Signature:
    """Inputs and outputs of the network; "query" are the positions asked for, int64 [B, K]."""
    if is_raw(about):
        return raw_signature(about)
    model, outputs = about["model"], Outputs.of(about)
    with torch.device("meta"):
        encoder = make_model(model).encoder
    longest = None if encoder.length else encoder.longest
    length = encoder.length or "length"
    asked = ["queries"] if outputs is not None and outputs.by_position else []
    queries = {"query": ("batch", "queries")} if asked else {}
    return Signature(
        inputs={"input": ("batch", length, model["input_dim"]), "mask": ("batch", length), **queries},
        outputs={"logits" if outputs is None else "outputs": ("batch", *asked, model["num_classes"])},
        longest={} if longest is None else {"length": longest},
    )


def make_scorer(
    about: Mapping[str, Any], network: Network, options: Mapping[str, str]
) -> "PerceiverScorer | RawScorer":
    """The scorer of what `describe` gave; the option `on_missing` says what to do with gaps in sequences.

    Raises:
        UserError: `on_missing` is none of its choices.
    """
    on_missing: Any = options.get("on_missing", about["data"]["on_missing"])
    if on_missing not in get_args(OnMissing):
        raise UserError(f"on_missing={on_missing}: expected {', '.join(get_args(OnMissing))}")
    if is_raw(about):
        return RawScorer(about, network, on_missing)
    of_pictures = about["preprocessing"]["kind"] == "image"
    return (PerceiverScorer if of_pictures else SequenceScorer)(about, network, on_missing)


class PerceiverScorer:
    """A `mlcore.run.scorer.Scorer`; an item's content is a sequence float32 [M, C], or an image uint8 [H, W, 3]."""

    def __init__(self, about: Mapping[str, Any], network: Network, on_missing: OnMissing) -> None:
        self.network = network
        self._about, self._on_missing = about, on_missing
        data, pictures = about["data"], about["preprocessing"]
        self._collate = PadCollate(
            max_seq_len=data["max_seq_len"] or signature_of(about).longest.get("length"),
            on_too_long=data["on_too_long"],
        )
        self._layout: PatchLayout | None = None
        if pictures["kind"] == "image":
            self._layout = PatchLayout.of(pictures)
        self._max_pixels = round(data["max_megapixels"] * 1e6)
        self._decision, self._outputs = decision_of(about), Outputs.of(about)
        self.mean: Any = ClassPrediction.mean
        self.columns = ClassPrediction.columns(about["class_names"], self._decision)
        if self._outputs is not None:
            self.mean, self.columns = Answer.mean, columns(self._outputs)
        self._columns = LongColumns.of(pictures) if "columns" in pictures else None
        self.suffixes: Sequence[str] = tuple(SUFFIXES) if self._layout is not None else (*_SEQUENCES, *self._tables)
        self.inputs = {"path": ("path", "input", "image", "file"), "part": ("row",)}
        self.batch_size: int = about["batch_size"]

    def items(self, path: Path) -> Sequence[Item]:
        """A picture is one, a file of sequences as many as are in it; the table names them by line or row."""
        if path.suffix.lower() not in self.suffixes and not is_stored(path):
            raise UserError(f"{path}: this model reads {', '.join(self.suffixes)}")
        if self._layout is not None:
            return [Item(str(path), path)]
        data = self._sequences(path)
        return [Item(data.origin(row), path, row) for row in range(len(data))]

    def load(self, item: Item) -> dict[str, Any]:
        """The sequence, checked as in training."""
        sample, needs, most = self._sample(item), needs_of(self._about), self._collate.max_seq_len
        cut = most if self._collate.on_too_long == "truncate" else None
        limits: Any = {
            "needs": needs,
            "max_seq_len": cut or self._about["data"]["max_seq_len"],
            "on_too_long": self._collate.on_too_long,
        }
        if self._outputs is not None:
            seen = np.asarray(sample["input"])[-(self._outputs.looked_at or 0) :]
            check_extent(seen, **limits)  # without positions to come, which the model does not count as given
            asking = Asking(outputs=self._outputs, max_seq_len=cut)
            sample = asking.new(sample, longest=most, lasting=needs.lasting)
        check_sample(sample, num_classes=1, **limits)
        return sample

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Padded to the longest: `input` float32 [B, M, C], `mask` [B, M], and what is asked for."""
        return self._collate(list(samples))

    def predict(self, batch: dict[str, Tensor]) -> Sequence[ClassPrediction | Answer]:
        """Probabilities of the classes, and classes at the run's decision; of other tasks their answers."""
        if self._outputs is not None:
            return answers(self.network(batch)["outputs"], batch, self._outputs)
        chances = torch.softmax(self.network(batch)["logits"], dim=1).double().numpy()
        return ClassPrediction.of_batch(chances, self._about["class_names"], self._decision)

    def show(self, item: Item, prediction: Any) -> Shown:
        """The picture, or the channels of the sequence, and where the latents look, if that can be known."""
        shares = self._attention(item)
        if self._layout is not None:
            seen = Seen(name="image", kind="image", value=self._picture(item), grid=self._layout.grid, shares=shares)
            return cast(Shown, prediction.shown(**shown([seen])))
        timed, values = self._about["preprocessing"].get("timed"), self._sample(item)["input"]
        if self._outputs is not None:
            asked = self.load(item)  # what is not seen is not drawn
            values = np.where(np.asarray(asked["mask"])[:, None] == 1, asked["input"], np.nan)
        values = values[:, :-1] if timed else values  # the last one is time
        patch = self._about["model"]["options"].get("patch", 1)
        drawn = shown([Seen(name="series", kind="series", value=values, patch=patch, shares=shares)])
        return cast(Shown, prediction.shown(curves=drawn["curves"], notes=drawn["notes"]))

    def _attention(self, item: Item) -> Array | None:
        """Shares of an item's tokens [M] in the first cross-attention; None where the network is no torch module."""
        module = self.network.module if isinstance(self.network, Eager) else None
        return None if module is None else shares_of(module, self.collate([self.load(item)]))

    def save(self, item: Item, prediction: Any, folder: Path) -> None:
        """Nothing beside the table."""

    def examples(self) -> list[dict[str, Tensor]]:
        """Inputs of the network at the edges of what it takes: one position, one sample, gaps, the longest."""
        generator, channels = torch.Generator().manual_seed(0), self._about["model"]["input_dim"]
        only = signature_of(self._about).inputs["mask"][1]
        longest = min(self._collate.max_seq_len or _LONGEST_EXAMPLE, _LONGEST_EXAMPLE)
        found = []
        for batch, free in ((2, min(8, longest)), (1, 1), (3, longest)):
            length = only if isinstance(only, int) else free
            mask = torch.rand(batch, length, generator=generator) < 0.7
            mask[:, 0] = True  # no sequence is empty
            found.append({"input": torch.randn(batch, length, channels, generator=generator), "mask": mask})
            if (step := self._about["model"]["options"].get("time_step")) is not None:
                found[-1]["input"][..., -1] = (
                    torch.rand(batch, length, generator=generator).sort(dim=1)[0] * length * step
                )
            if self._outputs is not None and self._outputs.by_position:
                asked = (batch, 1 + length // 3)
                found[-1]["query"] = torch.randint(length, asked, generator=generator)
        return found

    def _sample(self, item: Item) -> dict[str, Any]:
        if self._layout is not None:
            return {"input": self._tokens(item, self._layout), "label": 0}
        if item.content is not None:
            return {"input": np.asarray(item.content, dtype=np.float32), "label": 0}
        data = self._sequences(_path(item))
        if not 0 <= item.part < len(data):
            raise UserError(f"{item.path}: has {len(data)} sequences, no row {item.part} (from 0)")
        return {**data[item.part]}

    @property
    def _tables(self) -> Sequence[str]:
        return () if self._columns is None else LONG

    def _sequences(self, path: Path) -> SequenceDataset:
        """A file's sequences; the one that items are read of, one after another, stays in memory until it changes."""
        columns = self._columns if path.suffix.lower() in self._tables else None
        data = _read_sequences(path, path.stat().st_mtime_ns if path.exists() else 0, self._on_missing, columns)
        check_timed(data, path, timed=bool(self._about["preprocessing"].get("timed")))
        return data

    def _tokens(self, item: Item, layout: PatchLayout) -> Array:
        """A picture, of any size, as the sequence that the model was trained on."""
        image = self._picture(item)
        if image.shape[:2] != (layout.height, layout.width):
            size = layout.width, layout.height
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)
        return layout.sequence(image)

    def _picture(self, item: Item) -> NDArray[np.uint8]:
        """As it is in its file, uint8 [H, W, 3]."""
        if item.content is None:
            return decode_image(_path(item), origin=item.name, max_pixels=self._max_pixels)
        return np.asarray(item.content)


class SequenceScorer(PerceiverScorer):
    """The same of sequences, which a folder may hold, too; a `FolderScorer`."""

    def takes(self, folder: Path) -> bool:
        """Whether a folder holds sequences, as .npy files."""
        return is_stored(folder)


def _path(item: Item) -> Path:
    if item.path is None:
        raise UserError(f"{item.name}: names no file; expected one in the column path")
    return item.path


@lru_cache(maxsize=2)
def _read_sequences(path: Path, _changed: int, on_missing: OnMissing, columns: LongColumns | None) -> SequenceDataset:
    if columns is not None:
        return read_long(path, columns, labelled=False, on_missing=on_missing)
    read = read_ts if path.suffix.lower() == ".ts" else read_npz
    return read(path, labelled=False, on_missing=on_missing, strict=False)

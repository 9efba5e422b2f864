"""How a Perceiver of raw samples predicts: rows of a table, or files of one modality, to probabilities of classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.data.images import SUFFIXES
from mlcore.run.networks import Eager, Network, Signature
from mlcore.run.restore import rebuild
from mlcore.run.scorer import FURTHER, ClassPrediction, Item, Shown, decision_of
from quartet.apps.perceiver.config import DataConfig
from quartet.apps.perceiver.data.manifest import read_text
from quartet.apps.perceiver.data.raw import SERIES_FILES, Modality, Raw, RawReader, modalities_of
from quartet.apps.perceiver.data.raw_batches import RawCollate
from quartet.apps.perceiver.model import PerceiverEncoder
from quartet.apps.perceiver.restore import make_model
from quartet.apps.perceiver.seen import of_modalities, shares_of, shown

__all__ = ["READ", "RawScorer", "is_raw", "raw_module", "raw_signature"]

READ = ("dataset", "image_size", "max_megapixels", "max_seq_len", "on_too_long", "on_missing")
"""Settings by which raw samples are read."""

_FILES: Mapping[str, Sequence[str]] = {
    "text": (".txt",),
    "image": tuple(SUFFIXES),
    "series": tuple(suffix for suffix in SERIES_FILES if suffix != ".csv"),  # which is a table
}
_PREFIX = "model."


def is_raw(about: Mapping[str, Any]) -> bool:
    """Whether a model is of raw samples."""
    return bool(about["preprocessing"]["kind"] == "raw")


class RawNetwork(nn.Module):
    """A model whose inputs stand side by side: by modality, then ``length``, ``row`` and ``mask``."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    @property
    def encoder(self) -> PerceiverEncoder:
        """The model's, as that of other networks."""
        model: Any = self.model
        encoder: PerceiverEncoder = model.encoder
        return encoder

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits ``[B, classes]``; inputs are those of ``RawCollate``."""
        logits: Tensor = self.model(dict(zip(self.names, inputs[:-1], strict=True)), inputs[-1])
        return logits


def raw_module(about: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> nn.Module:
    """The network, of a run's weights or an export's."""
    own = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
    model = rebuild(lambda: make_model(about["model"]), own, source=source)
    return RawNetwork(model, [*(one.name for one in modalities_of(about)), "length", "row"]).eval()


def raw_signature(about: Mapping[str, Any]) -> Signature:
    """Inputs and outputs of the network; what a model calls text:title is here text_title."""
    inputs: dict[str, Sequence[int | str]] = {}
    longest: dict[str, int] = {}
    modalities = modalities_of(about)
    for number, modality in enumerate(modalities):
        size = list(modality.size)
        tokens = f"tokens_{number}"
        inner = [*size, 3] if modality.kind == "image" else [tokens, modality.patch, *size]
        inputs[_plain(modality.name)] = (f"rows_{number}", *inner)
        if modality.longest is not None:
            longest[tokens] = modality.longest
    inputs |= dict.fromkeys(("length", "row"), ("batch", len(modalities)))
    return Signature(
        inputs={**inputs, "mask": ("batch", "tokens")},
        outputs={"logits": ("batch", about["model"]["num_classes"])},
        longest=longest,
    )


def _plain(name: str) -> str:
    return name.replace(":", "_")


class RawScorer:
    """A `mlcore.run.scorer.Scorer`; an item's content is what a row has, by modality: text, or arrays.

    A file alone is the one modality of its kind.
    """

    mean = staticmethod(ClassPrediction.mean)

    def __init__(self, about: Mapping[str, Any], network: Network, on_missing: str) -> None:
        self.network = network
        self._about, self._modalities = about, modalities_of(about)
        given = {**about["preprocessing"]["data"], "on_missing": on_missing}
        sides = {side for one in self._modalities if one.kind == "image" for side in one.size}
        if len(sides) == 1:  # pictures of other sizes are resized
            given["image_size"] = sides.pop()
        settings = DataConfig.model_validate(given, strict=False)
        self._reader = RawReader(columns=(), find=Path, settings=settings).known(self._modalities)
        self._collate = RawCollate(modalities=self._modalities)
        self._decision = decision_of(about)
        self.columns = ClassPrediction.columns(about["class_names"], self._decision)
        kinds = [modality.kind for modality in self._modalities]
        self._alone = {one.kind: one.name for one in self._modalities if kinds.count(one.kind) == 1}
        self.suffixes = tuple(suffix for kind in self._alone for suffix in _FILES[kind])
        files: dict[str, Sequence[str]] = {} if set(kinds) == {"text"} else {"path": ()}  # no column, but an upload
        self.inputs = {**files, **{_value(one): (one.name,) for one in self._modalities}}
        self.batch_size: int = about["batch_size"]

    def items(self, path: Path) -> Sequence[Item]:
        """A file is one sample, of one modality."""
        if path.suffix.lower() not in self.suffixes:
            names = ", ".join(modality.name for modality in self._modalities)
            raise UserError(f"{path}: this model reads {', '.join(self.suffixes)}, or a table with {names}")
        return [Item(str(path), path)]

    def load(self, item: Item) -> dict[str, Any]:
        """The row, read and checked as in training."""
        return {"input": self._values(item), "label": 0}

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """As in training."""
        return self._collate(samples)

    def predict(self, batch: dict[str, Any]) -> list[ClassPrediction]:
        """Probabilities of the classes, and classes at the run's decision."""
        chances = torch.softmax(self.network(_flat(batch))["logits"], dim=1).double().numpy()
        return ClassPrediction.of_batch(chances, self._about["class_names"], self._decision)

    def show(self, item: Item, prediction: ClassPrediction) -> Shown:
        """Pictures, texts and series, and where the latents look, if that can be known."""
        values = self._values(item)
        return prediction.shown(**shown(of_modalities(values, self._modalities, self._attention(values))))

    def save(self, item: Item, prediction: ClassPrediction, folder: Path) -> None:
        """Nothing beside the table."""

    def examples(self) -> list[dict[str, Tensor]]:
        """Inputs of the network: all modalities, samples that lack some, one sample with the shortest of each."""
        rng = np.random.default_rng(0)
        names = [modality.name for modality in self._modalities]
        found = []
        for tokens, lacking in (
            (5, [set(), set(), set()]),
            (1, [set()]),
            (9, [{name} for name in names[1:]] + [set()]),
        ):
            samples = [
                {
                    "input": {
                        one.name: _example(one, tokens, rng) for one in self._modalities if one.name not in without
                    },
                    "label": 0,
                }
                for without in lacking
            ]
            found.append(_flat(self._collate(samples)))
        return found

    def _values(self, item: Item) -> dict[str, Raw]:
        given = {one.name: item.value(_value(one)) for one in self._modalities}
        found: dict[str, Raw] = {}
        if isinstance(item.content, Mapping):
            found = {name: value for name, value in item.content.items() if not isinstance(value, str)}
            given |= {name: value for name, value in item.content.items() if isinstance(value, str)}
        elif item.path is not None:
            kind = next((kind for kind, endings in _FILES.items() if item.path.suffix.lower() in endings), "")
            if kind not in self._alone:
                raise UserError(f"{item.path}: which modality it is cannot be told; give a table")
            given[self._alone[kind]] = read_text(item.path) if kind == "text" else str(item.path)
        if found:  # arrays of a caller, in place of what cells name
            for modality in self._modalities:
                if modality.name in found:
                    modality.check(found[modality.name])
            rest = {name: cell for name, cell in given.items() if cell}
            return {**found, **(self._reader(rest) if rest else {})}
        return self._reader(given)

    def _attention(self, values: Mapping[str, Raw]) -> NDArray[np.float32] | None:
        """Shares of a sample's tokens in the first cross-attention; None where there is no module."""
        module = self.network.module if isinstance(self.network, Eager) else None
        if not isinstance(module, RawNetwork):
            return None
        return shares_of(module.model, self._collate([{"input": values, "label": 0}]))


def _value(modality: Modality) -> str:
    """The name of an item's value: of a text its own, of what is a file one that says so."""
    return modality.name if modality.kind == "text" else f"{FURTHER}{modality.name}"


def _flat(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {**{_plain(name): value for name, value in batch["input"].items()}, "mask": batch["mask"]}


def _example(modality: Modality, tokens: int, rng: np.random.Generator) -> Raw:
    if modality.kind == "image":
        return rng.integers(0, 256, (*modality.size, 3), dtype=np.uint8)
    steps = min(tokens, modality.longest or tokens) * modality.patch
    if modality.kind == "text":
        return rng.integers(32, 127, steps, dtype=np.uint8)
    return rng.standard_normal((steps, *modality.size), dtype=np.float32)

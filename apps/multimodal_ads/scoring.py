"""How a trained ad classifier predicts: a picture, a text, or both to the probability of an ad."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.data.images import SUFFIXES, read_image
from mlcore.run.decision import REVIEW, Decision
from mlcore.run.networks import Network, Signature
from mlcore.run.restore import RunCheckpoint, of_this_version, rebuild
from mlcore.run.scorer import Item, Shown, decision_of
from quartet.apps.multimodal_ads.adapters import merge_adapters
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.table import LOOKALIKES, clean_text
from quartet.apps.multimodal_ads.evaluation import probabilities_of
from quartet.apps.multimodal_ads.model.build import bare_parts
from quartet.apps.multimodal_ads.model.network import TEXT_FACTS, TEXT_INPUTS, AdNetwork
from quartet.apps.multimodal_ads.restore import as_it_was_read, decided, kept_decision, restored
from quartet.apps.multimodal_ads.text.encoder import load_text
from quartet.apps.multimodal_ads.text.facts import FACTS, text_facts
from quartet.apps.multimodal_ads.text.network import make_text_network
from quartet.apps.multimodal_ads.text.ngrams import NgramEncoder
from quartet.apps.multimodal_ads.text.reading import TextReader, text_inputs
from quartet.apps.multimodal_ads.text.truncation import forewarn
from quartet.apps.multimodal_ads.vision.encoder import make_processor, make_vision, outline_vision

__all__ = ["AdPrediction", "AdScorer", "describe", "make_module", "make_scorer", "signature_of"]

_log = logging.getLogger(__name__)

_TOKENIZER = "tokenizer.json"
_ARCHITECTURE: Any = {
    "vision_encoder": True,
    "text_encoder": True,
    "pooling": True,
    "fusion": True,
    "head": True,
    "train": {"modality", "align_weight", "freeze_backbone", "finetune_layers", "lora"},
}
_PICTURES = ("local_image_path", "image", "path")
_TEXTS = ("text_info", "text")


@dataclass(frozen=True, kw_only=True)
class AdPrediction:
    """What the classifier says of one input.

    Attributes:
        probability: Of an ad.
        predicted: "ad" or "not_ad", as the decision has it; where a person decides, the more probable one.
        gate: Share of the picture in a gated fusion, 0..1; None without one.
        review: Whether the decision leaves it to a person; None: it never does.
        threshold: Probability from which it would be an ad.
    """

    probability: float
    predicted: str
    gate: float | None = None
    review: bool | None = None
    threshold: float = 0.5

    def row(self) -> list[object]:
        """What the columns say, and "yes" where a person should decide."""
        review = [] if self.review is None else ["yes" if self.review else ""]
        return [self.probability, self.predicted, self.gate, *review]


def describe(run: RunCheckpoint[AdsConfig]) -> dict[str, Any]:
    """What the scorer of a run needs beside its network: plain values, and the tokenizer as a file.

    Raises:
        CheckpointError: The run is not of this version.
        UserError: The files of an encoder cannot be had.
    """
    decision = kept_decision(run.path)
    with of_this_version(run.path):
        config = as_it_was_read(run)
        about: dict[str, Any] = {
            "class_names": ["not_ad", "ad"],
            "config": config.model_dump(mode="json", include=_ARCHITECTURE),
            "frozen_weights": dict(run.metadata["frozen_weights"]),
            "text_width": run.metadata["text_width"],
            "max_megapixels": config.data.max_megapixels,
            "decode_side": config.data.decode_side,
            "lookalikes": dict(LOOKALIKES) if config.data.unmask_text else None,  # of letters, where texts are unmasked
            "decision": None if decision is None else decision.model_dump(mode="json"),
        }
    pictures = config.train.modality != "text_only"
    about["vision"] = outline_vision(config.vision_encoder) if pictures else None
    about["text"] = None
    if about["text_width"] is not None:
        about["text"], tokenizer = load_text(config.text_encoder).outline()
        about["text"]["facts"] = pictures and config.fusion.text_facts
        about["files"] = {} if tokenizer is None else {_TOKENIZER: tokenizer}
    return about


def make_module(about: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> nn.Module:
    """The network with adapters merged; see `AdNetwork`.

    Args:
        about: What `describe` gave.
        weights: Of an export all; of a run what was trained: the rest comes from where the run had it from.
        source: The file that they are of.

    Raises:
        CheckpointError: They do not fit together, or an encoder is another than the run's.
        UserError: An encoder's weights cannot be had.
    """
    with of_this_version(source):
        pixels = [] if about["vision"] is None else list(_blank(about))
        config = AdsConfig.model_validate(about["config"], strict=False)
    if any(name.startswith("classifier.") for name in weights):
        return rebuild(lambda: _bare(about, config, pixels), weights, source=source)
    run = RunCheckpoint(path=source, weights=weights, metadata=about, config=config, step=0)
    found = restored(run, device=torch.device("cpu"))
    text, found.model.text = found.model.text, None
    for encoder in (found.model.vision, text):
        if encoder is not None:
            merge_adapters(encoder)
    if text is None and found.parts.text is not None:
        text = found.parts.text.network()
    return AdNetwork(found.model, text, pixels).requires_grad_().eval()


def _bare(about: Mapping[str, Any], config: AdsConfig, pixels: Sequence[str]) -> nn.Module:
    vision = None if about["vision"] is None else make_vision(about["vision"])
    text = None if about["text"] is None or "buckets" in about["text"] else make_text_network(about["text"])
    classifier = bare_parts(config, vision=vision, text_width=about["text_width"]).classifier()
    return AdNetwork(classifier, text, pixels).requires_grad_()


def signature_of(about: Mapping[str, Any]) -> Signature:
    """Inputs and outputs of the network."""
    inputs: dict[str, Sequence[int | str]] = {}
    chunks = _chunks(about)
    if about["vision"] is not None:
        inputs |= {name: ("batch", *value.shape[1:]) for name, value in _blank(about).items()}
    if about["text"] is not None:
        place = ("batch", "chunks") if chunks > 1 else ("batch",)
        inputs |= dict(zip(TEXT_INPUTS, (("texts", "tokens"), ("texts", "tokens"), place), strict=True))
        inputs |= {TEXT_FACTS: ("batch", FACTS)} if _tells_facts(about) else {}
    both = about["vision"] is not None and about["text"] is not None
    gated = both and about["config"]["fusion"]["name"] == "gated"
    limit = None if about["text"] is None else about["text"]["limit"]
    return Signature(
        inputs=inputs,
        outputs={"logits": ("batch",), **({"gate": ("batch",)} if gated else {})},
        longest={} if limit is None else {"tokens": limit} | ({"chunks": chunks} if chunks > 1 else {}),
    )


def _chunks(about: Mapping[str, Any]) -> int:
    """How many there are at most of a text; exports of earlier versions know of one."""
    return 1 if about["text"] is None else int(about["text"].get("chunks", 1))


def _tells_facts(about: Mapping[str, Any]) -> bool:
    """Whether a gate is told facts of texts; none of an earlier version's is."""
    return about["text"] is not None and bool(about["text"].get("facts"))


def _blank(about: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the backbone takes of a black picture."""
    return make_processor(about["vision"])([np.zeros((64, 64, 3), dtype=np.uint8)])


def make_scorer(about: Mapping[str, Any], network: Network, options: Mapping[str, str]) -> "AdScorer":
    """The scorer of what `describe` gave; options are "text" and "threshold".

    Raises:
        UserError: The threshold is no probability, or the run's decision is of another kind.
    """
    if "text" in options and about["text"] is None:
        _log.warning("the text is not looked at: this model was trained with pictures alone")
    decision = decided(decision_of(about), options.get("threshold"), "the model")
    return AdScorer(about, network, decision=decision, text=options.get("text", ""))


def _reader(about: Mapping[str, Any]) -> TextReader | NgramEncoder:
    if "buckets" not in about["text"]:
        return TextReader(about["text"], about["files"][_TOKENIZER])
    return NgramEncoder(about["text"]["buckets"], about["text_width"] - 1)


class AdScorer:
    """A `mlcore.run.scorer.Scorer`; an item's content is a picture uint8 [H, W, 3], its value "text" the text in it.

    Args:
        about: What `describe` gave.
        network: The classifier.
        decision: From which probability on an ad is taken for one.
        text: Of items that bring none.
    """

    suffixes = SUFFIXES

    def __init__(self, about: Mapping[str, Any], network: Network, *, decision: Decision, text: str = "") -> None:
        self.network = network
        self._decision = decision
        self._clean = partial(clean_text, unmask=about.get("lookalikes") is not None)
        self._text = self._clean(text)
        most, side = round(about["max_megapixels"] * 1e6), about.get("decode_side")  # older exports have none
        self._read = partial(read_image, max_pixels=most, decode_side=side)
        self._processor = None if about["vision"] is None else make_processor(about["vision"])
        self._reader = None if about["text"] is None else _reader(about)
        self._tells_facts, self._chunks = _tells_facts(about), _chunks(about)
        self.batch_size = max(1, 32 // self._chunks)  # so that long texts take no more memory at a time
        self.columns = ("probability", "predicted", "gate", *(["review"] if decision.can_review else []))
        pictures: dict[str, Sequence[str]] = {} if self._processor is None else {"path": _PICTURES}
        self.inputs: dict[str, Sequence[str]] = pictures if self._reader is None else {**pictures, "text": _TEXTS}
        self.ignored = (*(_PICTURES if self._processor is None else ()), *(_TEXTS if self._reader is None else ()))

    def items(self, path: Path) -> Sequence[Item]:
        """A file is one picture."""
        return [Item(str(path), path)]

    def load(self, item: Item) -> tuple[dict[str, Tensor], str]:
        """Its picture as the backbone takes it, and its text."""
        prepared: dict[str, Tensor] = {}
        if self._processor is not None:
            prepared = {key: value[0] for key, value in self._processor([self._picture(item)]).items()}
        return prepared, "" if self._reader is None else self._text_of(item)

    def collate(self, samples: Sequence[tuple[dict[str, Tensor], str]]) -> tuple[dict[str, Tensor], list[str]]:
        """Pictures [B, ...] and texts."""
        pictures = {key: torch.stack([picture[key] for picture, _ in samples]) for key in samples[0][0]}
        return pictures, [text for _, text in samples]

    def predict(self, batch: tuple[dict[str, Tensor], list[str]]) -> list[AdPrediction]:
        """Probabilities, and classes at the decision."""
        pictures, texts = batch
        found = self.network({**pictures, **self._tokens(texts)})
        chances = probabilities_of({"logit": found["logits"]})
        gates = found["gate"].tolist() if "gate" in found else [None] * len(chances)
        decided = self._decision.decide(chances).tolist()
        return [
            AdPrediction(
                probability=chance,
                predicted="ad" if index == 1 or (index == REVIEW and chance >= 0.5) else "not_ad",
                gate=gate,
                review=index == REVIEW if self._decision.can_review else None,
                threshold=self._decision.threshold,
            )
            for chance, index, gate in zip(chances.tolist(), decided, gates, strict=True)
        ]

    @staticmethod
    def mean(predictions: Sequence[AdPrediction]) -> AdPrediction:
        """The mean over several runs, decided at that of their thresholds, or by a person where one of them says so."""
        chance = float(np.mean([one.probability for one in predictions]))
        threshold = float(np.mean([one.threshold for one in predictions]))
        gates = [one.gate for one in predictions if one.gate is not None]
        flags = [one.review for one in predictions if one.review is not None]
        return AdPrediction(
            probability=chance,
            predicted="ad" if chance >= threshold else "not_ad",
            gate=float(np.mean(gates)) if gates else None,
            review=any(flags) if flags else None,
            threshold=threshold,
        )

    def show(self, item: Item, prediction: AdPrediction) -> Shown:
        """The picture, both probabilities, and what picture and text weigh in a gated fusion."""
        chance, gate = prediction.probability, prediction.gate
        bars = {"probability": {"ad": chance, "not_ad": 1 - chance}}
        if gate is not None:
            bars["weight in the fusion"] = {"picture": gate, "text": 1 - gate}
        pictures = [] if self._processor is None else [self._picture(item)]
        return Shown(answer=prediction.predicted, review=bool(prediction.review), bars=bars, pictures=pictures)

    def save(self, item: Item, prediction: AdPrediction, folder: Path) -> None:
        """Nothing beside the table."""

    def forewarn(self, items: Sequence[Item]) -> Sequence[str]:
        """That all texts are missing, how much of them is cut off, or that nobody looks at the files."""
        unseen = self._processor is None and any(item.path is not None for item in items)
        said = ["the pictures are not looked at: this model was trained with texts alone"] if unseen else []
        return [*said, *forewarn([self._text_of(item) for item in items], self._reader)]

    def examples(self) -> list[dict[str, Tensor]]:
        """Pictures of several shapes and texts of several lengths: three inputs, one, two, and one without a text."""
        rng, found = np.random.default_rng(0), []
        first = ["sale", "50 % off, today only", "sale" if self._chunks == 1 else "now " * 10_000]
        for count, texts in ((3, first), (1, ["sale " * 10_000]), (2, ["now", ""])):
            pictures: dict[str, Tensor] = {}
            if self._processor is not None:
                shapes = [(64, 48 + 16 * place, 3) for place in range(count)]
                pictures = self._processor([rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes])
            found.append({**pictures, **self._tokens(texts)})
        return found

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """See `TEXT_INPUTS` and `TEXT_FACTS`."""
        if self._reader is None:
            return {}
        inputs = dict(zip(TEXT_INPUTS, text_inputs(self._reader, texts), strict=True))
        return {**inputs, TEXT_FACTS: torch.tensor([*map(text_facts, texts)])} if self._tells_facts else inputs

    def _text_of(self, item: Item) -> str:
        given = dict(item.values)
        return self._clean(given["text"]) if "text" in given else self._text

    def _picture(self, item: Item) -> np.ndarray[Any, Any]:
        if item.content is not None:
            image = np.array(item.content)  # a copy: those of Pillow cannot be written to, which torch warns of
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(f"{item.name}: {image.dtype} {[*image.shape]}; expected a picture uint8 [H, W, 3]")
            return image
        if item.path is None:
            raise UserError(f"{item.name}: names no picture; expected a file in the column {_PICTURES[0]}")
        return self._read(item.path, name=item.name)

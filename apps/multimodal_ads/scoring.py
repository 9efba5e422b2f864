"""How a trained ad classifier predicts: a picture, a text, or both to the probability of an ad."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlcore.base.errors import UserError
from mlcore.data.batch import MicroBatch
from mlcore.data.images import SUFFIXES, read_image
from mlcore.run.decision import REVIEW, Decision
from mlcore.run.restore import RunCheckpoint
from mlcore.run.scorer import Item
from mlcore.training.engine import autocast
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.batches import collate
from quartet.apps.multimodal_ads.data.table import clean_text
from quartet.apps.multimodal_ads.evaluation import probabilities_of
from quartet.apps.multimodal_ads.restore import Restored, decision_of, restored
from quartet.apps.multimodal_ads.text.truncation import forewarn

__all__ = ["AdPrediction", "AdScorer", "make_scorer"]


@dataclass(frozen=True, kw_only=True)
class AdPrediction:
    """What the classifier says of one input.

    Attributes:
        probability: Of an ad.
        predicted: "ad" or "not_ad", as the decision has it; where a person decides, the more probable one.
        gate: Share of the picture in a gated fusion, 0..1; None without one.
        review: Whether the decision leaves it to a person; None: it never does.
    """

    probability: float
    predicted: str
    gate: float | None = None
    review: bool | None = None

    def row(self) -> list[object]:
        """All of it, as it stands, and "yes" where a person should decide."""
        review = [] if self.review is None else ["yes" if self.review else ""]
        return [self.probability, self.predicted, self.gate, *review]


def make_scorer(run: RunCheckpoint[AdsConfig], device: torch.device, options: Mapping[str, str]) -> "AdScorer":
    """The scorer of a run; options are "text" and "threshold".

    Raises:
        CheckpointError: As `quartet.apps.multimodal_ads.restore.restore`.
        UserError: Likewise, or the threshold is no probability.
    """
    decision = decision_of(run.path, options.get("threshold"))
    return AdScorer(restored(run, device=device), decision=decision, text=clean_text(options.get("text", "")))


class AdScorer:
    """A `mlcore.run.scorer.Scorer`; an item's content is a picture uint8 [H, W, 3], its value "text" the text in it.

    Args:
        found: The classifier.
        decision: From which probability on an ad is taken for one.
        text: Of items that bring none.
    """

    suffixes = SUFFIXES
    batch_size = 32

    def __init__(self, found: Restored, *, decision: Decision, text: str = "") -> None:
        self._found, self._decision, self._text = found, decision, text
        self.columns = ("probability", "predicted", "gate", *(["review"] if decision.can_review else []))
        self._task, self._prepare, self._encoder = found.task, found.prepare, found.parts.text
        self.inputs: dict[str, Sequence[str]] = {}
        if self._prepare is not None:
            self.inputs["path"] = ("local_image_path", "image", "path")
        if self._encoder is not None:
            self.inputs["text"] = ("text_info", "text")

    def items(self, path: Path) -> Sequence[Item]:
        """A file is one picture, which a model of texts does not look at."""
        return [Item(str(path), None if self._prepare is None else path)]

    def load(self, item: Item) -> dict[str, Any]:
        """What `collate` takes of a sample: no label, as nothing is compared."""
        text = self._text_of(item)
        sample: dict[str, Any] = {"label": 0, "has_text": bool(text)}
        if self._encoder is not None:
            sample["text"] = text
        return sample if self._prepare is None else self._prepare({**sample, "image": self._picture(item)})

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch as the classifier takes it."""
        return collate(samples)

    @torch.inference_mode()
    def predict(self, batch: dict[str, Any]) -> list[AdPrediction]:
        """Probabilities in the arithmetic of the run's evaluations."""
        device = self._found.device
        with autocast(self._found.config.train.precision, device):
            rows = self._task.evaluation_step(self._found.model, MicroBatch(batch).to(device).data)
        chances = probabilities_of({"logit": rows["logit"].cpu()})
        gates = rows["gate"].tolist() if "gate" in rows else [None] * len(chances)
        return [
            AdPrediction(
                probability=chance,
                predicted="ad" if index == 1 or (index == REVIEW and chance >= 0.5) else "not_ad",
                gate=gate,
                review=index == REVIEW if self._decision.can_review else None,
            )
            for chance, index, gate in zip(
                chances.tolist(), self._decision.decide(chances).tolist(), gates, strict=True
            )
        ]

    def save(self, item: Item, prediction: AdPrediction, folder: Path) -> None:
        """Nothing beside the table."""

    def forewarn(self, items: Sequence[Item]) -> Sequence[str]:
        """That all texts are missing, or how much of them is cut off."""
        return forewarn([self._text_of(item) for item in items], self._encoder)

    def _text_of(self, item: Item) -> str:
        given = dict(item.values)
        return clean_text(given["text"]) if "text" in given else self._text

    def _picture(self, item: Item) -> np.ndarray[Any, Any]:
        if item.content is not None:
            image = np.array(item.content)  # a copy: those of Pillow cannot be written to, which torch warns of
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(f"{item.name}: {image.dtype} {[*image.shape]}; expected a picture uint8 [H, W, 3]")
            return image
        if item.path is None:
            raise UserError(f"{item.name}: names no picture; expected a file in the column {self.inputs['path'][0]}")
        return read_image(item.path, max_pixels=self._found.max_pixels, name=item.name)

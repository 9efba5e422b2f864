"""What plain models make of the same texts and pictures."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor

from mlcore.data.images import read_image
from mlcore.metrics.arrays import FloatArray
from mlcore.run.baseline import Baseline
from mlcore.training.plain import describe_picture, fewer, fit_features, fit_texts
from quartet.apps.multimodal_ads.data.table import AdRow

__all__ = ["baselines"]

Loss = Callable[[Tensor, Tensor], Tensor]
Logits = Mapping[str, FloatArray]


def baselines(
    rows: Mapping[str, Sequence[AdRow]], *, loss: Loss, max_pixels: int, texts: bool, pictures: bool
) -> list[Baseline]:
    """The baselines of a run: of its texts, of its pictures, and where it has both the mean of their logits.

    Args:
        rows: By split, with "train".
        loss: Of logits [B] and labels [B], each sample's.
        max_pixels: Larger images are refused before they are decoded.
        texts: Whether the model reads them.
        pictures: Whether it looks at them.
    """
    train = [rows["train"][place] for place in fewer([row.label for row in rows["train"]])]
    labels = [row.label for row in train]
    asked = {name: those for name, those in rows.items() if name != "train"}

    @cache
    def of_texts() -> Logits:
        fitted = fit_texts([row.text for row in train], labels, classes=2)
        return {name: _logit(fitted([row.text for row in those])) for name, those in asked.items()}

    @cache
    def of_pictures() -> Logits:
        fitted = fit_features(_features(train, max_pixels), labels, classes=2)
        return {name: _logit(fitted(_features(those, max_pixels))) for name, those in asked.items()}

    def of_both() -> Logits:
        return {name: (of_texts()[name] + of_pictures()[name]) / 2 for name in asked}

    def as_rows(logits: Callable[[], Logits]) -> Callable[[], Mapping[str, Mapping[str, Tensor]]]:
        return lambda: {name: _rows(asked[name], of, loss) for name, of in logits().items()}

    found = []
    if texts:
        found.append(Baseline(name="texts: TF-IDF and logistic regression", predict=as_rows(of_texts)))
    if pictures:
        found.append(Baseline(name="pictures: plain features and logistic regression", predict=as_rows(of_pictures)))
    if texts and pictures:
        found.append(Baseline(name="both: the mean of their logits", predict=as_rows(of_both)))
    return found


def _features(rows: Sequence[AdRow], max_pixels: int) -> FloatArray:
    return np.stack([describe_picture(read_image(row.image, max_pixels=max_pixels)) for row in rows])


def _logit(probabilities: FloatArray) -> FloatArray:
    return np.asarray(logit(probabilities[:, 1].clip(1e-7, 1 - 1e-7)))


def _rows(rows: Sequence[AdRow], logits: FloatArray, loss: Loss) -> dict[str, Tensor]:
    label, found = torch.tensor([row.label for row in rows]), torch.from_numpy(logits).float()
    return {"label": label, "logit": found, "loss": loss(found, label)}

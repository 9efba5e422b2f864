"""Text that learns from the training table alone: hashed n-grams of words and characters, and a linear shortcut.

No weights are fetched. Before the training a logistic regression of TF-IDF weights becomes the shortcut, and latent
semantic analysis (Deerwester et al. 1990) the start of the embeddings; both lie in the model's state afterwards.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mlcore.data.ngrams import CHARACTERS, WORDS, count_ngrams

__all__ = ["NGRAMS", "NgramEmbedding", "NgramEncoder", "NgramStart", "fit_ngrams"]

NGRAMS = "ngrams"
"""The name of this encoder, in place of a sentence-transformers model."""

_MOST_CHARACTERS = 100_000  # of a text that are read
_REMEMBERED = 20_000  # texts; what is hashed once need not be hashed in the next epoch
_FOLDS = 5
_STRENGTHS = (1.0, 10.0, 100.0)  # inverse regularisation of the logistic regression; folds choose


class NgramEncoder:
    """From texts to n-grams; `TextReader` and `TextEncoder` for texts that the classifier itself embeds.

    Args:
        buckets: Half of them for words, half for characters.
        width: Features of a text, without the logit of the shortcut.
    """

    whole: int | None = None
    most: int | None = None

    def __init__(self, buckets: int, width: int) -> None:
        self.buckets = buckets
        self.width = width + 1
        self._hashed = lru_cache(maxsize=_REMEMBERED)(self._hash)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Buckets, filled up to the longest, and how often each occurs, 0 where filled up; both int64 [T, L]."""
        found = [self._hashed(text) for text in texts]
        longest = max([1, *(len(places) for places, _ in found)])
        ngrams, counts = np.zeros((2, len(texts), longest), np.int64)
        for row, (places, times) in enumerate(found):
            ngrams[row, : len(places)], counts[row, : len(places)] = places, times
        return torch.from_numpy(ngrams), torch.from_numpy(counts)

    def _hash(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return count_ngrams(text[:_MOST_CHARACTERS], self.buckets)

    def to(self, _device: torch.device | str) -> "NgramEncoder":
        """It computes nothing on a device."""
        return self

    def count_tokens(self, texts: Sequence[str]) -> Tensor:
        """Words of each text, int64 [N]; all are read."""
        return torch.tensor([len(text.split()) for text in texts], dtype=torch.int64)

    def fingerprint(self) -> str:
        """Text that differs whenever something differs that changes what is made of a text."""
        return f"ngrams 1\nbuckets={self.buckets}\nwords={WORDS}\ncharacters={CHARACTERS}\nread={_MOST_CHARACTERS}"

    def network(self) -> None:
        """The classifier embeds n-grams itself."""

    def former_fingerprint(self) -> None:
        """Earlier versions had no such encoder."""

    def outline(self) -> tuple[dict[str, Any], None]:
        """Plain values for those who read texts without this repository; there is no tokenizer."""
        lengths = {"words": list(WORDS), "characters": list(CHARACTERS)}
        return {"limit": None, "buckets": self.buckets, "most_characters": _MOST_CHARACTERS, **lengths}, None


@dataclass(frozen=True, kw_only=True)
class NgramStart:
    """What is known of n-grams before the training.

    Attributes:
        state: Of `NgramEmbedding`.
        logits: The shortcut's for each training text, by a regression that was fitted without it.
        missing: Log-odds of an ad where there is no text.
    """

    state: Mapping[str, Tensor]
    logits: Mapping[str, float]
    missing: float


class NgramEmbedding(nn.Module):
    """N-grams to features of a text, and the logit of a linear classifier as one more.

    The shortcut is no parameter: trained with the rest it would learn the training texts by heart.

    Args:
        buckets: See `NgramEncoder`.
        width: Features.
    """

    idf: Tensor
    shortcut: Tensor
    intercept: Tensor

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(buckets, width)
        self.register_buffer("idf", torch.ones(buckets))
        self.register_buffer("shortcut", torch.zeros(buckets))
        self.register_buffer("intercept", torch.zeros(()))

    def forward(self, ngrams: Tensor, counts: Tensor) -> Tensor:
        """Features [T, width + 1] of what `NgramEncoder` gives; the last one is the shortcut's logit."""
        weights = torch.where(counts > 0, 1 + counts.clamp(min=1).log(), 0.0) * self.idf[ngrams]
        weights = functional.normalize(weights, dim=1)
        features = (weights.unsqueeze(1) @ self.embedding(ngrams)).squeeze(1)  # ONNX has no weighted bag of embeddings
        logit = (weights * self.shortcut[ngrams]).sum(dim=1, keepdim=True) + self.intercept
        return torch.cat([features, logit], dim=1)


def fit_ngrams(encoder: NgramEncoder, texts: Sequence[str], labels: Sequence[int]) -> NgramStart:
    """Fit what `NgramEmbedding` starts from; texts that are equal are held out together.

    With too few texts of a class for two folds the shortcut is left at 0.

    Args:
        encoder: Reads the texts.
        texts: Of the training samples; empty ones are left out.
        labels: 1: ad, 0: not.
    """
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfTransformer
    from threadpoolctl import threadpool_limits

    ads = {text: label for text, label in zip(texts, labels, strict=True) if text}  # one row for each text
    missing = _log_odds(
        [label for text, label in zip(texts, labels, strict=True) if not text], sum(labels) / len(labels)
    )
    if not ads:
        return NgramStart(state={}, logits={}, missing=missing)
    found = [encoder._hashed(text) for text in ads]
    starts = np.cumsum([0, *(len(places) for places, _ in found)], dtype=np.int32)  # all that liblinear takes
    places, counts = (np.concatenate([one[part] for one in found]) for part in (0, 1))
    matrix = csr_array((counts.astype(np.float64), places, starts), shape=(len(ads), encoder.buckets))
    with threadpool_limits(1):  # sums in another order would be others
        transform = TfidfTransformer(sublinear_tf=True)
        weights = transform.fit_transform(matrix)
        state = {"idf": transform.idf_, "embedding.weight": _topics(weights, encoder.width - 1)}
        regression, logits = _regression(weights, np.array([*ads.values()]))
    return NgramStart(
        state={name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in (state | regression).items()},
        logits=dict(zip(ads, logits, strict=True)),
        missing=missing,
    )


def _log_odds(labels: Sequence[int], share: float) -> float:
    """Of an ad among some samples; their share among all counts as one sample more."""
    chance = min(max((sum(labels) + share) / (len(labels) + 1), 1e-3), 1 - 1e-3)
    return math.log(chance / (1 - chance))


def _regression(weights: Any, labels: NDArray[np.int64]) -> tuple[dict[str, Any], list[float]]:
    """The shortcut's state, and logits of each text out of fold; the folds choose the regularisation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = min(_FOLDS, int(np.bincount(labels, minlength=2).min()))
    if folds < 2:
        return {}, [0.0] * len(labels)
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    best: tuple[float, Any, Any] = (math.inf, None, None)
    for strength in _STRENGTHS:
        model = LogisticRegression(C=strength, solver="liblinear", random_state=0)
        logits = cross_val_predict(model, weights, labels, cv=split, method="decision_function")
        loss = log_loss(labels, np.stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))], axis=1))
        best = min(best, (loss, model, logits), key=lambda one: one[0])
    model = best[1].fit(weights, labels)
    return {"shortcut": model.coef_[0], "intercept": model.intercept_[0]}, best[2].tolist()


def _topics(weights: Any, width: int) -> NDArray[Any]:
    """Embeddings of n-grams [buckets, width] whose sums over a text are its topics, of about unit size each."""
    from sklearn.decomposition import TruncatedSVD

    most = min(width, weights.shape[0] - 1)
    embeddings = np.zeros((weights.shape[1], width))
    if most > 0:
        embeddings[:, :most] = TruncatedSVD(most, random_state=0).fit(weights).components_.T * width**0.5
    return embeddings

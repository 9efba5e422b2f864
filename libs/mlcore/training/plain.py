"""Plain classifiers of scikit-learn for baselines: of texts and of rows of features."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mlcore.metrics.arrays import FloatArray, IntArray

__all__ = ["MOST", "class_rows", "describe_picture", "fewer", "fit_features", "fit_texts"]

MOST = 5000
"""Training samples that a baseline takes at most, so that it takes minutes at most."""


def fewer(labels: Sequence[int], *, most: int = MOST) -> IntArray:
    """Places of at most so many samples, each class with its share; always the same ones, in their order."""
    places = np.arange(len(labels))
    if len(labels) <= most:
        return places
    from sklearn.model_selection import train_test_split

    counts = np.bincount(np.asarray(labels))
    stratify = labels if counts[counts > 0].min() > 1 else None
    chosen, _ = train_test_split(places, train_size=most, stratify=stratify, random_state=0)
    return np.sort(chosen)


def fit_texts(texts: Sequence[str], labels: Sequence[int], *, classes: int) -> Callable[[Sequence[str]], FloatArray]:
    """TF-IDF of words, pairs of them and parts of words, and a logistic regression.

    Args:
        texts: Of the training samples.
        labels: Theirs.
        classes: C.

    Returns:
        From N texts to probabilities [N, C].

    Raises:
        ValueError: No text has a word, or there is one class only.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    least = 2 if len(texts) > 100 else 1  # what is in one text only tells nothing of others
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=least, max_features=50_000)
    parts = TfidfVectorizer(
        sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), min_df=least, max_features=50_000
    )
    model = make_pipeline(make_union(words, parts), LogisticRegression(C=10.0, max_iter=300))
    return _fitted(model, texts, labels, classes=classes)


def fit_features(features: FloatArray, labels: Sequence[int], *, classes: int) -> Callable[[FloatArray], FloatArray]:
    """A logistic regression of standardised features [N, D]; as `fit_texts`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _fitted(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)), features, labels, classes=classes
    )


def _fitted(model: Any, inputs: Any, labels: Sequence[int], *, classes: int) -> Callable[[Any], FloatArray]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a comparison
        model.fit(inputs, labels)

    def predict(inputs: Any) -> FloatArray:
        found = np.zeros((len(inputs), classes))
        found[:, model.classes_] = model.predict_proba(inputs)  # a class without training samples has 0
        return found

    return predict


def describe_picture(image: NDArray[np.uint8]) -> FloatArray:
    """What can be said of a picture [H, W, 1 or 3] without learning: float64 [726].

    Its grey thumbnail (24 x 24), a histogram of its grey values (16), mean and deviation of the thumbnail's colours
    (6), and of 4 x 4 cells which way edges go (8 directions each; Dalal & Triggs 2005, without overlapping blocks).
    """
    whole = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    grey = whole.convert("L")
    thumbnail = np.asarray(grey.resize((24, 24), Image.Resampling.BOX), dtype=np.float64) / 255
    colours = np.asarray(whole.convert("RGB").resize((24, 24), Image.Resampling.BOX), dtype=np.float64) / 255
    values = np.asarray(grey.resize((96, 96), Image.Resampling.BOX), dtype=np.float64) / 255
    down, right = np.gradient(values)
    strength, way = np.hypot(down, right), (np.arctan2(down, right) % np.pi / np.pi * 8).astype(np.int64) % 8
    cell = np.arange(96) // 24
    place = (cell[:, None] * 4 + cell[None, :]) * 8 + way
    edges = np.bincount(place.ravel(), weights=strength.ravel(), minlength=128)
    counts = np.histogram(values, bins=16, range=(0, 1))[0] / values.size
    moments = np.concatenate([colours.mean(axis=(0, 1)), colours.std(axis=(0, 1))])
    return np.concatenate([thumbnail.ravel(), counts, moments, edges / (edges.sum() + 1e-9)])


def class_rows(labels: Sequence[int], probabilities: FloatArray) -> dict[str, Tensor]:
    """Rows as a classifier's task gives them: "label" [N], "probabilities" and "logits" [N, C], "loss" [N]."""
    chances = torch.from_numpy(probabilities).float()
    label = torch.as_tensor(np.asarray(labels, dtype=np.int64))
    logits = chances.clamp(min=1e-7).log()
    loss = functional.nll_loss(logits, label, reduction="none")
    return {"label": label, "logits": logits, "probabilities": chances, "loss": loss}

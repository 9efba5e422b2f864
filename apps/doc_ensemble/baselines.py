"""What plain models make of the same pages."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from mlcore.metrics.arrays import FloatArray
from mlcore.run.baseline import Baseline
from mlcore.training.evaluator import Predictions
from mlcore.training.plain import class_rows, describe_picture, fewer, fit_features, fit_texts
from quartet.apps.doc_ensemble.data.pages import Page, read_page

__all__ = ["baselines"]


def baselines(
    pages: Mapping[str, Sequence[Page]],
    *,
    classes: int,
    max_pixels: int,
    published: Callable[[Sequence[Page]], FloatArray] | None = None,
) -> list[Baseline]:
    """The baselines of a run.

    Args:
        pages: By split, with "train".
        classes: How many there are.
        max_pixels: Larger images are refused before they are decoded.
        published: From pages to features [N, D] of the weights that the network started from; None where it had none.
    """
    train = [pages["train"][place] for place in fewer(_labels(pages["train"]))]
    asked = {name: those for name, those in pages.items() if name != "train"}

    def of_texts() -> Mapping[str, Predictions]:
        fitted = fit_texts([page.text for page in train], _labels(train), classes=classes)
        return {
            name: class_rows(_labels(those), fitted([page.text for page in those])) for name, those in asked.items()
        }

    def of_features(features: Callable[[Sequence[Page]], FloatArray]) -> Mapping[str, Predictions]:
        fitted = fit_features(features(train), _labels(train), classes=classes)
        return {name: class_rows(_labels(those), fitted(features(those))) for name, those in asked.items()}

    plain = partial(_features, max_pixels=max_pixels)
    found = [Baseline(name="pages: plain features and logistic regression", predict=partial(of_features, plain))]
    if published is not None:
        name = "pages: features of the published weights and logistic regression"
        found.append(Baseline(name=name, predict=partial(of_features, published)))
    if any(page.text for page in train):
        found.append(Baseline(name="texts: TF-IDF and logistic regression", predict=of_texts))
    return found


def _labels(pages: Sequence[Page]) -> list[int]:
    return [-1 if page.label is None else page.label for page in pages]


def _features(pages: Sequence[Page], *, max_pixels: int) -> FloatArray:
    images = (read_page(page.path, page.number, max_pixels=max_pixels, grey=True) for page in pages)
    return np.stack([describe_picture(image) for image in images])

"""What plain models make of the same pages."""

from collections.abc import Mapping, Sequence

import numpy as np

from mlcore.metrics.arrays import FloatArray
from mlcore.run.baseline import Baseline
from mlcore.training.evaluator import Predictions
from mlcore.training.plain import class_rows, describe_picture, fewer, fit_features, fit_texts
from quartet.apps.doc_ensemble.data.pages import Page, read_page

__all__ = ["baselines"]


def baselines(pages: Mapping[str, Sequence[Page]], *, classes: int, max_pixels: int) -> list[Baseline]:
    """The baselines of a run.

    Args:
        pages: By split, with "train".
        classes: How many there are.
        max_pixels: Larger images are refused before they are decoded.
    """
    train = [pages["train"][place] for place in fewer(_labels(pages["train"]))]
    asked = {name: those for name, those in pages.items() if name != "train"}

    def of_texts() -> Mapping[str, Predictions]:
        fitted = fit_texts([page.text for page in train], _labels(train), classes=classes)
        return {
            name: class_rows(_labels(those), fitted([page.text for page in those])) for name, those in asked.items()
        }

    def of_pictures() -> Mapping[str, Predictions]:
        fitted = fit_features(_features(train, max_pixels), _labels(train), classes=classes)
        return {name: class_rows(_labels(those), fitted(_features(those, max_pixels))) for name, those in asked.items()}

    found = [Baseline(name="pages: plain features and logistic regression", predict=of_pictures)]
    if any(page.text for page in train):
        found.append(Baseline(name="texts: TF-IDF and logistic regression", predict=of_texts))
    return found


def _labels(pages: Sequence[Page]) -> list[int]:
    return [-1 if page.label is None else page.label for page in pages]


def _features(pages: Sequence[Page], max_pixels: int) -> FloatArray:
    images = (read_page(page.path, page.number, max_pixels=max_pixels, grey=True) for page in pages)
    return np.stack([describe_picture(image) for image in images])

"""Pages that lie on a side or upside down: a small head learns from the pages themselves which way is up.

Its labels come free: each page is turned by 0, 90, 180 and 270 degrees, and a logistic regression says which turn
rights it (Gidaris, Singh, Komodakis 2018, https://arxiv.org/abs/1803.07728). That most pages stand upright as they are
is all that is assumed. The head is plain numbers in a checkpoint, and part of how a page gets a network's size (`Fit`),
so that pages are turned alike wherever the network is used.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import FloatArray
from mlcore.training.plain import fewer
from quartet.apps.doc_ensemble.data.pages import Page, read_page

__all__ = ["Upright", "fit_upright", "patterns", "turned_patterns"]

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

_SIDE, _LEAST = 384, 16  # pixels, longer side of what the head looks at, and the least of the other
_RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))  # clockwise
_STEPS = (1, 2, 4)  # pixels from the middle to the ring
_CONTRAST = 16  # grey levels that count
_FEW = 50  # patterns; what has fewer says less
_BEFORE = np.array([(code >> 2 | code << 6) & 255 for code in range(256)])  # what a pattern was before a quarter turn
_MOST = 1500  # pages to learn from
_ROUNDS, _FOLDS = 3, 3
_STANDING = 0.75  # share of the pages that stands upright, at least
_WRONG = 0.005  # share of the pages that may stand upright and be turned
_STEPS_OF_SHARES = 500
_C, _NARROWEST = 0.01, 1e-6  # of the regression, and the least deviation of a feature


@dataclass(frozen=True)
class Upright:
    """`upright(image)` rights a page, uint8 [H, W, 1 or 3], where it surely does not stand upright.

    Attributes:
        weights: [4, D + 1], of `patterns` and 1, for each number of quarter turns, counter-clockwise.
        sure: A page is turned where it stands upright with a smaller probability than this.
    """

    weights: tuple[tuple[float, ...], ...]
    sure: float

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """What `values` gave."""
        weights = np.array(values["weights"], dtype=np.float64).reshape(4, len(_STEPS) * 512 + 1)
        return cls(tuple(map(tuple, weights.tolist())), float(values["sure"]))

    @property
    def values(self) -> dict[str, Any]:
        """Plain numbers, for checkpoints and exports."""
        return {"weights": [list(row) for row in self.weights], "sure": self.sure}

    def __call__(self, image: Image) -> Image:
        """The page itself or turned."""
        return np.ascontiguousarray(np.rot90(image, self.turns(image)))

    def turns(self, image: Image) -> int:
        """By how many quarter turns, counter-clockwise, a page is righted: 0 to 3."""
        chances = softmax(self._matrix @ np.append(patterns(image), 1.0))
        return 1 + int(chances[1:].argmax()) if chances[0] < self.sure else 0

    @cached_property
    def _matrix(self) -> FloatArray:
        return np.array(self.weights)


def patterns(image: Image) -> NDArray[np.float32]:
    """How often each pattern of darker, and of lighter, neighbours is around a pixel, float32 [D / 256, 256].

    Local binary patterns (Ojala, Pietikainen, Maenpaa 2002) of three radii: which way print goes, and what of it is
    above and below its lines. Square roots of shares; a page without contrast has zeros.

    Args:
        image: uint8 [H, W, 1 or 3].
    """
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) if image.shape[2] == 3 else image[..., 0]
    scale = _SIDE / max(grey.shape)
    size = [max(_LEAST, round(side * scale)) for side in grey.shape[::-1]]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = np.asarray(cv2.resize(grey, size, interpolation=how)).astype(np.int16)
    found = []
    for step in _STEPS:
        height, width = (side - 2 * step for side in small.shape)
        ring = [small[step * (1 + y) :, step * (1 + x) :][:height, :width] for y, x in _RING]
        apart = np.stack(ring) - small[step:-step, step:-step]
        for there in (apart < -_CONTRAST, apart > _CONTRAST):
            counts = np.bincount(np.packbits(there, axis=0).ravel(), minlength=256)
            counts[0] = 0
            found.append(np.sqrt(counts / (counts.sum() + _FEW)))
    return np.array(found, dtype=np.float32)


def turned_patterns(found: NDArray[np.float32]) -> NDArray[np.float32]:
    """Patterns of a page and of this turned by one, two and three quarters, [4, D]."""
    turns = [found]
    for _ in range(3):
        turns.append(turns[-1][:, _BEFORE])
    return np.stack(turns).reshape(4, -1)


def fit_upright(pages: Sequence[Page], *, max_pixels: int, decode_side: int | None = None) -> Upright:
    """Learn from training pages which way is up, and by folds of them how sure the head must be.

    Pages that do not seem upright are left out of the next round, so that those that lie are not learned as they lie.
    The same pages give the same numbers, on any number of threads.

    Args:
        pages: Training pages, with labels.
        max_pixels: Larger images are refused before they are decoded.
        decode_side: See `mlcore.data.images.read_image`.

    Raises:
        UserError: They are of fewer than three files or groups, or one cannot be read.
    """
    from sklearn.model_selection import GroupKFold  # heavy
    from threadpoolctl import threadpool_limits

    asked = [pages[place] for place in fewer([page.label or 0 for page in pages], most=_MOST)]
    units = [page.bundle for page in asked]
    if len(set(units)) < _FOLDS:
        raise UserError(f"data.orientation=auto: learns from {_FOLDS} files or groups of training pages at least")
    read = partial(read_page, max_pixels=max_pixels, decode_side=decode_side, grey=True)
    images = (read(page.path, page.number) for page in asked)
    features = np.stack([turned_patterns(patterns(image)) for image in images])
    upright, scores = np.ones(len(asked), dtype=bool), np.empty((len(asked), 4))
    with threadpool_limits(limits=1):
        for _ in range(_ROUNDS):
            learned = upright
            for others, held_out in GroupKFold(_FOLDS).split(features, groups=units):
                known = others[learned[others]]
                weights = _regression(features[known if len(known) else others])
                scores[held_out] = features[held_out, 0] @ weights[:, :-1].T + weights[:, -1]
            upright = scores.argmax(axis=1) == 0
        weights = _regression(features[upright if upright.any() else learned])
    shares, sure = _shares(scores)
    weights[:, -1] += np.log(shares)
    if shares[0] < _STANDING:
        _log.warning("orientation: which way is up cannot be learned from these %d pages: none is turned", len(asked))
        return Upright(tuple(map(tuple, weights.tolist())), 0.0)
    said = "orientation: learned from %d pages, of which about %.1f %% do not stand upright"
    _log.info(said, len(asked), 100 * (1 - shares[0]))
    return Upright(tuple(map(tuple, weights.tolist())), sure)


def _regression(features: NDArray[np.float32]) -> FloatArray:
    """Weights [4, D + 1] of pages in their turns, [N, 4, D]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = features.reshape(-1, features.shape[2])
    mean, spread = rows.mean(axis=0), np.maximum(rows.std(axis=0), _NARROWEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough
        righting = np.tile(-np.arange(4) % 4, len(features))
        model = LogisticRegression(C=_C, max_iter=60).fit((rows - mean) / spread, righting)
    weights: FloatArray = model.coef_.astype(np.float64) / spread
    return np.column_stack([weights, model.intercept_ - weights @ mean])


def _shares(scores: FloatArray) -> tuple[FloatArray, float]:
    """How many pages need which turn, and `Upright.sure`.

    The head learned from pages in all four turns alike. The shares in which pages really need them are those of which
    its probabilities are most likely (Saerens, Latinne, Decaestecker 2002, by expectation-maximisation), with a page of
    each turn for none to be impossible. They give how many of the turned pages are expected to be upright ones.

    Args:
        scores: [N, 4], log-odds of pages that the head did not learn of.

    Returns:
        Shares [4], which sum to 1, and the probability.
    """
    chances, shares = softmax(scores, axis=1), np.full(4, 0.25)
    for _ in range(_STEPS_OF_SHARES):
        each = chances * shares
        each /= each.sum(axis=1, keepdims=True)
        shares = (each.sum(axis=0) + 1) / (len(each) + 4)
    standing = np.sort(each[:, 0])
    few = standing[np.cumsum(standing) <= _WRONG * len(standing)]
    return shares, min(0.5, float(few.max(initial=0.0)))

"""Figures from how often each sample counts, against those of samples written out as often."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mlcore.metrics.resampled import resampled


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distinct", [3, 1000])
def test_an_auroc_of_draws_is_scikit_learns_ties_and_all(dtype: type, distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    labels = rng.integers(2, size=60)
    scores = (rng.integers(distinct, size=60) / distinct + 0.3 * labels).astype(dtype)
    scores[:4] = [-math.inf, math.inf, math.inf, -math.inf]
    figure = resampled("auroc", labels=labels, scores=scores)
    assert figure is not None
    finite = np.clip(scores, -9, 9)  # scikit-learn takes no infinities
    for _ in range(20):
        times = np.bincount(rng.integers(60, size=60), minlength=60)
        assert figure(times) == pytest.approx(roc_auc_score(labels, finite, sample_weight=times), abs=1e-12)


def test_an_auroc_of_one_class_or_of_no_numbers_is_undefined() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])
    figure, broken = (resampled("auroc", labels=labels, scores=those) for those in (scores, scores * math.nan))
    assert figure is not None
    assert broken is not None
    assert math.isnan(figure(np.array([0, 2, 1])))
    assert math.isnan(broken(np.ones(3, dtype=np.int64)))

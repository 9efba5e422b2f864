"""The estimators as scikit-learn and aeon use them: layouts, searches, determinism, the library's own checks."""

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from quartet.apps.perceiver.estimator import PerceiverClassifier, PerceiverRegressor

TINY: dict[str, Any] = {
    "d_model": 16, "num_heads": 2, "num_latents": 4, "num_self_attention_layers": 1, "epochs": 2, "random_state": 0
}  # fmt: skip


@pytest.fixture(scope="module")
def series() -> tuple[Any, Any]:
    """20 series [2, 9], of two classes."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((20, 2, 9)).astype(np.float32), np.array(["high", "low"] * 10)


def test_a_seed_gives_one_model_whatever_the_layout(series: tuple[Any, Any]) -> None:
    x, y = series
    before = np.random.get_state(legacy=False)
    model = PerceiverClassifier(**TINY, dropout=0.1).fit(x, y)
    assert str(np.random.get_state(legacy=False)) == str(before)  # training has drawn from generators of its own
    chances = model.predict_proba(x)
    assert chances.shape == (20, 2)
    assert chances.sum(axis=1) == pytest.approx(1)
    assert (model.classes_.tolist(), model.n_features_in_) == (["high", "low"], 2)
    listed = clone(model).fit(list(x), y)
    assert np.array_equal(listed.predict_proba(list(x)), chances)
    assert not np.array_equal(clone(model).set_params(random_state=1).fit(x, y).predict_proba(x), chances)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(x), model.predict(x))


def test_series_differ_in_length_and_rows_are_series_of_one_channel(series: tuple[Any, Any]) -> None:
    x, y = series
    lengths = np.random.default_rng(1).integers(3, 10, size=len(x))
    uneven = [one[:, :length] for one, length in zip(x, lengths, strict=True)]
    model = PerceiverClassifier(**TINY).fit(uneven, y)
    alone = np.concatenate([model.predict_proba([one]) for one in uneven])
    assert model.predict_proba(uneven) == pytest.approx(alone, abs=1e-6)
    rows = PerceiverClassifier(**TINY).fit(x[:, 0], y)
    assert rows.n_features_in_ == 9
    assert np.array_equal(
        rows.predict_proba(x[:, 0]), PerceiverClassifier(**TINY).fit(x[:, :1], y).predict_proba(x[:, :1])
    )


def test_searches_and_pipelines_take_it(series: tuple[Any, Any]) -> None:
    x, y = series
    steps = make_pipeline(StandardScaler(), PerceiverClassifier(**TINY))
    grid = {"perceiverclassifier__lr": np.array([1e-3, 1e-2]), "perceiverclassifier__num_latents": np.array([4])}
    search = GridSearchCV(steps, grid, cv=2, error_score="raise").fit(x[:, 0], y)
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()
    assert search.predict(x[:, 0]).shape == (20,)


def test_numbers_keep_their_shape_and_units(series: tuple[Any, Any]) -> None:
    x, _ = series
    targets = 1000 + 50 * np.stack([x[:, 0].max(axis=1), x[:, 1].mean(axis=1)], axis=1)
    both = PerceiverRegressor(**TINY).fit(x, targets).predict(x)
    one = PerceiverRegressor(**TINY).fit(x, targets[:, 0]).predict(x)
    assert (both.shape, one.shape) == ((20, 2), (20,))
    assert np.abs(both - targets.mean(axis=0)).max() < 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide d_model=16"),
        ({"position": "somewhere"}, "model.position"),
        ({"class_weights": [1.0, 2.0, 3.0]}, "has 3 numbers, the data has 2 classes"),
    ],
)
def test_what_cannot_be_is_a_value_error(series: tuple[Any, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PerceiverClassifier(**{**TINY, **changes}).fit(*series)


def test_other_samples_than_trained_on_are_refused(series: tuple[Any, Any]) -> None:
    x, y = series
    model = PerceiverClassifier(**TINY).fit(x, y)
    with pytest.raises(ValueError, match="expecting 2 features"):
        model.predict(x[:, :1])
    with pytest.raises(ValueError, match=r"series of \[2, 3\] channels"):
        model.predict([np.zeros((3, 5))])
    with pytest.raises(ValueError, match="NaN"):
        model.predict([np.full((2, 5), np.nan)])
    with pytest.raises(ValueError, match="one class only, high"):
        PerceiverClassifier(**TINY).fit(x, np.array(["high"] * 20))


def test_a_series_longer_than_positions_know_is_told(series: tuple[Any, Any]) -> None:
    x, y = series
    model = PerceiverClassifier(**TINY, position="fourier").fit(x, y)
    longer = np.concatenate([x, x], axis=2)
    said = f"a series of {longer.shape[2]} positions, and position='fourier' knows {x.shape[2]}"
    with pytest.raises(ValueError, match=said):
        model.predict(longer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PerceiverClassifier, PerceiverRegressor])
def test_scikit_learns_own_checks_pass(kind: type) -> None:
    model = kind(**{**TINY, "epochs": 15, "lr": 2e-2})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checks that are skipped, or that ask for it
        results = check_estimator(model, expected_failed_checks={}, on_fail=None)
    assert [(one["check_name"], str(one["exception"])) for one in results if one["status"] == "failed"] == []
    assert len([one for one in results if one["status"] == "passed"]) > 40

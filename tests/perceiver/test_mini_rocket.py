"""MiniRocket: what its features must and must not depend on, and what it tells apart."""

import numpy as np
import pytest

from quartet.apps.perceiver.mini_rocket import MiniRocket


def waves(number: int, *, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Series of 2 channels and 7 to 40 positions, slow and fast waves of random phase."""
    rng = np.random.default_rng(seed)
    labels, series = np.arange(number) % 2, []
    for label in labels:
        time = np.arange(rng.integers(7, 41))[:, None]
        wave = np.sin(time * (0.5, 1.4)[label] + rng.uniform(0, 6, size=2))
        series.append((wave + 0.3 * rng.standard_normal(wave.shape)).astype(np.float32))
    return series, labels


def test_features_are_shares_of_the_series_own_positions() -> None:
    series, _ = waves(20, seed=0)
    rocket = MiniRocket.fit(series, features=84 * 5)
    found = rocket(series)
    assert found.shape == (20, 84 * 5)
    assert 0 <= found.min() < found.max() <= 1
    alone = np.concatenate([rocket([one]) for one in series])
    # What a series stands beside does not matter, but for rounding: biases are values that series have.
    assert np.mean(np.isclose(found, alone, rtol=0, atol=0.02)) > 0.999
    assert np.mean(found == alone) > 0.99
    np.testing.assert_array_equal(MiniRocket.fit(series, features=84 * 5)(series), found)
    assert not np.array_equal(MiniRocket.fit(series, features=84 * 5, seed=1)(series), found)


def test_units_of_the_channels_do_not_matter() -> None:
    series, _ = waves(10, seed=0)
    scaled = [one * [1000.0, 0.01] + [5.0, -3.0] for one in series]
    found, again = (MiniRocket.fit(those, features=168)(those) for those in (series, scaled))
    assert np.mean(np.isclose(found, again, atol=1e-6)) > 0.98


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 500])
def test_series_of_any_length_have_features(length: int) -> None:
    series = [np.random.default_rng(seed).standard_normal((length, 3)) for seed in range(4)]
    found = MiniRocket.fit(series, features=168)(series)
    assert found.shape == (4, 168)
    assert np.isfinite(found).all()


def test_classes_of_waves_are_told_apart() -> None:
    from sklearn.linear_model import RidgeClassifierCV

    (train, known), (new, truth) = waves(60, seed=1), waves(40, seed=2)
    rocket = MiniRocket.fit(train, features=840)
    assert RidgeClassifierCV().fit(rocket(train), known).score(rocket(new), truth) > 0.95

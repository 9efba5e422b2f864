"""Differences of cross-validations by pairs: their values, and that their intervals cover."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from mlcore.compare.paired import Difference, difference
from mlcore.metrics.ranking import Interval


def write(folder: Path, label: Any, chances: Any, *, names: Any = None, unit: Any = None) -> Path:
    """What a cross-validation of one seed keeps."""
    folder.mkdir(exist_ok=True)
    name = np.arange(len(label)).astype(str) if names is None else names
    known = {"name": name, "unit": name if unit is None else unit, "label": label[None]}
    np.savez(folder / "out_of_fold.npz", probabilities=chances[None], loss=-np.log(chances[:, 1])[None], **known)
    return folder


def drawn(label: Any, rng: np.random.Generator, *, skill: float) -> Any:
    score = 1 / (1 + np.exp(-(skill * (2 * label - 1) + rng.normal(size=len(label)))))
    return np.stack([1 - score, score], axis=1)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "auroc", "loss"])
def test_the_value_is_the_difference_of_the_figures(metric: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    given = [drawn(label, rng, skill=skill) for skill in (1.0, 0.3)]
    one, two = (write(tmp_path / str(place), label, chances) for place, chances in enumerate(given))
    figures = {
        "accuracy": lambda p: np.mean(p.argmax(1) == label),
        "macro_f1": lambda p: f1_score(label, p.argmax(1), average="macro"),
        "auroc": lambda p: roc_auc_score(label, p[:, 1]),
        "loss": lambda p: np.mean(-np.log(p[:, 1])),
    }
    found = difference(one, two, metric=metric)
    assert found is not None
    assert found.value == pytest.approx(figures[metric](given[0]) - figures[metric](given[1]), abs=1e-12)
    assert found.interval.low < found.value < found.interval.high
    back = difference(two, one, metric=metric)
    assert back is not None
    assert back.value == pytest.approx(-found.value)


def test_zero_in_the_interval_is_noise() -> None:
    assert not Difference(0.1, Interval(-0.1, 0.3)).sure
    assert not Difference(0.0, Interval(np.nan, np.nan)).sure
    assert Difference(0.1, Interval(0.01, 0.3)).sure
    assert Difference(-0.1, Interval(-0.3, -0.01)).sure


def test_other_samples_labels_or_metrics_are_no_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(20) % 2
    one = write(tmp_path / "one", label, drawn(label, rng, skill=1))
    assert difference(one, one, metric="accuracy") is None
    assert difference(one, tmp_path / "none", metric="accuracy") is None
    assert difference(one, write(tmp_path / "two", label, drawn(label, rng, skill=1)), metric="brier") is None
    other = write(tmp_path / "three", 1 - label, drawn(label, rng, skill=1))
    assert difference(one, other, metric="accuracy") is None
    names = np.array([f"x{number}" for number in range(20)])
    assert (
        difference(one, write(tmp_path / "four", label, drawn(label, rng, skill=1), names=names), metric="loss") is None
    )


@pytest.mark.slow
def test_intervals_cover_the_true_difference(tmp_path: Path) -> None:
    """Of 400 data sets of 60 units with three alike samples each, between 92 and 98 percent."""
    rng, covered = np.random.default_rng(1), 0
    chance = {True: 0.9, False: 0.55}  # of being right, for easy and hard units
    for _ in range(400):
        easy = np.repeat(rng.random(60) < 0.5, 3)
        label = np.zeros(180, dtype=np.int64)
        right = rng.random(180) < np.where(easy, chance[True], chance[False])
        also = rng.random(180) < np.where(easy, chance[True] - 0.1, chance[False] - 0.1)
        chances = [np.where(hit[:, None], [[0.9, 0.1]], [[0.1, 0.9]]) for hit in (right, also)]
        unit = np.repeat(np.arange(60), 3)
        one, two = (write(tmp_path / str(place), label, given, unit=unit) for place, given in enumerate(chances))
        found = difference(one, two, metric="accuracy")
        assert found is not None
        covered += found.interval.low <= 0.1 <= found.interval.high
    assert 0.92 <= covered / 400 <= 0.98

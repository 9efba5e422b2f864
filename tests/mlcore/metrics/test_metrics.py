"""Metrics against scikit-learn and direct formulas, at the edges where classes or samples are missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn import metrics as sk

from mlcore.base.errors import UserError
from mlcore.metrics.calibration import brier_score, expected_calibration_error, reliability_bins
from mlcore.metrics.classification import (
    accuracy,
    class_scores,
    classification_report,
    confusion_matrix,
)
from mlcore.metrics.ranking import auroc, auroc_interval, average_precision, bootstrap_interval

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def _data(seed: int, samples: int = 200, classes: int = 5, skill: float = 1.0) -> tuple[Labels, Floats]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    return labels, softmax(rng.normal(size=(samples, classes)) + skill * np.eye(classes)[labels], axis=1)


seeds = pytest.mark.parametrize("seed", range(5))


@seeds
def test_report_equals_scikit_learn(seed: int) -> None:
    labels, chances = _data(seed)
    guess = chances.argmax(1)
    values = classification_report(labels, probabilities=chances).scalars()
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, guess, average="macro")
    expected = {
        "accuracy": sk.accuracy_score(labels, guess),
        "macro_precision": precision,
        "macro_recall": recall,
        "macro_f1": f1,
        "micro_f1": sk.f1_score(labels, guess, average="micro"),
        "auroc": sk.roc_auc_score(labels, chances, multi_class="ovr"),
        "average_precision": sk.average_precision_score(labels, chances),
        "brier": sk.brier_score_loss(labels, chances),
    }
    assert {key: values[key] for key in expected} == pytest.approx(expected)
    assert set(values) - set(expected) == {"ece"}


@seeds
def test_rows_equal_scikit_learn_and_the_confusion_matrix(seed: int) -> None:
    labels, chances = _data(seed)
    report = classification_report(labels, probabilities=chances, class_names=list("abcde"))
    columns = zip(*sk.precision_recall_fscore_support(labels, chances.argmax(1), average=None), strict=True)
    for row, (precision, recall, f1, support) in zip(report.rows, columns, strict=True):
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx((precision, recall, f1, support))
    assert [row.name for row in report.rows] == list("abcde")
    np.testing.assert_array_equal(report.confusion, sk.confusion_matrix(labels, chances.argmax(1)))
    assert report.confusion.sum(1).tolist() == [row.support for row in report.rows]
    assert report.confusion.sum(0).tolist() == [row.predicted for row in report.rows]
    assert report.accuracy == pytest.approx(np.trace(report.confusion) / report.samples)


@seeds
def test_the_order_of_samples_does_not_matter(seed: int) -> None:
    labels, chances = _data(seed)
    losses = -np.log(chances[np.arange(len(labels)), labels])
    order = np.random.default_rng(seed).permutation(len(labels))
    one = classification_report(labels, probabilities=chances, losses=losses)
    two = classification_report(labels[order], probabilities=chances[order], losses=losses[order])
    assert one.scalars() == pytest.approx(two.scalars(), abs=1e-12)
    np.testing.assert_array_equal(one.confusion, two.confusion)


@seeds
def test_renaming_classes_permutes_the_rows(seed: int) -> None:
    labels, chances = _data(seed)
    new = np.random.default_rng(seed).permutation(5)  # new[c] is the new index of class c
    one = classification_report(labels, probabilities=chances)
    two = classification_report(new[labels], probabilities=chances[:, np.argsort(new)])
    assert one.scalars() == pytest.approx(two.scalars(), abs=1e-12)
    assert [row.f1 for row in one.rows] == pytest.approx([two.rows[new[c]].f1 for c in range(5)])


def test_torch_tensors_of_any_dtype_give_the_same() -> None:
    labels, chances = _data(0)
    tensors = classification_report(torch.tensor(labels), probabilities=torch.tensor(chances, requires_grad=True))
    assert tensors.scalars() == classification_report(labels, probabilities=chances).scalars()
    half = torch.tensor(chances).to(torch.bfloat16)
    direct = float((half.argmax(1).numpy() == labels).mean())
    assert classification_report(labels, probabilities=half).accuracy == pytest.approx(direct)


def test_two_classes_by_one_column_or_two() -> None:
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 2, 100), rng.random(100)
    expected = classification_report(labels, probabilities=np.stack([1 - p, p], 1))
    for form in (p, p[:, None]):
        assert classification_report(labels, probabilities=form).scalars() == expected.scalars()
    assert classification_report(labels.astype(bool), probabilities=p).scalars() == expected.scalars()
    assert expected.auroc == pytest.approx(sk.roc_auc_score(labels, p))
    assert expected.brier == pytest.approx(np.mean((p - labels) ** 2))


def test_absent_classes_follow_the_stated_policy() -> None:
    # 0: right once of two; 1: labelled, never predicted; 2: predicted, never labelled; 3: neither.
    labels, guess = [0, 0, 1], [0, 2, 2]
    scores = class_scores(labels, predicted=guess, classes=4)
    np.testing.assert_allclose(scores.precision, [1.0, 0.0, 0.0, np.nan])
    np.testing.assert_allclose(scores.recall, [0.5, 0.0, 0.0, np.nan])
    np.testing.assert_allclose(scores.f1, [2 / 3, 0.0, 0.0, np.nan])
    assert scores.support.tolist() == [2, 1, 0, 0]
    assert scores.macro[2] == pytest.approx(sk.f1_score(labels, guess, average="macro", zero_division=0))


def test_a_class_without_samples_is_left_out_of_the_areas_and_named() -> None:
    labels, chances = _data(1, classes=4)
    kept = labels != 2
    labels, chances = labels[kept], chances[kept]
    area = auroc(labels, scores=chances)
    direct = [sk.roc_auc_score(labels == c, chances[:, c]) for c in (0, 1, 3)]
    assert area.value == pytest.approx(np.mean(direct))
    assert area.reason == "AUROC leaves out classes without samples: 2"
    assert "average precision leaves out classes without samples: 2" in (
        classification_report(labels, probabilities=chances).notes
    )


def test_one_class_only_makes_areas_undefined_and_says_so() -> None:
    report = classification_report([1, 1, 1], probabilities=[0.9, 0.2, 0.8])
    assert math.isnan(report.auroc)
    assert math.isnan(report.average_precision)
    assert report.notes == (
        "AUROC is undefined: every sample is of class 1",
        "average precision is undefined: every sample is of class 1",
    )
    assert report.accuracy == pytest.approx(2 / 3)
    assert math.isnan(auroc([1, 1], scores=[0.1, 0.9]).value)
    assert math.isnan(auroc_interval([1, 1], scores=[0.1, 0.9]).low)


def test_bootstrap_intervals_cover_and_draw_units_whole() -> None:
    rng, patients = np.random.default_rng(0), np.repeat(np.arange(40), 4)

    def covers(values: Floats, units: Labels, seed: int) -> bool:
        interval = bootstrap_interval(
            lambda times: float(np.average(values, weights=times)), units=units, resamples=200, seed=seed
        )
        return interval.low <= 0 <= interval.high

    drawn = [rng.normal(size=40)[patients] + 0.1 * rng.normal(size=160) for _ in range(200)]  # four alike scans of each
    assert sum(covers(values, patients, seed) for seed, values in enumerate(drawn)) >= 180
    assert sum(covers(values, np.arange(160), seed) for seed, values in enumerate(drawn)) <= 150  # too narrow
    assert math.isnan(bootstrap_interval(lambda _: 1.0, units=[0, 1]).low)  # all right: nothing can be said


def test_nan_scores_make_areas_undefined_and_probabilities_an_error() -> None:
    area = auroc([0, 1, 1], scores=[0.1, float("nan"), 0.5])
    assert math.isnan(area.value)
    assert "1 scores are NaN" in area.reason
    with pytest.raises(UserError, match=r"not finite for 1 of 2 samples \(first: row 1\)"):
        classification_report([0, 1], probabilities=[[0.5, 0.5], [float("nan"), 1.0]])


def test_rank_metrics_ignore_monotonic_changes_of_the_score() -> None:
    labels, chances = _data(3, classes=2)
    score = chances[:, 1]
    for measure in (auroc, average_precision):
        assert measure(labels, scores=np.log(score)).value == measure(labels, scores=score).value
    assert auroc(labels, scores=-score).value == pytest.approx(1 - auroc(labels, scores=score).value)


def test_losses_by_class_average_back_to_the_loss() -> None:
    labels, chances = _data(2, classes=4)
    losses = -np.log(chances[np.arange(len(labels)), labels])
    six = np.pad(chances, ((0, 0), (0, 2)))  # classes 4 and 5 have no sample
    by_class = [row.loss for row in classification_report(labels, probabilities=six, losses=losses).rows]
    assert by_class[:4] == pytest.approx([losses[labels == c].mean() for c in range(4)])
    assert np.isnan(by_class[4:]).all()
    report = classification_report(labels, probabilities=chances, losses=torch.tensor(losses))
    assert report.scalars()["loss"] == pytest.approx(losses.mean())
    assert sum(row.loss * row.support for row in report.rows) / len(labels) == pytest.approx(losses.mean())
    assert math.isnan(classification_report(labels, probabilities=chances).rows[0].loss)


@seeds
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_the_formula(seed: int, bins: int) -> None:
    labels, chances = _data(seed)
    confidence, right = chances.max(1), chances.argmax(1) == labels
    direct = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            direct += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(labels, probabilities=chances, bins=bins) == pytest.approx(direct)


def test_calibration_of_a_sure_and_right_a_sure_and_wrong_and_an_honest_model() -> None:
    assert expected_calibration_error([0, 1], probabilities=[[1.0, 0.0], [0.0, 1.0]]) == 0.0
    assert expected_calibration_error([1, 0], probabilities=[[1.0, 0.0], [0.0, 1.0]]) == 1.0
    honest = [[0.75, 0.25]] * 4
    assert expected_calibration_error([0, 0, 0, 1], probabilities=honest) == pytest.approx(0.0)


def test_bins_are_closed_on_the_right_and_hold_everything() -> None:
    groups = reliability_bins([1, 1, 0], probabilities=[0.6, 1.0, 0.2], bins=5)
    assert groups.count.tolist() == [0, 0, 1, 1, 1]  # confidences 0.6, 1.0 and 0.8
    assert np.isnan(groups.accuracy[:2]).all()
    assert groups.confidence[2:] == pytest.approx([0.6, 0.8, 1.0])


def test_brier_of_several_classes_is_the_squared_distance() -> None:
    labels, chances = _data(4)
    direct = ((chances - np.eye(5)[labels]) ** 2).sum(1).mean()
    assert brier_score(labels, probabilities=chances) == pytest.approx(direct)


def test_the_interval_holds_the_area_repeats_and_narrows_with_more_samples() -> None:
    def width(samples: int) -> float:
        labels, chances = _data(7, samples=samples, classes=2)
        low, high = auroc_interval(labels, scores=chances, resamples=200)
        assert low < auroc(labels, scores=chances).value < high
        assert (low, high) == auroc_interval(labels, scores=chances[:, 1], resamples=200)
        return high - low

    assert width(1600) < 0.5 * width(100)


def test_a_bootstrap_sample_is_measured_as_the_area_is() -> None:
    # Without spread inside a class every resample is the sample itself, ties included.
    assert auroc_interval([0, 0, 1, 1], scores=[0.2, 0.2, 0.9, 0.9], resamples=10) == (1.0, 1.0)
    assert auroc_interval([0, 0, 1, 1], scores=[0.5, 0.5, 0.5, 0.5], resamples=10) == (0.5, 0.5)


def test_rows_are_plain_values() -> None:
    report = classification_report([0, 1, 1], probabilities=[0.2, 0.7, 0.4], class_names=["no", "yes"])
    assert {type(value) for row in report.rows for value in asdict(row).values()} == {int, float, str}
    assert {type(value) for value in report.scalars().values()} == {float}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([], predicted=[]), "labels is empty"),
        (lambda: classification_report([], probabilities=[]), "labels is empty"),
        (lambda: auroc([], scores=[]), "labels is empty"),
        (lambda: accuracy([0, 1], predicted=[0]), "predicted has 1 rows, expected 2"),
        (lambda: accuracy([0, 1.5], predicted=[0, 1]), r"labels\[1\] is 1.5"),
        (lambda: accuracy(np.zeros((2, 3)), predicted=[0, 1]), r"shape \(2, 3\)"),
        (lambda: confusion_matrix([0, 3], predicted=[0, 1], classes=3), r"labels\[1\] is 3, expected .* in 0..2"),
        (lambda: confusion_matrix([0, 1], predicted=[-1, 1], classes=3), r"predicted\[0\] is -1"),
        (lambda: classification_report([0, 2], probabilities=[0.1, 0.2]), r"labels\[1\] is 2, expected .* 0..1"),
        (lambda: classification_report([0, 1], probabilities=[[2.0, -1.0], [0.5, 0.5]]), "softmax or sigmoid"),
        (lambda: classification_report([0, 1], probabilities=[3.0, 0.5]), "softmax or sigmoid"),
        (lambda: classification_report([0], probabilities=[0.5], class_names=["one"]), "1 class names for 2"),
        (lambda: auroc([0, 5], scores=[[0.2, 0.3, 0.5]] * 2), r"labels\[1\] is 5"),
        (lambda: auroc_interval([0, 1], scores=[0.1, 0.2], level=95), "level is 95"),
        (lambda: auroc_interval([0, 1], scores=np.ones((2, 3))), "3 columns"),
        (lambda: reliability_bins([0, 1], probabilities=[0.1, 0.2], bins=0), "bins is 0"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()

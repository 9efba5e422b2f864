"""Plain classifiers of texts, features and pictures."""

import numpy as np
import pytest

from mlcore.training.plain import describe_picture, fewer, fit_features, fit_texts

ADS = ["summer sale now", "buy one get one free", "half price sale", "free gift now"]
LETTERS = ["dear sir", "yours sincerely", "dear madam, yours", "kind regards, sir"]


def test_texts_are_told_apart_by_words_and_parts_of_them() -> None:
    predict = fit_texts([*ADS, *LETTERS], [0] * 4 + [2] * 4, classes=3)
    found = predict(["great sales", "dear friend", ""])
    assert found.shape == (3, 3)
    assert found.sum(axis=1) == pytest.approx(1)
    assert found[:2].argmax(axis=1).tolist() == [0, 2], "of the words only parts are known"
    assert (found[:, 1] == 0).all(), "no training text has class 1"


def test_features_are_standardised() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    features = np.stack([rng.normal(size=100) * 1e6, rng.normal(size=100) * 1e-6 + labels * 1e-5], axis=1)
    predict = fit_features(features, labels.tolist(), classes=2)
    assert (predict(features).argmax(axis=1) == labels).mean() > 0.95, "the small feature is the one that tells"


def test_of_many_samples_each_class_keeps_its_share() -> None:
    labels = [0] * 900 + [1] * 100
    places = fewer(labels, most=50)
    assert len(set(places.tolist())) == 50
    assert sum(labels[place] for place in places) == 5
    assert places.tolist() == fewer(labels, most=50).tolist() == sorted(places.tolist())
    assert fewer([0, 1, 1], most=50).tolist() == [0, 1, 2]


def test_a_picture_is_described_alike_in_grey_and_at_another_size() -> None:
    image = np.zeros((96, 96, 1), np.uint8)
    image[:, 48:] = 255
    small = describe_picture(image)
    assert small.shape == (726,)
    np.testing.assert_allclose(describe_picture(np.repeat(image, 3, axis=2)), small)
    np.testing.assert_allclose(describe_picture(image.repeat(2, axis=0).repeat(2, axis=1)), small, atol=1e-12)
    turned = describe_picture(np.ascontiguousarray(image.transpose(1, 0, 2)))
    ways = small[-128:].reshape(16, 8).sum(axis=0), turned[-128:].reshape(16, 8).sum(axis=0)
    assert [way.argmax() for way in ways] == [0, 4], "an edge to the right, and one down"
    assert all(way.max() == pytest.approx(1) for way in ways)

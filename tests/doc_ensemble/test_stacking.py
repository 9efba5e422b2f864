"""Stacking learns on out-of-fold predictions what these can teach, and no more; a leak is refused wherever it is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.ensemble.out_of_fold import FoldPredictions, OutOfFold, gather, read_out_of_fold
from quartet.apps.doc_ensemble.ensemble.stacking import fit_stacker, read_stacker

CLASSES = ("편지", "form", "table")


def folds_of(member: str, *, seed: int, pages: int = 90, folds: int = 3, classes: int = 3) -> list[FoldPredictions]:
    """A cross-validation of one member: page i is in fold i % folds."""
    names, labels = [f"page{i}" for i in range(pages)], np.arange(pages) % classes
    rng = np.random.default_rng(seed)
    chances = softmax(rng.normal(size=(pages, classes)) + 1.5 * np.eye(classes)[labels], axis=1)
    fold_of = np.arange(pages) // classes % folds
    return [
        FoldPredictions(
            member=member,
            fold=fold,
            trained_on=[names[i] for i in np.flatnonzero(fold_of != fold)],
            pages=[names[i] for i in np.flatnonzero(fold_of == fold)],
            probabilities=chances[fold_of == fold],
            labels=labels[fold_of == fold],
        )
        for fold in range(folds)
    ]


@pytest.fixture
def parts() -> list[FoldPredictions]:
    return folds_of("resnet", seed=0) + folds_of("vit", seed=1)


@pytest.fixture
def data(parts: list[FoldPredictions]) -> OutOfFold:
    return gather(parts, class_names=CLASSES)


def applied(stacker: object, data: OutOfFold) -> np.ndarray:
    return stacker(data.probabilities, member_names=data.member_names, class_names=data.class_names)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_fit_is_the_minimum_of_a_convex_function(classes: int) -> None:
    """Where the slope of log loss plus hold is 0, written down here once more."""
    names = CLASSES[:classes]
    data = gather(folds_of("a", seed=0, classes=classes) + folds_of("b", seed=1, classes=classes), class_names=names)
    stacker = fit_stacker(data, strengths=[0.5])
    columns, mean = np.concatenate(list(data.probabilities), axis=1), np.log(data.probabilities.mean(axis=0))
    wrong = softmax(stacker.sharpness * mean + columns @ stacker.coefficients.T + stacker.intercept, axis=1)
    np.testing.assert_allclose(applied(stacker, data), wrong, rtol=1e-10)
    wrong[np.arange(len(wrong)), data.labels] -= 1
    np.testing.assert_allclose(wrong.T @ columns + 0.5 * stacker.coefficients, 0, atol=1e-3)
    np.testing.assert_allclose(wrong.sum(axis=0) + 0.5 * stacker.intercept, 0, atol=1e-3)
    assert (wrong * mean).sum() + stacker.sharpness - 1 == pytest.approx(0, abs=1e-3)
    assert np.abs(stacker.coefficients).max() > 0.1


def many(pages: int, *, seed: int, classes: int = 17, members: int = 3, confused: float = 0.0) -> OutOfFold:
    """Members that err by themselves, and where `confused` by habits that can be learned."""
    rng, habits = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(members, classes, classes))
    # A class with many pages, and some with hardly any.
    labels = np.append(np.arange(classes), (classes * rng.random(pages - classes) ** 2).astype(int))
    scores = 4.2 * np.eye(classes)[labels] + 0.8 * rng.normal(size=(pages, classes))
    scores = scores + 1.2 * rng.normal(size=(members, pages, classes)) + confused * habits[:, labels]
    folds = np.arange(pages) % 3
    return OutOfFold(
        probabilities=softmax(scores, axis=2),
        labels=labels,
        folds=folds,
        left_out=np.tile(folds, (members, 1)),
        pages=tuple(map(str, range(pages))),
        class_names=tuple(map(str, range(classes))),
        member_names=tuple(map(str, range(members))),
    )


def accuracy(chances: np.ndarray, data: OutOfFold) -> float:
    return float((chances.argmax(axis=1) == data.labels).mean())


@pytest.mark.parametrize("confused", [0.0, 1.0])
def test_few_pages_leave_the_decisions_of_the_plain_mean(confused: float) -> None:
    """60 pages of 17 classes, from which a regression that knows nothing of the mean learns too little."""
    few, other = many(60, seed=1, confused=confused), many(3400, seed=2, confused=confused)
    mean = accuracy(other.probabilities.mean(axis=0), other)
    assert mean > 0.9
    assert accuracy(applied(fit_stacker(few), other), other) > mean - 0.01
    columns = [np.concatenate(list(data.probabilities), axis=1) for data in (few, other)]
    free = LogisticRegression(max_iter=5000).fit(columns[0], few.labels)
    assert accuracy(free.predict_proba(columns[1]), other) < mean - 0.05


def test_many_pages_teach_what_the_mean_does_not_know() -> None:
    known, other = many(1700, seed=1, confused=1.0), many(3400, seed=2, confused=1.0)
    stacker = fit_stacker(known)
    assert accuracy(applied(stacker, other), other) > accuracy(other.probabilities.mean(axis=0), other) + 0.04
    useless, other = fit_stacker(many(1700, seed=1)), many(3400, seed=2)
    assert useless.strength > stacker.strength
    assert useless.sharpness > 2  # the members are not sure enough
    assert accuracy(applied(useless, other), other) > accuracy(other.probabilities.mean(axis=0), other) - 0.002


def test_an_infinite_hold_is_the_mean_made_sharper(data: OutOfFold) -> None:
    stacker = fit_stacker(data, strengths=[np.inf])
    assert not stacker.coefficients.any()
    assert not stacker.intercept.any()
    powers = data.probabilities.mean(axis=0) ** stacker.sharpness
    np.testing.assert_allclose(applied(stacker, data), powers / powers.sum(axis=1, keepdims=True), rtol=1e-10)


def test_gathering_keeps_each_page_once_with_its_fold(parts: list[FoldPredictions], data: OutOfFold) -> None:
    assert sorted(data.pages) == sorted(f"page{i}" for i in range(90))
    assert data.member_names == ("resnet", "vit")
    for part in parts:
        member = data.member_names.index(part.member)
        for name, row, label in zip(part.pages, part.probabilities, part.labels, strict=True):
            place = data.pages.index(name)
            np.testing.assert_allclose(data.probabilities[member, place], row)
            assert (data.labels[place], data.folds[place], data.left_out[member, place]) == (
                label,
                part.fold,
                part.fold,
            )


def test_a_leak_planted_in_the_training_pages_is_refused(parts: list[FoldPredictions]) -> None:
    leaky = replace(parts[4], trained_on=[*parts[4].trained_on, parts[4].pages[3]])
    with pytest.raises(UserError, match=rf"'vit' for fold 1 was trained on 1 of the pages .*'{parts[4].pages[3]}'"):
        gather([*parts[:4], leaky, *parts[5:]], class_names=CLASSES)


def test_a_leak_planted_in_the_rows_is_refused(data: OutOfFold) -> None:
    left_out = data.left_out.copy()
    left_out[1, 5] = (data.folds[5] + 1) % 3
    with pytest.raises(
        UserError, match=rf"{data.pages[5]!r} of fold {data.folds[5]} was predicted by the model of 'vit'"
    ):
        replace(data, left_out=left_out)


def test_a_leak_planted_in_the_file_is_refused(data: OutOfFold, tmp_path: Path) -> None:
    path = tmp_path / "oof.npz"
    data.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["folds"][7] = (arrays["folds"][7] + 1) % 3
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="leak"):
        read_out_of_fold(path)


def test_a_leak_would_have_paid() -> None:
    # Why all this: a member that remembers its training pages looks perfect on them, and takes all the trust.
    honest, sleepy = folds_of("honest", seed=0), folds_of("sleepy", seed=1)
    data = gather(honest + sleepy, class_names=CLASSES)
    leaked = data.probabilities.copy()
    leaked[1] = 0.01 + 0.97 * np.eye(3)[data.labels]
    sizes = [
        np.abs(fit_stacker(replace(data, probabilities=chances), strengths=[1.0]).coefficients)
        .reshape(3, 2, 3)
        .sum(axis=(0, 2))
        for chances in (data.probabilities, leaked)
    ]
    trust = [size[1] / size.sum() for size in sizes]
    assert trust[0] < 0.6 < 0.75 < trust[1]


def test_pages_twice_or_missing_or_elsewhere_are_refused(parts: list[FoldPredictions]) -> None:
    with pytest.raises(UserError, match="is in folds 0 and 0"):
        gather([*parts, parts[0]], class_names=CLASSES)
    with pytest.raises(UserError, match="not cross-validated alike"):
        gather(parts[:-1], class_names=CLASSES)
    moved = [replace(part, fold=(part.fold + 1) % 3) for part in parts[3:]]
    with pytest.raises(UserError, match="in another fold"):
        gather([*parts[:3], *moved], class_names=CLASSES)


def test_without_out_of_fold_predictions_the_error_says_how_to_make_them(tmp_path: Path) -> None:
    for attempt in (
        lambda: read_out_of_fold(tmp_path / "none.npz"),
        lambda: gather([], class_names=CLASSES),
        lambda: fit_stacker(np.zeros((2, 9, 3))),
    ):
        with pytest.raises(UserError, match=r"needs out-of-fold predictions.*kfold\.folds: 5"):
            attempt()


def test_files_come_back_bit_by_bit_and_hold_no_pickle(data: OutOfFold, tmp_path: Path) -> None:
    data.save(tmp_path / "oof.npz")
    again = read_out_of_fold(tmp_path / "oof.npz")
    np.testing.assert_array_equal(again.probabilities, data.probabilities)
    assert (again.pages, again.class_names, again.member_names) == (data.pages, CLASSES, data.member_names)

    stacker = fit_stacker(again)
    stacker.save(tmp_path / "stacking.json")
    restored = read_stacker(tmp_path / "stacking.json")
    np.testing.assert_array_equal(applied(restored, data), applied(stacker, data))
    assert restored.class_names == CLASSES
    assert restored.strength == stacker.strength


def test_other_members_or_classes_are_not_permuted(data: OutOfFold) -> None:
    stacker = fit_stacker(data)
    with pytest.raises(UserError, match="fitted on the members"):
        stacker(data.probabilities, member_names=("vit", "resnet"), class_names=CLASSES)
    with pytest.raises(UserError, match="fitted on the classes"):
        stacker(data.probabilities, member_names=data.member_names, class_names=CLASSES[::-1])


def test_a_class_without_pages_is_named(data: OutOfFold) -> None:
    with pytest.raises(UserError, match="no page of 'table'"):
        fit_stacker(replace(data, labels=data.labels % 2))


def test_a_model_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stacking.json"
    path.write_text('{"format": "doc_ensemble stacking 1", "coefficients": []}', encoding="utf-8")
    with pytest.raises(UserError, match=r"written by another version .*repeat the ensemble experiment"):
        read_stacker(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other"}', "\x00"])
def test_damaged_files_are_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "stacking.json"
    path.write_text(content, encoding="utf-8")
    for read in (read_stacker, read_out_of_fold):
        with pytest.raises(UserError, match=r"stacking\.json"):
            read(path)


def test_a_coefficient_that_is_no_number_is_refused(data: OutOfFold, tmp_path: Path) -> None:
    path = tmp_path / "stacking.json"
    fit_stacker(data).save(path)
    values = json.loads(path.read_text("utf-8"))
    values["intercept"][0] = float("nan")
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match="not finite"):
        read_stacker(path)

"""Splits: every page exactly once, classes in the same mixture, groups never torn."""

from pathlib import Path

import numpy as np
import pytest

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.data.split import fold_numbers, hold_out

CLASSES = ("form", "letter", "memo")


def pages_of(counts: tuple[int, ...], *, per_group: int = 1) -> list[Page]:
    return [
        Page(Path(f"{label}_{k}.png"), label=label, group=f"{label}/{k // per_group}" if per_group > 1 else "")
        for label, count in enumerate(counts)
        for k in range(count)
    ]


@pytest.mark.parametrize("per_group", [1, 3])
@pytest.mark.parametrize("folds", [2, 5])
def test_every_page_is_in_exactly_one_fold(folds: int, per_group: int) -> None:
    pages = pages_of((60, 33, 18), per_group=per_group)
    numbers = fold_numbers(pages, folds=folds, seed=1, classes=CLASSES)
    assert numbers.shape == (111,)
    assert sorted(set(numbers.tolist())) == list(range(folds))
    labels = np.array([page.label for page in pages])
    for fold in range(folds):
        for label, count in enumerate((60, 33, 18)):
            assert abs(int(((numbers == fold) & (labels == label)).sum()) - count / folds) <= per_group
    for bundle in {page.bundle for page in pages}:
        assert len({int(n) for n, page in zip(numbers, pages, strict=True) if page.bundle == bundle}) == 1


def test_folds_are_a_function_of_the_seed() -> None:
    pages = pages_of((30, 30))
    first = fold_numbers(pages, folds=3, seed=1, classes=CLASSES)
    np.testing.assert_array_equal(first, fold_numbers(pages, folds=3, seed=1, classes=CLASSES))
    assert (first != fold_numbers(pages, folds=3, seed=2, classes=CLASSES)).any()


def test_pages_of_one_file_stay_together() -> None:
    pages = [Page(Path(f"{k // 4}.tif"), k % 4, label=k // 4 % 2) for k in range(80)]
    numbers = fold_numbers(pages, folds=5, seed=0, classes=CLASSES).reshape(20, 4)
    assert (numbers == numbers[:, :1]).all()


def test_a_class_with_fewer_pages_than_folds() -> None:
    with pytest.raises(UserError, match=r"5 folds .* memo \(3\): use kfold\.folds=3"):
        fold_numbers(pages_of((10, 10, 3)), folds=5, seed=0, classes=CLASSES)
    with pytest.raises(UserError, match=r"5 folds need at least 5 groups .* memo \(2\)"):
        fold_numbers(pages_of((30, 30, 10), per_group=5), folds=5, seed=0, classes=CLASSES)
    with pytest.raises(UserError, match=r"memo \(1\): give more pages"):
        fold_numbers(pages_of((10, 10, 1)), folds=2, seed=0, classes=CLASSES)


@pytest.mark.parametrize("per_group", [1, 2])
def test_hold_out_takes_its_share_of_each_class(per_group: int) -> None:
    pages = pages_of((100, 40, 10), per_group=per_group)
    kept, held = hold_out(pages, fraction=0.2, seed=0)
    assert [sum(page.label == label for page in held) for label in range(3)] == [20, 8, 2]
    assert sorted(page.path for page in (*kept, *held)) == sorted(page.path for page in pages)
    assert not {page.bundle for page in kept} & {page.bundle for page in held}
    assert hold_out(pages, fraction=0.2, seed=0)[1] == held != hold_out(pages, fraction=0.2, seed=1)[1]


def test_a_class_with_one_page_keeps_it_for_training() -> None:
    kept, held = hold_out(pages_of((10, 1)), fraction=0.3, seed=0)
    assert [page.label for page in held] == [0, 0, 0]
    assert sum(page.label == 1 for page in kept) == 1


def test_too_few_pages() -> None:
    with pytest.raises(UserError, match="too few to set some aside"):
        hold_out(pages_of((1, 1)), fraction=0.2, seed=0)
    with pytest.raises(UserError, match="no pages to split"):
        hold_out([], fraction=0.2, seed=0)
    with pytest.raises(UserError, match="line 4: no label"):
        fold_numbers([Page(Path("a"), origin="line 4")], folds=2, seed=0, classes=CLASSES)

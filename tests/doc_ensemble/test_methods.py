"""Every method is what a direct computation gives, and no figure is of pages that it was fitted on."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.config import EnsembleConfig
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.ensemble.combine import fit_weights
from quartet.apps.doc_ensemble.ensemble.methods import (
    CrossFitted,
    Method,
    Outcome,
    Rule,
    Votes,
    apply_methods,
    best_member,
    chosen_method,
    halves,
    member_methods,
    methods_of,
)
from quartet.apps.doc_ensemble.ensemble.methods_plot import method_rows, plot_methods, write_methods
from quartet.apps.doc_ensemble.ensemble.selection import growing_order

pytestmark = pytest.mark.pictures

K, V, C = 3, 2, 4
NAMES = ("합성곱", "vit", "resnet")
VIEW_WEIGHTS = np.array([1.0, 0.5])


def votes(split: str, count: int, *, seed: int) -> Votes:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, count)
    scores = rng.normal(size=(K, V, count, C)) + np.array([1.5, 0.8, 1.2])[:, None, None, None] * np.eye(C)[labels]
    pages = [Page(Path(f"{split}/{row}.png"), label=int(label)) for row, label in enumerate(labels)]
    return Votes(split=split, pages=pages, labels=labels, by_view=softmax(scores, axis=3))


@pytest.fixture(scope="module")
def both() -> dict[str, Votes]:
    return {"val": votes("val", 80, seed=1), "test": votes("test", 60, seed=2)}


def methods(**settings: object) -> list[Method]:
    made = methods_of(EnsembleConfig(**settings), shares=[0.2, 0.3, 0.5], stacker=None)  # type: ignore[arg-type]
    return [*member_methods(NAMES), *made]


def one(outcomes: list[Outcome], name: str, split: str, *, tta: bool) -> np.ndarray:
    (found,) = [o for o in outcomes if (o.method.name, o.split, o.tta) == (name, split, tta)]
    return found.probabilities


def test_methods_are_direct_computations(both: dict[str, Votes]) -> None:
    outcomes = apply_methods(methods(), both, view_weights=VIEW_WEIGHTS, seed=0)
    for split, said in both.items():
        seen = said.by_view[:, 0]
        looked = (said.by_view[:, 0] + 0.5 * said.by_view[:, 1]) / 1.5
        for tta, chances in ((False, seen), (True, looked)):
            for index, name in enumerate(NAMES):
                np.testing.assert_allclose(one(outcomes, name, split, tta=tta), chances[index], atol=1e-12)
            mean = one(outcomes, "averaging of probabilities", split, tta=tta)
            np.testing.assert_allclose(mean, chances.mean(axis=0), atol=1e-12)
            geometric = one(outcomes, "averaging of logits", split, tta=tta)
            np.testing.assert_allclose(geometric, softmax(np.log(chances).mean(axis=0), axis=1), atol=1e-12)
            given = one(outcomes, "weighted, as given", split, tta=tta)
            np.testing.assert_allclose(given, np.tensordot([0.2, 0.3, 0.5], chances, axes=1), atol=1e-12)
            counts = (chances.argmax(axis=2)[..., None] == np.arange(C)).sum(axis=0)
            np.testing.assert_allclose(one(outcomes, "voting", split, tta=tta), counts / K, atol=1e-5)
    weights = fit_weights(both["val"].by_view[:, 0], both["val"].labels)
    fitted = one(outcomes, "weighted, fitted", "test", tta=False)
    np.testing.assert_allclose(fitted, np.tensordot(weights, both["test"].by_view[:, 0], axes=1), atol=1e-9)


def test_a_method_never_predicts_a_page_it_was_fitted_on(both: dict[str, Votes]) -> None:
    """One that knows the pages it has seen by heart, and is wrong on all others, is wrong on all."""

    def memorise(chances: np.ndarray, labels: np.ndarray) -> Rule:
        known = {row.tobytes(): label for row, label in zip(chances[0], labels, strict=True)}

        def answer(asked: np.ndarray, /) -> np.ndarray:
            truth = {
                row.tobytes(): label for row, label in zip(both["val"].by_view[0, 0], both["val"].labels, strict=True)
            }
            answers = [known.get(row.tobytes(), (truth[row.tobytes()] + 1) % C) for row in asked[0]]
            return np.eye(C)[answers]

        return answer

    only = {"val": both["val"]}
    method = Method(name="by heart", fit=memorise, learns=True)
    (fair,) = apply_methods([method], only, view_weights=None, seed=0)
    assert isinstance(fair.rule, CrossFitted)
    assert fair.evaluated_on == "validation, cross-fitted"
    assert fair.accuracy == 0.0
    assert (fair.fitted(both["val"].by_view[:, 0]).argmax(axis=1) == both["val"].labels).all()  # it could have cheated


def test_halves_share_classes_and_split_no_document() -> None:
    rng = np.random.default_rng(0)
    pages = [
        Page(Path(f"doc{document}.pdf"), number=number, label=int(document % 3))
        for document in range(30)
        for number in range(int(rng.integers(1, 4)))
    ]
    half = halves(pages, seed=0)
    for document in {page.path for page in pages}:
        assert len({bool(side) for side, page in zip(half, pages, strict=True) if page.path == document}) == 1
    for label in range(3):
        sides = [bool(side) for side, page in zip(half, pages, strict=True) if page.label == label]
        assert abs(sides.count(True) - sides.count(False)) <= 3
    np.testing.assert_array_equal(half, halves(pages, seed=0))
    assert (half != halves(pages, seed=1)).any()
    single = halves([Page(Path("one.pdf"), number=n, label=0) for n in range(4)], seed=0)
    assert single.sum() == 2  # a single document is dealt by pages
    with pytest.raises(UserError, match="at least two"):
        halves(pages[:1], seed=0)


def test_the_best_member_is_chosen_on_validation(both: dict[str, Votes]) -> None:
    swapped = {"val": both["val"], "test": Votes(**{**vars(both["test"]), "by_view": both["test"].by_view[[1, 0, 2]]})}
    outcomes = apply_methods(methods(), swapped, view_weights=None, seed=0)
    best = best_member(outcomes)
    assert best == NAMES[0]
    row = next(row for row in method_rows(outcomes, "test") if row[0] == best)
    assert row[-1] == 0.0  # the gain over itself
    values = {o.method.name: o.macro_f1 for o in outcomes if o.split == "test"}
    assert values[best] < max(values[name] for name in NAMES)  # on the test pages another one is better, but unknown
    gains = {row[0]: row[-1] for row in method_rows(outcomes, "test")}
    assert gains["voting"] == pytest.approx(values["voting"] - values[best])


def test_the_configured_method_is_among_them() -> None:
    for settings in (
        {"method": "voting"},
        {"method": "averaging", "average": "logits"},
        {"method": "weighted"},
        {"method": "weighted", "fit_weights": True},
    ):
        config = EnsembleConfig(**settings)  # type: ignore[arg-type]
        assert chosen_method(config) in {m.name for m in methods_of(config, shares=[0.5, 0.5], stacker=None)}


def test_table_and_picture(both: dict[str, Votes], tmp_path: Path) -> None:
    outcomes = apply_methods(methods(), both, view_weights=VIEW_WEIGHTS, seed=0)
    write_methods(outcomes, tmp_path / "methods.csv")
    with (tmp_path / "methods.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (K + 6)
    assert rows[0]["pages"] == "test"
    assert {row["pages"] for row in rows if row["method"] == "greedy selection"} == {"test", "validation, cross-fitted"}
    drawn = plot_methods(outcomes, split="test", path=tmp_path / "methods.png")
    with Image.open(drawn) as image:
        assert image.width > 1000


def test_growing_order_adds_whoever_helps_most(both: dict[str, Votes]) -> None:
    said = both["val"]
    chances = said.by_view[:, 0]
    order = growing_order(chances, said.labels, goal="log_loss")
    assert sorted(order) == [0, 1, 2]
    own = [-np.log(member[np.arange(len(said.labels)), said.labels]).mean() for member in chances]
    assert order[0] == int(np.argmin(own))
    pairs = {
        other: -np.log((chances[order[0]] + chances[other])[np.arange(len(said.labels)), said.labels] / 2).mean()
        for other in order[1:]
    }
    assert order[1] == min(pairs, key=lambda other: pairs[other])

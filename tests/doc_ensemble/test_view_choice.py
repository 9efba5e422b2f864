"""Views are chosen on the validation pages: one that helps is taken, one that hurts is not, and the run uses these."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from mlcore.run import load_run
from quartet.apps.doc_ensemble.config import EnsembleConfig
from quartet.apps.doc_ensemble.data.folders import read_folders
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.ensemble import experiment
from quartet.apps.doc_ensemble.ensemble.methods import Method, Votes, member_methods, methods_of
from quartet.apps.doc_ensemble.ensemble.view_choice import ViewChoice, choose_views
from quartet.apps.doc_ensemble.ensemble.views import IDENTITY, View
from tests.doc_ensemble.conftest import Run
from tests.doc_ensemble.tiny_runs import write_checkpoint

N, C = 400, 4
VIEWS = (IDENTITY, *(View(name, 1.0, IDENTITY.apply) for name in ("hurts", "same", "helps")))


def seen(*, seed: int, gains: tuple[float, ...]) -> Votes:
    """Two members that see the right class through noise, the better the larger a view's gain."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, N)
    signal = np.array(gains)[None, :, None, None] * np.eye(C)[labels]
    chances = softmax(rng.normal(size=(2, len(gains), N, C)) + signal, axis=3)
    chances[:, 2] = chances[:, 0]  # a view that changes nothing
    pages = [Page(Path(f"{row}.png"), label=int(label)) for row, label in enumerate(labels)]
    return Votes(split="val", pages=pages, labels=labels, by_view=chances)


def methods() -> list[Method]:
    made = methods_of(EnsembleConfig(), shares=[0.5, 0.5], stacker=None)
    return [*member_methods(("a", "b")), *made]


@pytest.mark.parametrize("name", ["a", "voting", "averaging of probabilities", "weighted, fitted"])
def test_a_view_that_helps_is_taken_and_others_are_not(name: str) -> None:
    (method,) = [method for method in methods() if method.name == name]
    found = choose_views(method, seen(seed=0, gains=(2.0, -2.0, 2.0, 2.5)), views=VIEWS, seed=0)
    assert found.names == ["original", "helps"]
    low = found.figures[:, 2]
    assert low[3] > 0
    assert not (low[[0, 1, 2]] > 0).any()


@pytest.mark.parametrize(("mended", "spoiled", "taken"), [(6, 4, False), (30, 4, True), (4, 30, False)])
def test_a_gain_that_chance_explains_chooses_no_view(mended: int, spoiled: int, taken: bool) -> None:
    """The page as it is is wrong on each eighth page; the view on others, as often as is said."""
    labels = np.arange(N) % C
    wrong = np.arange(N) % 8 == 5
    right_now = np.where(wrong, np.cumsum(wrong) <= mended, np.cumsum(~wrong) > spoiled)
    plain, view = (
        np.eye(C)[np.where(right, labels, (labels + 1) % C)] * strength + (1 - strength) / C
        for right, strength in ((~wrong, 0.2), (right_now, 0.9))
    )
    pages = [Page(Path(f"{row}.png"), label=int(label)) for row, label in enumerate(labels)]
    said = Votes(split="val", pages=pages, labels=labels, by_view=np.stack([plain, view])[None])
    found = choose_views(member_methods(("a",))[0], said, views=VIEWS[:2], seed=0)
    assert (found.chosen == (0, 1)) is taken
    assert (found.figures[1, 0] > found.figures[0, 0]) == (mended > spoiled)


def test_the_run_uses_the_chosen_views(tmp_path: Path, pages: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the third view of a kind and none of another: the table of validation pages is reproduced."""

    def two(method: Method, votes: Votes, *, views: tuple[View, ...], seed: int) -> ViewChoice:
        return replace(choose_views(method, votes, views=views, seed=seed), chosen=(0, 2, 4))

    monkeypatch.setattr(experiment, "choose_views", two)
    classes = read_folders(pages).classes
    models = [write_checkpoint(tmp_path / f"{k}.ckpt", seed=k, classes=classes, data_dir=pages) for k in (0, 1)]
    for split in ("train", "val"):
        (tmp_path / "less").mkdir(exist_ok=True)
        (tmp_path / "less" / split).symlink_to(pages / split)
    listed = ", ".join(f"{{name: m{k}, checkpoint_path: {path}}}" for k, path in enumerate(models))
    kinds = "[{type: rotation, probability: 0.5}, {type: vertical_flip}]"
    code, said = run(
        "run_ensemble_experiment", f"ensemble.models=[{listed}]", "ensemble.tta.enabled=true", "--device", "cpu",
        f"ensemble.tta.augmentations={kinds}", "--data_dir", tmp_path / "less", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, said
    assert "views that help on the validation pages: rotation_180, vertical_flip" in said
    kept = json.loads((tmp_path / "out" / "ensemble.json").read_text("utf-8"))
    assert kept["views"] == ["original", "rotation_180", "vertical_flip"]
    with (tmp_path / "out" / "ensemble_predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [[float(row[f"p_{name}"]) for name in classes] for row in rows]
    found = load_run(tmp_path / "out", device="cpu")([row["image"].removesuffix("#1") for row in rows], batch_size=7)
    np.testing.assert_allclose([one.probabilities for one in found], expected, rtol=0, atol=1e-6)
    with (tmp_path / "out" / "views.csv").open(encoding="utf-8", newline="") as file:
        taken = {row["view"]: row["taken"] for row in csv.DictReader(file)}
    assert [name for name, yes in taken.items() if yes == "yes"] == kept["views"]
    assert "Views of a page" in (tmp_path / "out" / "report.html").read_text("utf-8")

"""Pages that lie: found and righted by a head that learned from the pages themselves, alike wherever pages are read."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mlcore.use.exporting import export
from mlcore.use.verbs import evaluate
from quartet.apps.doc_ensemble.data.dataset import Fit
from quartet.apps.doc_ensemble.data.folders import find_pages
from quartet.apps.doc_ensemble.data.generated import write_generated
from quartet.apps.doc_ensemble.data.pages import Page, read_page
from quartet.apps.doc_ensemble.data.upright import Upright, fit_upright, patterns, turned_patterns
from quartet.apps.doc_ensemble.ensemble.inference import predict_pages
from quartet.apps.doc_ensemble.ensemble.members import InputFormat
from quartet.apps.doc_ensemble.ensemble.reading import document_pages, prepare_page
from quartet.apps.doc_ensemble.restore import CheckpointMember
from tests.doc_ensemble.conftest import Run
from tests.doc_ensemble.tiny_runs import write_checkpoint

MOST = 10**7


def turn(path: Path, turns: int) -> None:
    """Lay a page down: `turns` quarters counter-clockwise, without the losses of another compression."""
    image = np.rot90(np.asarray(Image.open(path).convert("L")), turns)
    Image.fromarray(image).save(path, quality=95)


def test_patterns_of_a_turned_page_are_those_of_the_page_in_another_order() -> None:
    image = (255 * np.kron(np.random.default_rng(0).random((32, 24)) > 0.6, np.ones((12, 12)))).astype(np.uint8)[
        ..., None
    ]
    expected = turned_patterns(patterns(image))
    for turns in range(4):
        np.testing.assert_array_equal(patterns(np.rot90(image, turns)).ravel(), expected[turns])
    assert len({row.tobytes() for row in expected}) == 4


@pytest.mark.parametrize(("sure", "turns"), [(0.5, 3), (0.0, 0)])
def test_a_page_is_righted_before_it_gets_its_size(sure: float, turns: int) -> None:
    weights = np.zeros((4, patterns(np.zeros((20, 20, 1), dtype=np.uint8)).size + 1))
    weights[3, -1] = 5.0
    head = Upright.of({"weights": weights.tolist(), "sure": sure})
    image = np.random.default_rng(0).integers(0, 256, (90, 40, 3), dtype=np.uint8)
    expected = Fit((32, 24))(np.rot90(image, turns))
    np.testing.assert_array_equal(Fit((32, 24), "resize", head)(image), expected)
    np.testing.assert_array_equal(prepare_page(image, InputFormat(32, 24, 3, "resize", head)), expected)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Page], list[Page], dict[Path, int]]:
    """Training and other pages, and those among both that were laid down, with the turns that right them."""
    folder = tmp_path_factory.mktemp("planted") / "set"
    write_generated(folder, train=306, val=102, test=17, seed=2)
    parts = [find_pages(folder / name, label=0) for name in ("train", "val")]
    righting: dict[Path, int] = {}
    for part, step in zip(parts, (34, 11), strict=True):  # about 3 % of the one, more of the other
        for number, page in enumerate(part[5::step]):
            turn(page.path, 1 + 2 * (number % 2))
            righting[page.path] = 3 - 2 * (number % 2)
    return parts[0], parts[1], righting


@pytest.fixture(scope="module")
def head(planted: tuple[list[Page], list[Page], dict[Path, int]]) -> Upright:
    return fit_upright(planted[0], max_pixels=MOST)


@pytest.mark.slow
def test_pages_that_were_laid_down_are_righted_and_the_others_left(
    planted: tuple[list[Page], list[Page], dict[Path, int]], head: Upright
) -> None:
    train, others, righting = planted
    for part in (train, others):
        found = {page.path: head.turns(read_page(page.path, max_pixels=MOST)) for page in part}
        lie = [path for path in found if path in righting]
        assert len(lie) >= 9
        righted = sum(found[path] == righting[path] for path in lie)
        wrong = [path for path, turns in found.items() if turns and path not in righting]
        assert righted >= 0.7 * len(lie), f"{righted} of {len(lie)}"
        assert len(wrong) <= 0.015 * len(found), wrong


@pytest.mark.slow
def test_a_page_is_turned_as_a_whole_and_colours_change_nothing(
    planted: tuple[list[Page], list[Page], dict[Path, int]], head: Upright
) -> None:
    path, turns = next(iter((path, turns) for path, turns in planted[2].items() if head.turns(grey_of(path)) == turns))
    grey = grey_of(path)
    righted = head(np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(righted, np.rot90(np.repeat(grey, 3, axis=2), turns))
    np.testing.assert_array_equal(patterns(grey), patterns(np.repeat(grey, 3, axis=2)))
    assert head.turns(righted) == 0
    assert Upright.of(json.loads(json.dumps(head.values))) == head


def grey_of(path: Path) -> np.ndarray:
    return read_page(path, max_pixels=MOST, grey=True)


@pytest.mark.slow
def test_the_same_pages_give_the_same_head_on_any_number_of_threads(
    planted: tuple[list[Page], list[Page], dict[Path, int]],
) -> None:
    few = planted[0][::6]
    with torch.random.fork_rng():
        first = fit_upright(few, max_pixels=MOST)
        torch.set_num_threads(1)
        np.random.seed(7)
        assert fit_upright(few, max_pixels=MOST) == first
    with pytest.raises(UserError, match="3 files or groups of training pages at least"):
        fit_upright([Page(page.path, label=0, group="one") for page in few], max_pixels=MOST)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four commands, one in a process of its own
def test_a_run_rights_pages_alike_wherever_it_is_used(
    planted: tuple[list[Page], list[Page], dict[Path, int]], tmp_path: Path, run: Run, tiny: list[str]
) -> None:
    data, out = planted[0][0].path.parents[2], tmp_path / "run"
    options = ["--data_dir", data, "data.orientation=auto", "--baseline", "none", "--output_dir", out]
    code, said = run("run_experiment", *tiny, *options)
    assert code == 0, said
    assert "orientation: learned from 306 pages" in said
    assert "Turned pages" in (out / "report.html").read_text("utf-8")
    with (out / "val_predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    files = [row["image"].removesuffix("#1") for row in rows]
    predictor = load_run(out, device="cpu")
    export(predictor, tmp_path / "export", [])
    for used in (predictor, load_run(tmp_path / "export", device="cpu")):
        found = used(files)
        expected = np.array([[float(row[f"p_{name}"]) for name in found[0].class_names] for row in rows])
        np.testing.assert_allclose([one.probabilities for one in found], expected, atol=2e-6)
    evaluate([str(out), "--output", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "metrics.json").read_text("utf-8"))["results"]["val"]
    own = json.loads((out / "summary.json").read_text("utf-8"))["results_of_best_checkpoint"]["val"]
    assert again == pytest.approx(own, abs=1e-6)


@pytest.mark.slow
def test_members_of_an_ensemble_have_their_own_heads(
    planted: tuple[list[Page], list[Page], dict[Path, int]], head: Upright, tmp_path: Path
) -> None:
    """The one that has a head sees a page that lies as the other sees this page righted."""
    path, turns = next(iter((path, turns) for path, turns in planted[2].items() if head.turns(grey_of(path)) == turns))
    plain = write_checkpoint(tmp_path / "plain.ckpt", seed=0, classes=["a", "b"], data_dir=path.parents[2] / "train")
    state = load_checkpoint(plain)
    state["task"]["upright"] = head.values
    save_checkpoint(tmp_path / "righting.ckpt", state)
    members = [CheckpointMember(name, tmp_path / f"{name}.ckpt") for name in ("plain", "righting")]
    Image.fromarray(np.rot90(grey_of(path)[..., 0], turns)).save(tmp_path / "righted.png")
    asked = document_pages([Page(path), Page(tmp_path / "righted.png")], members, max_pixels=MOST)
    found = predict_pages(members, asked, device=torch.device("cpu")).probabilities[:, 0]
    np.testing.assert_allclose(found[1, 0], found[0, 1], atol=1e-6)
    assert np.abs(found[0, 0] - found[0, 1]).max() > 1e-3
    state["task"]["upright"] = {"weights": [[1.0]], "sure": 0.5}
    save_checkpoint(tmp_path / "damaged.ckpt", state)
    with pytest.raises(CheckpointError, match="not written by this version"):
        CheckpointMember("damaged", tmp_path / "damaged.ckpt")

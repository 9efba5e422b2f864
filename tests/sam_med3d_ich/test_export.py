"""quartet export of segmenters, several runs as one, and mirrored views: the run's own numbers, in every form."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.run import load_run, load_runs
from mlcore.run.decision import Decision, write_decision
from mlcore.use.exporting import export
from quartet.apps.sam_med3d_ich.data.volume import read_volume

Trained = Callable[[str], Path]
FORMS = (None, "pt2", "onnx")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(heads: Path, trained: Trained) -> list[Path]:
    """Those of the validation cases, which the training writes."""
    trained("plain")
    return [heads / row["path"] for row in table(heads / "val.csv")]


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "exported"
    export(load_run(trained("plain"), device="cpu"), folder, ["pt2", "onnx"])
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_runs_own_validation(
    form: str | None, exported: Path, trained: Trained, images: list[Path]
) -> None:
    cases = table(trained("plain") / "cases.csv")
    expected = load_run(trained("plain"), device="cpu")(images)
    for one, run, case in zip(load_run(exported, device="cpu", network=form)(images), expected, cases, strict=True):
        assert one.ich_score == pytest.approx(float(case["ich_score"]), abs=1e-5)
        assert one.millilitres == pytest.approx(float(case["predicted_ml"]), rel=1e-4)
        np.testing.assert_allclose(one.probability, run.probability, atol=1e-5)


def test_a_network_for_clicks_is_exported_with_them(
    trained: Trained, images: list[Path], exported: Path, tmp_path: Path
) -> None:
    clicks = {"clicks": "30,30,8 34,30,8,0"}
    export(load_run(trained("clicks"), device="cpu"), tmp_path / "out", ["pt2", "onnx"])
    (expected,) = load_run(trained("clicks"), device="cpu", options=clicks)(images[0])
    for form in FORMS:
        (found,) = load_run(tmp_path / "out", device="cpu", network=form, options=clicks)(images[0])
        np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)
    # Without its weights a network takes what it was written with.
    load_run(exported, device="cpu", options=clicks)
    with pytest.raises(UserError, match="this network takes no clicks"):
        load_run(exported, device="cpu", options=clicks, network="onnx")


def test_several_runs_are_the_mean_of_their_probabilities(trained: Trained, images: list[Path]) -> None:
    runs = [trained("plain"), trained("score")]
    one, other = (load_run(run, device="cpu")(images[0])[0] for run in runs)
    (found,) = load_runs(runs, device="cpu")(images[0])
    np.testing.assert_allclose(found.probability, (one.probability + other.probability) / 2, atol=1e-7)
    assert found.ich_score == pytest.approx((one.ich_score + other.ich_score) / 2)
    assert found.threshold == pytest.approx((one.threshold + other.threshold) / 2)
    assert (found.mask <= (found.probability >= found.threshold)).all()
    (higher,) = load_runs(runs, device="cpu", options={"threshold": "0.6"})(images[0])
    assert (higher.threshold, higher.mask.sum() <= (found.probability >= 0.6).sum()) == (0.6, True)


def test_views_are_means_over_mirrored_volumes(trained: Trained, images: list[Path]) -> None:
    """A head that is the mirror image of itself looks like one from both sides, whatever the model."""
    volume = read_volume(images[0])
    array = np.concatenate([volume.array, volume.array[::-1]])[::2]
    head = type(volume)(np.ascontiguousarray((array + array[::-1]) / 2), volume.affine)
    (plain,) = load_run(trained("plain"), device="cpu")(head)
    (mirrored,) = load_run(trained("plain"), device="cpu", options={"flips": "true"})(head)
    expected = (plain.probability + plain.probability[::-1]) / 2
    assert np.abs(plain.probability - plain.probability[::-1]).max() > 1e-3
    np.testing.assert_allclose(mirrored.probability, expected, atol=1e-5)
    with pytest.raises(UserError, match="flips=RX: expected false, true"):
        load_run(trained("plain"), device="cpu", options={"flips": "RX"})


def test_a_decision_between_classes_is_refused(trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained("plain"), tmp_path / "run")
    write_decision(folder, Decision(kind="binary", class_names=("not an ad", "ad")))
    with pytest.raises(UserError, match=r"decision\.json is between classes \(not an ad, ad\), and this model marks"):
        load_run(folder, device="cpu")

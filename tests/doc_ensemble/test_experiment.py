"""The script, end to end on drawn pages with networks that were never trained: its files say what they should."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.training.checkpoint import load_checkpoint, save_checkpoint
from quartet.apps.doc_ensemble.data.dataset import Fit, PageDataset
from quartet.apps.doc_ensemble.data.folders import read_folders
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.ensemble import experiment
from quartet.apps.doc_ensemble.restore import restore
from tests.doc_ensemble.conftest import Run
from tests.doc_ensemble.tiny_runs import write_checkpoint, write_job

CPU = torch.device("cpu")
_SMALLEST = float(np.finfo(np.float32).tiny)  # where the softmax has rounded to 0


@pytest.fixture(scope="module")
def classes(pages: Path) -> list[str]:
    return list(read_folders(pages).classes)


@pytest.fixture
def members(tmp_path: Path, pages: Path, classes: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two checkpoints, under the names that the documentation uses, in the folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    names = ("resnet50", "efficientnet")
    return [
        write_checkpoint(tmp_path / f"checkpoints/{name}.ckpt", seed=seed, classes=classes, data_dir=pages, name=name)
        for seed, name in enumerate(names)
    ]


def direct(checkpoint: Path, asked: Sequence[Page], *, flipped: bool = False) -> np.ndarray:
    """The network's probabilities, by hand."""
    restored = restore(checkpoint, device=CPU)
    data = PageDataset(asked, max_pixels=10**8, grey=True, fit=Fit((64, 48), "resize"))
    pixels = [torch.from_numpy(data[row]["image"]).permute(2, 0, 1).float() / 255 for row in range(len(data))]
    batch = torch.stack(pixels)
    with torch.inference_mode():
        return torch.softmax(restored(batch.flip(3) if flipped else batch), dim=1).double().numpy()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(path: Path, classes: Sequence[str]) -> np.ndarray:
    return np.array([[float(row[f"p_{name}"]) for name in classes] for row in table(path)])


def assert_applied(folder: Path, asked: Sequence[Page], expected: np.ndarray, *, atol: float = 1e-6) -> None:
    """The experiment's folder predicts, as a run does, what its own table says, to the last of six digits."""
    found = load_run(folder, device="cpu")([page.path for page in asked], batch_size=10)
    np.testing.assert_allclose([one.probabilities for one in found], expected, rtol=0, atol=atol)


def file_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


WEIGHTED = """
ensemble:
  method: "weighted"
  models:
    - name: "resnet50"
      checkpoint_path: "checkpoints/resnet50.ckpt"
      weight: 0.4
    - name: "efficientnet"
      checkpoint_path: "checkpoints/efficientnet.ckpt"
      weight: 0.6
  tta:
    enabled: true
    augmentations:
      - type: "horizontal_flip"
        probability: 0.5
    choose: false
"""


def test_a_weighted_ensemble_with_views_leaves_what_is_promised(
    tmp_path: Path, pages: Path, classes: list[str], members: list[Path], run: Run
) -> None:
    folder = tmp_path / "out"
    code, said = run("run_ensemble_experiment", "--config", file_of(tmp_path, WEIGHTED), "--output_dir", folder,
                     "--device", "cpu")  # fmt: skip
    assert code == 0, said
    asked = read_folders(pages).test
    assert asked is not None
    chances = [direct(path, asked) for path in members]
    rows = table(folder / "ensemble_predictions.csv")
    assert [row["image"] for row in rows] == [page.key for page in asked]
    assert [row["label"] for row in rows] == [classes[page.label or 0] for page in asked]
    without = [row for row in table(folder / "methods.csv") if row["pages"] == "test" and row["tta"] == "no"]
    labels = np.array([page.label for page in asked])
    mixed = 0.4 * chances[0] + 0.6 * chances[1]
    (given,) = [row for row in without if row["method"] == "weighted, as given"]
    assert float(given["accuracy"]) == pytest.approx((mixed.argmax(axis=1) == labels).mean(), abs=1e-6)
    looked = [
        (seen + 0.5 * direct(path, asked, flipped=True)) / 1.5 for seen, path in zip(chances, members, strict=True)
    ]
    found = written(folder / "ensemble_predictions.csv", classes)
    np.testing.assert_allclose(found, 0.4 * looked[0] + 0.6 * looked[1], atol=2e-5)
    views = table(folder / "tta_predictions.csv")
    np.testing.assert_allclose(written(folder / "tta_predictions.csv", classes), found, atol=2e-6)
    assert_applied(folder, asked, found)
    assert [row["without_tta"] for row in views] == [classes[best] for best in mixed.argmax(axis=1)]
    meta = json.loads((folder / "ensemble_predictions_meta.json").read_text(encoding="utf-8"))
    assert [model["weight"] for model in meta["models"]] == [0.4, 0.6]
    assert meta["class_names"] == classes
    assert [view["name"] for view in meta["tta"]["views"]] == ["original", "horizontal_flip"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    (chosen,) = [
        row for row in table(folder / "methods.csv")
        if (row["method"], row["tta"], row["pages"]) == ("weighted, as given", "yes", "test")
    ]  # fmt: skip
    assert summary["results_of_best_checkpoint"]["test"]["accuracy"] == pytest.approx(
        float(chosen["accuracy"]), abs=1e-6
    )
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    names = """tta_predictions.csv cost_curve.csv cost_curve.png methods.png confusion_matrix.png val_class_metrics.csv
    val_class_performance.png test_class_metrics.csv test_confusion_matrix.png confused_pairs.png calibration.json
    config.yaml train.log report.html summary.md"""
    assert [name for name in names.split() if not (folder / name).is_file()] == []
    assert f"report: {folder / 'report.html'}" in said
    assert "<- chosen" in said


def test_averaging_on_disk_is_numpys_and_low_memory_changes_nothing(
    tmp_path: Path, pages: Path, classes: list[str], members: list[Path], run: Run
) -> None:
    models = f"ensemble.models=[{', '.join(f'{{checkpoint_path: {path}}}' for path in members)}]"
    for folder, more in (("a", []), ("b", ["--low_memory"])):
        code, said = run("run_ensemble_experiment", models, "--output_dir", tmp_path / folder, *more)
        assert code == 0, said
    asked = read_folders(pages).test
    assert asked is not None
    expected = np.mean([direct(path, asked) for path in members], axis=0)
    found = written(tmp_path / "a" / "ensemble_predictions.csv", classes)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_array_equal(found, written(tmp_path / "b" / "ensemble_predictions.csv", classes))
    assert_applied(tmp_path / "a", asked, found)
    assert not (tmp_path / "a" / "tta_predictions.csv").exists()
    assert {row["member_resnet50"] for row in table(tmp_path / "a" / "ensemble_predictions.csv")} <= set(classes)


def test_a_job_is_the_mean_of_its_folds_and_can_be_stacked(
    tmp_path: Path, pages: Path, classes: list[str], run: Run
) -> None:
    job = write_job(tmp_path / "job", seed=3, classes=classes, data_dir=pages)
    code, said = run("run_ensemble_experiment", f"ensemble.run={job}", "ensemble.method=stacking",
                     "--output_dir", tmp_path / "out")  # fmt: skip
    assert code == 0, said
    asked = read_folders(pages).test
    assert asked is not None
    mean = np.mean([direct(path, asked) for path in sorted(job.rglob("best_model.pth"))], axis=0)
    rows = table(tmp_path / "out" / "methods.csv")
    (alone,) = [row for row in rows if row["kind"] == "member" and row["pages"] == "test"]
    labels = np.array([page.label for page in asked])
    own = mean[np.arange(len(labels)), labels]
    assert float(alone["accuracy"]) == pytest.approx((mean.argmax(axis=1) == labels).mean(), abs=1e-6)
    assert float(alone["log_loss"]) == pytest.approx(-np.log(np.maximum(own, _SMALLEST)).mean(), rel=1e-3)
    stacker = json.loads((tmp_path / "out" / "stacking.json").read_text(encoding="utf-8"))
    scores = mean @ np.array(stacker["coefficients"]).T + stacker["intercept"]
    scores += stacker["sharpness"] * np.log(np.maximum(mean, _SMALLEST))
    found = written(tmp_path / "out" / "ensemble_predictions.csv", classes)
    np.testing.assert_array_equal(found.argmax(axis=1), scores.argmax(axis=1))
    assert_applied(tmp_path / "out", asked, found, atol=1e-5)  # its weights enlarge what a batch's size rounds
    (tmp_path / "out" / "stacking.json").unlink()
    with pytest.raises(UserError, match=r"stacking\.json: no such file"):
        load_run(tmp_path / "out", device="cpu")


def test_an_ensemble_follows_its_members_and_names_those_that_are_gone(
    tmp_path: Path, pages: Path, classes: list[str], members: list[Path], run: Run
) -> None:
    text = WEIGHTED.replace("weighted", "voting")
    folder = tmp_path / "team" / "out"
    code, said = run("run_ensemble_experiment", "--config", file_of(tmp_path, text), "--output_dir", folder)
    assert code == 0, said
    asked = read_folders(pages).test
    assert asked is not None
    moved = tmp_path / "elsewhere"
    (moved / "team").mkdir(parents=True)
    for name in ("team/out", "checkpoints"):
        (tmp_path / name).rename(moved / name)
    assert_applied(moved / "team" / "out", asked, written(moved / "team" / "out" / "ensemble_predictions.csv", classes))
    second = moved / "checkpoints" / members[1].name
    write_checkpoint(second, seed=5, classes=classes, data_dir=pages)
    with pytest.raises(UserError, match=r"its member 'efficientnet': .*efficientnet\.ckpt is another model than"):
        load_run(moved / "team" / "out", device="cpu")
    second.unlink()
    with pytest.raises(UserError, match=r"its member 'efficientnet' is missing: .*efficientnet\.ckpt"):
        load_run(moved / "team" / "out", device="cpu")
    ensemble = moved / "team" / "out" / "ensemble.json"
    ensemble.write_text(ensemble.read_text("utf-8").replace('"voting"', '"guessing"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"ensemble\.json: damaged or not an ensemble"):
        load_run(moved / "team" / "out", device="cpu")


def test_stacking_without_out_of_fold_predictions_says_how_to_make_them(
    tmp_path: Path, members: list[Path], run: Run
) -> None:
    text = WEIGHTED.replace("weighted", "stacking")
    code, said = run("run_ensemble_experiment", "--config", file_of(tmp_path, text), "--output_dir", tmp_path / "out")
    assert code == 2
    assert "of these members there are none: resnet50, efficientnet" in said
    assert "kfold.folds" in said
    assert not (tmp_path / "out").exists()


def test_another_order_of_classes_is_refused(
    tmp_path: Path, pages: Path, classes: list[str], members: list[Path], run: Run
) -> None:
    write_checkpoint(members[1], seed=1, classes=classes[::-1], data_dir=pages)
    code, said = run(
        "run_ensemble_experiment", "--config", file_of(tmp_path, WEIGHTED), "--output_dir", tmp_path / "out"
    )
    assert code == 2
    assert "the same classes in another order" in said


def test_without_test_pages_fitted_figures_are_cross_fitted(
    tmp_path: Path, pages: Path, members: list[Path], run: Run
) -> None:
    less = tmp_path / "less"
    for split in ("train", "val"):
        shutil.copytree(pages / split, less / split)
    settings = file_of(tmp_path, WEIGHTED)
    code, said = run("run_ensemble_experiment", "--config", settings, "--output_dir", tmp_path / "out",
                     "--data_dir", less, "--fit_weights", "--no_ensemble.tta.enabled")  # fmt: skip
    assert code == 0, said
    rows = table(tmp_path / "out" / "methods.csv")
    assert {row["pages"] for row in rows} == {"validation", "validation, cross-fitted"}
    (chosen,) = [row for row in rows if row["method"] == "weighted, fitted"]
    meta = json.loads((tmp_path / "out" / "ensemble_predictions_meta.json").read_text(encoding="utf-8"))
    assert (meta["split"], meta["cross_fitted"]) == ("val", True)
    assert meta["scores"]["log_loss"] == pytest.approx(float(chosen["log_loss"]), abs=1e-5)  # that of the table
    assert sum(model["weight"] for model in meta["models"]) == pytest.approx(1)


def test_pages_that_members_were_trained_on_are_told(tmp_path: Path, pages: Path, classes: list[str], run: Run) -> None:
    """The pages given for the figures are those that the folds were trained on."""
    job = write_job(tmp_path / "job", seed=3, classes=classes, data_dir=pages)
    leaky = tmp_path / "leaky"
    leaky.mkdir()
    tables = {}
    for split, source in (("train", "val"), ("val", "train")):
        found = getattr(read_folders(pages), source)
        tables[split] = leaky / f"{split}.csv"
        lines = [f"{page.path},{classes[page.label]}" for page in found]
        tables[split].write_text("\n".join(["image,label", *lines]) + "\n", encoding="utf-8")
    code, said = run("run_ensemble_experiment", f"ensemble.run={job}", "--output_dir", tmp_path / "out",
                     "--train_csv", tables["train"], "--val_csv", tables["val"])  # fmt: skip
    assert code == 0, said
    assert "'tiny_fold_1' was trained on 102 of the 102 evaluated pages" in said
    assert "was trained on 102" in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


def test_an_experiment_that_fails_says_why_in_its_log_and_record(tmp_path: Path, members: list[Path], run: Run) -> None:
    state = load_checkpoint(members[1])
    for values in filter(torch.is_floating_point, state["model"].values()):
        values.fill_(float("nan"))
    save_checkpoint(members[1], state)
    listed = (
        "{models: [{checkpoint_path: checkpoints/resnet50.ckpt}, {checkpoint_path: checkpoints/efficientnet.ckpt}]}"
    )
    code, said = run(
        "run_ensemble_experiment",
        "--config",
        file_of(tmp_path, f"ensemble: {listed}"),
        "--output_dir",
        tmp_path / "out",
    )
    assert code == 2
    record = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert record["status"] == "failed"
    assert "'efficientnet' are not finite" in record["reason"]
    assert said.count(record["reason"]) == 1
    assert record["reason"] in (tmp_path / "out" / "train.log").read_text("utf-8")


def test_an_experiment_that_a_signal_ends_is_interrupted(
    tmp_path: Path, members: list[Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hit(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(experiment, "record_experiment", hit)
    monkeypatch.setattr(experiment, "reason_of", hit)  # nothing has failed
    code, said = run(
        "run_ensemble_experiment", "--config", file_of(tmp_path, WEIGHTED), "--output_dir", tmp_path / "out"
    )
    assert code == 75, said
    assert "Traceback" not in said
    assert json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["status"] == "interrupted"


def test_members_alone_and_a_dry_run(tmp_path: Path, members: list[Path], run: Run) -> None:
    settings = file_of(tmp_path, WEIGHTED)
    code, said = run("run_ensemble_experiment", "--config", settings, "--dry_run")
    assert code == 0, said
    assert "2x2x8x17" in said
    assert not (tmp_path / "outputs" / "doc_ensemble" / "ensembles").exists()
    code, said = run("run_ensemble_experiment", "--config", settings, "--no_ensemble.enabled", "--run_name", "alone")
    assert code == 0, said
    (folder,) = (tmp_path / "outputs" / "doc_ensemble" / "ensembles" / "alone").iterdir()
    assert {row["kind"] for row in table(folder / "methods.csv")} == {"member"}
    assert not (folder / "ensemble_predictions.csv").exists()
    assert (folder / "tta_predictions.csv").is_file()
    assert (folder / "report.html").is_file()


def test_each_member_fits_the_page_as_it_was_trained_in_any_order(
    tmp_path: Path, pages: Path, classes: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """predict.py and an ensemble of a member that stretches pages and one that keeps their aspect."""
    monkeypatch.chdir(tmp_path)
    fits = {"resize": tmp_path / "resize.ckpt", "letterbox": tmp_path / "letterbox.ckpt"}
    for seed, (fit, path) in enumerate(fits.items()):
        write_checkpoint(path, seed=seed, classes=classes, data_dir=pages, name=fit, fit=fit)  # type: ignore[arg-type]
    asked = read_folders(pages).test
    assert asked is not None
    alone = []
    for fit, path in fits.items():
        data = PageDataset(asked, max_pixels=10**8, grey=True, fit=Fit((64, 48), fit))  # type: ignore[arg-type]
        pixels = torch.stack([torch.from_numpy(data[k]["image"]).permute(2, 0, 1).float() / 255 for k in range(34)])
        with torch.inference_mode():
            alone.append(torch.softmax(restore(path, device=CPU)(pixels), dim=1).double().numpy())
    expected = np.mean(alone, axis=0)
    paths = [page.path for page in asked]
    for order in (("resize", "letterbox"), ("letterbox", "resize")):
        models = [argument for fit in order for argument in ("--model_path", fits[fit])]
        assert run("predict", *paths, *models, "--output", tmp_path / "p.csv")[0] == 0
        np.testing.assert_allclose(written(tmp_path / "p.csv", classes), expected, atol=2e-6)
        members = ", ".join(f"{{checkpoint_path: {fits[fit]}}}" for fit in order)
        folder = tmp_path / order[0]
        code, said = run("run_ensemble_experiment", f"ensemble.models=[{members}]", "--output_dir", folder)
        assert code == 0, said
        np.testing.assert_allclose(written(folder / "ensemble_predictions.csv", classes), expected, atol=2e-6)


def test_votes_have_no_log_loss(tmp_path: Path, members: list[Path], run: Run) -> None:
    settings = file_of(tmp_path, WEIGHTED.replace("weighted", "voting"))
    code, said = run("run_ensemble_experiment", "--config", settings, "--output_dir", tmp_path / "out")
    assert code == 0, said
    for row in table(tmp_path / "out" / "methods.csv"):
        assert (row["log_loss"] == "") == (row["method"] == "voting")
    summary, meta = (
        json.loads((tmp_path / "out" / name).read_text(encoding="utf-8"))
        for name in ("summary.json", "ensemble_predictions_meta.json")
    )
    assert {each["log_loss"] is None for each in summary["methods"] if each["method"] == "voting"} == {True}
    assert "loss" not in summary["results_of_best_checkpoint"]["test"]
    assert summary["results_of_best_checkpoint"]["test"]["accuracy"] == meta["scores"]["accuracy"]
    assert "log_loss" not in meta["scores"]
    assert {row["loss"] for row in table(tmp_path / "out" / "test_class_metrics.csv")} == {""}
    assert not (tmp_path / "out" / "calibration.json").exists()
    (line,) = [line for line in said.splitlines() if line.startswith("voting + TTA")]
    assert len([part for part in line.split() if part.replace(".", "").lstrip("+-").isdigit()]) == 3

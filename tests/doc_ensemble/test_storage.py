"""Runs and ensembles go to a bucket, and checkpoints are used from there; on a real S3 server on the loopback."""

import csv
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from PIL import Image

from mlcore.remote import s3
from mlcore.remote.s3 import upload
from mlcore.remote.uploader import BackgroundUploader
from mlcore.run import copy, preflight
from mlcore.training.checkpoint import load_checkpoint
from tests.doc_ensemble.conftest import Run
from tests.doc_ensemble.tiny_runs import write_checkpoint

CLASSES = ("dark", "light")
BEST = "checkpoints/best_model.pth"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "BackgroundUploader", partial(BackgroundUploader, attempts=2, backoff=0.01))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of two classes in train/ and val/: 16 and 6."""
    folder, rng = tmp_path_factory.mktemp("pages") / "scans", np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label, low in zip(CLASSES, (0, 160), strict=True):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                page = Image.fromarray(rng.integers(low, low + 96, size=(8, 6), dtype=np.uint8))
                page.resize((48, 64), Image.Resampling.NEAREST).save(folder / split / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def settings(tiny: list[str], scans: Path) -> list[str]:
    """Those of a run of four steps, whose checkpoint is large enough for an upload in two parts."""
    wide = "model.arguments={channels: [32, 48, 64, 160]}"
    return [*tiny, "--data_dir", str(scans), "--batch_size", "4", wide]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, run: Run, settings: list[str]) -> Path:
    """The run without a bucket."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, said = run("train", *settings, "--output_dir", folder)
    assert code == 0, said
    return folder


def files(folder: Path) -> list[str]:
    """What is to be copied of a run."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(("step_", "run.lock")))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def assert_copied(folder: Path, copy: Path) -> None:
    """All files of the run are in the bucket, byte by byte."""
    assert files(copy) == files(folder)
    for name in files(folder):
        if not name.endswith("train.log"):  # it goes on for a moment
            assert (copy / name).read_bytes() == (folder / name).read_bytes(), name


def assert_unharmed(folder: Path, alone: Path) -> None:
    """The training came to the weights and predictions that it comes to without a bucket, and all files are there."""
    found, expected = (load_checkpoint(run / BEST)["model"] for run in (folder, alone))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (folder / "val_predictions.csv").read_bytes() == (alone / "val_predictions.csv").read_bytes()
    assert files(folder) == files(alone)


def told(folder: Path) -> dict[str, str]:
    """What the run says is missing in the bucket; its pages say so, too."""
    copied = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["copied"]
    for page in ("report.html", "summary.md"):
        text = (folder / page).read_text(encoding="utf-8").replace("\\_", "_")  # Markdown's
        assert f"Not uploaded to {copied['to']}" in text
    missing: dict[str, str] = copied["missing"]
    return missing


def chances(path: Path) -> dict[str, list[float]]:
    """The probabilities of each page in a table of predictions."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = next(iter(rows[0]))  # image, or input
    return {row[first]: [float(row[f"p_{name}"]) for name in CLASSES] for row in rows}


def members_of(places: Sequence[str | Path]) -> str:
    listed = (f"{{name: member {number}, checkpoint_path: {place}}}" for number, place in enumerate(places, 1))
    return f"ensemble.models=[{', '.join(listed)}]"


def test_a_run_goes_to_the_bucket_with_its_model_and_figures_of_classes(
    run: Run, settings: list[str], alone: Path, s3_server: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_BUCKET_NAME", "models")
    code, said = run("train", *settings)
    assert code == 0, said
    (folder,) = (home / "outputs" / "doc_ensemble" / "scans").iterdir()
    copy = s3_server.root / "models" / "doc_ensemble" / "scans" / folder.name
    assert_copied(folder, copy)
    promised = [BEST, "val_class_metrics.csv", "val_class_performance.png", "confusion_matrix.png", "report.html"]
    assert [name for name in promised if not (copy / name).is_file()] == []
    assert json.loads((copy / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert_unharmed(folder, alone)


def test_an_ensemble_of_members_in_the_bucket_is_that_of_local_ones_and_goes_there(
    run: Run, scans: Path, s3_server: Any, home: Path
) -> None:
    local = [write_checkpoint(home / f"{seed}.pth", seed=seed, classes=CLASSES, data_dir=scans) for seed in (0, 1)]
    stored = [f"s3://models/members/{path.name}" for path in local]
    for path, place in zip(local, stored, strict=True):
        upload(path, place)
    models = [argument for path in local for argument in ("--model_path", path)]
    code, said = run("predict", scans / "val", *models, "--device", "cpu", "--output", "local.csv")
    assert code == 0, said
    code, said = run("run_ensemble_experiment", members_of(stored), "--device", "cpu", "--run_name", "both",
                     "--upload_to", "s3://models/team")  # fmt: skip
    assert code == 0, said
    (folder,) = (home / "outputs" / "doc_ensemble" / "ensembles" / "both").iterdir()
    found, expected = chances(folder / "ensemble_predictions.csv"), chances(home / "local.csv")
    assert found.keys() == expected.keys()
    assert len({tuple(row) for row in expected.values()}) == len(expected) == 6  # they are not all the same
    for page, row in expected.items():
        assert found[page] == pytest.approx(row, abs=2e-6), page
    assert {"ensemble_predictions.csv", "ensemble_predictions_meta.json", "methods.csv", "report.html"} <= set(
        files(folder)
    )
    assert_copied(folder, s3_server.root / "models" / "team" / "doc_ensemble" / "ensembles" / "both" / folder.name)
    copied = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["copied"]
    assert copied == {"to": f"s3://models/team/doc_ensemble/ensembles/both/{folder.name}", "missing": {}}


def test_predictions_of_a_model_in_the_bucket_are_those_of_the_local_file(
    run: Run, scans: Path, alone: Path, s3_server: Any, home: Path
) -> None:
    for name in (BEST, "decision.json"):  # as the copy of a run has them
        upload(alone / name, f"s3://models/run/{name}")
    for model, table in ((alone / BEST, "local.csv"), (f"s3://models/run/{BEST}", "stored.csv")):
        code, said = run("predict", scans / "val", "--model_path", model, "--output", table)
        assert code == 0, said
    assert (home / "stored.csv").read_bytes() == (home / "local.csv").read_bytes()
    assert len((home / "stored.csv").read_text(encoding="utf-8").splitlines()) == 1 + 6


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_an_upload_harms_nothing_here(
    run: Run, settings: list[str], alone: Path, s3_server: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model goes up in two parts; the server dies when the second is about to be sent."""
    real_client = s3._client
    parts: list[object] = []

    def on_part(**details: object) -> None:
        parts.append(details)
        if len(parts) == 2:
            s3_server.kill()

    def client(**options: Any) -> Any:
        made = real_client(**options)
        made.meta.events.register("before-send.s3.UploadPart", on_part)
        return made

    monkeypatch.setattr(s3, "_client", client)
    monkeypatch.setattr(s3, "_PART", 5 << 20)
    code, said = run("train", *settings, "--output_dir", "run", "--upload_to", "models")
    assert code == 0, said
    assert len(parts) >= 2
    assert said.count("Upload failed, training goes on") == 1
    assert "Not uploaded to s3://models/doc_ensemble/scans/run: " in said
    assert_unharmed(home / "run", alone)
    assert sorted(told(home / "run")) == files(home / "run")
    assert s3_server.keys() == []  # no half of the model


def test_a_model_altered_in_the_bucket_is_refused_by_name(
    run: Run, scans: Path, alone: Path, s3_server: Any, home: Path
) -> None:
    place, content = f"s3://models/run/{BEST}", bytearray((alone / BEST).read_bytes())
    checksum = {"sha256": hashlib.sha256(content).hexdigest()}
    content[len(content) // 2] ^= 1
    boto3.client("s3").put_object(Bucket="models", Key=f"run/{BEST}", Body=bytes(content), Metadata=checksum)
    for command in (
        ("predict", scans / "val", "--model_path", place),
        ("run_ensemble_experiment", members_of([alone / BEST, place])),
    ):
        code, said = run(*command)
        assert code == 2, said
        assert f"error: {place}: damaged in the bucket or on the way (wrong checksum)" in said
    assert [path for path in home.rglob("*") if path.is_file()] == []  # neither half a model nor predictions of it


@pytest.mark.slow
def test_a_bucket_that_denies_is_told_and_only_stops_what_needs_it(
    run: Run, settings: list[str], scans: Path, alone: Path, s3_server: Any, home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = f"s3://models/run/{BEST}"
    upload(alone / BEST, place)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(preflight, "check_bucket", lambda _: None)  # as if denied from then on
    code, said = run("train", *settings, "--output_dir", "run", "--upload_to", "models")
    assert code == 0, said
    assert said.count("Upload failed, training goes on") == 1
    assert_unharmed(home / "run", alone)
    missing = told(home / "run")
    assert sorted(missing) == files(home / "run")
    for name, why in missing.items():
        assert why.startswith(f"s3://models/doc_ensemble/scans/run/{name}: access denied")
        assert "AWS_SECRET_ACCESS_KEY" in why
        assert "the bucket 'models'" in why
    for command in (
        ("predict", scans / "val", "--model_path", place),
        ("run_ensemble_experiment", members_of([place])),
        ("train", *settings, "--resume", place),
    ):
        code, said = run(*command)
        assert code == 2, said
        assert f"error: {place}: access denied" in said
        assert "the bucket 'models'" in said
    assert not (home / "outputs" / "s3").exists()
    assert list(home.rglob("run.json")) == [home / "run" / "run.json"]


@pytest.mark.slow
def test_folds_and_their_ensemble_go_on_without_the_bucket_and_to_it_once_it_is_there(
    run: Run, settings: list[str], scans: Path, s3_server: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "check_bucket", lambda _: None)  # as if it went away from then on
    command = ["run_ensemble_experiment", *settings, "kfold.folds=2", "--upload_to", "modles"]
    code, said = run(*command)
    assert code == 0, said
    (job,) = (home / "outputs" / "doc_ensemble" / "scans").iterdir()
    (folder,) = (home / "outputs" / "doc_ensemble" / "ensembles" / "averaging").iterdir()
    again = ["--resume", job.relative_to(home), "--output_dir", folder.relative_to(home)]
    for flag, place in zip(again[::2], again[1::2], strict=True):
        assert f"the same command with {flag} {place} uploads it" in said
    for place in (job, folder):
        missing = told(place)
        assert sorted(missing) == files(place)
        assert all("there is no bucket 'modles'. Check S3_BUCKET_NAME" in why for why in missing.values())
    before = {path: path.read_bytes() for path in (*job.rglob("*.pth"), folder / "ensemble_predictions.csv")}
    code, said = run("predict", scans / "val", "--model_path", f"s3://modles/run/{BEST}")
    assert code == 2, said
    assert f"error: s3://modles/run/{BEST}: there is no bucket 'modles'. Check S3_BUCKET_NAME" in said

    boto3.client("s3").create_bucket(Bucket="modles")
    code, said = run(*command, *again)
    assert code == 0, said
    assert "Not uploaded" not in said
    for place in (job, folder):
        assert_copied(place, s3_server.root / "modles" / place.relative_to(home / "outputs"))
        assert json.loads((place / "summary.json").read_text(encoding="utf-8"))["copied"]["missing"] == {}
    assert {path: path.read_bytes() for path in before} == before

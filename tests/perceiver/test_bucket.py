"""A run is copied to a bucket while it trains, and used from there; on a real S3 server on the loopback."""

import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlcore.remote.s3 import check_bucket
from mlcore.remote.uploader import BackgroundUploader
from mlcore.run import copy, doctor, preflight
from mlcore.training.checkpoint import load_checkpoint

DATA = shlex.split("--dataset synthetic --num_samples 40 --seq_len_range 5 9 --feature_dim 4 --num_classes 3")
SECRETS = ("testing123-very-secret", "tester-access-key")

Script = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "BackgroundUploader", partial(BackgroundUploader, attempts=2, backoff=0.01))
    monkeypatch.setattr(doctor, "DEADLINE", 60.0)  # a busy machine takes seconds to import boto3


def files(folder: Path) -> list[str]:
    """What is to be copied of a run of this app."""
    left_out = ("step_", "run.lock")
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(left_out))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def test_a_run_goes_to_the_bucket_of_the_environment_and_comes_back(
    script: Script, tiny: Sequence[str], s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_BUCKET_NAME", "models")
    trained = script("train", *tiny, *DATA)
    assert trained.code == 0, trained.err
    [folder] = (tmp_path / "outputs/perceiver/synthetic").iterdir()
    prefix = f"models/perceiver/synthetic/{folder.name}"
    names = files(folder)
    assert {"checkpoints/best_model.pth", "config.yaml", "metrics.csv", "report.html", "run.json"} <= set(names)
    assert s3_server.keys() == sorted(f"{prefix}/{name}" for name in names)
    for name in set(names) - {"train.log"}:  # the log goes on for a moment
        assert (s3_server.root / prefix / name).read_bytes() == (folder / name).read_bytes(), name
    assert json.loads((s3_server.root / prefix / "run.json").read_text())["status"] == "finished"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["copied"] == {"to": f"s3://{prefix}", "missing": {}}

    best = f"s3://{prefix}/checkpoints/best_model.pth"
    evaluated = script("inference", "--model_path", best)
    assert evaluated.code == 0, evaluated.err
    assert (tmp_path / "outputs/s3" / prefix / "evaluation_val" / "results.json").is_file()

    latest = f"s3://{prefix}/checkpoints/latest_model.pth"
    branch = script("train", *tiny, *DATA, "--epochs", "2", "--resume", latest, "--upload_to", "null")
    assert branch.code == 0, branch.err
    assert "resuming" in branch.out
    assert len(list((tmp_path / "outputs/perceiver/synthetic").iterdir())) == 2  # a run of its own
    assert s3_server.keys() == sorted(f"{prefix}/{name}" for name in names)  # which is not copied


def test_with_a_dead_server_the_run_is_as_good_and_can_be_copied_later(
    script: Script, tiny: Sequence[str], s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, secret in zip(("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"), SECRETS, strict=True):
        monkeypatch.setenv(name, secret)
    monkeypatch.setattr(preflight, "check_bucket", lambda _: s3_server.kill())  # it dies once the run has begun
    arguments = [*tiny, *DATA, "--output_dir", "run", "--upload_to", "s3://models/team/"]
    trained = script("train", *arguments)
    assert trained.code == 0, trained.err
    assert trained.out.count("Upload failed, training goes on") == 1
    assert trained.out.count("Not uploaded to s3://models/team/perceiver/synthetic/run: checkpoints/") == 1
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert sorted(summary["copied"]["missing"]) == files(folder)
    for page in ("report.html", "summary.md"):
        assert "Not uploaded to s3://models/team/perceiver" in (folder / page).read_text()
    load_checkpoint(folder / "checkpoints" / "best_model.pth")
    for path in folder.rglob("*"):
        assert not path.is_file() or not any(secret.encode() in path.read_bytes() for secret in SECRETS), path

    s3_server.start()
    monkeypatch.setattr(preflight, "check_bucket", check_bucket)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing123")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    again = script("train", *arguments, "--resume", "run")
    assert again.code == 0, again.err
    assert s3_server.keys() == sorted(f"models/team/perceiver/synthetic/run/{name}" for name in files(folder))
    for page in ("report.html", "summary.md", "summary.json"):
        copy = s3_server.root / "models/team/perceiver/synthetic/run" / page
        assert "Not uploaded" not in copy.read_text()
        assert copy.read_bytes() == (folder / page).read_bytes()


def test_the_system_check_asks_the_bucket(script: Script, s3_server: Any) -> None:
    ended = script("train", "--test", "--upload_to", "models/x")
    assert "takes files, runs are copied to s3://models/x" in ended.out
    ended = script("train", "--test", "--upload_to", "modles")
    assert "there is no bucket 'modles'" in ended.out
    ended = script("train", "--test")
    assert "not used (neither S3_BUCKET_NAME nor --upload_to is set)" in ended.out


@pytest.mark.parametrize("place", ["s3://", "https://user:pass@host/models", "a b", "models//x", "s3:models"])
def test_a_place_that_is_none_is_an_error(script: Script, tiny: Sequence[str], place: str) -> None:
    ended = script("train", *tiny, *DATA, "--upload_to", place)
    assert ended.code == 2
    assert "checkpoint.upload_to" in ended.err
    assert "s3://bucket/prefix" in ended.err

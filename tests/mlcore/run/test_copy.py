"""The copy of a run in a bucket, on a real S3 server on the loopback."""

import logging
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlcore.remote import s3
from mlcore.remote.uploader import BackgroundUploader
from mlcore.run import copy
from mlcore.run.copy import Copied, RunCopy, run_key

ADDRESS = "s3://models/team/perceiver/demo/run 1"
COPIED = [
    ".hydra/config.yaml",
    "checkpoints/best_model.pth",
    "checkpoints/epoch_0002.pth",
    "checkpoints/latest_model.pth",
    "config.yaml",
    "report.html",
    "sam_encoder.pth",
    "summary.json",
    "variants/image_only/checkpoints/best_model.pth",
    "variants/image_only/summary.json",
]
NOT_COPIED = [
    ".summary.md.1f00aa.partial",
    "checkpoints/step_00000007.pth",
    "run.lock",
    "tensorboard/events.out.tfevents.1",
    "variants/image_only/run.lock",
    "variants/image_only/checkpoints/step_00000009.pth",
    "wandb/run-1/files/output.log",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "BackgroundUploader", partial(BackgroundUploader, attempts=2, backoff=0.01))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run, as far as files go."""
    for name in (*COPIED, *NOT_COPIED):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "run"


def copy_folder(folder: Path, *, status: str = "finished") -> Copied:
    made = RunCopy(folder, ADDRESS)
    made.begin()
    return made.close(status=status)


def keys(names: list[str]) -> list[str]:
    return sorted(f"{ADDRESS.removeprefix('s3://')}/{name}" for name in names)


def test_the_copy_has_the_files_that_matter_under_their_names(s3_server: Any, folder: Path) -> None:
    assert copy_folder(folder) == Copied(ADDRESS, {})
    assert s3_server.keys() == keys(COPIED)
    for name in COPIED:
        assert (s3_server.root / keys([name])[0]).read_text() == name


def test_checkpoints_go_up_as_they_are_saved(s3_server: Any, folder: Path) -> None:
    made = RunCopy(folder, ADDRESS)
    made.submit(folder / "summary.json")  # before it has begun, nothing happens
    made.begin()
    made.begin()
    made.submit(folder / "checkpoints" / "best_model.pth")
    assert made._uploader is not None
    assert made._uploader.close(60) == []
    arrived = [name for name in COPIED if "checkpoints" in name]
    assert s3_server.keys() == keys(arrived)


def test_a_mirror_that_has_not_begun_does_nothing(s3_server: Any, folder: Path) -> None:
    assert RunCopy(folder, ADDRESS).close(status="failed") == Copied(ADDRESS, {})
    assert s3_server.keys() == []


def test_a_dead_server_costs_one_warning_and_the_next_process_uploads_all(
    s3_server: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s3_server.kill()
    copied = copy_folder(folder)
    assert sorted(copied.missing) == sorted(COPIED)
    assert all("no proper answer from http://127.0.0.1" in reason for reason in copied.missing.values())
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2  # when it began, and at the end
    assert warnings[1] == copied.complaint(folder)
    assert "and 5 more (s3://models/team/perceiver/demo/run 1/" in warnings[1]
    assert f"--resume {folder}" in warnings[1]

    s3_server.start()
    assert copy_folder(folder) == Copied(ADDRESS, {})
    assert s3_server.keys() == keys(COPIED)


def test_the_complaint_names_the_flag_that_uploads_the_rest(tmp_path: Path) -> None:
    copied = Copied(ADDRESS, {"summary.json": "denied"}, again="--output_dir")
    assert f"the same command with --output_dir {tmp_path} uploads it" in copied.complaint(tmp_path)
    assert Copied(ADDRESS, {}).complaint(tmp_path) == ""


def watched(monkeypatch: pytest.MonkeyPatch, event: str, act: Callable[[], None]) -> None:
    """Call `act` before each request of this kind."""
    real_client = s3._client

    def client(**options: Any) -> Any:
        made = real_client(**options)
        made.meta.events.register(f"before-send.s3.{event}", lambda **_: act())
        return made

    monkeypatch.setattr(s3, "_client", client)


def test_the_next_process_sends_only_what_the_bucket_lacks(
    s3_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_folder(folder)
    (folder / "summary.json").write_text("other")
    sent: list[None] = []
    watched(monkeypatch, "PutObject", lambda: sent.append(None))
    assert copy_folder(folder).missing == {}
    assert len(sent) == 1
    assert (s3_server.root / keys(["summary.json"])[0]).read_text() == "other"


def test_a_server_killed_in_an_upload_shows_no_half_and_the_next_process_sends_the_rest(
    s3_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = folder / "checkpoints" / "latest_model.pth"
    large.write_bytes(os.urandom(12 << 20))
    monkeypatch.setattr(s3, "_PART", 5 << 20)
    parts: list[None] = []

    def on_part() -> None:
        parts.append(None)
        if len(parts) == 2:
            s3_server.kill()

    with monkeypatch.context() as patched:
        watched(patched, "UploadPart", on_part)
        missing = copy_folder(folder).missing
    arrived = [name for name in COPIED if name not in missing]
    assert {"checkpoints/best_model.pth", "checkpoints/epoch_0002.pth"} <= set(arrived)
    assert "checkpoints/latest_model.pth" in missing
    assert s3_server.keys() == keys(arrived)  # no half of the large one

    s3_server.start()
    assert copy_folder(folder).missing == {}
    assert s3_server.keys() == keys(COPIED)
    assert (s3_server.root / keys(["checkpoints/latest_model.pth"])[0]).read_bytes() == large.read_bytes()


def test_the_random_numbers_of_the_training_stay_as_they_are(
    s3_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.kill()
    random.seed(1)
    before = random.getstate()
    copy_folder(folder)
    assert random.getstate() == before
    s3_server.start()


def test_secrets_in_reasons_are_masked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")

    def send(path: Path, uri: str) -> None:
        raise OSError("signed with very-secret-value")

    monkeypatch.setattr(copy, "BackgroundUploader", partial(BackgroundUploader, send=send))
    assert set(copy_folder(folder).missing.values()) == {"signed with ***"}


def test_where_a_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("outputs/perceiver")
    assert run_key(root / "demo" / "20260101-000000", root=root, name="demo") == "demo/20260101-000000"
    assert run_key(tmp_path / root / "multirun/ab/0", root=root, name="demo") == "multirun/ab/0"
    assert run_key(tmp_path / "elsewhere", root=root, name="demo") == "demo/elsewhere"
    assert run_key(root, root=root, name="demo") == "demo/perceiver"

"""Every script that takes a checkpoint takes the address of one in a bucket, too."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from mlcore.remote.s3 import stored_file

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = re.compile(r"(?:predict|export)_script\(")  # its flag is --model_path
FLAGS = [
    (str(path.relative_to(REPOSITORY)), "--model_path" if flag.endswith("(") else flag)
    for path in sorted((REPOSITORY / "apps").glob("*/*.py"))
    for flag in re.findall(
        rf'{SHARED.pattern}|(?<=")--(?:model_path|checkpoint|encoder)(?=",\s*type=)', path.read_text(encoding="utf-8")
    )
]


def run(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    return ended.value.code


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_local_path_stays_as_it_is() -> None:
    assert stored_file("a/b.pth") == Path("a/b.pth")


def test_an_object_is_downloaded_beside_runs(s3_server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boto3.client("s3").put_object(Bucket="models", Key="run/checkpoints/best_model.pth", Body=b"content")
    path = stored_file("s3://models/run/checkpoints/best_model.pth")
    assert path == Path("outputs/s3/models/run/checkpoints/best_model.pth")
    assert path.read_bytes() == b"content"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("key", ["run/checkpoints/best_model.pth", "run/checkpoint_best.ckpt"])
def test_the_decision_of_a_run_comes_with_its_checkpoint(key: str, s3_server: Any) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket="models", Key=key, Body=b"content")
    client.put_object(Bucket="models", Key="run/decision.json", Body=b"{}")
    assert read_text(stored_file(f"s3://models/{key}")) == "content"
    assert read_text(Path("outputs/s3/models/run/decision.json")) == "{}"
    client.delete_object(Bucket="models", Key="run/decision.json")
    assert read_text(stored_file(f"s3://models/{key}")) == "content"
    assert not Path("outputs/s3/models/run/decision.json").exists()


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_all_apps_are_looked_at() -> None:
    assert {script.split("/")[1] for script, _ in FLAGS} == {
        path.parent.name for path in (REPOSITORY / "apps").glob("*/__init__.py")
    }
    scripts = {script for script, _ in FLAGS}
    assert {
        f"apps/{app}/predict.py" for app in ("doc_ensemble", "multimodal_ads", "perceiver", "sam_med3d_ich")
    } <= scripts


@pytest.mark.parametrize(("script", "flag"), FLAGS)
def test_a_missing_object_is_a_plain_error(
    script: str, flag: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, flag, "s3://models/none.pth", monkeypatch=monkeypatch) == 2
    assert "error: s3://models/none.pth: no such object in the bucket. Check the key." in capsys.readouterr().err


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("app", sorted({script.split("/")[1] for script, _ in FLAGS}))
def test_resume_says_what_is_missing(
    app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "s3://models/best_model.pth"
    assert run(f"apps/{app}/train.py", "--demo", "--resume", address, monkeypatch=monkeypatch) == 2
    told = f"{address}: no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (in .env)."
    assert told in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

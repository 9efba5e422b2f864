import importlib.util
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from mlcore.base.distributed import pick_device
from mlcore.base.errors import UserError
from mlcore.run import doctor
from mlcore.run.doctor import Check, check_system, exit_code, format_checks

GIB = 1 << 30


@pytest.fixture(autouse=True)
def quiet_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, no .env, no network."""
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"})
    monkeypatch.setattr(doctor, "load_env", list)


def find(checks: list[Check], name: str) -> Check:
    [check] = [check for check in checks if check.name == name]
    return check


def test_a_sound_machine(tmp_path: Path) -> None:
    checks = check_system(tmp_path / "outputs" / "new")
    assert exit_code(checks) == 0
    for name in (".env", "Python", "PyTorch", "CPU", "TensorBoard", "S3", "Model hub"):
        assert find(checks, name).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_every_problem_comes_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_bytes", lambda path: 1 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB, total=2 * GIB))
    installed = importlib.util.find_spec
    missing = {"tensorboard", "wandb", "huggingface_hub"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else installed(name))
    checks = check_system(tmp_path)
    found = {check.name: check.status for check in checks if check.status != "ok"}
    expected = {"Output folder": "fail", "Memory": "warn", "TensorBoard": "warn", "W&B": "warn"}
    if any(check.name == "Shared memory" for check in checks):  # Linux only
        expected["Shared memory"] = "warn"
    assert found == expected
    assert all(bool(check.advice) == (check.status != "ok") for check in checks)
    assert exit_code(checks) == 1


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = find(check_system(tmp_path / "file" / "runs"), "Output folder")
    assert check.status == "fail"
    assert str(tmp_path / "file") in check.detail


def test_missing_torch_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else installed(name))
    checks = check_system(tmp_path)
    assert find(checks, "PyTorch") == Check("PyTorch", "fail", "not installed", "pip install -r requirements/base.txt")
    assert exit_code(checks) == 1


def test_wandb_key_and_modes(tmp_path: Path) -> None:
    assert find(check_system(tmp_path), "W&B").status == "warn"
    os.environ["WANDB_MODE"] = "offline"
    assert find(check_system(tmp_path), "W&B").detail == "installed, offline (WANDB_MODE)"
    del os.environ["WANDB_MODE"]
    os.environ["WANDB_API_KEY"] = "0123456789abcdef"
    os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    check = find(check_system(tmp_path), "W&B")
    assert check.status == "warn"
    assert "W&B: http://127.0.0.1:9 cannot be reached" in check.detail


def test_network_parts_that_are_unreachable_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEADLINE", 60.0)  # a busy machine takes seconds to import boto3
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    os.environ["AWS_ENDPOINT_URL"] = address
    os.environ.update({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    os.environ.update(HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    checks = check_system(tmp_path, upload_to="s3://b/runs")
    assert (find(checks, "S3").status, find(checks, "Model hub").status) == ("warn", "warn")
    assert address in find(checks, "S3").detail
    assert exit_code(checks) == 0


def test_a_network_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(doctor, "DEADLINE", 0.01)
    monkeypatch.setattr(doctor, "_check_hub", lambda: [Check("Model hub", "ok", str(forever.wait(60)))])
    try:
        check = find(check_system(tmp_path), "Model hub")
    finally:
        forever.set()
    assert check.status == "warn"
    assert check.detail.startswith("no answer")


def test_a_broken_check_is_a_failure_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _check_broken() -> list[Check]:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(doctor, "_check_tensorboard", _check_broken)
    checks = check_system(tmp_path)
    assert find(checks, "broken").detail == "ZeroDivisionError: oh"
    assert exit_code(checks) == 1


def test_an_apple_gpu_is_said_not_to_be_used_by_doctor_and_training_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "not used" in find(check_system(tmp_path), "Devices").detail
    with pytest.raises(UserError, match=r"Apple GPUs are not used .*--device cpu"):
        pick_device("mps")
    assert pick_device("auto").type == "cpu"


def test_the_table_masks_secrets_and_lists_advice() -> None:
    os.environ.update({"AWS_SECRET_ACCESS_KEY": "very-secret-value"})
    text = format_checks([Check("A", "ok", "fine"), Check("Long", "fail", "saw very-secret-value", "Do this.")])
    assert text.splitlines() == ["ok    A     fine", "fail  Long  saw ***", "", "What to do:", "  fail  Long: Do this."]


def test_a_bad_env_file_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "environ", {**os.environ, "HF_HUB_OFFLINE": "1", "QUARTET_ENV": str(tmp_path)})
    (tmp_path / ".env").write_text("NONSENSE\n")
    check = find(check_system(tmp_path), ".env")
    assert check.status == "fail"
    assert "line 1: expected NAME=value" in check.detail

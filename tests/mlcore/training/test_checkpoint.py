"""Checkpoints survive kills and damage, and never run code."""

import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.training import checkpoint as module
from mlcore.training.checkpoint import (
    CheckpointError,
    CheckpointStore,
    bare_weights,
    inference_weights,
    load_checkpoint,
    load_model_weights,
    save_checkpoint,
)


def state(step: int = 1) -> dict[str, Any]:
    return {"model": {"w": torch.full((100, 100), float(step))}, "step": step, "names": ["a", "b"], "best": None}


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", state(3))
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert torch.equal(loaded["model"]["w"], state(3)["model"]["w"])
    assert (loaded["step"], loaded["names"], loaded["best"]) == (3, ["a", "b"], None)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9, 0.97])
def test_a_flipped_byte_is_noticed(where: float, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, state())
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pth.*(damaged|refused)"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_noticed(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, state())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        load_checkpoint(path)


class Evil:
    """Writes a canary file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._canary}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_file_is_refused_and_runs_nothing(protocol: int, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    torch.save({"model": Evil(canary)}, path, pickle_protocol=max(protocol, 2))
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps({"model": Evil(canary)}, protocol=protocol))
    for file in (path, plain):
        with pytest.raises(CheckpointError, match=file.name):
            load_checkpoint(file)
    assert not canary.exists()


@pytest.mark.parametrize(("protocol", "asked"), [(2, r" \(it asks for \S*getcwd\)"), (4, "")])
def test_a_refusal_is_plain_words(protocol: int, asked: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": os.getcwd}, protocol=protocol))
    message = rf"more than tensors and plain values{asked} and loading it could run code\. Take the file from its"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_missing_file_and_wrong_content(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a dictionary"):
        load_checkpoint(tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        inference_weights({"weights": {}}, source="x.pth")


def test_weights_of_another_architecture_are_listed_and_nothing_is_loaded() -> None:
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(
        CheckpointError, match=r"(?s)1 missing: bias.*1 unexpected: other.*file \[2, 4\], model \[2, 3\]"
    ):
        load_model_weights(model, {"weight": torch.zeros(2, 4), "other": torch.zeros(1)}, source="x.pth")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_store_moves_names_and_rotates_files(asynchronous: bool, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, asynchronous=asynchronous)
    for step in (1, 2, 3, 4):
        store.save(state(step), step=step, best=step == 2, milestone="epoch_0001" if step == 1 else None)
    store.close()
    assert [path.name for path in store.step_files()] == ["step_00000004.pth", "step_00000003.pth"]
    found = {name: load_checkpoint(tmp_path / name)["step"] for name in (store.LATEST, store.BEST, "epoch_0001.pth")}
    assert found == {store.LATEST: 4, store.BEST: 2, "epoch_0001.pth": 1}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_name_that_has_moved_is_told_once_the_file_is_safe(asynchronous: bool, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    def on_saved(path: Path) -> None:
        told.append((path.name, load_checkpoint(path)["step"]))

    store = CheckpointStore(tmp_path, asynchronous=asynchronous, on_saved=on_saved)
    store.save(state(1), step=1, best=True)
    store.save(state(2), step=2, milestone="epoch_0001")
    store.close()
    names = ("latest_model.pth", "best_model.pth", "latest_model.pth", "epoch_0001.pth")
    assert told == list(zip(names, (1, 1, 2, 2), strict=True))


def test_a_snapshot_does_not_see_later_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = module.save_checkpoint

    def slow(path: Path, saved: dict[str, Any]) -> None:
        gate.wait(timeout=30)
        real(path, saved)

    monkeypatch.setattr(module, "save_checkpoint", slow)
    store = CheckpointStore(tmp_path)
    live = state(5)
    store.save(live, step=5)
    live["model"]["w"].zero_()
    gate.set()
    store.close()
    assert float(load_checkpoint(tmp_path / store.LATEST)["model"]["w"][0, 0]) == 5.0


def test_newest_good_passes_over_damaged_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path, keep_last=5, asynchronous=False)
    for step in (1, 2, 3):
        store.save(state(step), step=step)
    # latest_model.pth is the same file as step 3, so both are damaged.
    store.step_files()[0].write_bytes(b"PK nonsense")
    found = store.newest_good()
    assert found is not None
    assert found[1]["step"] == 2
    assert "step_00000003.pth" in caplog.text
    store.take_over(found[0], step=found[1]["step"], is_best=False)
    assert [path.name for path in store.step_files()] == ["step_00000002.pth", "step_00000001.pth"]
    assert load_checkpoint(tmp_path / store.LATEST)["step"] == 2


def test_numbers_of_numpy_are_read_and_nothing_else_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2), "best": np.float64(0.8), "step": np.int32(7), "done": np.True_}, path)
    state = load_checkpoint(path)
    assert (state["best"], state["step"], bool(state["done"])) == (0.8, 7, True)
    torch.save({"w": torch.ones(2), "curve": np.arange(3)}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth: refused"):
        load_checkpoint(path)


def test_weights_are_bared_of_wrappers_and_only_of_them() -> None:
    inner = {"module.fc._orig_mod.weight": torch.ones(2), "module.module.bias": torch.zeros(1), "module.step": 3}
    assert set(bare_weights({"state_dict": {"model": inner}, "epoch": 3})) == {"fc.weight", "module.bias"}
    assert set(bare_weights({"module.a": torch.ones(1), "b": torch.ones(1)})) == {"module.a", "b"}
    assert set(bare_weights({"module": torch.ones(1)})) == {"module"}
    assert bare_weights({"model": 3, "epoch": 4}) == {}
    around: dict[str, Any] = {"w": torch.ones(1)}
    around["model"] = around  # in itself
    assert bare_weights(around)


def test_an_unknown_prefix_is_named() -> None:
    model = torch.nn.Linear(2, 2)
    weights = {f"net.{name}": value for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"given\.pth: all its names begin with 'net\.', .* such as weight\."):
        load_model_weights(model, weights, source="given.pth")


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.newest_good() is None
    (tmp_path / "step_00000001.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 1"):
        store.newest_good()


def test_a_failed_write_is_raised_at_the_next_check_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(state(1), step=1)
    store.wait()

    def full(path: Path, saved: dict[str, Any]) -> None:
        raise UserError(f"{path}: no space left on the disk")

    monkeypatch.setattr(module, "save_checkpoint", full)
    store.save(state(2), step=2)
    with pytest.raises(UserError, match="no space left"):
        store.wait()
    assert load_checkpoint(tmp_path / store.LATEST)["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.LATEST, "step_00000001.pth"]


KILLED = """
import sys, torch
from pathlib import Path
from mlcore.training.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep_last=2)
for step in range(1, 10**6):
    store.save({"w": torch.full((200_000,), float(step)), "step": step}, step=step, best=step % 5 == 0)
    print(step, flush=True)
"""


@pytest.mark.parametrize("after", [3, 11, 26])
def test_a_kill_at_any_moment_leaves_a_good_checkpoint(after: int, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(after):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = CheckpointStore(tmp_path)
    found = store.newest_good()
    assert found is not None
    assert found[1]["step"] >= after - 1, "at most the save in progress is lost"
    assert float(found[1]["w"][-1]) == found[1]["step"]
    store.take_over(found[0], step=found[1]["step"], is_best=False)
    assert not list(tmp_path.glob(".*")), "nothing half-written stays"


def _archive(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return path


@pytest.mark.parametrize(
    ("program", "compression", "problem"),
    [
        (b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.", zipfile.ZIP_STORED, "nested deeper than 200 levels"),
        (b"\x80\x02}r\xff\xff\xff\x0f.", zipfile.ZIP_STORED, "its memo is numbered up to"),
        (b"\x80\x02}.", zipfile.ZIP_DEFLATED, "compressed or encrypted"),
    ],
)
def test_a_program_that_cannot_be_data_is_refused_before_it_is_read(
    program: bytes, compression: int, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.pth.*{problem}"):
        load_checkpoint(_archive(tmp_path / "model.pth", program, compression))


def test_an_encrypted_or_ancient_archive_is_refused(tmp_path: Path) -> None:
    path = _archive(tmp_path / "model.pth", b"\x80\x02}.")
    content = bytearray(path.read_bytes())
    content[6] = content[content.find(b"PK\x01\x02") + 8] = 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        load_checkpoint(path)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    with pytest.raises(CheckpointError, match=r"model\.pth: an archive of torch 0\.1"):
        load_checkpoint(path)


def test_a_view_of_one_number_is_not_a_tensor_of_gigabytes(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(1).expand(2**30)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth: refused, because .* MiB on disk claim to be 4 GiB"):
        load_checkpoint(tmp_path / "model.pth")


def test_the_format_before_1_6_is_read_and_looked_through(tmp_path: Path) -> None:
    state = {"model": torch.arange(6.0).view(2, 3)}
    torch.save(state, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(tmp_path / "model.pth")["model"], state["model"])
    deep: object = 0
    for _ in range(300):
        deep = [deep]
    torch.save({"model": deep}, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="nested deeper than 200 levels"):
        load_checkpoint(tmp_path / "model.pth")


def test_what_has_just_been_saved_is_not_removed_for_files_of_higher_steps(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, asynchronous=False)
    for step in (9, 8, 3):
        store.save({"step": step}, step=step)
        assert tmp_path / f"step_{step:08d}.pth" in store.step_files()

"""export.py: files that give the checkpoint's numbers without the code that trained it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mlcore.base.errors import UserError
from quartet.apps.perceiver import export as exporter
from quartet.apps.perceiver.restore import make_model, restore

# Runs in a fresh process that never imports the repository's code.
WITHOUT_THE_REPOSITORY = """
import sys, torch
x, mask, logits = torch.load("case.pt", weights_only=True)
program = torch.export.load("exported/model.pt2").module()
assert not any(name.split(".")[0] in ("quartet", "mlcore") for name in sys.modules)
print(float((program(x, mask) - logits).abs().max()))
"""


@pytest.fixture(scope="module")
def exported(series_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "exported"
    exporter.export(series_run / "checkpoints" / "best_model.pth", folder)
    return folder


def test_the_script_writes_both_files_and_proves_them(series_run: Path, script: Any) -> None:
    ended = script("export", "--model_path", series_run / "checkpoints" / "best_model.pth", "--output_dir", "out")
    assert ended.code == 0, ended.err  # the verification is a fresh process of its own; its result is the exit code
    assert {path.name for path in Path("out").iterdir()} == {"model.safetensors", "model.pt2"}


def test_the_program_needs_nothing_of_the_repository(exported: Path, series_run: Path) -> None:
    model = restore(series_run / "checkpoints" / "best_model.pth").model
    x, mask = torch.randn(3, 17, 4), torch.ones(3, 17, dtype=torch.bool)
    mask[1, 5:] = False
    with torch.inference_mode():
        torch.save((x, mask, model(x, mask).clone()), exported.parent / "case.pt")
    command = [sys.executable, "-c", WITHOUT_THE_REPOSITORY]
    done = subprocess.run(command, cwd=exported.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


def test_the_weights_file_says_what_it_is(exported: Path, series_run: Path) -> None:
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        header = {key: json.loads(value) for key, value in file.metadata().items()}
    assert header["class_names"] == ["sine", "square", "sawtooth"]
    rebuilt = make_model(header["model"])
    rebuilt.load_state_dict(load_file(exported / "model.safetensors"))
    original = restore(series_run / "checkpoints" / "best_model.pth").model.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in rebuilt.state_dict().items())


@pytest.mark.parametrize("position", ["fourier", "learned", "none"])  # sinusoidal is what `exported` has
@pytest.mark.parametrize("longest", [1, 5, 40])
def test_every_kind_of_position_is_exported(position: str, longest: int, series_run: Path, tmp_path: Path) -> None:
    state = torch.load(series_run / "checkpoints" / "best_model.pth", weights_only=True)
    settings = state["task"]["model"]
    options = {**settings["options"], "position": position, "max_seq_len": longest}
    torch.manual_seed(0)
    model = make_model({**settings, "options": options})
    metadata = {**state["task"], "model": {**settings, "options": options}}
    checkpoint = tmp_path / "model.pth"
    torch.save({**state, "model": model.state_dict(), "task": metadata}, checkpoint)
    exporter.export(checkpoint, tmp_path)
    assert exporter.verify(checkpoint, tmp_path) == 0
    if position != "none" and longest > 1:
        program = torch.export.load(tmp_path / "model.pt2").module()
        x = torch.randn(3, longest, 4)
        assert program(x, torch.ones(3, longest, dtype=torch.bool)).shape == (3, 3)


def test_a_changed_weight_is_noticed(exported: Path, series_run: Path, tmp_path: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    weights["head.project.bias"] = weights["head.project.bias"] + 0.01
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        save_file(weights, tmp_path / "model.safetensors", metadata=file.metadata())
    (tmp_path / "model.pt2").symlink_to(exported / "model.pt2")
    with pytest.raises(UserError, match=r"model\.safetensors: differs from .* by .* \(relative\)"):
        exporter.verify(series_run / "checkpoints" / "best_model.pth", tmp_path)


def test_a_checkpoint_that_is_missing_leaves_nothing(script: Any) -> None:
    ended = script("export", "--model_path", "none.pth", "--output_dir", "out")
    assert ended.code == 2
    assert "none.pth: no such checkpoint file" in ended.err
    assert not Path("out").exists()

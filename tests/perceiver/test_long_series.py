"""Long series: patches of steps become tokens, and a training of 100,000 steps stays small."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.use.exporting import export
from quartet.apps.perceiver.model.stem import PatchStem
from tests.perceiver.conftest import Script
from tests.perceiver.test_export import read_elsewhere
from tests.perceiver.test_tasks import waves
from tests.perceiver.test_time_stamps import SAME, make


@torch.inference_mode()
def test_a_token_is_a_linear_map_of_the_steps_of_its_patch() -> None:
    stem = PatchStem(2, 5, patch=4)
    series = torch.randn(3, 11, 2)
    padded = torch.cat([series, torch.zeros(3, 1, 2)], dim=1).reshape(3, 3, 4, 2)
    expected = torch.einsum("blpc,ocp->blo", padded, stem.map.weight) + stem.map.bias
    torch.testing.assert_close(stem(series), expected, rtol=0, atol=SAME)


@pytest.mark.parametrize("position", ["sinusoidal", "fourier", "learned"])
@torch.inference_mode()
def test_an_answer_depends_on_no_padding_or_company(position: str) -> None:
    model = make(time_step=None, position=position, patch=4)
    x, lengths = torch.randn(4, 23, 2), torch.tensor([[23], [1], [8], [10]])
    mask = torch.arange(23) < lengths
    mask[0, 5:12] = False  # a gap that hides a patch, and parts of two
    together = model(x.masked_fill(~mask[..., None], torch.nan), mask)
    for place, (length,) in enumerate(lengths.tolist()):
        alone = model(x[place : place + 1, :length], mask[place : place + 1, :length])
        torch.testing.assert_close(alone[0], together[place], rtol=0, atol=SAME)
    moved = model(x.roll(4, dims=1), mask)
    assert (moved - together).abs().max() > 1e-3


@torch.inference_mode()
def test_steps_within_a_patch_are_asked_for_alone() -> None:
    model = make(time_step=None, patch=4, visible=[])
    x, query = torch.randn(1, 16, 2), torch.arange(16)[None]
    answers = model(x, None, query)
    torch.testing.assert_close(model(x, None, query[:, 3:5]), answers[:, 3:5], rtol=0, atol=SAME)
    assert (answers[0, 1:] - answers[0, :-1]).abs().amax(dim=1).min() > 1e-5
    with pytest.raises(UserError, match="knows patches, not the steps that are asked for"):
        make(time_step=None, patch=4, visible=[], position="learned")


@pytest.mark.slow
@pytest.mark.parametrize("timed", [False, True])
def test_an_export_of_patches_takes_any_length(timed: bool, script: Script, tiny: Sequence[str]) -> None:
    arrays = waves(24)
    if timed:
        arrays["times"] = np.cumsum(np.random.default_rng(0).uniform(1, 3, (24, 30)), axis=1)
    np.savez("train.npz", **arrays)
    flags = shlex.split("--dataset custom --train_path train.npz --task forecast --horizon 4 --series_patch 4")
    ended = script("train", *tiny, *flags, "--output_dir", "run", "--baseline", "none", "--warmup_steps", "0")
    assert ended.code == 0, ended.err
    predictor = load_run("run", device="cpu")
    export(predictor, Path("exported"), ["pt2", "onnx"])
    for length in (1, 3, 4, 18):
        new = {name: array[:3, :length] for name, array in arrays.items()}
        np.savez("new.npz", **new)
        expected = [one.values for one in predictor("new.npz")]
        for form in ("pt2", "onnx"):
            found = load_run("exported", device="cpu", network=form)("new.npz")
            for one, other in zip(found, expected, strict=True):
                assert one.values == pytest.approx(other, abs=1e-4)
        for row, other in zip(read_elsewhere(Path("exported").resolve(), "new.npz"), expected, strict=True):
            assert np.array(json.loads(" ".join(row[1:]))) == pytest.approx(other, abs=1e-4)


TRAINS = """
import resource, runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
finally:
    print("peak MiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def events(folder: Path, samples: int, length: int) -> Path:
    """Series of noise; in every other one a tenth is higher, at a random place. Stored one after another."""
    folder.mkdir()
    inputs = np.lib.format.open_memmap(folder / "inputs.npy", "w+", np.float32, (samples, length, 1))
    rng, labels = np.random.default_rng(0), np.arange(samples) % 2
    for series, label in zip(inputs, labels, strict=True):
        start = int(rng.integers(length - length // 10))
        series[:, 0] = rng.standard_normal(length, dtype=np.float32)
        series[start : start + length // 10] += 2 * label
    np.save(folder / "labels.npy", labels)
    return folder


@pytest.mark.slow
def test_a_training_of_100000_steps_learns_in_2_gib(repository: Path, tmp_path: Path) -> None:
    flags = shlex.split("""
        --series_patch 100 --stem_channels 32 --d_model 32 --num_heads 2 --num_latents 8
        --num_cross_attention_layers 1 --num_self_attention_layers 1 --epochs 10 --batch_size 8 --lr 3e-3
        --warmup_steps 5 --num_workers 0 --no_tensorboard --baseline none
    """)
    data = ["--dataset", "custom", "--train_path", events(tmp_path / "events", 80, 100_000)]
    train: list[Any] = [sys.executable, "-c", TRAINS, repository / "apps" / "perceiver" / "train.py", *data, *flags]
    done = subprocess.run([*train, "--output_dir", tmp_path / "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("peak MiB: ")[2]) < 2048
    found = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["results_of_best_checkpoint"]["val"]
    assert found["accuracy"] >= 0.9  # of 16 series

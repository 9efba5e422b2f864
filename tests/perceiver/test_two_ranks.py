"""Two processes train what one trains, and continue each other's runs."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlcore.training.checkpoint import load_checkpoint

SETTINGS = """
--dataset synthetic --num_samples 110 --seq_len_range 8 24 --feature_dim 6 --num_classes 3 --d_model 16 --num_heads 2
--num_latents 4 --num_cross_attention_layers 1 --num_self_attention_layers 1 --jitter 0.1 --epochs 2 --lr 1e-3
--num_workers 0 --log_every 1 --num_threads 1 --no_tensorboard
"""


def train(repository: Path, folder: Path, *arguments: str, ranks: int) -> None:
    script = str(repository / "apps" / "perceiver" / "train.py")
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launch, script, *shlex.split(SETTINGS), "--output_dir", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_ranks_train_as_one(repository: Path, tmp_path: Path) -> None:
    """88 training samples in batches of 16: the last window has 8, of which each rank gets 4."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(repository, one, "--batch_size", "16", ranks=1)
    # The first epoch on two ranks, the second after resuming.
    train(repository, two, "--batch_size", "8", "--max_steps", "6", ranks=2)
    train(repository, two, "--batch_size", "8", ranks=2)
    states = [load_checkpoint(folder / "checkpoints" / "latest_model.pth") for folder in (one, two)]
    for key, value in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][key], value, rtol=1e-4, atol=1e-5)
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text("utf-8").splitlines()] for f in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]], "only rank 0 writes"
    for a, b in zip(*rows, strict=True):
        keys = ("train/loss", "val/loss", "val/n")
        logged = [{key: row[key] for key in keys if key in row} for row in (a, b)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_rows_of_21_samples_do_not_depend_on_the_number_of_ranks(repository: Path, tmp_path: Path) -> None:
    train(repository, tmp_path / "run", "--num_samples", "105", "--epochs", "1", "--batch_size", "8", ranks=1)
    script = [str(repository / "apps" / "perceiver" / "inference.py"), "--analyze"]
    script += ["--model_path", str(tmp_path / "run" / "checkpoints" / "best_model.pth"), "--output_dir"]
    found = []
    for ranks in (1, 2, 3):  # 8 + 8 + 5 samples; 16 + 5, the latter on one rank; 21 on three
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        folder = tmp_path / f"ranks_{ranks}"
        done = subprocess.run([*launch, *script, str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((folder / "results.json").read_text("utf-8"))["n"] == 21
        found.append([(folder / name).read_text("utf-8") for name in ("predictions.csv", "results.json")])
    assert len(found[0][0].splitlines()) == 22, "a header and 21 rows"
    assert found[0] == found[1] == found[2], "to the last digit"

"""A training run killed at random instants ends bit-identical to one that was left alone."""

import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mlcore.training.checkpoint import load_checkpoint

SETTINGS = """
--dataset synthetic --num_samples 240 --seq_len_range 8 24 --feature_dim 6 --num_classes 3 --d_model 16 --num_heads 2
--num_latents 4 --num_cross_attention_layers 1 --num_self_attention_layers 1 --dropout 0.1 --jitter 0.1 --scaling 0.1
--batch_size 8 --gradient_accumulation_steps 2 --epochs 6 --lr 1e-3 --ema_decay 0.9 --num_workers 2 --log_every 1
--save_every_steps 2 --num_threads 1 --no_tensorboard
"""
STEPS_PER_EPOCH = 12  # 192 training samples, 8 x 2 per step
KILLS = [5, 9, 26, 41, 63]  # after these steps; the first two fall into one epoch


def command(repository: Path, folder: Path) -> list[str]:
    script = repository / "apps" / "perceiver" / "train.py"
    return [sys.executable, str(script), *shlex.split(SETTINGS), "--output_dir", str(folder), "--resume", "auto"]


def kill_after(arguments: list[str], step: int, rng: random.Random) -> None:
    """Start the run and SIGKILL it a random instant after it has logged `step`."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            found = re.search(r"step (\d+) +train", line)
            if found and int(found.group(1)) >= step:
                break
        else:
            raise AssertionError(f"the run ended before step {step}:\n{''.join(seen)}")
        time.sleep(rng.uniform(0, 0.05))  # the instant is what is random here; nothing is waited for
        process.send_signal(signal.SIGKILL)


def deterministic_rows(folder: Path) -> list[dict[str, Any]]:
    """Logged values without timings."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows]


def assert_identical(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_identical(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_identical(*pair, f"{where}[{i}]")
    else:
        assert one == other, where


def assert_same_end(whole: Path, killed: Path) -> None:
    """Two runs left the same last checkpoint and logged the same."""
    states = [load_checkpoint(folder / "checkpoints" / "latest_model.pth") for folder in (whole, killed)]
    for state in states:
        state["progress"].pop("seconds")
        state["config"]["run"].pop("output_dir")
    assert_identical(*states)
    assert deterministic_rows(whole) == deterministic_rows(killed)


def assert_a_kill_changes_nothing(arguments: list[str], folder: Path, *, after: int) -> None:
    """Train twice, once killed after `after` steps and continued; both ends are the same."""
    whole, killed = ([*arguments, "--output_dir", str(folder / name)] for name in ("whole", "killed"))
    subprocess.run(whole, check=True, capture_output=True)
    kill_after(killed, after, random.Random(0))
    assert "resuming" in subprocess.run(killed, check=True, capture_output=True, text=True).stdout
    assert_same_end(folder / "whole", folder / "killed")


@pytest.mark.slow
def test_five_kills_and_resumes_end_bit_identical(repository: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(repository, whole), check=True, capture_output=True)
    assert KILLS[1] < STEPS_PER_EPOCH
    for step in KILLS:
        kill_after(command(repository, killed), step, rng)
        assert (killed / "checkpoints" / "latest_model.pth").is_file()
    last = subprocess.run(command(repository, killed), check=True, capture_output=True, text=True)
    assert "resuming" in last.stdout
    assert_same_end(whole, killed)
    best = [load_checkpoint(folder / "checkpoints" / "best_model.pth") for folder in (whole, killed)]
    assert_identical(best[0]["model"], best[1]["model"])
    assert (killed / "report.html").is_file()

"""Problems whose answer is known, each learned from the command line in less than two minutes on one core."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.perceiver.conftest import Script

pytestmark = pytest.mark.slow

MODEL = """
--dataset custom --d_model 32 --num_heads 4 --num_latents 8 --num_cross_attention_layers 1
--num_self_attention_layers 2 --warmup_steps 20 --num_workers 0 --num_threads 1 --no_tensorboard
"""


def levels(samples: int, *, seed: int) -> dict[str, Any]:
    """The largest value of one channel less the mean of the other, and the length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(8, 17, samples)
    series = [rng.normal(size=(length, 2)) + 2 * rng.normal(size=2) for length in lengths]
    targets = [[one[:, 0].max() - one[:, 1].mean(), len(one)] for one in series]
    return {"inputs": np.concatenate(series).astype(np.float32), "lengths": lengths, "targets": targets}


def events(samples: int, *, seed: int) -> dict[str, Any]:
    """An event is higher than the rest of its series, whose level no single position knows."""
    rng = np.random.default_rng(seed)
    begin, end = np.sort(rng.integers(3, 21, (2, samples, 1)), axis=0)
    labels = ((np.arange(24) >= begin) & (np.arange(24) < end)).astype(int)
    inputs = 3 * labels + 8 * rng.normal(size=(samples, 1)) + 0.3 * rng.normal(size=labels.shape)
    return {"inputs": inputs[..., None].astype(np.float32), "labels": labels, "classes": ["rest", "event"]}


def seasons(samples: int, *, seed: int) -> dict[str, Any]:
    """Seasons of eight positions, drift and noise: a season ago was another level and another noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(32) + rng.integers(8, size=(samples, 1))
    drift = 0.05 * rng.normal(size=(samples, 1)) * np.arange(32)
    values = np.sin(time * np.pi / 4) + drift + 0.3 * rng.normal(size=time.shape)
    return {"inputs": values[..., None].astype(np.float32)}


def mixtures(samples: int, *, seed: int) -> dict[str, Any]:
    """Three curves in noise, which all series share; the class is the signs of their weights."""
    curves = np.random.default_rng(99).normal(size=(3, 32)) / np.sqrt(3)
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(samples, 3))
    weights = np.sign(weights) * (0.5 + abs(weights)) / 1.4
    values = weights @ curves + rng.normal(size=(samples, 32))
    return {"inputs": values[..., None].astype(np.float32), "labels": (weights > 0) @ np.array([1, 2, 4])}


def learned(script: Script, flags: str, **files: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run on these files."""
    arguments = shlex.split(MODEL + flags)
    for part, arrays in files.items():
        np.savez(f"{part}.npz", **arrays)
        arguments += [f"--{part}_path", f"{part}.npz"]
    ended = script("train", *arguments)
    assert ended.code == 0, ended.err
    folder = Path(arguments[arguments.index("--output_dir") + 1])
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return found


def test_regression_finds_what_was_planted(script: Script) -> None:
    flags = "--task regression --lr 3e-3 --epochs 30 --baseline none --output_dir run"
    found = learned(script, flags, train=levels(600, seed=0), test=levels(200, seed=1))
    assert found["results_of_best_checkpoint"]["test"]["r2"] > 0.95


def test_per_step_finds_what_was_planted(script: Script) -> None:
    flags = "--task per_step --lr 3e-3 --epochs 20 --output_dir run"
    found = learned(script, flags, train=events(600, seed=0), test=events(200, seed=1))
    assert found["results_of_best_checkpoint"]["test"]["macro_f1"] > 0.95
    assert found["baselines"]["majority class"]["results"]["test"]["macro_f1"] < 0.6


def test_a_forecast_beats_the_season_before(script: Script) -> None:
    flags = "--task forecast --horizon 8 --context 24 --position fourier --lr 3e-3 --epochs 40 --output_dir run"
    found = learned(script, flags, train=seasons(600, seed=0), test=seasons(200, seed=1))
    less = found["baselines"]["seasonal naive"]["network_less_it"]["test"]["loss"]
    assert less["high"] < 0, "surely"


def test_pre_training_lifts_what_fifty_labels_give(script: Script) -> None:
    unlabelled = {"inputs": mixtures(2000, seed=0)["inputs"]}
    always = "--position fourier --lr 3e-3 --baseline none --val_fraction 0"
    learned(script, f"{always} --task masked --epochs 13 --output_dir before", train=unlabelled)
    reached = {}
    for name, start in (("alone", ""), ("lifted", "--init_from before")):
        flags = f"{always} --batch_size 10 --epochs 40 {start} --output_dir {name}"
        found = learned(script, flags, train=mixtures(50, seed=1), test=mixtures(1000, seed=2))
        reached[name] = found["results_of_best_checkpoint"]["test"]["accuracy"]
    assert reached["lifted"] >= reached["alone"] + 0.05

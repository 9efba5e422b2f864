"""SIGTERM and Ctrl-C at random instants of each app's runs, from start to end, once and twice: saved or done."""

import json
import os
import random
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mlcore.training.checkpoint import load_checkpoint
from tests.any_instant import Script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="when a process listens, Linux tells"),
]

INSTANTS = int(os.environ.get("INSTANTS", "30"))
SHARED = "--num_threads 1 --device cpu --no_tensorboard --log_every 2 --save_every_steps 3"
APPS = {
    "perceiver": """
--dataset synthetic --num_samples 160 --seq_len_range 8 24 --feature_dim 6 --num_classes 3 --d_model 16 --num_heads 2
--num_latents 4 --num_cross_attention_layers 1 --num_self_attention_layers 1 --dropout 0.1 --batch_size 8 --epochs 4
--num_workers 2
""",
    "sam_med3d_ich": "--demo data.num_train=4 data.num_val=2 --epochs 2 --eval_every 1 --num_workers 0",
    "multimodal_ads": """
--demo data.num_train=64 data.num_val=16 data.num_test=16 data.generated_dir=generated train.ablations=false
text_encoder=none --epochs 2 --num_workers 0
""",
    "doc_ensemble": """
--demo data.num_train=68 data.num_val=34 --kfold.folds 2 model.model_name=test_resnet model.arguments={}
model.image_size=[64,48] --epochs 2 --num_workers 0
""",
}


def script(app: str, folder: Path, repository: Path) -> Script:
    command = [repository / "apps" / app / "train.py", *shlex.split(APPS[app]), *shlex.split(SHARED)]
    return Script(command=[*command, "--output_dir", folder], place=folder.parent)


def outcome(folder: Path) -> dict[str, Any]:
    """What a run, or each run of a group, ended with; timings and places left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("**/checkpoints/*_model.pth")):
        state = load_checkpoint(path)
        name = path.relative_to(folder).as_posix()
        found[name] = state["model"]
        found[f"{name}: progress"] = {**state["progress"], "seconds": 0}
    for path in sorted(folder.glob("**/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        kept = [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows]
        found[path.relative_to(folder).as_posix()] = json.dumps(kept)  # as text, so that NaN is NaN
    for path in sorted(folder.glob("**/run.json")):
        found[path.relative_to(folder).as_posix()] = json.loads(path.read_text("utf-8"))["status"]
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name.endswith(".pth"):
            assert value.keys() == other[name].keys()
            assert all(torch.equal(tensor, other[name][key]) for key, tensor in value.items()), name
        else:
            assert value == other[name], name


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("app", APPS)
def test_a_signal_at_any_instant_saves_or_comes_too_late(
    app: str, times: int, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, codes = random.Random(times), Counter[int]()
    seconds = script(app, tmp_path / "whole", repository).left_alone()
    whole, number = outcome(tmp_path / "whole"), 0
    for _ in range(INSTANTS):
        folder = tmp_path / f"run_{number}"
        code = script(app, folder, repository).signalled(rng, within=seconds, times=times)
        codes[code] += 1
        if code == 0:
            assert_same(outcome(folder), whole)
            number += 1
    script(app, tmp_path / f"run_{number}", repository).left_alone()
    assert_same(outcome(tmp_path / f"run_{number}"), whole)
    with capsys.disabled():
        print(f"\n{app}, {times} x: {dict(codes)} of {INSTANTS} in runs of {seconds:.1f} s", end=" ")

"""A sweep that is killed goes on where it stopped, and its runs can be compared."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quartet.apps.multimodal_ads.data.generated import write_generated

SETTINGS = shlex.split("""
text_encoder=minilm text_encoder.max_length=16 fusion.hidden_dim=8 head.hidden_dims=[8] --epochs 2 --batch_size 16
--num_workers 0 --num_threads 1 --device cpu --no_tensorboard --warmup_steps 1 --patience null
""")


def statuses(sweep: Path) -> list[str]:
    try:
        return [job["status"] for job in json.loads((sweep / "sweep.json").read_text("utf-8"))["jobs"]]
    except (OSError, ValueError):
        return []


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_compares_its_runs(
    repository: Path, tmp_path: Path, hub_folder: Callable[..., Path]
) -> None:
    write_generated(tmp_path / "ads", train=64, validation=24, test=24, seed=1)
    command = [
        sys.executable,
        str(repository / "apps" / "multimodal_ads" / "train.py"),
        *("-m", "fusion=gated,concat", "pooling=mean,attention", "vision_encoder.kind=siglip2"),
        *(f"vision_encoder.model={hub_folder('siglip2')}", *SETTINGS),
        *("--base_dir", str(tmp_path / "ads"), "--output_dir", str(tmp_path / "sweep")),
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 240
        while statuses(tmp_path / "sweep")[:2] != ["finished", "running"]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    first = (
        tmp_path / "sweep" / next(path.name for path in (tmp_path / "sweep").iterdir() if path.name.startswith("1-"))
    )
    before = (first / "summary.json").stat().st_mtime_ns
    for _ in range(120):  # the job that the sweep was running outlives it and holds the sweep's lock until it is done
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        if "still running" not in again.stderr:
            break
        time.sleep(1)
    assert again.returncode == 0, again.stderr
    assert statuses(tmp_path / "sweep") == ["finished"] * 4
    assert (first / "summary.json").stat().st_mtime_ns == before
    script = str(repository / "scripts" / "compare_results.py")
    table = subprocess.run(
        [sys.executable, script, str(tmp_path / "sweep")], capture_output=True, text=True, check=True
    ).stdout
    for setting in ("gated", "concat", "mean", "attention"):
        assert setting in table
    for name in ("comparison.md", "comparison.csv", "comparison.png"):
        assert (tmp_path / "sweep" / name).stat().st_size > 0

"""A run that fails after it has begun says why: on the terminal, in its log and in its record."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SYNTHETIC = shlex.split("--dataset synthetic --num_samples 40 --seq_len_range 5 12 --feature_dim 4 --num_classes 3")
DIVERGING = shlex.split("--optimizer sgd --lr 1e30 --warmup_steps 0 --max_bad_steps 1")


def test_a_run_that_fails_says_why_where_it_is_looked_for(script: Any, tiny: Sequence[str]) -> None:
    ended = script("train", *tiny, *SYNTHETIC, *DIVERGING, "--output_dir", "run")
    assert ended.code == 2
    reason = ended.err.removeprefix("error: ").strip()
    assert "not finite" in reason
    assert reason not in ended.out  # said once
    record = json.loads(Path("run/run.json").read_text("utf-8"))
    assert (record["status"], record["reason"]) == ("failed", reason)
    log = Path("run/train.log").read_text("utf-8")
    assert log.splitlines()[-1].endswith(f"the run failed: {reason}")
    assert "Traceback" not in log

"""What two cores gain: two ranks of one training, and folds of a cross-validation two at a time.

python -m benchmarks.parallel                 about six minutes on two cores
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import ROOT, Goal, Options, Report, alternate, median_text, ratio, ratio_text, run_alone, seconds

_AT_LEAST = 0.8  # of twice one core's pace
_BATCH, _FOLDS = 64, 4
_COMMON = ("--demo", "--device", "cpu", "--num_threads", "1", "--num_workers", "0", "--no_tensorboard")
_ALONE = (sys.executable,)
_TWO_RANKS = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def measure(options: Options) -> Report:
    """Samples per second of one rank and two, and seconds of a cross-validation, in turns."""
    rounds, steps = (1, 60) if options.quick else (5, 200)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ranks = alternate(
            {name: partial(_pace, command, steps, folder) for name, command in (("1", _ALONE), ("2", _TWO_RANKS))},
            rounds=rounds,
        )
        print(f"ranks: {ranks}", flush=True)
        folds = alternate({str(jobs): partial(_folds, jobs, folder) for jobs in (1, 2)}, rounds=rounds)
        print(f"folds: {folds}", flush=True)
    gains = {
        "ranks": ratio(ranks["2"], ranks["1"])[0] / 2,
        "folds": ratio(folds["1"], folds["2"])[0] / 2,
    }
    titles = {"ranks": "two ranks", "folds": f"{_FOLDS} folds, two at a time"}
    return Report(
        title="Two cores",
        method=(
            "The Perceiver's demo, one thread for each process. Ranks: samples per second while training, batches of "
            f"{_BATCH} on each rank, gradients averaged by gloo; start-up does not count. Folds: seconds of a whole "
            f"`--folds {_FOLDS}` of one epoch each with `--jobs 1` and `--jobs 2`, processes' starts and reports "
            "included. Median (smallest..largest); ratios are of the same round, 2 would be perfect."
        ),
        header=["what", "one", "two", "ratio"],
        rows=[
            [
                "ranks, samples per second",
                *(median_text(ranks[n], digits=0) for n in "12"),
                ratio_text(ranks["2"], ranks["1"]),
            ],
            [
                f"{_FOLDS} folds, seconds",
                *(median_text(folds[n], digits=1) for n in "12"),
                ratio_text(folds["1"], folds["2"]),
            ],
        ],
        goals=[
            Goal(f"{titles[name]}: at least {_AT_LEAST} of twice the pace", f"{gain:.2f}", gain >= _AT_LEAST)
            for name, gain in gains.items()
        ],
        raw={"ranks": ranks, "folds": folds},
    )


def _pace(start: Sequence[str], steps: int, folder: Path) -> float:
    """Samples per second over the second half of a training."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        limits = ["--batch_size", str(_BATCH), "--max_steps", str(steps), "--log_every", "10", "--baseline", "none"]
        _train(start, limits, output=Path(place))
        lines = (Path(place) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    paces: list[float] = [row["perf/samples_per_s"] for row in map(json.loads, lines) if "perf/samples_per_s" in row]
    return statistics.median(paces[len(paces) // 2 :])


def _folds(jobs: int, folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        asked = ["--epochs", "1", "--folds", str(_FOLDS), "--jobs", str(jobs)]
        return seconds(lambda: _train(_ALONE, asked, output=Path(place)))


def _train(start: Sequence[str], flags: Sequence[str], *, output: Path) -> None:
    command = [*start, "apps/perceiver/train.py", *_COMMON, *flags, "--output_dir", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=environment)


if __name__ == "__main__":
    run_alone(measure)

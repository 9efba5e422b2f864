"""How long until something happens: until `--help` is printed, and until the first training step is done.

python -m benchmarks.startup            about three minutes
"""

import os
import subprocess
import sys

from benchmarks.common import (
    NOT_INSTALLED,
    ROOT,
    Goal,
    Options,
    Report,
    alternate,
    median_text,
    peer,
    run_alone,
    seconds,
)

_LIMIT_S = 0.5
_ONE_STEP = (
    "import torch; torch.set_num_threads(1); from benchmarks.loops import LOOPS; "
    "from benchmarks.clocked import ClockedModel, Data; "
    "LOOPS[{name!r}][2](ClockedModel(1), Data(ready_made=False), 1, fused=True)"
)
# Title, module it needs, command (after the interpreter).
_HELP: dict[str, tuple[str, str | None, list[str]]] = {
    "python": ("an empty Python program", None, ["-c", "pass"]),
    "help": ("`apps/perceiver/train.py --help`", None, ["apps/perceiver/train.py", "--help"]),
    "torch": ("`import torch` alone", None, ["-c", "import torch"]),
    "accelerate": ("`import accelerate`", "accelerate", ["-c", "import accelerate"]),
    "transformers": ("`from transformers import Trainer`", "transformers", ["-c", "from transformers import Trainer"]),
    "lightning": ("`import lightning`", "lightning", ["-c", "import lightning"]),
}
_STEP: dict[str, tuple[str, str | None, list[str]]] = {
    name: (f"first step, {title}", module, ["-c", _ONE_STEP.format(name=name)])
    for name, title, module in (
        ("bare", "bare PyTorch loop", None),
        ("ours", "mlcore Trainer", None),
        ("accelerate", "Accelerate", "accelerate"),
        ("hf", "transformers Trainer", "transformers"),
        ("lightning", "Lightning Trainer", "lightning.pytorch"),
    )
}


def measure(options: Options) -> Report:
    """Wall time of whole processes, in turns."""
    rounds = 1 if options.quick else 7
    programs = {**_HELP, **{f"step_{name}": entry for name, entry in _STEP.items()}}
    there = {name: entry for name, entry in programs.items() if entry[1] is None or peer(entry[1]) is not None}
    sides = {name: lambda command=entry[2]: _run(command) for name, entry in there.items()}
    if not options.quick:
        alternate(sides, rounds=1)  # bytecode and page cache
    figures = alternate(sides, rounds=rounds)
    rows = [
        [title, median_text(figures[name], digits=2) if name in figures else NOT_INSTALLED]
        for name, (title, _, _) in programs.items()
    ]
    helps = sorted(figures["help"])[rounds // 2]
    return Report(
        title="Start-up",
        method=(
            f"Wall time in seconds of whole processes, {rounds} rounds in turns with a warm page cache: median "
            "(smallest..largest). The first step is of the loops of `benchmarks/loops.py`, one thread."
        ),
        header=["program", "seconds"],
        rows=rows,
        goals=[Goal(f"`--help` in at most {_LIMIT_S} s", f"{helps:.2f} s", helps <= _LIMIT_S)],
        raw=figures,
    )


def _run(command: list[str]) -> float:
    paths = [str(ROOT), str(ROOT / "libs"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore"}
    return seconds(
        lambda: subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)
    )


if __name__ == "__main__":
    run_alone(measure)

"""What a training loop costs on top of a bare PyTorch loop, for a model so small that little else is left.

    python -m benchmarks.loop_overhead            about four minutes

`benchmarks/loops.py` holds the loops. Each is measured twice: reading samples through its data loader, as users run it,
and on batches that lie ready in a list, where nothing but the loop itself is left.
"""

from functools import partial

import torch

from benchmarks.clocked import Data
from benchmarks.common import NOT_INSTALLED, Goal, Options, Report, alternate, median_text, peer, ratio_text, run_alone
from benchmarks.common import ratio as ratio_of
from benchmarks.loops import LOOPS, run_loop

_LIMIT = 1.05
_METHOD = (
    "A 64-128-10 perceptron, batch 16, AdamW, clipping to 1.0, cosine schedule per step, loss read every 50 steps, one "
    "thread; each in turns with the bare loop in one process, {rounds} rounds of {steps} steps. Processor time of a "
    "step in µs, and its ratio to the bare loop's in the same round: median (smallest..largest). All loops use "
    '`AdamW(fused=True)`, as mlcore always does; "default" is a bare loop with `AdamW(...)` as most scripts write it.'
)


def measure(options: Options) -> Report:
    """Time per step of every loop, in turns with the bare loop, in this process."""
    torch.set_num_threads(1)
    steps, rounds = (120, 1) if options.quick else (300, 9)
    parts = [_pairs(Data(ready_made=ready_made), steps=steps, rounds=rounds) for ready_made in (False, True)]
    fused = [ratio_of(*part["ours", "fused"])[0] for part in parts]
    plain = ratio_of(*parts[0]["ours", "default"])[0]
    return Report(
        title="Training loop overhead",
        method=_METHOD.format(rounds=rounds, steps=steps),
        header=["loop", "compared with", "with data loader, µs", "ratio", "batches ready-made, µs", "ratio"],
        rows=_rows(parts),
        goals=[
            Goal(
                f"at most {_LIMIT} of a bare loop with the same (fused) optimiser",
                f"{fused[0]:.3f} with the data loader, {fused[1]:.3f} on ready-made batches",
                max(fused) <= _LIMIT,
            ),
            Goal(f"at most {_LIMIT} of a bare loop as most scripts write it", f"{plain:.3f}", plain <= _LIMIT),
        ],
        raw={
            title: {" ".join(key): pair for key, pair in part.items()}
            for title, part in zip(("loader", "ready_made"), parts, strict=True)
        },
    )


# By a loop's name and the bare loop's AdamW: the loop's figures and those of the bare loop in turns with it.
_Pairs = dict[tuple[str, str], tuple[list[float], list[float]]]


def _comparisons() -> list[tuple[str, str]]:
    """All loops against the bare one with the same AdamW; ours and the bare one also against a script's default."""
    there = [name for name, (_, module, _) in LOOPS.items() if module is None or peer(module) is not None]
    return [("bare", "default"), ("ours", "default"), *((name, "fused") for name in there if name != "bare")]


def _pairs(data: Data, *, steps: int, rounds: int) -> _Pairs:
    """Every loop against the bare one next to it: rounds over all loops at once would compare distant moments."""
    found: _Pairs = {}
    for name, kind in _comparisons():
        sides = {
            "it": partial(run_loop, name, data, steps=steps),
            "bare": partial(run_loop, "bare", data, steps=steps, fused=kind == "fused"),
        }
        alternate(sides, rounds=1)  # imports, allocator, caches
        figures = alternate(sides, rounds=rounds)
        found[name, kind] = figures["it"], figures["bare"]
        print(f"{name} against bare ({kind}): {ratio_text(*found[name, kind])}", flush=True)
    return found


def _rows(parts: list[_Pairs]) -> list[list[str]]:
    rows = []
    for name, kind in _comparisons():
        cells = [f"{LOOPS[name][0]}, fused", f"bare, {kind}"]
        for part in parts:
            mine, bare = part[name, kind]
            cells += [f"{median_text(mine, scale=1e6, digits=0)}", ratio_text(mine, bare)]
        rows.append(cells)
    missing = [title for title, module, _ in LOOPS.values() if module is not None and peer(module) is None]
    return rows + [[title, NOT_INSTALLED, "", "", "", ""] for title in missing]


if __name__ == "__main__":
    run_alone(measure)

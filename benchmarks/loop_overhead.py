"""What a training loop costs on top of a bare PyTorch loop, for a model so small that little else is left.

    python -m benchmarks.loop_overhead            about three minutes

`benchmarks/loops.py` holds the loops. Each is measured twice: reading samples through its data loader, as users run it,
and on batches that lie ready in a list, where nothing but the loop itself is left.
"""

import torch

from benchmarks.common import NOT_INSTALLED, Goal, Options, Report, alternate, median_text, peer, ratio_text, run_alone
from benchmarks.common import ratio as ratio_of
from benchmarks.loops import LOOPS, Data, run_loop

_LIMIT = 1.05


def measure(options: Options) -> Report:
    """Seconds per step of every loop, in turns in this process."""
    torch.set_num_threads(1)
    steps, rounds = (120, 1) if options.quick else (1000, 11)
    figures = {
        ready_made: _figures(Data(ready_made=ready_made), steps=steps, rounds=rounds) for ready_made in (False, True)
    }
    ours = [ratio_of(part["ours/fused"], part["bare/fused"])[0] for part in figures.values()]
    plain = ratio_of(figures[False]["ours/fused"], figures[False]["bare/default"])[0]
    return Report(
        title="Training loop overhead",
        method=(
            "A 64-128-10 perceptron, batch 16, AdamW, clipping to 1.0, cosine schedule per step, loss read every 50 "
            f"steps, one thread, processor time; {rounds} rounds of {steps} steps of each loop in turns in one process. Time per step in "
            "microseconds, and its ratio to the bare loop with the same optimiser in the same round: median "
            '(smallest..largest). "default" is `AdamW(...)` as most scripts write it, "fused" is `AdamW(fused=True)`, '
            "which mlcore always uses."
        ),
        header=["loop", "AdamW", "with data loader, µs", "ratio", "batches ready-made, µs", "ratio"],
        rows=_rows(figures),
        goals=[
            Goal(
                f"at most {_LIMIT} of a bare loop with the same (fused) optimiser",
                f"{ours[0]:.3f} with the data loader, {ours[1]:.3f} on ready-made batches",
                max(ours) <= _LIMIT,
            ),
            Goal(f"at most {_LIMIT} of a bare loop as most scripts write it", f"{plain:.3f}", plain <= _LIMIT),
        ],
        raw={"loader": figures[False], "ready_made": figures[True], "steps": steps},
    )


def _figures(data: Data, *, steps: int, rounds: int) -> dict[str, list[float]]:
    sides = {
        f"{name}/{kind}": lambda name=name, kind=kind: run_loop(name, data, steps=steps, fused=kind == "fused")
        for name, (_, module, _) in LOOPS.items()
        for kind in (("fused",) if name == "ours" else ("default", "fused"))
        if module is None or peer(module) is not None
    }
    alternate(sides, rounds=1)  # imports, allocator, caches
    return alternate(sides, rounds=rounds)


def _rows(figures: dict[bool, dict[str, list[float]]]) -> list[list[str]]:
    rows = []
    for name, (title, module, _) in LOOPS.items():
        if module is not None and peer(module) is None:
            rows.append([title, NOT_INSTALLED, "", "", "", ""])
            continue
        for kind in ("default", "fused"):
            if f"{name}/{kind}" not in figures[False]:
                continue
            cells = [title, kind]
            for part in figures.values():
                mine = part[f"{name}/{kind}"]
                cells += [median_text(mine, scale=1e6, digits=0), ratio_text(mine, part[f"bare/{kind}"])]
            rows.append(cells)
    return rows


if __name__ == "__main__":
    run_alone(measure)

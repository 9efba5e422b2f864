"""From settings to a finished run: session, build, final evaluation, folder, copy, runs of runs, dry run, doctor.

And back from a run to what it is good for: `load_run(PATH)` gives its predictor, `load_runs(PATHS)` that of several.
May import base, config, data, metrics, trackers, training, report, cli and remote.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlcore.run.averaged import load_runs
    from mlcore.run.predictor import load_run

__all__ = ["load_run", "load_runs"]


def __getattr__(name: str) -> object:
    """`load_run` and `load_runs`, whose modules import torch, when they are asked for (PEP 562)."""
    if name == "load_run":
        from mlcore.run.predictor import load_run

        return load_run
    if name == "load_runs":
        from mlcore.run.averaged import load_runs

        return load_runs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

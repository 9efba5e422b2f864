"""From settings to a finished run: session, build, final evaluation, folder, copy, runs of runs, dry run, doctor.

And back from a run to what it is good for: `load_run(PATH)` gives its predictor. May import base, config, data,
metrics, trackers, training, report, cli and remote.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlcore.run.predictor import load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> object:
    """`load_run`, whose module imports torch, when it is asked for (PEP 562)."""
    if name != "load_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlcore.run.predictor import load_run

    return load_run

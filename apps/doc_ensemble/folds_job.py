"""Train a cross-validation, or find it trained."""

from collections.abc import Sequence
from pathlib import Path

from apps.doc_ensemble.build import APP
from apps.doc_ensemble.config import DocConfig
from mlcore.app import root_of_runs
from mlcore.cli.spec import Invocation
from mlcore.config.dump import to_values
from mlcore.runs import finished_run
from mlcore.session import run

__all__ = ["train_folds"]


def train_folds(invocation: Invocation[DocConfig]) -> tuple[int, Path]:
    """Train the folds of a job in its usual place; a finished job of the same settings is taken as it is.

    One that `--resume` names is gone through again, so that its copy in a bucket gets what it lacks.

    Returns:
        Exit code (75: interrupted, the same call goes on) and the job's folder, which means nothing if the code is not
        0 or this is not the main rank.

    Raises:
        UserError: Anything the user has to mend.
    """
    root, values = root_of_runs(APP, invocation), to_values(invocation.config)
    resume = invocation.config.run.resume
    named = [] if resume in ("auto", "never") else [Path(resume)]
    found = None if named else _finished(root, values)
    if found is not None:
        return 0, found
    code = run(APP, invocation)
    return code, _finished(root, values, first=named) or root


def _finished(root: Path, values: dict[str, object], *, first: Sequence[Path] = ()) -> Path | None:
    places = (*first, *sorted(root.glob("*"), reverse=True))
    return next((path for path in places if finished_run(path, values)), None)

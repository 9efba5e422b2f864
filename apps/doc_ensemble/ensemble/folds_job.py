"""Train a cross-validation, or find it trained."""

from collections.abc import Sequence
from pathlib import Path

from mlcore.cli.app import App
from mlcore.cli.invocation import Invocation
from mlcore.run.folder import finished_run
from mlcore.run.session import run
from quartet.apps.doc_ensemble.config import DocConfig

__all__ = ["train_folds"]


def train_folds(app: App[DocConfig], invocation: Invocation[DocConfig]) -> tuple[int, Path]:
    """Train the folds of a job in its usual place; a finished job of the same settings is taken as it is.

    One that `--resume` names is gone through again, so that its copy in a bucket gets what it lacks.

    Returns:
        Exit code (75: interrupted, the same call goes on) and the job's folder, which means nothing if the code is not
        0 or this is not the main rank.

    Raises:
        UserError: Anything the user has to mend.
    """
    root, config = app.folder_of_runs(invocation), invocation.config
    resume = config.run.resume
    named = [] if resume in ("auto", "never") else [Path(resume)]
    found = None if named else _finished(root, config)
    if found is not None:
        return 0, found
    code = run(app, invocation)
    return code, _finished(root, config, first=named) or root


def _finished(root: Path, config: DocConfig, *, first: Sequence[Path] = ()) -> Path | None:
    places = (*first, *sorted(root.glob("*"), reverse=True))
    return next((path for path in places if finished_run(path, config)), None)

"""What a finished run is good for: where its parts lie, and the commands that use it.

The head of the report and the last lines of the terminal are made of these; a command is spelt nowhere else.
"""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from mlcore.cli.app import App
from mlcore.config.sections import TrainConfig
from mlcore.run.final_evaluation import best_checkpoint
from mlcore.run.predictor import runs_within

__all__ = ["next_steps", "places"]

_FILES = (
    ("figures", "metrics.csv"),
    ("settings", "config.yaml"),
    ("log", "train.log"),
)


def places(folder: Path) -> list[tuple[str, str]]:
    """What lies where in a run folder, as (what, where)."""
    best = best_checkpoint(folder / "checkpoints")
    found = [] if best is None else [("weights", str(best.relative_to(folder)))]
    return [("folder", str(folder)), *found, *((what, name) for what, name in _FILES if (folder / name).is_file())]


def next_steps(folder: Path, *, app: App[Any], train: TrainConfig, demo: bool) -> list[tuple[str, str]]:
    """What can be done with a run, as (what for, command for a shell in the present folder); words in capitals vary.

    Args:
        folder: The run's.
        app: What was trained.
        train: How it was trained.
        demo: Whether it was the demo.
    """
    run, python, quartet = shlex.quote(str(folder)), shlex.quote(_here(Path(sys.executable))), _quartet()
    steps = [("look at it", f"{python} -m webbrowser {run}/report.html")]
    best = best_checkpoint(folder / "checkpoints")
    if best is not None:
        steps += _uses(run, app)
        settings = f"{'--demo ' if demo else ''}--config {run}/config.yaml"
        limit = f"--epochs {2 * train.epochs}" if train.max_steps is None else f"--max_steps {2 * train.max_steps}"
        steps.append(("continue, for longer", f"{quartet} train {app.name} {settings} --resume {run} {limit}"))
    elif (inner := runs_within(folder)) != [folder]:
        alone = len(inner) == 1
        steps += _uses(shlex.quote(str(inner[0])), app) if alone else _uses(run, app)[-3:-1]  # several are averaged
    other = "OTHER_RUN" if best is not None else "OTHER_JOB"
    return [*steps, ("compare with another one", f"{quartet} compare {run} {other}")]


def _uses(run: str, app: App[Any]) -> list[tuple[str, str]]:
    """What can be done with trained weights."""
    verbs = [] if app.evaluation is None else [("evaluate on other data", f"evaluate {run} --data DATA")]
    uses = [("predict", f"predict {run} INPUT"), ("try on a page", f"serve {run}"), ("export", f"export {run}")]
    verbs += [] if app.use is None else uses
    return [(what, f"{_quartet()} {command}") for what, command in verbs]


def _quartet() -> str:
    """How the command is called in the environment that runs."""
    script = Path(sys.executable).with_name("quartet")
    if not script.is_file():
        return f"{shlex.quote(_here(Path(sys.executable)))} -m quartet"
    return "quartet" if shutil.which("quartet") == str(script) else shlex.quote(_here(script))


def _here(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

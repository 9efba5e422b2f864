"""What an app's `train.py` calls: parse the command line and do what it asks for; imports torch after parsing."""

from collections.abc import Sequence
from typing import Any, NoReturn

from mlcore.cli.app import App
from mlcore.cli.invocation import Invocation
from mlcore.cli.main import run_app

__all__ = ["train"]


def train(app: App[Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Train the app, or do what else the command line says, and exit with the code of `mlcore.run.session.run`.

    Args:
        app: The application.
        argv: Arguments; the process's own by default.
    """

    def act(invocation: Invocation[Any]) -> int:
        from mlcore.run.session import run  # after parsing: torch takes seconds to import

        return run(app, invocation)

    run_app(app, act, argv=argv)

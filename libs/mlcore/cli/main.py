"""The shared `main` of scripts: parse, print or sweep where asked, hand the rest over, and report mistakes plainly."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from mlcore.base.console import guard_terminal
from mlcore.base.env import load_env
from mlcore.base.errors import UserError
from mlcore.base.secrets import note_arguments
from mlcore.base.signals import Interrupted, conclude
from mlcore.cli.app import App
from mlcore.cli.invocation import Invocation
from mlcore.cli.parse import parse
from mlcore.config.compose import group_choices
from mlcore.config.dump import to_schema, to_yaml
from mlcore.config.validation import ConfigT

__all__ = ["guarded", "run_app"]


def run_app(
    app: App[ConfigT],
    act: Callable[[Invocation[ConfigT]], int],
    *,
    argv: Sequence[str] | None = None,
    extra: argparse.ArgumentParser | None = None,
) -> NoReturn:
    """Run a script and exit with its code; `.env` is read first.

    Args:
        app: The application.
        act: Does what the invocation asks for (train, dry_run, test, lr_find) and returns the exit code; it should
            import torch and the like itself, so that `--help` and `--cfg` stay quick.
        argv: Arguments; the process's own by default.
        extra: Parser with the script's own arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def main() -> int:
        load_env()  # before parsing: some settings are backed by environment variables
        invocation = parse(app, arguments, extra=extra)
        if invocation.action == "print_config":
            sys.stdout.write(_printed(app, invocation))
            return 0
        if invocation.action == "multirun":
            from mlcore.cli.multirun import own_command, run_sweep  # not needed by `--help`, which is to be quick

            return run_sweep(invocation, app=app.name, command=own_command(arguments), root=app.root)
        return act(invocation)

    guarded(main)


def _printed(app: App[ConfigT], invocation: Invocation[ConfigT]) -> str:
    """What `--cfg` and `--print_config` print."""
    config = invocation.config
    if invocation.extra.cfg == "schema":
        return json.dumps(to_schema(type(config), group_choices(app.config_dir)), indent=2, ensure_ascii=False) + "\n"
    if invocation.extra.cfg == "settings":
        origin = " These are the demo's: no data set was given." if invocation.composed.demo else ""
        title = f"# All settings of {app.name}: change them, and give the file back as --config FILE.{origin}\n"
        return title + to_yaml(config, explain=True)
    return to_yaml(config, invocation.composed.sources)


def guarded(main: Callable[[], int]) -> NoReturn:
    """Exit with the result of `main`, which no signal changes any more.

    A `UserError` is printed plainly and exits with 2, `Interrupted` with 75, Ctrl-C in a script that does not listen to
    signals with 130. From the first line on the terminal shows no secret and no control character.
    """
    guard_terminal()
    note_arguments(sys.argv)
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Interrupted as ended:
        code = ended.status
    except KeyboardInterrupt:
        code = 130
    finally:
        conclude()
    sys.exit(code)

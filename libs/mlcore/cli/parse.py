"""From the command line to a typed configuration; imports nothing heavy, so that `--help` is quick."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlcore.base.errors import nearest
from mlcore.base.secrets import note_arguments
from mlcore.cli.app import App
from mlcore.cli.flags import ACTIONS, Flags, setting_of
from mlcore.cli.invocation import Action, Invocation, expand
from mlcore.config.compose import Request, compose
from mlcore.config.names import NameTable
from mlcore.config.text import ConfigError
from mlcore.config.validation import ConfigT

__all__ = ["parse"]

_OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_NEGATIVE = re.compile(r"-[.\d]")


def parse(
    app: App[ConfigT], argv: Sequence[str] | None = None, *, extra: argparse.ArgumentParser | None = None
) -> Invocation[ConfigT]:
    """Parse a command line and compose the configuration; `--help` and `--completion` print and exit.

    Args:
        app: The application.
        argv: Arguments without the program's name; the process's own by default.
        extra: A parser (with `add_help=False`, underscores in its flags) with the script's own arguments.

    Returns:
        What to do, with which configuration.

    Raises:
        ConfigError: A flag, key, value or file is wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    note_arguments(argv)  # before a message quotes one
    table = NameTable(app.config_cls)
    parser = Flags(app, table, extra).parser()
    reader = _Reader(table, parser)
    given, rest = parser.parse_known_args(reader.flags(argv))
    if rest:
        raise ConfigError(f"command line: unexpected '{rest[0]}'; settings are given as --name VALUE or name=VALUE")
    overrides = (*_settings(given), *reader.unknown)
    if "" in (named := getattr(given, "config", [])):
        raise ConfigError("command line: --config names no file")
    files = [Path(file) for file in named]
    demo = hasattr(given, "demo")
    jobs = expand(overrides) if hasattr(given, "multirun") else ()
    action = _action(given)

    request = Request(files=files, demo=demo, demo_unless=app.demo_unless, base=app.base)
    composed = [  # of all jobs, so that a mistake in a later one is told now
        compose(app.config_cls, app.config_dir, replace(request, overrides=chosen)) for chosen in jobs or (overrides,)
    ]
    return Invocation(
        action=action,
        composed=composed[0],
        demo_requested=demo,
        overrides=overrides,
        jobs=jobs,
        passed_on=(
            *(f"--config={file.absolute()}" for file in files),
            *(f"--{name}" for name in ("demo", *ACTIONS) if hasattr(given, name)),
        ),
        extra=given,
    )


class _Reader:
    """Brings every flag and `key=value` to the one spelling that the parser knows.

    Attributes:
        unknown: `key=value` pairs that are no flag; the composition explains what is wrong with them.
    """

    def __init__(self, table: NameTable, parser: argparse.ArgumentParser) -> None:
        self._table = table
        # argparse has no public view of its flags; this attribute has been there since it exists.
        self._known = parser._option_string_actions
        self.unknown: list[tuple[str, str]] = []

    def flags(self, argv: Sequence[str]) -> list[str]:
        """The argument list with canonical flags only, in the order given."""
        flags: list[str] = []
        for token in argv:
            match = _OVERRIDE.fullmatch(token)
            if self._wants_value(flags):
                joined = _NEGATIVE.match(token) or match  # argparse would take these for a flag
                flags[-1:] = [f"{flags[-1]}={token}"] if joined else [flags[-1], self._canonical(token)]
            elif match is None:
                flags.append(self._canonical(token))
            elif (name := self._setting(match.group(1))) is not None:
                flags.append(f"--{name}={match.group(2)}")
            else:
                self.unknown.append((match.group(1), match.group(2)))
        return flags

    def _setting(self, name: str) -> str | None:
        """The flag behind the name of a setting or group."""
        action = self._known.get(f"--{name}")
        if action is not None and setting_of(action.dest) == name:
            return name
        leaf = self._table.resolve(name)
        return None if leaf is None else self._table.short[leaf.path]

    def _wants_value(self, flags: Sequence[str]) -> bool:
        """Whether the last flag takes exactly one value and has not got it."""
        action = self._known.get(flags[-1]) if flags else None
        return action is not None and (action.nargs is None or action.nargs == "+") and flags[-1].startswith("-")

    def _canonical(self, token: str) -> str:
        if not token.startswith("--") or len(token) == 2:
            return token
        head, equals, value = token[2:].partition("=")
        name = head.replace("-", "_")
        if f"--{name}" in self._known:
            return f"--{name}{equals}{value}"
        known = self._setting(name)
        if known is not None:
            return f"--{known}{equals}{value}"
        positive = self._table.resolve(name.removeprefix("no_"))
        if name.startswith("no_") and positive is not None and positive.is_bool:
            return f"--no_{self._table.short[positive.path]}{equals}{value}"
        hint = nearest(name, [*self._table.names(), *(flag.lstrip("-") for flag in self._known)])
        raise ConfigError(f"command line: unknown flag '--{head}'{hint.replace(chr(39), chr(39) + '--', 1)}")


def _settings(given: argparse.Namespace) -> list[tuple[str, str]]:
    """Settings given as flags; several values of a list become one text."""
    pairs = [(setting_of(destination), value) for destination, value in vars(given).items()]
    return [
        (name, value if isinstance(value, str) else value[0] if len(value) == 1 else f"[{', '.join(value)}]")
        for name, value in pairs
        if name is not None
    ]


def _action(given: argparse.Namespace) -> Action:
    if hasattr(given, "cfg"):
        return "print_config"
    if hasattr(given, "multirun"):
        return "multirun"
    chosen = [name for name in ACTIONS if hasattr(given, name)]
    if chosen == ["dry_run", "check_data"]:  # the session looks at the data first
        return "dry_run"
    if len(chosen) > 1:
        raise ConfigError(f"command line: --{chosen[0]} and --{chosen[1]} cannot be combined")
    return chosen[0] if chosen else "train"

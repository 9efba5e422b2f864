"""The argparse parser of an application: one flag for each setting, with default, unit, choices and other names."""

import argparse
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from mlcore.config.compose import EXPERIMENT
from mlcore.config.names import Leaf, NameTable
from mlcore.config.text import ConfigError, dump_value

__all__ = ["ACTIONS", "SETTING", "build_parser", "setting_of"]

ACTIONS = ("dry_run", "test", "lr_find")
SETTING = "setting "  # prefix of the destinations that are settings; the rest of the destination is their name

_USAGE = "%(prog)s [flags] [key=value ...] [group=choice ...] [+experiment=NAME]"
_EPILOG = """\
Every setting can be given as --name VALUE, --name=VALUE, name=VALUE or by its full path (train.lr=1e-3); '-' and '_'
are the same in flags. Values follow YAML: 3, 1e-4, true, null, [50, 200], text; ${env:NAME} is an environment variable.
A later source wins: defaults, default.yaml, demo.yaml, group choice, experiment, --config files, environment, command
line.
"""


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the long usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; --help lists all flags")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, indent_increment: int = 2, max_help_position: int = 34, width: int = 120) -> None:
        super().__init__(prog, indent_increment, max_help_position, width)


def build_parser(
    table: NameTable,
    groups: Mapping[str, Collection[str]],
    *,
    description: str,
    defaults: Mapping[str, Any],
    extra: argparse.ArgumentParser | None = None,
) -> argparse.ArgumentParser:
    """Build the parser.

    Args:
        table: The names of all settings; each gets one flag, under its shortest name.
        groups: Choices of each group.
        description: First lines of the help.
        defaults: Default of each setting by dotted path, for the help.
        extra: A parser (with `add_help=False`) with the script's own arguments.

    Returns:
        A parser whose values are all text.
    """
    parser = _Parser(
        usage=_USAGE,
        description=description,
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=_Formatter,
        parents=[] if extra is None else [extra],
        argument_default=argparse.SUPPRESS,
    )
    _add_common(parser, groups)
    headings: dict[str, argparse._ArgumentGroup] = {}
    for path, leaf in table.leaves.items():
        section = path.rpartition(".")[0]
        if section not in headings:
            headings[section] = parser.add_argument_group(section or "settings")
            if section in groups:
                _add_group(headings[section], section, groups[section])
        _add_setting(headings[section], leaf, table.short[path], defaults.get(path))
    return parser


def setting_of(destination: str) -> str | None:
    """Name of the setting or group behind an argparse destination, or None for other arguments."""
    return destination.removeprefix(SETTING) if destination.startswith(SETTING) else None


def _add_common(parser: argparse.ArgumentParser, groups: Mapping[str, Collection[str]]) -> None:
    add = parser.add_argument_group("what to do").add_argument
    add("--dry_run", action="store_true", help="run each part once on a few samples and print what training would do")
    add("--test", action="store_true", help="check system, optional parts and configuration, then exit")
    add("--lr_find", action="store_true", help="try rising learning rates for a moment and suggest one")
    add("-m", "--multirun", action="store_true", help="run every combination of comma lists, as in `-m lr=1e-3,1e-4`")
    add(
        "--cfg",
        nargs="?",
        const="job",
        choices=["job"],
        help="print the resolved configuration with origins, then exit",
    )
    add = parser.add_argument_group("where settings come from").add_argument
    add("--config", action="append", metavar="FILE", help="YAML or JSON file, keys nested or flat; may be repeated")
    add("--demo", action="store_true", help="apply the demo preset (demo.yaml)")
    names = groups.get(EXPERIMENT, ())
    what = f"preset: {', '.join(names) or 'none yet'}; also +experiment=NAME"
    add("--experiment", dest=f"{SETTING}{EXPERIMENT}", metavar="NAME", help=what)


def _add_group(heading: "argparse._ArgumentGroup", section: str, choices: Collection[str]) -> None:
    text = f"preset of this section: {', '.join(choices)}; also {section}=NAME"
    heading.add_argument(f"--{section}", dest=f"{SETTING}{section}", metavar="NAME", help=_escaped(text))


def _add_setting(heading: "argparse._ArgumentGroup", leaf: Leaf, short: str, default: Any) -> None:
    options: dict[str, Any] = {
        "dest": f"{SETTING}{leaf.path}",
        "metavar": _metavar(leaf),
        "help": _help(leaf, short, default),
    }
    if leaf.is_bool:
        heading.add_argument(
            f"--no_{short}", dest=options["dest"], action="store_const", const="false", help=argparse.SUPPRESS
        )
        options |= {"nargs": "?", "const": "true"}
    elif leaf.meta.bare is not None:
        options |= {"nargs": "?", "const": leaf.meta.bare}
    elif leaf.is_list:
        options |= {"nargs": "+"}
    heading.add_argument(f"--{short}", **options)


def _metavar(leaf: Leaf) -> str:
    if leaf.is_bool:
        return "true|false"
    kinds = {int: "N", float: "X"}
    number = next((kinds[kind] for kind in leaf.types if kind in kinds), None)
    return number or ("NAME" if leaf.choices else "VALUE")


def _help(leaf: Leaf, short: str, default: Any) -> str:
    others = [f"--{name}" for name in dict.fromkeys((*leaf.meta.aliases, leaf.path)) if name != short]
    if leaf.is_bool:
        others.insert(0, f"--no_{short}")
    notes = [f"default: {'***' if leaf.secret and default is not None else dump_value(default)}"]
    notes += [f"unit: {leaf.meta.unit}"] if leaf.meta.unit else []
    notes += [f"choices: {', '.join(leaf.choices)}"] if leaf.choices else []
    notes += [f"environment: {leaf.meta.env}"] if leaf.meta.env else []
    notes += [f"also: {', '.join(others)}"] if others else []
    return _escaped(f"{leaf.info.description} [{'; '.join(notes)}]")


def _escaped(text: str) -> str:
    return text.replace("%", "%%")

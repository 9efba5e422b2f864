"""The flags of an application: its argparse parser, one flag for each setting, and the texts made of it.

`--help` is a page: what to do, where settings come from, the sections. `--help=SECTION` has the flags of one in full,
with default, unit, choices and other names; `--help=all` has everything. `--completion` makes shells know the flags.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

from mlcore.base.errors import UserError, nearest
from mlcore.cli.app import App
from mlcore.cli.invocation import Action
from mlcore.config.compose import EXPERIMENT, SYNONYM, group_choices
from mlcore.config.names import Leaf, NameTable
from mlcore.config.text import ConfigError, dump_value, read_document

__all__ = ["ACTIONS", "Flags", "setting_of"]

ACTIONS: tuple[Action, ...] = ("dry_run", "test", "lr_find", "check_data")
_SETTING = "setting "  # prefix of the destinations that are settings; the rest of the destination is their name
_SHELLS = ("bash", "zsh", "tcsh")
_USAGE = "%(prog)s [flags] [key=value ...] [group=choice ...] [+experiment=NAME]"
_EPILOG = """\
Every setting can be given as --name VALUE, --name=VALUE, name=VALUE or by its full path (train.lr=1e-3); '-' and '_'
are the same in flags. Values follow YAML: 3, 1e-4, true, null, [50, 200], text; ${env:NAME} is an environment variable.
A later source wins: defaults, default.yaml, demo.yaml, group choice, experiment, --config files, environment, command
line.
"""
_EXAMPLES = """
examples:
  %(prog)s --demo                                    the demo, on data that it makes
  %(prog)s --epochs 20 lr=1e-4 --dry_run             what a training with these settings would do
  %(prog)s --print_config > mine.yaml                all settings, to be edited ...
  %(prog)s --config mine.yaml                        ... and trained with
  %(prog)s -m lr=1e-3,1e-4                           a sweep of two runs

settings, by section; --help=SECTION has its flags in full, --help=all those of all sections:
"""
_FORMATTER = partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=120)


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the long usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; --help=all lists all flags")


class _Show(argparse.Action):
    """Prints what a function makes of the flag's value, and exits."""

    def __init__(self, *, show: Callable[[str], str], **options: Any) -> None:
        super().__init__(**options)
        self._show = show

    def __call__(self, parser: argparse.ArgumentParser, _namespace: object, values: Any, _flag: object = None) -> None:
        sys.stdout.write(self._show(values))
        parser.exit()


@dataclass(frozen=True)
class Flags:
    """The command line of one application.

    Attributes:
        app: The application.
        table: The names of its settings; each gets one flag, under its shortest name.
        extra: A parser (with `add_help=False`) with the script's own arguments.
    """

    app: App[Any]
    table: NameTable
    extra: argparse.ArgumentParser | None = None

    def parser(
        self, sections: Mapping[str, Sequence[Leaf]] | None = None, *, explain: bool = False, epilog: str = _EPILOG
    ) -> argparse.ArgumentParser:
        """A parser whose values are all text, with the flags of all or some sections; `explain`: with their help."""
        parser = _Parser(
            usage=_USAGE,
            description=self.app.description,
            epilog=epilog,
            allow_abbrev=False,
            add_help=False,
            formatter_class=_FORMATTER,
            parents=[] if self.extra is None else [self.extra],
            argument_default=argparse.SUPPRESS,
        )
        self._add_common(parser)
        self._add_sections(parser, self.table.by_section() if sections is None else sections, explain=explain)
        return parser

    def help(self, topic: str = "") -> str:
        """The help on a section, on everything ("all"), or the page that names the sections.

        Raises:
            ConfigError: There is no such section.
        """
        sections = self.table.by_section()
        if not topic:
            return self.parser({}, epilog=f"{_EPILOG}{_EXAMPLES}{self._overview()}").format_help()
        if topic == "all":
            return self.parser(explain=True).format_help()
        chosen = {name: leaves for name, leaves in sections.items() if f"{name}.".startswith(f"{topic}.")}
        if not chosen:
            hint = nearest(topic, sections) or ";"
            raise ConfigError(f"command line: --help: no section '{topic}'{hint} sections: {', '.join(sections)}, all")
        parser = _Parser(usage=argparse.SUPPRESS, add_help=False, formatter_class=_FORMATTER)
        self._add_sections(parser, chosen, explain=True)
        return parser.format_help().lstrip()

    def completion(self, shell: str) -> str:
        """The script with which a shell completes the flags of a command that is called like the application.

        Raises:
            UserError: shtab, which writes it, is not installed.
        """
        try:
            import shtab  # needed for nothing else
        except ModuleNotFoundError:
            raise UserError("--completion needs the package shtab, which is not installed: pip install shtab") from None
        parser = self.parser(explain=True)
        parser.prog = self.app.name
        for action in parser._actions:  # no public view; here since argparse exists
            name = setting_of(action.dest) or action.dest
            leaf = self.table.leaves.get(name)
            named = leaf.choices or (("true", "false") if leaf.is_bool else ()) if leaf is not None else ()
            if choices := self._choices.get(name) or named:
                action.choices = list(choices)
            elif name == "config" or (leaf is not None and Path in leaf.types):
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # what shtab looks for
        return shtab.complete(parser, shell)

    @cached_property
    def _choices(self) -> dict[str, dict[str, Path]]:
        return group_choices(self.app.config_dir)

    def _add_common(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument_group("what to do").add_argument
        switch: Any = {"action": "store_true"}
        what = "this page, the flags of a section, or those of all"
        add("-h", "--help", action=_Show, show=self.help, nargs="?", const="", metavar="SECTION|all", help=what)
        add("--dry_run", **switch, help="run each part once on a few samples and print what training would do")
        add("--check_data", **switch, help="open every file of all splits and name all that cannot be used; exit")
        add("--test", **switch, help="check system, optional parts and configuration, then exit")
        add("--lr_find", **switch, help="try rising learning rates for a moment and suggest one")
        add("-m", "--multirun", **switch, help="run every combination of comma lists, as in `-m lr=1e-3,1e-4`")
        what = "print the resolved configuration with origins, or the JSON Schema of its files (for editors); exit"
        add("--cfg", nargs="?", const="job", choices=["job", "schema"], help=what)
        what = "print all settings with their meaning, as a file for --config; exit"
        add("--print_config", dest="cfg", action="store_const", const="settings", help=what)
        what = f"print the script that completes the flags of a command named {self.app.name}; exit"
        add("--completion", action=_Show, show=self.completion, choices=_SHELLS, help=what)
        add = parser.add_argument_group("where settings come from").add_argument
        add("--config", action="append", metavar="FILE", help="YAML or JSON file, keys nested or flat; may be repeated")
        add("--demo", **switch, help="apply the demo preset (demo.yaml)")
        what = f"preset: {', '.join(self._choices.get(EXPERIMENT, ())) or 'none yet'}; also +experiment=NAME"
        add("--experiment", dest=f"{_SETTING}{EXPERIMENT}", metavar="NAME", help=what)

    def _add_sections(
        self, parser: argparse.ArgumentParser, sections: Mapping[str, Sequence[Leaf]], *, explain: bool
    ) -> None:
        defaults = self.app.defaults() if explain else {}
        for section, leaves in sections.items():
            add = parser.add_argument_group(section).add_argument
            if section in self._choices:
                what = self._presets(section) if explain else None
                add(f"--{section}", dest=f"{_SETTING}{section}", metavar="NAME", help=what)
            for leaf in leaves:
                short = self.table.short[leaf.path]
                _add_setting(add, leaf, short, help_=_help(leaf, short, defaults[leaf.path]) if explain else None)

    def _presets(self, section: str) -> str:
        others = {name: read_document(file).values.get(SYNONYM) for name, file in self._choices[section].items()}
        names = ", ".join(name if other is None else f"{name} (= {other})" for name, other in others.items())
        return _escaped(f"preset of this section: {names}; also {section}=NAME")

    def _overview(self) -> str:
        sections, lines = self.table.by_section(), []
        for name in dict.fromkeys(section.partition(".")[0] for section in sections):
            count = sum(len(leaves) for section, leaves in sections.items() if section.partition(".")[0] == name)
            meaning = self.table.sections[name].meaning() if name in self.table.sections else ""
            presets = f" [{name}=NAME: {len(self._choices[name])} presets]" if name in self._choices else ""
            lines.append(f"  {name:<22} {count:>3}  {meaning}{presets}")
        return _escaped("\n".join(lines))


def setting_of(destination: str) -> str | None:
    """Name of the setting or group behind an argparse destination, or None for other arguments."""
    return destination.removeprefix(_SETTING) if destination.startswith(_SETTING) else None


def _add_setting(add: Callable[..., Any], leaf: Leaf, short: str, *, help_: str | None) -> None:
    options: dict[str, Any] = {"dest": f"{_SETTING}{leaf.path}", "metavar": _metavar(leaf), "help": help_}
    if leaf.is_bool:
        add(f"--no_{short}", dest=options["dest"], action="store_const", const="false", help=argparse.SUPPRESS)
        options |= {"nargs": "?", "const": "true"}
    elif leaf.meta.bare is not None:
        options |= {"nargs": "?", "const": leaf.meta.bare}
    elif leaf.is_list:
        options |= {"nargs": "+"}
    add(f"--{short}", **options)


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

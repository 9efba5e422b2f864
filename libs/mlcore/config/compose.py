"""Composition of one application's configuration from all its sources.

Lowest to highest: defaults of the typed model, `default.yaml`, `demo.yaml` (where asked for), group choices,
experiments, `--config` files, environment-backed settings, command line. A group choice made on the command line also
decides *which* choice a section has; only the values inside its file rank as a group's. What a preset says about
another of its values (a field that `describes` one) goes with that value.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from mlcore.base.env import environment
from mlcore.base.errors import nearest
from mlcore.base.secrets import note, register
from mlcore.config.layers import Rank, Settings, Source, Value
from mlcore.config.names import Leaf, NameTable
from mlcore.config.text import ConfigError, Document, Text, interpolate, read_document, shown
from mlcore.config.validation import ConfigT, validate

__all__ = ["Composed", "Request", "compose", "group_choices"]

EXPERIMENT = "experiment"
SYNONYM = "synonym_of"  # in the file of a group's choice: the choice that it is another name of
_COMMAND_LINE = "command line"
_DEFAULT = Source(Rank.MODEL, "default")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for.

    Attributes:
        overrides: (name, text) pairs in order; names are settings, groups, or "experiment". A later one wins.
        files: `--config` files in order.
        demo: Apply `demo.yaml`.
        demo_unless: Dotted paths of settings; while none has a value, `demo.yaml` is applied unasked.
        base: Files that all else is put upon, the later one winning.
    """

    overrides: Sequence[tuple[str, str]] = ()
    files: Sequence[Path] = ()
    demo: bool = False
    demo_unless: tuple[str, ...] = ()
    base: tuple[str, ...] = ("default.yaml",)


@dataclass(frozen=True)
class Composed(Generic[ConfigT]):
    """A configuration and where each of its values came from.

    Attributes:
        config: The typed configuration.
        sources: Origin of every setting, by dotted path.
        demo: Whether the demo preset was applied.
        experiment: Name of the experiment, if one was chosen.
    """

    config: ConfigT
    sources: Mapping[str, Source]
    demo: bool
    experiment: str | None

    def was_given(self, path: str) -> bool:
        """Whether the user gave this setting, rather than a default or the demo preset."""
        return self.sources[path].rank > Rank.DEMO


def compose(
    config_cls: type[ConfigT], config_dir: Path, request: Request, *, environ: Mapping[str, str] | None = None
) -> Composed[ConfigT]:
    """Merge all sources by rank and validate the result.

    Args:
        config_cls: The application's configuration model.
        config_dir: Folder with default.yaml, demo.yaml, experiment/ and one folder for each group. Groups for all
            applications are in `shared/` beside it.
        request: What the user asked for.
        environ: Environment variables; the process's own by default.

    Returns:
        The configuration with the origin of its values.

    Raises:
        ConfigError: A file, key, value, choice or variable is wrong.
    """
    table = NameTable(config_cls)
    environ = environment() if environ is None else environ
    demo = request.demo
    values = _Composer(table, config_dir, environ).collect(request, demo=demo)
    if not demo and request.demo_unless:
        demo = all(path not in values or values[path].raw is None for path in request.demo_unless)
        values = _Composer(table, config_dir, environ).collect(request, demo=demo) if demo else values
    config = validate(config_cls, table, values)
    sources = {path: values[path].source if path in values else _DEFAULT for path in table.leaves}
    return Composed(config, sources, demo, dict(request.overrides).get(EXPERIMENT))


def group_choices(config_dir: Path) -> dict[str, dict[str, Path]]:
    """The choices of each group (folder) and their files, "experiment" among them; sorted.

    An application has its own, and those in `shared/` beside its folder; of two with one name its own counts.
    """
    groups: dict[str, dict[str, Path]] = {}
    for folder in (config_dir.parent / "shared", config_dir):
        for file in folder.glob("*/*.yaml"):
            groups.setdefault(file.parent.name, {})[file.stem] = file
    return {group: dict(sorted(files.items())) for group, files in sorted(groups.items())}


class _Composer:
    """Collects the values of all sources in rising rank."""

    def __init__(self, table: NameTable, config_dir: Path, environ: Mapping[str, str]) -> None:
        self._table = table
        self._dir = config_dir
        self._environ = environ
        self._groups = {EXPERIMENT: {}, **group_choices(config_dir)}
        self._settings = Settings(table.leaves.values())

    def collect(self, request: Request, *, demo: bool) -> Mapping[str, Value]:
        groups = {name: text for name, text in request.overrides if name in self._groups}
        experiment = groups.pop(EXPERIMENT, None)
        self._put([(self._table.leaves[path], raw, _DEFAULT) for path, raw in self._table.presets.items()])
        for name in request.base:
            self._apply(self._base(name), Rank.DEFAULTS)
        if demo:
            self._apply(self._base("demo.yaml"), Rank.DEMO)
        for group, choice in groups.items():
            self._choose(group, choice, Rank.GROUP, _COMMAND_LINE)
        if experiment is not None:
            self._apply(read_document(self._choice_file(EXPERIMENT, experiment, _COMMAND_LINE)), Rank.EXPERIMENT)
        for file in request.files:
            self._apply(read_document(file), Rank.FILE)
        self._apply_environment()
        for group, choice in groups.items():
            self._settings.select(group, choice)
        self._apply_overrides([pair for pair in request.overrides if pair[0] not in self._groups])
        values = self._settings.result()
        return {path: value for path, value in values.items() if not self._is_stale(path, values)}

    def _base(self, name: str) -> Document:
        file = self._dir / name
        if not file.is_file():
            raise ConfigError(
                f"{shown(file)}: no such file, but what was asked for starts from it; restore it, or make it an empty "
                "file if no setting is to differ from the built-in defaults"
            )
        return read_document(file)

    def _apply(self, document: Document, rank: Rank, *, group: str | None = None) -> None:
        """Take a file; the keys of a group's choice are those of the group's section."""
        choices: list[tuple[str, str, str]] = []
        settings = list(self._flatten(document, document.values, group or "", choices))
        for name, choice, where in choices:
            self._choose(name, choice, rank, where)
        seen: dict[str, str] = {}
        for leaf, _, where in settings:
            if seen.setdefault(leaf.path, where) != where:
                raise ConfigError(f"{where}: {leaf.path} was given before, at {seen[leaf.path]}, under another name")
        self._put([(leaf, raw, Source(rank, where)) for leaf, raw, where in settings], in_group=group is not None)

    def _flatten(
        self, document: Document, values: Mapping[str, Any], prefix: str, choices: list[tuple[str, str, str]]
    ) -> Iterator[tuple[Leaf, Any, str]]:
        """The settings of a mapping in section `prefix` with their places; its group choices are added to `choices`."""
        for key, raw in values.items():
            where = document.where(key)
            name = f"{prefix}.{key}" if prefix else key
            section = self._table.sections.get(prefix)
            if not prefix and key == "defaults":
                if not isinstance(raw, dict) or not all(isinstance(choice, str) for choice in raw.values()):
                    raise ConfigError(f"{where}: 'defaults' holds `group: choice` pairs, such as `scheduler: cosine`")
                choices += [(group, choice, document.where(group)) for group, choice in raw.items()]
            elif isinstance(raw, dict) and section is not None and key in section.hoisted:
                yield from self._flatten(document, raw, prefix, choices)
            elif name in self._table.sections:
                if isinstance(raw, str) and name in self._groups:
                    choices.append((name, raw, where))
                elif isinstance(raw, dict):
                    yield from self._flatten(document, raw, name, choices)
                elif raw is not None:
                    raise ConfigError(f"{where}: {name} is a section; expected `key: value` pairs below it")
            elif (leaf := self._table.resolve(name)) is not None:
                yield leaf, raw, where
            else:
                hint = self._table.suggest(key, inside=prefix)
                hint = "; files name no classes here, choose with `name:`" if key == "_target_" else hint
                raise ConfigError(f"{where}: unknown key '{name}'{hint}")

    def _choose(self, group: str, choice: str, rank: Rank, where: str) -> None:
        """Apply the file of a group's choice; one that is a synonym has the values of the other before its own."""
        if group not in self._groups or group not in self._table.sections:
            known = ", ".join(sorted(set(self._groups) - {EXPERIMENT})) or "none"
            raise ConfigError(
                f"{where}: '{group}' is no group with choices{nearest(group, self._groups)} (groups: {known})"
            )
        document = read_document(self._choice_file(group, choice, where))
        self._settings.select(group, choice)
        for key in [key for key in document.values if key == SYNONYM]:
            file = self._choice_file(group, str(document.values.pop(key)), document.where(key))
            self._apply(read_document(file), rank, group=group)
        self._apply(document, rank, group=group)

    def _choice_file(self, group: str, choice: str, where: str) -> Path:
        choices = self._groups.get(group, {})
        if choice not in choices:
            sweep = "a comma list needs -m (multirun). " if "," in choice else ""
            folders = ", ".join(dict.fromkeys(shown(file.parent) for file in choices.values()))
            raise ConfigError(
                f"{where}: {group} has no choice '{choice}'{nearest(choice, choices) or '.'} "
                f"{sweep}Choices: {', '.join(choices) or 'none'} ({folders or shown(self._dir / group)})"
            )
        return choices[choice]

    def _apply_environment(self) -> None:
        given = [(leaf, self._environ.get(leaf.meta.env or "")) for leaf in self._table.leaves.values()]
        self._put(
            (leaf, Text(text), Source(Rank.ENVIRONMENT, f"environment variable {leaf.meta.env}"))
            for leaf, text in given
            if text  # compose files pass unset variables as empty ones
        )

    def _apply_overrides(self, overrides: Sequence[tuple[str, str]]) -> None:
        source = Source(Rank.COMMAND_LINE, _COMMAND_LINE)
        found: dict[str, tuple[Leaf, Text, Source]] = {}
        for name, text in overrides:
            leaf = self._table.resolve(name)
            if leaf is None and name in self._table.sections:
                raise ConfigError(f"{_COMMAND_LINE}: {name} is a section; set one of its keys, as in {name}.KEY=VALUE")
            if leaf is None:
                raise ConfigError(f"{_COMMAND_LINE}: unknown key '{name}'{self._table.suggest(name)}")
            found[leaf.path] = (leaf, Text(text), source)
        self._put(found.values())

    def _is_stale(self, path: str, values: Mapping[str, Value]) -> bool:
        """Whether a preset says this of another setting's value than the one that has won."""
        section, described = path.rpartition(".")[0], self._table.leaves[path].meta.describes
        other = None if described is None else values.get(f"{section}.{described}")
        return other is not None and values[path].source.rank < min(Rank.FILE, other.source.rank)

    def _put(self, given: Iterable[tuple[Leaf, Any, Source]], *, in_group: bool = False) -> None:
        """Take the values of one source, those that select before the others."""
        for leaf, raw, source in sorted(given, key=lambda item: not item[0].meta.selects):
            value = interpolate(raw, self._environ, where=f"{source.where}: {leaf.path}")
            value = leaf.read(value) if isinstance(value, Text) else value
            if leaf.meta.turns_on is not None and value == leaf.meta.turns_on[0]:
                leaf, value = self._table.leaves[f"{leaf.path.rpartition('.')[0]}.{leaf.meta.turns_on[1]}"], True
            note(leaf.path, value)
            if leaf.secret and isinstance(value, str):
                register(value)
            self._settings.put(leaf, Value(value, source), in_group=in_group)

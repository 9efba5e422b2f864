"""Draw the house into docs/ARCHITECTURE.md: the wings, what lives in each, and the arrows that the imports have.

.venv/bin/python scripts/architecture.py

Also what tests/test_architecture.py reads the sources with: every place where a module names another one. Nothing of
the product is imported for it.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = [
    "BEGIN",
    "END",
    "PAGE",
    "Reference",
    "cycle",
    "file_graph",
    "house",
    "page_with_house",
    "parents",
    "references",
    "resolve",
    "sources",
    "units_graph",
    "wing_docstrings",
]

PAGE = Path("docs") / "ARCHITECTURE.md"
BEGIN, END = "<!-- house: begin, written by scripts/architecture.py -->", "<!-- house: end -->"

# Where packages live: the folder that they are imported from and what their names begin with there.
_ROOTS = (("libs", "mlcore", "mlcore"), ("libs", "quartet", "quartet"), (".", "apps", "quartet.apps"))
_BENCHMARKS = (".", "benchmarks", "benchmarks")

# "quartet.apps.x.data", "apps/x/train.py", "quartet.apps.{}" to be filled in; not "docs/apps.md" or "all apps.".
_IN_TEXT = re.compile(
    r"(?<![\w./-])(?:(?:mlcore|quartet|apps|libs|tests|benchmarks)(?:\.\w+)*\.(?:[A-Za-z_]\w*|[{%])|apps/\w+/\w+\.py)"
)
_FILLED_IN = re.compile(r"'(quartet\.apps|apps|mlcore)\.['{]")
_DYNAMIC = {"import_module", "__import__", "run_module", "run_path", "resolve_name", "locate"}


class Reference(NamedTuple):
    """One place that names a module.

    Attributes:
        line: Line in the file.
        target: Dotted name of the module, or of something in it; "" where that is only known when it runs.
        when: What makes it an import: loading the file ("start"), a call ("call"), a type checker ("typing"), or
            whoever takes the string for a name ("text").
    """

    line: int
    target: str
    when: Literal["start", "call", "typing", "text"]


# ------------------------------------------------------------------------------------------------------------- reading


def sources(root: Path, *, benchmarks: bool = False) -> dict[str, Path]:
    """Every module of the core, the command and the apps: ``{dotted name: file}``."""
    found = {}
    for folder, package, name in (*_ROOTS, _BENCHMARKS) if benchmarks else _ROOTS:
        top = root / folder / package
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            if name == "quartet" and parts[0] == "apps":
                continue  # a link to the folder of apps, for type checkers
            found[".".join((name, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def references(module: str, path: Path) -> Iterator[Reference]:
    """All that a file imports or names, in no particular order; prose in docstrings does not count.

    Raises:
        SyntaxError: The file is not Python.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    stack: list[tuple[ast.AST, Literal["start", "call", "typing"]]] = [
        (ast.parse(path.read_text(encoding="utf-8")), "start")
    ]
    while stack:
        node, when = stack.pop()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Reference(node.lineno, name, when) for name in _imported(node, package))
        else:
            yield from _named(node, when)
        for child in ast.iter_child_nodes(node):
            stack.append((child, _when_inside(node, child, when)))


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """What an import statement names, `from x import y` as x.y, whether y is a module or not."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parent = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parent, base] if base else parent)
    return [f"{base}.{alias.name}" for alias in node.names]


def _named(node: ast.AST, when: Literal["start", "call", "typing"]) -> Iterator[Reference]:
    """Strings that name a module or a script, and calls that import one by its name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for match in _IN_TEXT.findall(node.value):
            dotted = f"quartet.{match.removesuffix('.py').replace('/', '.')}" if "/" in match else match
            yield Reference(node.lineno, dotted, "text")
    elif isinstance(node, ast.JoinedStr | ast.BinOp) and _FILLED_IN.search(ast.unparse(node)):
        yield Reference(node.lineno, "", "text")  # f"quartet.apps.{name}" or "quartet.apps." + name
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in _DYNAMIC:
        known = node.args and isinstance(node.args[0], ast.Constant)
        yield Reference(node.lineno, str(ast.literal_eval(node.args[0])) if known else "", when)


def _when_inside(
    node: ast.AST, child: ast.AST, when: Literal["start", "call", "typing"]
) -> Literal["start", "call", "typing"]:
    """When the imports of a node's child happen, the node's own happening at `when`."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        return "typing" if child in node.body else when
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "start":
        return "call"
    return when


# -------------------------------------------------------------------------------------------------------------- graphs


def resolve(target: str, modules: Mapping[str, Path]) -> str | None:
    """The module that a name stands for, or in which it is defined; None where it is none of ours."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def parents(module: str) -> list[str]:
    """The packages that Python imports before it: "a" and "a.b" of "a.b.c"."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def file_graph(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which module needs which: imports at the start, in functions and for types alone.

    Two things do not count. A string is no need: a message may name a script. And an app's description, `app.py`, names
    its build function and its group of runs inside functions: that lets `--help` print without torch, and both belong
    to what the app is.
    """
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        described = re.fullmatch(r"quartet\.apps\.\w+\.app", module)
        uncounted = {"text", "call"} if described else {"text"}
        found = {resolve(ref.target, modules) for ref in references(module, path) if ref.when not in uncounted}
        graph[module] = {target for target in found if target is not None and target != module}
    return graph


def units_graph(graph: Mapping[str, set[str]], package: str) -> dict[str, set[str]]:
    """The graph of what stands directly in a package: its modules and its sub-packages, each as a whole."""
    units: dict[str, set[str]] = {}
    for module, targets in graph.items():
        unit = _unit(module, package)
        if unit:
            units.setdefault(unit, set()).update({_unit(target, package) for target in targets} - {"", unit})
    return units


def _unit(module: str, package: str) -> str:
    return module[len(package) + 1 :].partition(".")[0] if module.startswith(f"{package}.") else ""


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """A cycle of the graph, its first member once more at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        members: list[str] = error.args[1]
        return members[::-1]  # the sorter follows arrows from what is needed to what needs it
    return []


# ------------------------------------------------------------------------------------------------------------- drawing


def wing_docstrings(modules: Mapping[str, Path]) -> dict[str, str]:
    """Each wing of the core and the docstring of its `__init__.py`, "" where there is none."""
    wings = {}
    for module, path in modules.items():
        if path.name == "__init__.py" and re.fullmatch(r"mlcore\.\w+", module):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            wings[module.removeprefix("mlcore.")] = text
    return wings


def house(root: Path) -> str:
    """The diagram (Mermaid) and the table, as they stand on the page."""
    modules = sources(root)
    docstrings = wing_docstrings(modules)
    arrows = _arrows(modules, docstrings)
    reduced = _reduced(arrows)
    order = _from_the_top(arrows)
    lines = ["```mermaid", "flowchart TD", '    apps["apps/*"]']
    lines += [f"    {unit} --> {target}" for unit in order for target in sorted(reduced[unit], key=order.index)]
    lines += [
        f"    {unit}" for unit in order if not any(unit in (a, *targets) for a, targets in reduced.items() if targets)
    ]
    lines += ["```", "", "| wing | what lives there | what it imports |", "|---|---|---|"]
    for wing in order:
        if wing in docstrings:
            what = " ".join(docstrings[wing].partition("\n\n")[0].split()).rstrip(".")
            targets = ", ".join(sorted(arrows[wing], key=order.index, reverse=True)) or "-"
            lines.append(f"| `{wing}` | {what or '-'} | {targets} |")
    return "\n".join(lines) + "\n"


def _arrows(modules: Mapping[str, Path], wings: Mapping[str, str]) -> dict[str, set[str]]:
    """Which part of the house imports which, the apps taken as one and so is the command, `quartet`."""
    arrows: dict[str, set[str]] = {part: set() for part in ("apps", "quartet", *wings)}
    for module, targets in file_graph(modules).items():
        part = _part(module)
        if part in arrows:
            arrows[part] |= {_part(target) for target in targets} & arrows.keys() - {part}
    return arrows


def _part(module: str) -> str:
    if module.startswith("quartet"):
        return "apps" if module.startswith("quartet.apps") else "quartet"
    return module.split(".")[1] if "." in module else module


def _reduced(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows without those that a longer way replaces (the transitive reduction; there are no cycles)."""
    below: dict[str, set[str]] = {}
    for part in TopologicalSorter(arrows).static_order():
        below[part] = arrows[part].union(*(below[target] for target in arrows[part]))
    return {part: targets - set().union(*(below[target] for target in targets)) for part, targets in arrows.items()}


def _from_the_top(arrows: Mapping[str, set[str]]) -> list[str]:
    """Each part before those that it imports; the same order on every call."""
    below = {part: sorted(arrows[part]) for part in sorted(arrows)}
    return list(TopologicalSorter(below).static_order())[::-1]


def page_with_house(root: Path) -> str:
    """The text of docs/ARCHITECTURE.md with the house as it is now; the file is left alone.

    Raises:
        ValueError: The page has no marks.
    """
    text = (root / PAGE).read_text(encoding="utf-8")
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise ValueError(f"{PAGE}: expected the lines {BEGIN} and {END}")
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n\n{house(root)}\n{text[text.index(END) :]}"


if __name__ == "__main__":
    _ROOT = Path(__file__).resolve().parents[1]
    (_ROOT / PAGE).write_text(page_with_house(_ROOT), encoding="utf-8")

"""Imports run one way: apps -> mlcore, and inside mlcore from higher layers to lower ones (docs/ARCHITECTURE.md).

Checked on the syntax tree, functions included, and on strings that name a module or a script, since those import just
as well. What `--help` needs must come without the heavy libraries, or it takes seconds to print.
"""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# A module may import those of lower layers, and those that stand before it in its own. A new one goes in here and into
# docs/ARCHITECTURE.md.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "files", "config", "env", "seeding", "distributed", "console", "signals", "safe_pickle"),
    ("batch", "ledger", "losses", "metrics", "schedules", "optim", "plots", "runs"),
    ("engine", "checkpoint", "hub", "data", "trackers", "storage", "uploader", "mirror", "doctor"),
    ("task", "evaluator", "diagnose", "progress", "trainer", "lr_finder"),
    ("cli", "report", "analysis", "assemble", "conclusion", "dry_run", "restore", "app", "session", "compare"),
)
RANK = {unit: (layer, place) for layer, units in enumerate(LAYERS) for place, unit in enumerate(units)}

# Imported before the command line is parsed.
LIGHT = (
    "mlcore.base.errors",
    "mlcore.base.files",
    "mlcore.base.env",
    "mlcore.config",
    "mlcore.cli",
    "apps.*.config",
    "apps.*.train",
)
HEAVY = {"boto3", "lightning", "matplotlib", "monai", "pandas", "scipy", "sklearn", "tensorboard", "torch", "wandb"}

# "apps.x.data", "apps/x/train.py", and "apps.{}" or "apps.%s" to be filled in; not "docs/apps.md" or "all apps.".
IN_TEXT = re.compile(
    r"(?<![\w./-])(?:(?:mlcore|apps|libs|tests|benchmarks)(?:\.\w+)*\.(?:[A-Za-z_]\w*|[{%])|apps/\w+/\w+\.py)"
)
DYNAMIC = {"import_module", "__import__", "run_module", "run_path", "resolve_name", "locate"}


class Reference(NamedTuple):
    """One place that names a module."""

    line: int
    target: str  # dotted; "" for an import whose name is only known when it runs
    at_start: bool  # imported as soon as the module itself is


def sources(root: Path) -> dict[str, Path]:
    """Every module of the core and the apps: ``{dotted name: file}``."""
    found = {}
    for folder, package in ((root / "libs", "mlcore"), (root, "apps")):
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    """The modules that an import statement names, `from x import y` as both x and x.y."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parent = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parent, base] if base else parent)
    yield base
    yield from (f"{base}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def references(path: Path, package: str) -> Iterator[Reference]:
    """All that a file imports or names, in no particular order."""
    stack: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), True)]
    while stack:
        node, at_start = stack.pop()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring: prose
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Reference(node.lineno, name, at_start) for name in imported(node, package))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for match in IN_TEXT.findall(node.value):
                yield Reference(node.lineno, match.removesuffix(".py").replace("/", "."), at_start=False)
        elif isinstance(node, ast.JoinedStr | ast.BinOp) and re.search(r"'(apps|mlcore)\.['{]", ast.unparse(node)):
            yield Reference(node.lineno, "", at_start=False)  # f"apps.{name}" or "apps." + name
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in DYNAMIC:
            if not (node.args and isinstance(node.args[0], ast.Constant)):
                yield Reference(node.lineno, "", at_start=False)
            else:
                yield Reference(node.lineno, str(node.args[0].value), at_start)
        inside = at_start and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        stack += [(child, inside and not is_type_checking(node)) for child in ast.iter_child_nodes(node)]


def package_of(module: str, path: Path) -> str:
    """The package that a module's relative imports start from."""
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def complaint(module: str, target: str, siblings: set[str]) -> str | None:
    """Why `module` must not name `target`, or None if it may."""
    here, there = module.split("."), target.split(".")
    if not target:
        return "imports a module whose name is only known when it runs"
    if there[0] in {"tests", "benchmarks"}:
        return f"uses {target}: the product must not need {there[0]}/"
    if there[0] == "libs":
        return f"uses {target}: import it as {target.removeprefix('libs.')}, or the module is there twice"
    if here[0] == "mlcore" and there[0] == "apps":
        return f"uses {target}: the core knows no app"
    if here[0] == "apps" and there[0] == "apps" and len(there) > 1 and here[1:2] != there[1:2]:
        return f"uses {target}: apps share code through mlcore only"
    if here[0] == "apps" and there[0] in siblings:
        return f"imports {target}, which only works for scripts: write {'.'.join(here[:2])}.{target}"
    if here[0] == "mlcore" and there[0] == "mlcore" and len(here) > 1 and len(there) > 1:
        return layer_complaint(here[1], there[1])
    return None


def layer_complaint(here: str, there: str) -> str | None:
    """Why a unit of mlcore must not import another one, or None if it may."""
    for unit in (here, there):
        if unit not in RANK:
            return f"mlcore.{unit} has no layer: give it a place in LAYERS of tests/test_architecture.py"
    if here == there or RANK[there] < RANK[here]:
        return None
    if RANK[here][0] == RANK[there][0]:
        return f"uses mlcore.{there}, which stands after mlcore.{here} in layer {RANK[here][0]}"
    return f"uses mlcore.{there} of layer {RANK[there][0]}, itself being of layer {RANK[here][0]}"


def violations(root: Path) -> list[str]:
    """Every broken import rule below `root`, as "file:line: what is wrong"."""
    found = set()
    for module, path in sources(root).items():
        siblings = {sibling.stem for sibling in path.parent.iterdir() if sibling.suffix in {"", ".py"}} - {"__init__"}
        unit = module.split(".")[1:2]
        if module.startswith("mlcore.") and unit[0] not in RANK:
            found.add(f"{path.relative_to(root)}:1: {layer_complaint(unit[0], unit[0])}")
        for reference in references(path, package_of(module, path)):
            reason = complaint(module, reference.target, siblings)
            if reason:
                found.add(f"{path.relative_to(root)}:{reference.line}: {reason}")
    return sorted(found)


def is_light(module: str) -> bool:
    """Whether the module is among those imported before the command line is parsed."""
    return any(re.match(pattern.replace(".", r"\.").replace("*", r"\w+") + r"(\.|$)", module) for pattern in LIGHT)


def heavy_imports(root: Path) -> list[str]:
    """Chains of imports by which a light module pulls in a heavy library as soon as it is imported."""
    modules = sources(root)
    direct = {
        module: {ref.target for ref in references(path, package_of(module, path)) if ref.at_start}
        for module, path in modules.items()
    }
    found = []
    for start in filter(is_light, modules):
        chains, seen = [[start]], {start}
        while chains:
            chain = chains.pop()
            for target in sorted(direct[chain[-1]]):
                if target.split(".")[0] in HEAVY:
                    found.append(" -> ".join([*chain, target]))
                elif target in modules and target not in seen:
                    seen.add(target)
                    chains.append([*chain, target])
    return found


def write(root: Path, **files: str) -> Path:
    """Lay out a small tree: keys are paths with "__" for "/" and no ending; empty packages are added."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for parent in path.relative_to(root).parents:
            if parent.parts and parent.parts != ("libs",):
                (root / parent / "__init__.py").touch()
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree in which every rule holds."""
    return write(
        tmp_path,
        libs__mlcore__errors="",
        libs__mlcore__config__schema='"""Used by quartet.apps.perceiver.train and mlcore.training.trainer."""\nfrom ..errors import x\n',
        libs__mlcore__losses="from mlcore.base.errors import UserError\nMESSAGE = 'shared by all apps. See docs/apps.md'\n",
        libs__mlcore__trainer="from mlcore import errors, losses\nfrom mlcore.config.schema import x\n",
        apps__perceiver__config="from mlcore.config.schema import x\n",
        apps__perceiver__data="import torch\nfrom mlcore.training.trainer import x\nfrom quartet.apps.perceiver.config import y\n",
        apps__perceiver__train="def main():\n    from quartet.apps.perceiver import data\n",
        apps__other__config="",
    )


def test_the_product_keeps_the_import_rules(repository: Path) -> None:
    assert violations(repository) == []


def test_the_table_in_the_documentation_is_this_one(repository: Path) -> None:
    text = (repository / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d \| ([^|]+) \|", text, re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)/?`", row)) for row in rows] == list(LAYERS)


def test_what_help_needs_imports_nothing_heavy(repository: Path) -> None:
    assert heavy_imports(repository) == []


def test_light_modules_load_nothing_heavy_when_really_imported(repository: Path) -> None:
    names = [name for name in sources(repository) if is_light(name)]
    assert names
    imports = "".join(f"import {name}\n" for name in names)
    code = f"import json, sys\n{imports}print(json.dumps(list(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(result.stdout.splitlines()[-1])) == set()


def test_scripts_hide_no_library_behind_their_neighbours(repository: Path) -> None:
    # `python apps/x/train.py` puts apps/x first on the import path: a file named like a library would replace it.
    libraries = set(sys.stdlib_module_names) | (set(importlib.metadata.packages_distributions()) - {"mlcore", "apps"})
    files = {path.relative_to(repository) for path in (repository / "apps").glob("*/*") if path.suffix in {"", ".py"}}
    assert {str(path) for path in files if path.stem in libraries - {"__init__"}} == set()


def test_a_tree_that_keeps_the_rules_passes(tree: Path) -> None:
    assert violations(tree) == []
    assert heavy_imports(tree) == []


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        (
            "libs__mlcore__losses",
            "from mlcore.training.trainer import fit",
            "mlcore.training.trainer of layer 3, itself being of layer 1",
        ),
        ("libs__mlcore__losses", "from mlcore import trainer", "mlcore.training.trainer of layer 3"),
        ("libs__mlcore__losses", "from . import trainer", "mlcore.training.trainer of layer 3"),
        ("libs__mlcore__losses", "def f():\n    import mlcore.training.trainer", "mlcore.training.trainer of layer 3"),
        (
            "libs__mlcore__losses",
            "if TYPE_CHECKING:\n    import mlcore.training.trainer",
            "mlcore.training.trainer of layer 3",
        ),
        ("libs__mlcore__config__schema", "from ..trainer import fit", "mlcore.training.trainer of layer 3"),
        ("libs__mlcore__errors", "import mlcore.config.schema", "stands after mlcore.base.errors in layer 0"),
        ("libs__mlcore__novelty", "", "mlcore.novelty has no layer"),
        ("libs__mlcore__trainer", "import quartet.apps.perceiver.data", "the core knows no app"),
        ("libs__mlcore__trainer", "from apps import perceiver", "the core knows no app"),
        ("libs__mlcore__trainer", "BUILD = 'quartet.apps.perceiver.build:main'", "the core knows no app"),
        (
            "libs__mlcore__trainer",
            "def f():\n    run(['python', '-m', 'quartet.apps.perceiver.train'])",
            "the core knows no app",
        ),
        ("libs__mlcore__trainer", "run(['python', 'apps/perceiver/train.py'])", "the core knows no app"),
        ("libs__mlcore__trainer", "import_module('apps.%s.build' % name)", "the core knows no app"),
        ("libs__mlcore__trainer", "load(f'apps.{name}')", "only known when it runs"),
        ("libs__mlcore__trainer", "load('apps.' + name)", "only known when it runs"),
        ("libs__mlcore__trainer", "importlib.import_module(name)", "only known when it runs"),
        (
            "libs__mlcore__errors",
            "importlib.import_module('mlcore.training.trainer')",
            "mlcore.training.trainer of layer 3",
        ),
        ("libs__mlcore__errors", "from tests import conftest", "the product must not need tests/"),
        ("apps__perceiver__data", "import benchmarks.run", "the product must not need benchmarks/"),
        ("apps__perceiver__data", "from libs.mlcore import errors", "import it as mlcore"),
        ("apps__perceiver__data", "from apps.other.config import x", "apps share code through mlcore only"),
        ("apps__perceiver__data", "from ..other import config", "apps share code through mlcore only"),
        ("apps__perceiver__data", "import_module('apps.other.config')", "apps share code through mlcore only"),
        ("apps__perceiver__data", "import config", "write quartet.apps.perceiver.config"),
    ],
)
def test_a_planted_violation_is_found_where_it_stands(tree: Path, file: str, line: str, reason: str) -> None:
    path = tree / (file.replace("__", "/") + ".py")
    path.write_text((path.read_text("utf-8") if path.exists() else "") + line + "\n")
    found = violations(tree)
    assert found
    assert all(entry.startswith(f"{path.relative_to(tree)}:") for entry in found)
    assert any(reason in entry for entry in found), found


@pytest.mark.parametrize(
    "line",
    ["import torch", "from torch import nn", "from quartet.apps.perceiver import data", "class A:\n    import wandb"],
)
def test_a_heavy_import_is_found_through_the_chain(tree: Path, line: str) -> None:
    path = tree / "apps/perceiver/config.py"
    path.write_text(path.read_text("utf-8") + line + "\n")
    assert any(chain.startswith("quartet.apps.perceiver.config -> ") for chain in heavy_imports(tree))


def test_a_violation_planted_in_a_copy_of_the_product_is_found(repository: Path, tmp_path: Path) -> None:
    for folder in ("libs", "apps"):
        shutil.copytree(repository / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = violations(tmp_path)
    errors = tmp_path / "libs/mlcore/base/errors.py"
    errors.write_text(
        errors.read_text("utf-8") + "\n\ndef late() -> None:\n    from mlcore.training.losses import x  # noqa: F401\n"
    )
    (new,) = set(violations(tmp_path)) - set(before)
    assert "mlcore.training.losses of layer 1, itself being of layer 0" in new

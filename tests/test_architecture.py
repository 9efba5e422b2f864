"""Imports run one way: apps -> mlcore, inside mlcore along the arrows between its wings, nowhere round in a circle.

Checked on the syntax tree, functions and `if TYPE_CHECKING:` included, and on strings that name a module or a script,
since those import just as well. What `--help` needs must come without the heavy libraries, or takes seconds to print.
"""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.architecture import (
    PAGE,
    cycle,
    file_graph,
    house,
    page_with_house,
    parents,
    references,
    resolve,
    sources,
    units_graph,
    wing_docstrings,
)

# The wings, ground floor first, and what each may import beside itself: whole wings, or one module of a wing.
WINGS: dict[str, tuple[str, ...]] = {
    "base": (),
    "config": ("base",),
    "data": ("base", "config"),
    "metrics": ("base",),
    "trackers": ("base", "config"),
    "training": ("base", "config", "data", "metrics", "trackers"),
    "report": ("base", "metrics"),
    "cli": ("base", "config"),
    "remote": ("base", "config", "training.checkpoint"),
    "run": ("base", "config", "data", "metrics", "trackers", "training", "report", "cli", "remote"),
    "use": ("base", "data", "cli", "remote", "report", "run"),
    "chaos": ("base", "config", "cli", "report", "training"),
    "compare": ("base", "config", "metrics", "report", "trackers", "run"),
}

# Imported before the command line is parsed.
LIGHT = re.compile(
    r"mlcore | mlcore\.base\.(errors|files|env|locks|version) | mlcore\.(config|cli)(\.\w+)* | mlcore\.run(\.app)?"
    r"| mlcore\.use(\.(command|verbs))?"
    r"| quartet(\.(?!apps\b)\w+)* | quartet\.apps\.\w+\.(config|app|train)",
    re.VERBOSE,
)
HEAVY = {"boto3", "lightning", "matplotlib", "monai", "pandas", "scipy", "sklearn", "tensorboard", "torch", "wandb"}
# What they import is said when they run: the command finds an app by its name, `mlcore` its public names when used.
BY_NAME = re.compile(r"mlcore(\.cli\.apps)?|quartet(\.(?!apps\b)\w+)*")


def complaint(module: str, target: str, siblings: set[str]) -> str | None:
    """Why `module` must not name `target`, or None if it may."""
    here, there = module.split("."), target.split(".")
    if not target:
        return None if BY_NAME.fullmatch(module) else "imports a module whose name is only known when it runs"
    if there[0] in {"tests", "benchmarks"}:
        return f"uses {target}: the product must not need {there[0]}/"
    if there[0] == "libs":
        return f"uses {target}: import it as {target.removeprefix('libs.')}, or the module is there twice"
    if there[0] == "apps":
        return f"uses {target}: import it as quartet.{target}, or the module is there twice"
    if here[0] == "mlcore" and there[0] == "quartet":
        return f"uses {target}: the core knows neither an app nor the command"
    if here[:2] == ["quartet", "apps"]:
        return app_complaint(here, there, siblings)
    if here[0] == "quartet" and there[:2] == ["quartet", "apps"] and there[2:] and there[2].isidentifier():
        return f"uses {target}: the command finds apps by name"
    if here[0] == "mlcore" and there[0] == "mlcore" and here[1:]:
        return wing_complaint(here[1], there[1:])
    return None


def app_complaint(here: list[str], there: list[str], siblings: set[str]) -> str | None:
    """Why a module of an app must not name another module, or None if it may."""
    if there[:2] == ["quartet", "apps"]:
        return f"uses {'.'.join(there)}: apps share code through mlcore only" if here[2:3] != there[2:3] else None
    if there[0] == "quartet":
        return f"uses {'.'.join(there)}: an app knows nothing of the command"
    if there[0] in siblings:
        return f"imports {'.'.join(there)}, which only works for scripts: write {'.'.join([*here[:3], *there])}"
    return None


def wing_complaint(here: str, there: list[str]) -> str | None:
    """Why a module of the wing `here` must not name another one of mlcore, or None if it may."""
    if here not in WINGS:
        return f"mlcore.{here} is no wing: give it a row in WINGS of tests/test_architecture.py, or put it into one"
    if there[0] not in WINGS:
        return f"uses mlcore.{there[0]}, which is in no wing: import a name from the module that defines it"
    allowed = (here, *WINGS[here])
    if any(there[: len(name.split("."))] == name.split(".") for name in allowed):
        return None
    return f"uses mlcore.{'.'.join(there)}: {here} may import {', '.join(WINGS[here]) or 'no other wing'}"


def violations(root: Path) -> list[str]:
    """Every broken import rule below `root`, as "file:line: what is wrong"; cycles as "cycle: a -> b -> a"."""
    found = set()
    for module, path in sources(root).items():
        siblings = {sibling.stem for sibling in path.parent.iterdir() if sibling.suffix in {"", ".py"}} - {"__init__"}
        for reference in references(module, path):
            reason = complaint(module, reference.target, siblings)
            if reason:
                found.add(f"{path.relative_to(root)}:{reference.line}: {reason}")
        wing = module.split(".")[1:2]
        if module.startswith("mlcore.") and wing[0] not in WINGS:
            found.add(f"{path.relative_to(root)}:1: {wing_complaint(wing[0], wing)}")
    return sorted(found) + circles(root)


def circles(root: Path) -> list[str]:
    """A cycle of files anywhere, and one of what stands directly in an app, so that no import runs back up in it.

    Imports in functions and for types count, with one exception: what `app.py`, the description of an app, names inside
    its functions (`file_graph` says why). What it imports when it is loaded counts like any other import.
    """
    graph = file_graph(sources(root, benchmarks=True))
    apps = {".".join(module.split(".")[:3]) for module in graph if module.startswith("quartet.apps.")}
    found = [cycle(graph), *(cycle(units_graph(graph, app)) for app in sorted(apps))]
    return [f"cycle: {' -> '.join(members)}" for members in found if members]


def heavy_imports(root: Path) -> list[str]:
    """Chains of imports by which a light module pulls in a heavy library as soon as it is imported."""
    modules = sources(root)
    direct = {}
    for module, path in modules.items():
        named = {ref.target for ref in references(module, path) if ref.when == "start"}
        found = {resolve(target, modules) or target for target in named}
        direct[module] = found.union(*map(parents, found | {module}))
    chains = [[module] for module in modules if LIGHT.fullmatch(module)]
    seen, found_chains = {chain[0] for chain in chains}, []
    while chains:
        chain = chains.pop()
        for target in sorted(direct[chain[-1]]):
            if target.split(".")[0] in HEAVY:
                found_chains.append(" -> ".join([*chain, target]))
            elif target in modules and target not in seen:
                seen.add(target)
                chains.append([*chain, target])
    return found_chains


def file_of(module: str) -> str:
    """Where a module of the small tree lies: "libs/mlcore/base/errors.py"."""
    outside = module.startswith(("quartet.apps.", "benchmarks."))
    return (module.removeprefix("quartet.") if outside else f"libs.{module}").replace(".", "/") + ".py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree in which every rule holds."""
    files = {
        "mlcore.base.errors": "",
        "mlcore.config.schema": '"""For quartet.apps.x.train and mlcore.run.build."""\nfrom ..base.errors import x\n',
        "mlcore.training.losses": "from mlcore.base.errors import x\nTEXT = 'shared by all apps. See docs/apps.md'\n",
        "mlcore.training.checkpoint": "from mlcore.base import errors\nfrom mlcore.config.schema import x\n",
        "mlcore.remote.copy": "from mlcore.training import checkpoint\n",
        "mlcore.run.build": "import torch\nfrom mlcore.training.losses import x\n",
        "quartet.apps.perceiver.config": "from mlcore.config.schema import x\n",
        "quartet.apps.perceiver.data": "import torch\nfrom mlcore.run.build import x\n",
        "quartet.apps.perceiver.build": "from quartet.apps.perceiver import app, data\n",
        "quartet.apps.perceiver.app": "def build():\n    from quartet.apps.perceiver.build import build\n",
        "quartet.apps.perceiver.train": "from .app import APP\nUSAGE = 'python apps/perceiver/train.py'\n",
        "quartet.apps.other.config": "",
        "quartet.command": "def f(name):\n    return importlib.import_module(f'quartet.apps.{name}.app')\n",
        "benchmarks.run": "import mlcore.run.build\n",
    }
    for module, text in files.items():
        path = tmp_path / file_of(module)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for parent in path.relative_to(tmp_path).parents:
            if parent.parts and parent.parts != ("libs",):
                (tmp_path / parent / "__init__.py").touch()
    return tmp_path


def plant(tree: Path, module: str, line: str) -> Path:
    """Add a line to a module of the tree, which may be new."""
    path = tree / file_of(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text("utf-8") if path.exists() else "") + line + "\n")
    return path


def test_the_product_keeps_the_import_rules(repository: Path) -> None:
    assert violations(repository) == []


def test_every_wing_has_a_row_and_nothing_else_has_one(repository: Path) -> None:
    folders = {path.parent.name for path in (repository / "libs/mlcore").glob("*/*.py")}
    assert folders == WINGS.keys() == wing_docstrings(sources(repository)).keys()


def test_a_wing_says_of_itself_what_it_may_import(repository: Path) -> None:
    names = re.compile(r"\b(?:" + "|".join(WINGS) + r")\b(?:\.\w+)?")
    for wing, text in wing_docstrings(sources(repository)).items():
        said = re.split(r"\b[Ii]mports?\b", text)[-1]
        assert not text or set(names.findall(said)) == set(WINGS[wing]), f"mlcore.{wing}"


def test_the_page_shows_the_house_as_it_is(repository: Path) -> None:
    assert (repository / PAGE).read_text("utf-8") == page_with_house(repository), "run scripts/architecture.py"


@pytest.mark.parametrize("pattern", ["README*.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "docs/adr/*.md"])
def test_the_documentation_names_only_what_is_there(repository: Path, pattern: str) -> None:
    modules = sources(repository, benchmarks=True)
    for page in repository.glob(pattern):
        text = page.read_text("utf-8")
        for name in re.findall(r"(?<![\w./-])(?:mlcore|quartet\.apps|benchmarks)(?:\.[A-Za-z]\w+)+", text):
            found = resolve(name, modules)
            assert found, f"{page.name}: {name}"
            rest = name.removeprefix(found).strip(".").partition(".")[0]
            assert rest in modules[found].read_text("utf-8"), f"{page.name}: {name}"
        for name in re.findall(r"(?<![\w./*<-])((?:libs|apps|tests|benchmarks|scripts)/[\w./-]*\w)(?![\w*<{])", text):
            assert (repository / name).exists(), f"{page.name}: {name}"


def test_what_help_needs_imports_nothing_heavy(repository: Path) -> None:
    assert heavy_imports(repository) == []


def test_light_modules_load_nothing_heavy_when_really_imported(repository: Path) -> None:
    names = [name for name in sources(repository) if LIGHT.fullmatch(name)]
    assert {"mlcore.base.locks", "mlcore.run.app", "quartet", "quartet.apps.perceiver.train"} <= set(names)
    imports = "".join(f"import {name}\n" for name in names)
    code = f"import json, sys\n{imports}print(json.dumps(list(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(result.stdout.splitlines()[-1])) == set()


def test_scripts_hide_no_library_behind_their_neighbours(repository: Path) -> None:
    # `python apps/x/train.py` puts apps/x first on the import path: a file named like a library would replace it.
    ours = {"mlcore", "apps", "quartet"}
    libraries = set(sys.stdlib_module_names) | (set(importlib.metadata.packages_distributions()) - ours)
    files = {path.relative_to(repository) for path in (repository / "apps").glob("*/*") if path.suffix in {"", ".py"}}
    assert {str(path) for path in files if path.stem in libraries - {"__init__"}} == set()


def test_a_tree_that_keeps_the_rules_passes(tree: Path) -> None:
    assert violations(tree) == []
    assert heavy_imports(tree) == []


@pytest.mark.parametrize(
    ("module", "line", "reason"),
    [
        ("mlcore.config.schema", "from mlcore.training.losses import fit", "config may import base"),
        ("mlcore.config.schema", "from mlcore.training import losses", "uses mlcore.training.losses"),
        ("mlcore.config.schema", "from ..training import losses", "uses mlcore.training.losses"),
        ("mlcore.config.schema", "from mlcore import training", "uses mlcore.training"),
        ("mlcore.config.schema", "def f():\n    import mlcore.training.losses", "config may import base"),
        ("mlcore.config.schema", "if TYPE_CHECKING:\n    import mlcore.training.losses", "config may import base"),
        ("mlcore.base.errors", "importlib.import_module('mlcore.run.build')", "base may import no other wing"),
        ("mlcore.base.errors", "RUN = 'mlcore.run.build:main'", "base may import no other wing"),
        ("mlcore.remote.copy", "from mlcore.training import losses", "config, training.checkpoint"),
        ("mlcore.training.losses", "from mlcore import UserError", "no wing: import a name from the module"),
        ("mlcore.novelty", "", "mlcore.novelty is no wing"),
        ("mlcore.novel.thing", "", "mlcore.novel is no wing"),
        ("mlcore.run.build", "import quartet.apps.perceiver.data", "the core knows neither an app"),
        ("mlcore.run.build", "from quartet import command", "nor the command"),
        ("mlcore.run.build", "BUILD = 'quartet.apps.perceiver.build:main'", "the core knows neither an app"),
        ("mlcore.run.build", "def f():\n    run(['-m', 'quartet.apps.perceiver.train'])", "the core knows neither"),
        ("mlcore.run.build", "run(['python', 'apps/perceiver/train.py'])", "the core knows neither an app"),
        ("mlcore.run.build", "import_module('quartet.apps.%s.build' % name)", "the core knows neither an app"),
        ("mlcore.run.build", "load(f'quartet.apps.{name}')", "only known when it runs"),
        ("mlcore.run.build", "load('quartet.apps.' + name)", "only known when it runs"),
        ("mlcore.run.build", "importlib.import_module(name)", "only known when it runs"),
        ("mlcore.base.errors", "from tests import conftest", "the product must not need tests/"),
        ("quartet.apps.perceiver.data", "import benchmarks.run", "the product must not need benchmarks/"),
        ("quartet.apps.perceiver.data", "from libs.mlcore import base", "import it as mlcore"),
        ("quartet.apps.perceiver.data", "from apps.perceiver import config", "as quartet.apps.perceiver.config"),
        ("mlcore.run.build", "from apps import perceiver", "as quartet.apps.perceiver"),
        ("quartet.apps.perceiver.data", "from quartet.apps.other.config import x", "through mlcore only"),
        ("quartet.apps.perceiver.data", "from ..other import config", "through mlcore only"),
        ("quartet.apps.perceiver.data", "import_module('quartet.apps.other.config')", "through mlcore only"),
        ("quartet.apps.perceiver.data", "import config", "write quartet.apps.perceiver.config"),
        ("quartet.apps.perceiver.data", "from quartet.command import f", "knows nothing of the command"),
        ("quartet.command", "def f():\n    import quartet.apps.perceiver.app", "finds apps by name"),
    ],
)
def test_a_planted_violation_is_found_where_it_stands(tree: Path, module: str, line: str, reason: str) -> None:
    path = plant(tree, module, line)
    found = [entry for entry in violations(tree) if not entry.startswith("cycle: ")]
    assert found
    assert all(entry.startswith(f"{path.relative_to(tree)}:") for entry in found)
    assert any(reason in entry for entry in found), found


@pytest.mark.parametrize(
    ("module", "line", "members"),
    [
        ("mlcore.base.errors", "from mlcore.config.schema import x", {"mlcore.base.errors", "mlcore.config.schema"}),
        (
            "mlcore.training.losses",
            "def f():\n    from mlcore.run.build import y",
            {"mlcore.training.losses", "mlcore.run.build"},
        ),
        (
            "quartet.apps.perceiver.app",
            "if TYPE_CHECKING:\n    from quartet.apps.perceiver.build import Build",
            {"quartet.apps.perceiver.app", "quartet.apps.perceiver.build"},
        ),
        (
            "quartet.apps.perceiver.app",
            "import quartet.apps.perceiver.train",
            {"quartet.apps.perceiver.app", "quartet.apps.perceiver.train"},
        ),
        ("benchmarks.run", "from benchmarks import loop\n\n", set()),
    ],
)
def test_a_planted_cycle_of_files_is_found(tree: Path, module: str, line: str, members: set[str]) -> None:
    plant(tree, module, line)
    plant(tree, "benchmarks.loop", "def f():\n    from benchmarks.run import x")
    (first, *_) = circles(tree)
    assert set(first.removeprefix("cycle: ").split(" -> ")) == (members or {"benchmarks.run", "benchmarks.loop"})


def test_parts_of_an_app_that_need_each_other_are_found_though_no_two_files_do(tree: Path) -> None:
    plant(tree, "quartet.apps.other.model.net", "from quartet.apps.other.views.crops import x")
    plant(tree, "quartet.apps.other.views.grid", "from quartet.apps.other.model.sizes import x")
    plant(tree, "quartet.apps.other.model.sizes", "")
    plant(tree, "quartet.apps.other.views.crops", "")
    assert circles(tree) in (["cycle: model -> views -> model"], ["cycle: views -> model -> views"])


@pytest.mark.parametrize(
    "line",
    ["import torch", "from torch import nn", "from quartet.apps.perceiver import data", "class A:\n    import wandb"],
)
def test_a_heavy_import_is_found_through_the_chain(tree: Path, line: str) -> None:
    plant(tree, "quartet.apps.perceiver.config", line)
    assert any("quartet.apps.perceiver.config -> " in chain for chain in heavy_imports(tree))


def test_a_heavy_import_of_the_package_around_is_found(tree: Path) -> None:
    (tree / "libs/mlcore/config/__init__.py").write_text("import torch\n")
    assert "mlcore.config -> torch" in heavy_imports(tree)


def test_a_violation_planted_in_a_copy_of_the_product_is_found(repository: Path, tmp_path: Path) -> None:
    for folder in ("libs", "apps", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / folder, tmp_path / folder, ignore=ignored, symlinks=True)
    plant(tmp_path, "mlcore.base.errors", "\n\ndef late() -> None:\n    from mlcore.training.losses import x")
    new, circle = violations(tmp_path)
    assert "uses mlcore.training.losses.x: base may import no other wing" in new
    assert circle.startswith("cycle: ")


def test_the_picture_has_the_arrows_that_no_longer_way_replaces(tree: Path) -> None:
    (tree / "libs/mlcore/base/__init__.py").write_text('"""Errors,\nfiles.\n\nMay import no other wing.\n"""\n')
    drawn = house(tree)
    assert set(re.findall(r"^    (\w+) --> (\w+)$", drawn, re.MULTILINE)) == {
        ("apps", "run"),
        ("run", "training"),
        ("remote", "training"),
        ("training", "config"),
        ("config", "base"),
    }
    assert "| `base` | Errors, files | - |" in drawn
    assert "| `remote` | - | training |" in drawn

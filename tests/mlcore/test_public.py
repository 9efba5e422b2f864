"""The names that mlcore offers: few, documented, seen by type checkers, and imported only when they are used."""

import ast
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import mlcore


@pytest.mark.parametrize("name", mlcore.__all__)
def test_a_public_name_is_what_its_module_defines_and_is_documented(name: str) -> None:
    value = getattr(mlcore, name)
    assert value is getattr(sys.modules[value.__module__], name)
    assert value.__module__.startswith("mlcore.")
    assert value.__doc__
    assert f"`{name}`" in str(mlcore.__doc__)


def test_names_are_sorted_and_listed() -> None:
    assert list(mlcore.__all__) == sorted(mlcore.__all__)
    assert set(mlcore.__all__) <= set(dir(mlcore))


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    stub = ast.parse(resources.files(mlcore).joinpath("__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == {name: getattr(mlcore, name).__module__ for name in mlcore.__all__}
    (listed,) = (node.value for node in stub.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(listed) == mlcore.__all__


@pytest.mark.parametrize("package", ["mlcore", "quartet"])
def test_type_checkers_are_told_that_there_are_types(package: str) -> None:
    assert resources.files(package).joinpath("py.typed").is_file()


def test_importing_mlcore_imports_nothing_heavy_and_a_light_name_stays_light() -> None:
    code = (
        "import sys, mlcore\n"
        "assert not [name for name in sys.modules if name.startswith('mlcore.')]\n"
        "from mlcore import App, UserError, train\n"
        "assert 'torch' not in sys.modules\n"
        "from mlcore import Engine\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'mlcore' has no attribute 'Enigne'"):
        mlcore.Enigne  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(mlcore, "training_")


@pytest.mark.slow
def test_a_type_checker_takes_the_right_types_from_them(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "user.py").write_text(
        "from mlcore import Limits, seed_everything\nreveal_type(Limits(epochs=1).max_steps)\nseed_everything('1')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(tmp_path / "user.py")]
    environment = {"MYPYPATH": str(repository / "libs"), "PATH": "", "MYPY_CACHE_DIR": str(repository / ".mypy_cache")}
    found = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert 'Revealed type is "int | None"' in found.stdout.replace("builtins.", ""), found.stdout + found.stderr
    assert 'Argument 1 to "seed_everything" has incompatible type "str"' in found.stdout

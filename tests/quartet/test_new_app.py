"""A new app is written whole or not at all, into a checkout, and trains, continues and passes its own test at once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from quartet.new_app import write_app
from scripts.lock import HEADER

NAME = "leaf_disease"
TRAIN = f"apps/{NAME}/train.py"
OTHERS = ("ox", "monoclonal_antibody_bind")  # a short name, and one of the greatest length


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a checkout is recognised by, and nothing else."""
    root = tmp_path / "checkout"
    (root / "apps").mkdir(parents=True)
    (root / "apps" / "__init__.py").touch()
    (root / "pyproject.toml").touch()
    return root


def contents(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() or not any(path.iterdir())}


# ----------------------------------------------------------------------------------------------- what is written


def test_an_app_has_all_that_the_repository_asks_of_one(checkout: Path) -> None:
    before = contents(checkout)
    written = write_app(NAME, checkout)
    assert written == sorted(written)
    names = {path.relative_to(checkout).as_posix() for path in written}
    assert contents(checkout) - before == names
    modules = ("__init__", "app", "build", "config", "data", "model", "task", "train")
    assert names == {f"apps/{NAME}/{module}.py" for module in modules} | {
        f"configs/{NAME}/default.yaml",
        f"configs/{NAME}/demo.yaml",
        f"docker/{NAME}.Dockerfile",
        f"docs/{NAME}.md",
        f"requirements/{NAME}.in",
        f"requirements/{NAME}.txt",
        f"tests/{NAME}/test_{NAME}.py",
    }
    assert {path.name for path in checkout.iterdir() if path.name.startswith(".")} == set()


def test_the_name_is_everywhere_and_no_placeholder_is_left(checkout: Path) -> None:
    texts = {path.name: path.read_text("utf-8") for path in write_app(NAME, checkout)}
    assert "class LeafDiseaseConfig(Section)" in texts["config.py"]
    assert 'title="Leaf disease"' in texts["app.py"]
    assert f"COPY apps/{NAME} apps/{NAME}" in texts[f"{NAME}.Dockerfile"]
    assert texts[f"{NAME}.txt"] == HEADER.format(name=NAME) + "-r base.txt\n"
    assert "FROM ${BASE_IMAGE} AS build" in texts[f"{NAME}.Dockerfile"]
    for name, text in texts.items():
        assert not any(mark in text for mark in ("$name", "${name}", "$title", "Class}", "NAME/", "perceiver")), name


def test_the_images_differ_in_name_only(repository: Path, checkout: Path) -> None:
    write_app(NAME, checkout)
    made, known = (
        (root / "docker" / f"{name}.Dockerfile").read_text("utf-8").splitlines()
        for root, name in ((checkout, NAME), (repository, "perceiver"))
    )
    instructions = [line.replace("perceiver", NAME) for line in known if not line.startswith("#")]
    differing = [line for line in made if not line.startswith("#") and line not in instructions]
    assert all("image.description" in line for line in differing)
    assert len(made) == len(known)


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Churn", "lower-case letters"),
        ("leaf-disease", "lower-case letters"),
        ("2moons", "begin with a letter"),
        ("_private", "begin with a letter"),
        ("leaf__disease", "single underscores"),
        ("", "lower-case letters"),
        ("../evil", "lower-case letters"),
        ("x" * 25, "at most 24"),
        ("class", "a word of the Python language"),
        ("json", "standard library"),
        ("torch", "an installed package"),
        ("quartet", "an installed package"),
        ("data", "a section of every app's settings"),
        ("tests", "stands for something else"),
        ("all", "stands for something else"),
    ],
)
def test_an_unfit_name_is_refused_with_the_reason(checkout: Path, name: str, reason: str) -> None:
    before = contents(checkout)
    with pytest.raises(UserError, match=reason):
        write_app(name, checkout)
    assert contents(checkout) == before


def test_a_page_that_differs_in_case_only_is_not_shadowed(checkout: Path) -> None:
    (checkout / "docs").mkdir()
    (checkout / "docs/HISTORY.md").touch()
    with pytest.raises(UserError, match="is there already"):
        write_app("history", checkout)


def test_a_folder_of_that_name_is_no_package(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "churn").mkdir()
    monkeypatch.syspath_prepend(str(checkout))
    assert write_app("churn", checkout)


@pytest.mark.parametrize("taken", [f"apps/{NAME}/app.py", f"configs/{NAME}/default.yaml", f"requirements/{NAME}.txt"])
def test_nothing_is_overwritten(checkout: Path, taken: str) -> None:
    (checkout / taken).parent.mkdir(parents=True)
    (checkout / taken).write_text("mine", encoding="utf-8")
    before = contents(checkout)
    with pytest.raises(UserError, match=r"is there already, and no app is overwritten; choose another name"):
        write_app(NAME, checkout)
    assert contents(checkout) == before
    assert (checkout / taken).read_text("utf-8") == "mine"


@pytest.mark.parametrize("missing", ["pyproject.toml", "apps/__init__.py"])
def test_outside_a_checkout_the_way_there_is_told(checkout: Path, missing: str) -> None:
    (checkout / missing).unlink()
    before = contents(checkout)
    with pytest.raises(UserError, match=r"no checkout of the repository.*clone it with git"):
        write_app(NAME, checkout)
    assert contents(checkout) == before


def test_a_failure_in_the_middle_leaves_nothing(checkout: Path) -> None:
    (checkout / "configs").touch()  # the folder configs/NAME cannot come to be, when most of the rest has
    before = contents(checkout)
    with pytest.raises(UserError, match=rf"configs/{NAME}: cannot be written"):
        write_app(NAME, checkout)
    assert contents(checkout) == before


# -------------------------------------------------------------------------------------------------- what it does


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with new apps in it: one with a name as people give it, a short and a long one."""
    repository = Path(__file__).resolve().parents[2]
    root = tmp_path_factory.mktemp("copy")
    leave_out = shutil.ignore_patterns("__pycache__", ".*_cache")
    for folder in ("apps", "libs"):
        shutil.copytree(repository / folder, root / folder, symlinks=True, ignore=leave_out)
    (root / "tests").mkdir()
    for path in ("pyproject.toml", "tests/conftest.py", "tests/scripts.py"):
        shutil.copy(repository / path, root / path)
    for name in (NAME, *OTHERS):
        write_app(name, root)
    return root


def python(copy: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python at the top of the copy, with the copy's packages."""
    paths = {"PYTHONPATH": os.pathsep.join([str(copy / "libs"), str(copy)]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=copy, env=os.environ | paths, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_it_passes_its_own_test(copy: Path) -> None:
    done = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{NAME}")
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_it_has_the_style_of_the_repository_whatever_its_name(copy: Path) -> None:
    if shutil.which("ruff", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("no ruff (requirements/dev.txt)")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = python(copy, "-m", "ruff", *command, *(f"apps/{name}" for name in (NAME, *OTHERS)), "tests")
        assert done.returncode == 0, done.stdout


def test_what_the_command_line_needs_is_quick(copy: Path) -> None:
    code = f"import sys, quartet.apps.{NAME}.train; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert python(copy, "-c", code).returncode == 0
    shown = python(copy, TRAIN, "--csv", "table.csv", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert "csv: table.csv" in shown.stdout
    assert "metric: val_accuracy" in shown.stdout


@pytest.mark.slow
def test_its_types_are_right(copy: Path) -> None:
    pytest.importorskip("mypy")
    done = python(copy, "-m", "mypy", "--cache-dir", copy / ".mypy", f"libs/quartet/apps/{NAME}")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_stopped_run_ends_as_one_that_was_not(copy: Path, tmp_path: Path) -> None:
    def train(folder: str, *arguments: str) -> dict[str, dict[str, float]]:
        flags = ("--num_threads", "1", "--no_tensorboard", "--output_dir", tmp_path / folder)
        done = python(copy, TRAIN, "--demo", *flags, *arguments)
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / folder / "summary.json").read_text("utf-8"))
        results: dict[str, dict[str, float]] = summary["results_of_best_checkpoint"]
        return results

    whole = train("whole", "--scheduler_type", "constant")
    assert whole["test"]["accuracy"] >= 0.95
    train("parts", "--scheduler_type", "constant", "--max_steps", "100")
    assert train("parts", "--scheduler_type", "constant") == whole


@pytest.mark.slow
def test_a_dry_run_on_an_own_table_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    table = tmp_path / "leaves.csv"
    rows = [f"{k % 2},{k % 7},{('healthy', 'rust')[k % 2]}" for k in range(140)]
    table.write_text("\n".join(["length,width,label", *rows]), encoding="utf-8")
    done = python(copy, TRAIN, "--csv", table, "--dry_run", "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "dry run" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_learning_rate_is_proposed(copy: Path, tmp_path: Path) -> None:
    done = python(copy, TRAIN, "--lr_find", "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "suggested: --lr" in done.stdout
    assert (tmp_path / "run" / "lr_finder.png").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()

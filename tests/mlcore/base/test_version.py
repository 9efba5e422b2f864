"""Which code ran is told by the commit of its own checkout, and of no other's."""

import os
import subprocess
from pathlib import Path

import pytest

from mlcore.base.version import VERSION, code_version


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit of libs/code.py."""
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


@pytest.fixture(autouse=True)
def no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUARTET_REVISION", raising=False)


def test_it_is_the_commit_of_the_folders_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    assert code_version(checkout / "libs") == commit
    monkeypatch.chdir("/")
    monkeypatch.setenv("QUARTET_REVISION", "of the image")
    assert code_version(checkout / "libs") == commit


def test_changed_files_are_told_and_new_ones_are_no_change(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    (checkout / "libs" / "notes.txt").touch()
    assert code_version(checkout / "libs") == commit
    (checkout / "libs" / "code.py").write_text("x = 2\n")
    assert code_version(checkout / "libs") == f"{commit}+changes"


def test_outside_a_checkout_it_is_the_revision_of_the_environment_or_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_version(tmp_path) == VERSION
    monkeypatch.setenv("QUARTET_REVISION", "0123456789ab")
    assert code_version(tmp_path) == "0123456789ab"
    monkeypatch.setenv("QUARTET_REVISION", "")
    assert code_version(tmp_path) == VERSION


def test_a_package_installed_inside_another_projects_checkout_is_the_release(checkout: Path) -> None:
    installed = checkout / ".venv" / "lib" / "mlcore"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert code_version(installed) == VERSION


def test_without_git_it_is_the_release(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version(checkout / "libs") == VERSION


@pytest.mark.parametrize("place", ["variables", "repository"])
def test_asking_git_starts_no_program(checkout: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    canary = checkout.parent / f"canary_{place}"
    program = checkout.parent / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {canary}\n")
    program.chmod(0o755)
    if place == "variables":
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(program))
    else:
        git(checkout, "config", "core.fsmonitor", str(program))
    commit = code_version(checkout / "libs")
    assert not canary.exists()
    assert len(commit) == 12


@pytest.mark.parametrize("name", ["evil", "e=x", "two words"])
def test_nothing_runs_that_a_checkout_asks_git_to_run(checkout: Path, name: str) -> None:
    canary, hooks = checkout / "canary", checkout / "hooks"
    hooks.mkdir()
    (hooks / "post-index-change").write_text(f"#!/bin/sh\ntouch '{canary}'\n")
    (hooks / "post-index-change").chmod(0o755)
    (checkout / ".gitattributes").write_text(f"*.py filter={name}\n" if " " not in name else "*.py filter=evil\n")
    command = f"touch '{canary}'; cat"
    settings = ["core.fsmonitor", "core.sshCommand", "core.pager", f"filter.{name}.clean", f"filter.{name}.process"]
    for setting in settings:
        git(checkout, "config", setting, command)
    git(checkout, "config", "core.hooksPath", str(hooks))
    commit = code_version(checkout / "libs")
    os.utime(checkout / "libs" / "code.py", (1, 1))  # git looks at its content again
    assert code_version(checkout / "libs") == commit
    assert not canary.exists()
    subprocess.run(["git", "-C", str(checkout), "status"], capture_output=True, check=False)
    assert canary.exists(), "it would have run"

"""Which code runs: the release, and the commit of a checkout."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["VERSION", "code_version"]

VERSION = "0.2.0"
"""Release of mlcore and of the apps that come with it; pyproject.toml reads it from here."""


def code_version(folder: Path = Path(__file__).parent) -> str:
    """The commit of the checkout that `folder` is in, with "+changes" where files differ from it.

    Outside a checkout: `QUARTET_REVISION` of the environment, which images set; without it the release.
    """
    try:
        commit = _git(folder.resolve(), "rev-parse", "--short=12", "HEAD")
        if not _git(folder.resolve(), "ls-files", "."):  # some other project's checkout that a package is installed in
            raise FileNotFoundError
        status = "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"
        return commit + ("+changes" if _git(folder.resolve(), *status, off=_filters(folder.resolve())) else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("QUARTET_REVISION") or VERSION


def _filters(folder: Path) -> list[str]:
    """Settings by which git would run programs over changed files; there is no switch for all of them."""
    names = r"^filter\..*\.(clean|process|required)$"
    try:
        return _git(folder, "config", "-z", "--name-only", "--get-regexp", names).rstrip("\0").split("\0")
    except subprocess.CalledProcessError:  # there are none
        return []


def _git(folder: Path, *arguments: str, off: Sequence[str] = ()) -> str:
    # Neither the checkout's settings nor variables of ours are to start programs or to lead to another repository.
    settings = {"core.fsmonitor": "false", "core.hooksPath": os.devnull, **dict.fromkeys(off, "")}
    env = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT") if name in os.environ}
    env |= {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "GIT_CONFIG_COUNT": str(len(settings))}
    for number, (name, value) in enumerate(settings.items()):
        env |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=env)  # noqa: S603
    return done.stdout.strip()

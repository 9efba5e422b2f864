"""Which code runs: the release, and the commit of a checkout."""

import os
import subprocess
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
        return commit + ("+changes" if _git(folder.resolve(), "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("QUARTET_REVISION") or VERSION


def _git(folder: Path, *arguments: str) -> str:
    # Neither the checkout's settings nor variables of ours are to start programs or to lead to another repository.
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", str(folder), *arguments]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT") if name in os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=kept)  # noqa: S603
    return done.stdout.strip()

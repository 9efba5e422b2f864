"""An app's page in docs/, as the tests read it that run the commands and the code that stand there."""

import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.scripts import REPOSITORY


class Block(NamedTuple):
    """A fenced block of a page."""

    heading: str
    language: str
    text: str


@dataclass(frozen=True)
class Page:
    """The page of an app."""

    app: str

    @property
    def path(self) -> Path:
        return REPOSITORY / "docs" / f"{self.app}.md"

    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[Block]:
        found, heading = [], ""
        for match in re.finditer(r"^##+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", self.text(), re.MULTILINE | re.DOTALL):
            heading = match[1] or heading
            if match[2] == language:
                found.append(Block(heading, language, match[3]))
        return found

    def as_python(self, command: str) -> list[str]:
        """Script and arguments of a command; `make train` is what make would start."""
        words = shlex.split(command)
        if words[0] == "make":
            given = dict(word.split("=", 1) for word in words[2:])
            assert words[1] == "train"
            return [f"apps/{self.app}/{given.get('SCRIPT', 'train.py')}", *shlex.split(given.get("ARGS", ""))]
        if words[0] == "quartet":
            return ["libs/quartet/__main__.py", *words[1:]]
        assert words[0] == "python", command
        return words[1:]

    def execute(self, block: Block) -> None:
        """Run a block of Python."""
        exec(compile(block.text, f"{self.path.name}: {block.heading}", "exec"), {"__name__": "__main__"})  # noqa: S102

    def broken_links(self) -> set[str]:
        """Targets inside the page or the repository that are not there."""
        headings = re.findall(r"^##+ (.+)$", self.text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        inside = set(re.findall(r"\]\(#([\w-]+)\)", self.text()))
        files = {target for target in re.findall(r"\]\(([^)#]+)\)", self.text()) if "://" not in target}
        return (inside - anchors) | {target for target in files if not (self.path.parent / target).exists()}


def commands(text: str) -> list[str]:
    """The commands of a block of shell, each in one line."""
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def run_script(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script of the repository in this process: starting Python and torch anew takes seconds each time."""
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / arguments[0]), *arguments[1:]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / arguments[0]), run_name="__main__")
    assert not ended.value.code, shlex.join(arguments)


def run_apart(arguments: list[str], *, processes: int) -> None:
    """Run a script of the repository in processes of its own."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launch, str(REPOSITORY / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr

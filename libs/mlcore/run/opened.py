"""A run folder that a process writes to: its record, configuration, copy and pages, from its beginning to its end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlcore.base.distributed import World
from mlcore.base.files import write_text
from mlcore.base.version import code_version
from mlcore.cli.app import App
from mlcore.cli.invocation import Invocation
from mlcore.config.dump import to_values, to_yaml
from mlcore.run.copy import Copied, RunCopy
from mlcore.run.final_evaluation import Pages, write_pages
from mlcore.run.folder import RunFolder, RunRecord
from mlcore.run.next_steps import next_steps, places
from mlcore.training.progress import Limits


@dataclass(kw_only=True)
class OpenRun:
    """A run folder that this process writes to.

    Attributes:
        app: What is trained there.
        name: What the run is called.
        config: Its configuration.
        invocation: The command line.
        world: Ranks and device.
        place: The folder.
        record: Its lock and `run.json`; None on ranks that do not write, and in a dry run.
        copy: Its copy in a bucket; None for none, and for a run whose group has one.
        group: The run this one belongs to.
        runs: How many runs are still to be trained on the same disk, this one included.
        note: What its configuration does not tell, one line; it goes above it.
        pages: What was last written of it.
    """

    app: App[Any]
    name: str
    config: Any
    invocation: Invocation[Any]
    world: World
    place: RunFolder
    record: RunRecord | None = None
    copy: RunCopy | None = None
    group: "OpenRun | None" = None
    runs: int = 1
    note: str = ""
    pages: Pages | None = field(default=None, init=False)
    _begun: bool = field(default=False, init=False)
    _opened: float = field(default_factory=time.monotonic, init=False)

    @property
    def folder(self) -> Path:
        """Path of the run folder."""
        return self.place.path

    @property
    def goes_on(self) -> bool:
        """Whether it has begun before."""
        return self.place.resume and self.place.checkpoint is None

    @property
    def left(self) -> str:
        """What an interruption leaves, and what the same command does then."""
        if any(self.folder.rglob("checkpoints/*.pth")):
            return f"all that was saved is in {self.folder}, and the same command goes on there"
        whence = "anew" if self.place.checkpoint is None else f"again from {self.place.checkpoint}"
        return f"nothing was saved yet, and the same command starts {whence}"

    def begin(self) -> None:
        """Note, here and in the group, that the run is under way, and start its copy; once."""
        if self._begun:
            return
        self._begun = True
        if self.group is not None:
            self.group.begin()  # not before its first run is sure to start
        if self.record is not None:
            self.record.start(to_values(self.config), code=code_version(self.app.source))
            above = f"# {self.note}\n" if self.note else ""
            write_text(self.folder / "config.yaml", above + to_yaml(self.config, self.invocation.composed.sources))
        if self.copy is not None:
            self.copy.begin()

    def remaining(self, limits: Limits) -> Limits:
        """What is left of the time limit, which counts what was prepared and the other runs of the group, too."""
        if limits.max_seconds is None:
            return limits
        begun = self._opened if self.group is None else self.group._opened
        return replace(limits, max_seconds=limits.max_seconds - (time.monotonic() - begun))

    def submit(self) -> Callable[[Path], None] | None:
        """What hands a new checkpoint to the copy; that of a group has the checkpoints of its runs."""
        whole = self if self.group is None else self.group
        return None if whole.copy is None else whole.copy.submit

    def last_words(self) -> str:
        """What the terminal says at the end: where the report is and, but for a run of a group, its head."""
        told = [f"report: {self.folder / 'report.html'}"]
        if self.pages is not None and self.group is None:
            report = self.pages.report
            for item in report.headlines:
                value = f"{item.value:.4f}" if isinstance(item.value, float) else str(item.value)
                told.append(f"  {item.label} {value} ({item.hint})")
            told += [line for what, command in report.commands for line in (f"  {what}:", f"    {command}")]
        return "\n".join(told)

    def write(self, pages: Pages) -> None:
        """Write summary and report, and how to use the run; nothing is known yet to be missing in the copy."""
        composed = self.invocation.composed
        report = replace(
            pages.report,
            places=places(self.folder),
            commands=next_steps(self.folder, app=self.app, train=self.config.train, demo=composed.demo),
            changed=self.app.changed(self.config, composed.sources),
        )
        self.pages = pages = replace(pages, report=report)
        copied = None if self.copy is None else Copied(self.copy.address, {})
        write_pages(pages, folder=self.folder, copied=copied)

    def close(self, status: str, reason: str | None) -> None:
        """Note how the run ended, wait a while for its copy, release the folder."""
        if self.record is not None:
            self.record.end(status=status, reason=reason)  # before it is copied
        if self.copy is not None:
            copied = self.copy.close(status=status)
            if copied.missing and self.pages is not None:  # summary and report tell what it lacks
                write_pages(self.pages, folder=self.folder, copied=copied)
        if self.record is not None:
            self.record.close(status=status, reason=reason)

"""Runs of a group side by side, each in a process of its own."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.base.secrets import mask_text
from mlcore.base.signals import EXIT_INTERRUPTED, EXIT_TIME_IS_UP, check
from mlcore.cli.app import App
from mlcore.config.dump import to_values
from mlcore.config.names import NameTable, flatten
from mlcore.run.folder import finished_run
from mlcore.run.opened import OpenRun

__all__ = ["train_aside"]

_log = logging.getLogger(__name__)

_POLL_S = 0.2


@dataclass(frozen=True)
class _Job:
    """A run that is being trained.

    Attributes:
        folder: The run's.
        process: It.
        said: File with what it printed.
    """

    folder: Path
    process: subprocess.Popen[bytes]
    said: Path


def train_aside(whole: OpenRun, configs: Mapping[str, Any], *, jobs: int) -> None:
    """Train the runs that are not finished, so many at a time; on several GPUs each gets the next one.

    Args:
        whole: The group's run.
        configs: By folder inside the group's.
        jobs: At most so many processes.

    Raises:
        UserError: One of them failed; the others were stopped and have saved.
        Interrupted: A signal came; all of them have saved.
    """
    waiting = [(whole.folder / place, config) for place, config in configs.items()]
    waiting = [(folder, config) for folder, config in waiting if not finished_run(folder, config)]
    if len(waiting) < 2:
        return  # nothing to be done side by side
    whole.begin()
    _log.info("%d runs, %d at a time; each says what it does in its train.log", len(waiting), jobs)
    with tempfile.TemporaryDirectory(prefix="runs_") as scratch, _stopped_at_the_end() as running:
        for number, (folder, config) in enumerate(waiting):
            while len(running) >= jobs:
                _reap(running)
            running.append(_start(whole, folder, config, scratch=Path(scratch), number=number))
            _log.info("run %d of %d: %s", number + 1, len(waiting), folder.name)
        while running:
            _reap(running)


def _start(whole: OpenRun, folder: Path, config: Any, *, scratch: Path, number: int) -> _Job:
    settings, said = scratch / f"{number}.json", scratch / f"{number}.log"
    write_json(settings, _changed(whole.app, config))
    demo = ["--demo"] if whole.invocation.composed.demo else []
    command = [sys.executable, str(whole.app.source / "train.py"), *demo, "--config", str(settings)]
    command += ["--output_dir", str(folder), "checkpoint.upload_to=null"]  # the group's copy has all of it
    environment = dict(os.environ)
    if whole.world.device.type == "cuda" and (count := torch.cuda.device_count()) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(number % count)
    with said.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)  # noqa: S603
    return _Job(folder, process, said)


def _changed(app: App[Any], config: Any) -> dict[str, Any]:
    """The settings that are not at their default, by dotted path; more would count as asked for."""
    values, defaults = flatten(to_values(config), NameTable(app.config_cls).leaves), app.defaults()
    return {path: value for path, value in values.items() if value != defaults[path]}


def _reap(running: list[_Job]) -> None:
    """Wait a moment; take away what has ended.

    Raises:
        UserError: One has failed.
    """
    check()
    time.sleep(_POLL_S)
    for job in [job for job in running if job.process.poll() is not None]:
        running.remove(job)
        if (code := job.process.returncode) not in (0, EXIT_INTERRUPTED, EXIT_TIME_IS_UP):
            said = job.said.read_text("utf-8", "replace").strip() or "it said nothing"
            raise UserError(
                f"{job.folder}: this run ended with exit code {code}: {mask_text(said.split('error: ')[-1])}"
            )
        _log.info("%s %s", job.folder.name, "goes on later" if code else "is finished")


@contextmanager
def _stopped_at_the_end() -> Iterator[list[_Job]]:
    """A list of processes, of which those that are left are told to save, and waited for."""
    running: list[_Job] = []
    try:
        yield running
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()

"""What a training process does for the program that disturbs it: it says where it is, what it has and what it saw.

Active where the environment names a folder in `QUARTET_CHAOS`. SIGUSR1 then writes the main thread's stack,
SIGUSR2 how many Python objects there are; every window of training samples leaves a line
with its digest. `QUARTET_CHAOS_FAULTS`, JSON, asks for what only the process itself can do: figures that are not finite
in one window, and a clock that is set back. The training code knows nothing of any of it.
"""

import gc
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from mlcore.cli.app import App

__all__ = ["END", "FAULTS", "PLACE", "observed"]

PLACE = "QUARTET_CHAOS"
FAULTS = "QUARTET_CHAOS_FAULTS"
END = "all of it"
"""How a stack ends."""

_AN_HOUR = 3600.0


def observed(app: App[Any]) -> App[Any]:
    """The same app where nobody asks; otherwise one whose process can be watched, see above."""
    if PLACE not in os.environ:
        return app
    place, faults = Path(os.environ[PLACE]), json.loads(os.environ.get(FAULTS, "{}"))
    # Not by faulthandler: reading a stack that is just changing, it now and then ends the process with SIGSEGV.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=_tell_stack, args=(place,), daemon=True).start()
    signal.signal(signal.SIGUSR2, partial(_census, place))
    if shift := faults.get("clock"):
        _shift_clock(float(shift))
    return replace(app, build=partial(_build, app.build, place, faults))


def _tell_stack(place: Path) -> None:
    """Write where the main thread is whenever SIGUSR1 comes; a library that keeps the interpreter delays it."""
    path, main = place / f"stack.{os.getpid()}", threading.main_thread().ident
    path.touch()
    while True:
        signal.sigwait({signal.SIGUSR1})
        frame, lines = sys._current_frames().get(main or 0), list[str]()
        while frame is not None:
            lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
            frame = frame.f_back
        with path.open("a") as file:
            file.write("\n".join([*lines, f"  {END}"]) + "\n")


def _census(place: Path, _number: int, _frame: FrameType | None) -> None:
    with (place / f"objects.{os.getpid()}").open("a") as file:
        file.write(f"{len(gc.get_objects())}\n")


def _build(build: Callable[..., Any], place: Path, faults: Mapping[str, Any], config: Any, world: Any) -> Any:
    """Build as the app does; by now torch is there, and so are the windows to watch."""
    _watch_windows(place, faults, rank=world.rank)
    return build(config, world)


def _watch_windows(place: Path, faults: Mapping[str, Any], *, rank: int) -> None:
    from mlcore.training.trainer import Trainer

    plain = Trainer._windows
    if hasattr(plain, "watched"):
        return  # a group builds several runs

    def windows(trainer: Trainer, epoch: int, *, start: int = 0) -> Iterator[list[Any]]:
        for window in plain(trainer, epoch, start=start):
            step, run = trainer.progress.step, "" if trainer.store is None else trainer.store.folder.parent.name
            _note(place, f"{run} {rank} {step} {digest([batch.data for batch in window])}")
            if faults.get("rank", rank) == rank and step == faults.get("step"):
                _spoil(trainer, window, faults)
            yield window

    windows.watched = True  # type: ignore[attr-defined]
    setattr(Trainer, "_windows", windows)  # noqa: B010 - said to type checkers, too


def _note(place: Path, line: str) -> None:
    """One write to a file of this process: a line is there as a whole or not at all."""
    descriptor = os.open(place / f"windows.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def digest(values: Any) -> str:
    """What a window holds, in sixteen characters: its tensors to the last bit, all else as it is printed."""
    import torch
    from torch.utils._pytree import tree_flatten

    leaves, structure = tree_flatten(values)
    found = hashlib.blake2b(str(structure).encode(), digest_size=8)
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()


def _spoil(trainer: Any, window: list[Any], faults: Mapping[str, Any]) -> None:
    """Do to this window what `faults` says: its samples or the gradient are not finite, or the clock goes back."""
    import torch
    from torch.utils._pytree import tree_map_only

    if faults.get("kind") == "samples":
        for batch in window:
            spoilt = tree_map_only(torch.Tensor, lambda t: t * torch.nan if t.is_floating_point() else t, batch.data)
            object.__setattr__(batch, "data", spoilt)
    elif faults.get("kind") == "gradient":
        parameter = next(p for p in trainer.task.model.parameters() if p.requires_grad)
        once = iter([torch.inf])  # later gradients stay as they are
        parameter.register_hook(lambda gradient: gradient * next(once, 1.0))
    elif faults.get("kind") == "clock":
        _shift_clock(-_AN_HOUR)


def _shift_clock(seconds: float) -> None:
    """Set the wall clock of this process forward or, negative, back; the monotonic clock goes on, as it would."""
    now, local, written = time.time, time.localtime, time.strftime
    time.time = lambda: now() + seconds
    time.time_ns = lambda: int(time.time() * 1e9)
    time.localtime = lambda at=None: local(time.time() if at is None else at)
    time.strftime = lambda form, at=None: written(form, time.localtime() if at is None else at)

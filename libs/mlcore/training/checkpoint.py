"""Durable training state.

A checkpoint is one file in torch's zip format that holds tensors and plain values only, so it loads with
`weights_only=True`. Every record of a zip carries a CRC-32, which is checked before anything is used: a damaged file is
told from a good one without a second file that could get out of step.

`CheckpointStore` copies the state to host buffers and lets a thread write it; training goes on meanwhile. The names
`latest_model.pth` and `best_model.pth` are hard links to the file of a step, moved only after it is safely on the disk.
"""

import itertools
import logging
import os
import pickle
import re
import shutil
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.serialization import config as serialization_config

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, ensure_folder, remove_leftovers
from mlcore.base.reading import check_unpacked, reading
from mlcore.base.safe_pickle import numpy_numbers
from mlcore.training.records import Checksums, check_records, more_than_data

_log = logging.getLogger(__name__)

State = dict[str, Any]

_WRAPPERS = ("model_state_dict", "state_dict", "model")  # keys under which people save weights
_WRAPPING_PARTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})  # of torch's wrappers
_DEEPEST = 8  # wrappers in each other


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, unsafe or of another model."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) so that `path` is either the old file or the whole new one.

    Raises:
        UserError: The folder is not writable or the disk is full; the old file is unharmed.
    """
    size = sum(value.nbytes for value in tree_leaves(dict(state)) if isinstance(value, Tensor))
    without_checksums = serialization_config.patch({"save.compute_crc32": False})  # type: ignore[attr-defined]
    with atomic_write(path, size=size, past_cache=True) as file, without_checksums:
        torch.save(state, cast("BinaryIO", Checksums(file)))


def load_checkpoint(path: Path, *, allow: Sequence[type] = ()) -> State:
    """Read a checkpoint into host memory without executing anything in it.

    Args:
        path: A file written by `save_checkpoint`, or any `torch.save`d file of tensors, plain values and numbers of
            numpy.
        allow: Further classes that the file may hold; each must be one whose construction and attributes do nothing.

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        with reading(path, "a torch checkpoint"):
            check_records(path, allow=allow)
            state = _load(path, allow)
        if not isinstance(state, dict):
            raise UserError(f"{path}: expected a dictionary, found {type(state).__name__}")
        # As strides of 0 make of a few stored numbers.
        unpacked = sum(leaf.nbytes for leaf in tree_leaves(state, _without_attributes) if isinstance(leaf, Tensor))
        check_unpacked(path, unpacked=unpacked, stored=path.stat().st_size)
    except UserError as error:
        raise CheckpointError(str(error)) from error.__cause__
    return state


def _load(path: Path, allow: Sequence[type]) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*allow, *numpy_numbers()]):
            warnings.simplefilter("ignore")  # torch remarks on pickle protocols; what it cannot read, it refuses anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's advice in it is to trust the file
        if "nsupported" not in str(error):
            raise UserError(f"{path}: damaged or not a torch checkpoint") from None
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise more_than_data(path, asked[1] if asked else None) from None


def _without_attributes(node: object) -> bool:
    """Take the attributes from a dictionary, which could stand before its methods; of `tree_leaves`, no leaf."""
    if isinstance(node, OrderedDict):
        vars(node).clear()
    return False


def load_model_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Load `weights` into `model`, strictly.

    Raises:
        CheckpointError: Keys or shapes differ; the message lists them and the model stays as it was.
    """
    check_model_weights(model, weights, source=source)
    model.load_state_dict(dict(weights))


def check_model_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Refuse `weights` that are not those of `model`, by name and shape; errors as in `load_model_weights`."""
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    other_shape = [
        f"{key}: file {list(weights[key].shape)}, model {list(own[key].shape)}"
        for key in sorted(own.keys() & weights.keys())
        if weights[key].shape != own[key].shape
    ]
    if missing or unexpected or other_shape:
        prefix = unknown_prefix(own, weights)
        if prefix:
            raise CheckpointError(
                f"{source}: all its names begin with '{prefix}', which is the name of no wrapper that is known, while "
                f"{type(model).__name__} has names such as {next(iter(own))}. Save the weights again without it"
            )
        lines = [
            f"  {len(names)} {title}: {'; '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", other_shape))
            if names
        ]
        raise CheckpointError(
            f"{source}: weights of another architecture than {type(model).__name__} as configured:\n" + "\n".join(lines)
        )


def bare_weights(state: Mapping[Any, Any], *, prefixes: Sequence[str] = ("module",)) -> dict[str, Tensor]:
    """The weights in a file of another program, without what they are wrapped in.

    They may lie under `model_state_dict`, `state_dict` or `model`, in any nesting, beside other values. Names lose the
    parts that `torch.compile`, FSDP and activation checkpointing put anywhere into them, and leading `prefixes`.

    Args:
        state: What `load_checkpoint` gave.
        prefixes: First parts of names that are dropped where all names have them, again and again; "module" is DDP's.

    Returns:
        Name to tensor; empty where there are none.
    """
    for _ in range(_DEEPEST):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    found = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    names = [[part for part in key.split(".") if part not in _WRAPPING_PARTS] or [key] for key in found]
    while names and names[0][0] in prefixes and all(len(name) > 1 and name[0] == names[0][0] for name in names):
        names = [name[1:] for name in names]
    return {".".join(name): value for name, value in zip(names, found.values(), strict=True)}


def unknown_prefix(own: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """What all names of `weights` begin with beside a name of `own`, such as "net."; empty where there is no such."""
    first = next(iter(own), "")
    before = (name.removesuffix(first) for name in weights if name.endswith(f".{first}"))
    return next((prefix for prefix in before if all(name.startswith(prefix) for name in weights)), "")


def inference_weights(state: Mapping[str, Any], *, source: Path | str) -> dict[str, Tensor]:
    """The weights to predict with: the averaged ones where the run kept an average, else the trained ones.

    Raises:
        CheckpointError: It is not a training checkpoint of ours.
    """
    try:
        return {**state["model"], **state["engine"]["ema"]}
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{source}: not a training checkpoint (keys found: {', '.join(map(str, state))})"
        ) from None


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: Where they live; created when the first one is saved.
        keep_last: How many of the newest step files stay; best and milestone files always stay.
        asynchronous: Let a thread write while training goes on.
        on_saved: Called, in that thread, with each name (latest, best, milestone) that has moved to a new state.
    """

    LATEST = "latest_model.pth"
    BEST = "best_model.pth"

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 2,
        asynchronous: bool = True,
        on_saved: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._on_saved = on_saved
        self._keep_last = max(1, keep_last)
        self._snapshot = _Snapshot()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None

    def save(self, state: Mapping[str, Any], *, step: int, best: bool = False, milestone: str | None = None) -> None:
        """Save `state` as the file of `step`; returns as soon as the state is copied.

        Args:
            state: Tensors and plain values.
            step: Training step; names the file.
            best: Also make it `best_model.pth`.
            milestone: Also keep it under this name for good, e.g. "epoch_0010".

        Raises:
            UserError: This save (or the one before it) could not be written.
        """
        self.wait()
        if self._writer is None:
            self._write(state, step, best, milestone)
        else:
            self._pending = self._writer.submit(self._write, self._snapshot.take(state), step, best, milestone)

    def mark_best(self) -> None:
        """Make the state saved last `best_model.pth`, once it is on the disk."""
        if self._writer is None:
            self._move(self.BEST)
        else:
            saved = self._pending
            self._pending = self._writer.submit(self._move, self.BEST, after=saved)

    def check(self) -> None:
        """Raise what went wrong in the writing thread, if anything has."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last save is on the disk; raise what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last save and stop the thread."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def _write(self, state: Mapping[str, Any], step: int, best: bool, milestone: str | None) -> None:
        ensure_folder(self.folder)
        path = self.folder / f"step_{step:08d}.pth"
        save_checkpoint(path, state)
        # Only now, with the file safe, may names move and old files go.
        names = [self.LATEST, *([self.BEST] if best else []), *([] if milestone is None else [f"{milestone}.pth"])]
        for name in names:
            _link(path, self.folder / name)
        for old in self.step_files()[self._keep_last :]:
            if old != path:  # as where others have higher numbers
                old.unlink(missing_ok=True)
        if self._on_saved is not None:
            for name in names:
                self._on_saved(self.folder / name)

    def _move(self, name: str, *, after: Future[None] | None = None) -> None:
        if after is not None:
            after.result()  # it is done, in this thread; if it failed, `latest` is of an older state
        _link(self.folder / self.LATEST, self.folder / name)
        if self._on_saved is not None:
            self._on_saved(self.folder / name)

    def step_files(self) -> list[Path]:
        """The files of single steps, newest step first."""
        named = [path for path in self.folder.glob("step_*.pth") if re.fullmatch(r"step_\d+\.pth", path.name)]
        return sorted(named, key=lambda path: int(path.stem[5:]), reverse=True)

    def newest_good(self) -> tuple[Path, State] | None:
        """The newest checkpoint that is whole, with its content; damaged ones are reported and passed over.

        Returns:
            Path and state, or None where there is no checkpoint at all.

        Raises:
            CheckpointError: There are checkpoints, but not one is whole.
        """
        candidates = [*self.step_files(), *(self.folder / name for name in (self.LATEST, self.BEST))]
        found = [path for path in candidates if path.is_file()]
        for path in found:
            try:
                return path, load_checkpoint(path)
            except CheckpointError as error:
                _log.warning("%s; trying the one before it", error)
        if found:
            raise CheckpointError(f"{self.folder}: none of the {len(found)} checkpoint files can be read")
        return None

    def keep_best(self, *, step: int) -> None:
        """Let the best of before `step`, from which on it is judged in another way, have a name that stays, too."""
        if (best := self.folder / self.BEST).is_file():
            _link(best, self.folder / f"best_before_step_{step}.pth")

    def take_over(self, path: Path, *, step: int, is_best: bool) -> None:
        """Make `path`, saved at `step`, the newest state: names moved, later (damaged) and half-written files gone."""
        remove_leftovers(self.folder)
        for later in self.step_files():
            if int(later.stem[5:]) > step:
                later.unlink()
        _link(path, self.folder / self.LATEST)
        if is_best:
            _link(path, self.folder / self.BEST)


class _Snapshot:
    """Copies of a state's tensors in host memory, in buffers that are used again for the next save."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}  # by the tensor's place in the state

    def take(self, state: Mapping[str, Any]) -> State:
        places = itertools.count()
        copy: State = tree_map_only(Tensor, lambda tensor: self._copy(tensor.detach(), next(places)), dict(state))
        return copy

    def _copy(self, tensor: Tensor, place: int) -> Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[place] = buffer
        return buffer.copy_(tensor)


def _link(path: Path, name: Path) -> None:
    """Make `name` another name of the file `path`, atomically; a copy where the file system has no hard links."""
    if name.exists() and name.samefile(path):
        return
    temporary = name.with_name(f".{name.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(name)

"""Outputs of frozen encoders, computed once and kept on the disk for every run, epoch and rank.

A store belongs to one *recipe*: everything besides the sample itself that decides the numbers (weights, preprocessing,
precision). Rows are found by the digest of the sample's content. So a changed pixel is another row and a changed weight
another store; nothing is ever looked up by name or date.

A store is a folder of parts, each a folder of `.npy` files that is renamed into place when it is complete: a killed
fill goes on where it stopped, several processes may fill at once, and readers map the files instead of loading them.
"""

import contextlib
import hashlib
import json
import logging
import resource
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlcore.base.console import format_duration, with_progress
from mlcore.base.errors import UserError
from mlcore.base.files import ensure_folder, format_bytes, free_bytes, sync, write_json

_log = logging.getLogger(__name__)

Row = dict[str, NDArray[Any]]

_KEYS = "keys.npy"
_PART_BYTES = 128 * 2**20
_ABANDONED_S = 3600.0


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers of `module`."""
    return tensors_digest(module.state_dict())


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over names, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


class FeatureStore:
    """Rows of named arrays by the digest of what they were computed from.

    Args:
        root: Folder of all stores.
        recipe: Plain values that, with the sample's content, decide the numbers.
    """

    def __init__(self, root: Path, recipe: Mapping[str, Any]) -> None:
        _allow_many_files()
        text = json.dumps(recipe, sort_keys=True, default=str)
        self.folder = ensure_folder(root / hashlib.sha256(text.encode()).hexdigest()[:24])
        if not (self.folder / "recipe.json").is_file():
            write_json(self.folder / "recipe.json", recipe)
        for leftover in self.folder.glob(".part-*.tmp"):  # of a killed process, unless it is young
            with contextlib.suppress(FileNotFoundError):  # another process has renamed or deleted it meanwhile
                if time.time() - leftover.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(leftover, ignore_errors=True)
        self._places: dict[str, tuple[int, int]] = {}  # digest -> part, row
        self._parts: list[Mapping[str, NDArray[Any]]] = []
        self._known: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take notice of parts that were written meanwhile, by other processes too; delete damaged ones.

        Raises:
            UserError: A part cannot be read, for a reason that is not in its files.
        """
        for part in sorted(self.folder.glob("part-*")):
            if part.name in self._known:
                continue
            try:
                keys, arrays = _open_part(part)
            except FileNotFoundError:  # another process found it damaged
                continue
            except OSError as error:
                raise UserError(
                    f"{part}: features cannot be read ({error.strerror or error}); check its owner and permissions, "
                    "the disk, and the limit of open files (ulimit -n), or give another --cache_dir, or --cache off"
                ) from None
            except Exception as error:  # noqa: BLE001 - on cut or overwritten files numpy fails in any way it likes
                _log.warning("%s: damaged (%s); its features are computed again", part, error)
                _discard(part)
                continue
            self._known.add(part.name)
            for row, key in enumerate(keys):
                self._places[bytes(key).hex()] = (len(self._parts), row)
            self._parts.append(arrays)

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def __getitem__(self, digest: str) -> Row:
        part, row = self._places[digest]
        return {name: np.array(values[row]) for name, values in self._parts[part].items()}

    def missing(self, digests: Sequence[str]) -> list[int]:
        """Positions of the digests that have no row yet, each digest once."""
        first: dict[str, int] = {}
        for position, digest in enumerate(digests):
            first.setdefault(digest, position)
        return [position for digest, position in first.items() if digest not in self._places]

    def fill(
        self,
        digests: Sequence[str],
        positions: Sequence[int],
        compute: Callable[[Sequence[int]], Iterable[Mapping[str, Tensor]]],
        *,
        label: str,
        batch_size: int,
    ) -> None:
        """Compute rows and keep them.

        Args:
            digests: Of every sample.
            positions: In `digests`, of those to compute.
            compute: From positions to their rows in this order, `batch_size` (the last time: what is left) at a time:
                tensors whose first dimension counts them, under the same names each time.
            label: What is computed, for the progress line.
            batch_size: See `compute`.

        Raises:
            UserError: The disk has no room.
        """
        if not positions:
            return
        begun = time.monotonic()
        _log.info("%s: computing features of %d samples, once", label, len(positions))
        batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
        rows_of = zip(batches, compute(positions), strict=True)
        pending: list[tuple[list[str], Row]] = []
        for batch, rows in with_progress(rows_of, total=len(batches), what=f"batches of {label}"):
            pending.append(([digests[i] for i in batch], {name: _numpy(value) for name, value in rows.items()}))
            if sum(value.nbytes for _, part in pending for value in part.values()) >= _PART_BYTES:
                self._write(pending)
                pending = []
        if pending:
            self._write(pending)
        _log.info("%s: features computed in %s", label, format_duration(time.monotonic() - begun))
        self.refresh()

    def check_room(self, count: int, row: Mapping[str, Tensor]) -> None:
        """Refuse before the work begins.

        Raises:
            UserError: `count` rows such as `row` (tensors [1, ...]) do not fit on the disk.
        """
        needed, free = count * sum(_numpy(value).nbytes for value in row.values()), free_bytes(self.folder)
        if needed > 0.9 * free:
            raise UserError(
                f"{self.folder}: the features of {count} samples need {format_bytes(needed)}, {format_bytes(free)} are "
                "free; give --cache_dir a larger disk, use pooling=mean (one vector instead of all tokens), or "
                "--cache off"
            )

    def _write(self, pending: Sequence[tuple[list[str], Row]]) -> None:
        """Write one part; complete and on the disk, or not at all."""
        name = f"part-{uuid.uuid4().hex[:16]}"
        temporary = self.folder / f".{name}.tmp"
        try:
            temporary.mkdir()
            for key in pending[0][1]:
                np.save(temporary / f"{key}.npy", np.concatenate([rows[key] for _, rows in pending]))
            keys = [np.frombuffer(bytes.fromhex(digest), np.uint8) for digests, _ in pending for digest in digests]
            np.save(temporary / _KEYS, np.stack(keys))
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            temporary.rename(self.folder / name)
            sync(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(f"{self.folder}: features could not be written ({error.strerror or error})") from None


def _open_part(part: Path) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """Digests and mapped columns of a part.

    Raises:
        FileNotFoundError: It is not there any more.
        OSError: It cannot be opened.
        Exception: It is damaged.
    """
    keys: NDArray[np.uint8] = np.load(part / _KEYS)
    columns = {file.stem: np.load(file, mmap_mode="r") for file in part.glob("*.npy") if file.name != _KEYS}
    if not part.exists():  # deleted meanwhile: some of its files may have been gone when they were listed
        raise FileNotFoundError(part)
    if not columns or any(len(values) != len(keys) for values in columns.values()):
        raise ValueError("its files do not belong together")
    return keys, columns


def _discard(part: Path) -> None:
    """Delete a part at once for all readers."""
    hidden = part.with_name(f".{part.name}.{uuid.uuid4().hex[:8]}.tmp")
    with contextlib.suppress(OSError):  # another process was first
        part.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _allow_many_files() -> None:
    """Lift this process's limit of open files as far as it may: every mapped file counts, and 1024 are soon used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS does not grant all that it promises
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """The values in host memory; NumPy has no bfloat16, but float32 holds its values exactly."""
    values = tensor.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()

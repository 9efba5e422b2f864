"""Outputs of frozen encoders, computed once and kept on the disk for every run, epoch and rank.

A store belongs to one *recipe*: everything besides the sample itself that decides the numbers (weights, preprocessing,
precision). Rows are found by the digest of the sample's content. So a changed pixel is another row and a changed weight
another store; nothing is ever looked up by name or date.

A store is a folder of parts, each a folder of `.npy` files that is renamed into place when it is complete: a killed
fill goes on where it stopped, several processes may fill at once, and readers map the files instead of loading them.
"""

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlcore.console import format_duration, with_progress
from mlcore.errors import UserError
from mlcore.files import ensure_folder, format_bytes, free_bytes, write_json

_log = logging.getLogger(__name__)

Row = dict[str, NDArray[Any]]

_KEYS = "keys.npy"
_PART_BYTES = 128 * 2**20
_ABANDONED_S = 3600.0


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers of `module`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
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
        text = json.dumps(recipe, sort_keys=True, default=str)
        self.folder = ensure_folder(root / hashlib.sha256(text.encode()).hexdigest()[:24])
        if not (self.folder / "recipe.json").is_file():
            write_json(self.folder / "recipe.json", recipe)
        for leftover in self.folder.glob(".part-*.tmp"):  # of a killed process, unless it is young
            if time.time() - leftover.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(leftover, ignore_errors=True)
        self._places: dict[str, tuple[int, int]] = {}  # digest -> part, row
        self._parts: list[Mapping[str, NDArray[Any]]] = []
        self._known: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take notice of parts that were written meanwhile, by other processes too."""
        for path in sorted(self.folder.glob(f"part-*/{_KEYS}")):
            if path.parent.name in self._known:
                continue
            self._known.add(path.parent.name)
            try:
                arrays = {file.stem: np.load(file, mmap_mode="r") for file in path.parent.glob("*.npy")}
                keys = arrays.pop("keys")
            except (OSError, ValueError) as error:  # the machine went down before the data reached the disk
                _log.warning("%s: damaged (%s); its features are computed again", path.parent, error)
                shutil.rmtree(path.parent, ignore_errors=True)
                continue
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
        compute: Callable[[list[int]], Mapping[str, Tensor]],
        *,
        label: str,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Compute this rank's share of the rows that are missing.

        Args:
            digests: Of every sample.
            compute: From positions in `digests` to tensors whose first dimension counts them; the same names each time.
            label: What is computed, for the progress line.
            batch_size: How many positions `compute` gets at a time.
            rank: This process.
            world_size: Number of processes; all of them must `refresh` afterwards, behind a barrier.

        Raises:
            UserError: The disk has no room.
        """
        positions = self.missing(digests)[rank::world_size]
        if not positions:
            return
        begun = time.monotonic()
        _log.info("%s: computing features of %d samples, once", label, len(positions))
        batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
        pending: list[tuple[list[str], Mapping[str, Tensor]]] = []
        for batch in with_progress(batches, total=len(batches), what=f"batches of {label}"):
            pending.append(([digests[i] for i in batch], {k: v.detach().cpu() for k, v in compute(batch).items()}))
            if sum(v.nbytes for _, rows in pending for v in rows.values()) >= _PART_BYTES:
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

    def _write(self, pending: Sequence[tuple[list[str], Mapping[str, Tensor]]]) -> None:
        """Write one part; complete or not at all."""
        name = f"part-{uuid.uuid4().hex[:16]}"
        temporary = self.folder / f".{name}.tmp"
        try:
            temporary.mkdir()
            for key in pending[0][1]:
                np.save(temporary / f"{key}.npy", _numpy(torch.cat([rows[key] for _, rows in pending])))
            keys = [np.frombuffer(bytes.fromhex(digest), np.uint8) for digests, _ in pending for digest in digests]
            np.save(temporary / _KEYS, np.stack(keys))
            temporary.rename(self.folder / name)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(f"{self.folder}: features could not be written ({error.strerror or error})") from None


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """NumPy has no bfloat16; float32 holds its values exactly."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

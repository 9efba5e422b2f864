"""The deterministic part of preprocessing, kept on disk and read as memory maps: a crop costs only its own bytes.

An entry is a folder named by a hash of the case's files (path, size, time of change), the settings and the format.
It appears whole or not at all, so that any number of processes may fill the same cache: whoever is first wins.
"""

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlcore.base.console import Pace, format_duration
from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, ensure_folder, write_json
from quartet.apps.sam_med3d_ich.data.case import Case, load_case
from quartet.apps.sam_med3d_ich.data.crops import label_components
from quartet.apps.sam_med3d_ich.data.metadata import CaseMetadata, case_metadata
from quartet.apps.sam_med3d_ich.data.preprocess import Grid, Preprocessing, prepare, prepare_mask
from quartet.apps.sam_med3d_ich.data.words import counted

__all__ = ["Cache", "CachedCase", "open_entry"]

_log = logging.getLogger(__name__)

_FORMAT: Final = 2  # raise it whenever the arrays of the same files and settings would come out differently
_LOG_EVERY_S: Final = 10.0
_STALE_S: Final = 6 * 3600.0
_SHOWN: Final = 10  # problems quoted in an error


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A case on the target grid.

    Attributes:
        image: float32 [X, Y, Z], read-only memory map, axes R, A, S.
        components: Unsigned [X, Y, Z], read-only memory map: 0 or the number of the mask's connected component.
        boxes: int64 [N, 3, 2], the box of each component, (start, stop).
        background: Value of `image` that stands for nothing.
        grid: Where the target grid lies in the stored volume.
        metadata: What the stored case is like.
    """

    image: NDArray[np.float32]
    components: NDArray[np.unsignedinteger[Any]]
    boxes: NDArray[np.int64]
    background: float
    grid: Grid
    metadata: CaseMetadata

    @property
    def mask(self) -> NDArray[np.uint8]:
        """uint8 [X, Y, Z] of 0 and 1, a copy."""
        return (self.components > 0).astype(np.uint8)


class Cache:
    """Prepared cases in a folder; holds no data itself and is cheap to send to other processes.

    Args:
        folder: Where entries go; made if needed. Several runs may share it. It may be deleted at any time between runs.
        settings: How cases are prepared.
        array_spacing: Voxel size in mm of images that carry none, see `read_volume`.
    """

    def __init__(
        self, folder: Path, settings: Preprocessing, *, array_spacing: tuple[float, float, float] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.array_spacing = array_spacing

    def entry(self, case: Case) -> Path:
        """The folder that holds the case once it is prepared.

        Raises:
            UserError: One of the case's files is missing.
        """
        files = [_fingerprint(path, case) for path in (case.image, case.mask) if path is not None]
        # With `ich`, which the reader compares to the mask.
        key = [_FORMAT, files, case.ich, asdict(self.settings), self.array_spacing]
        return self.folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]

    def read(self, case: Case) -> CachedCase:
        """The prepared case; prepares it if it is not there or damaged.

        Raises:
            UserError: The case's files cannot be used, or the cache cannot be written.
        """
        return self._read(case)[0]

    def fill(self, cases: Sequence[Case], *, rank: int = 0, world_size: int = 1) -> int:
        """Prepare all cases that are not there yet, with progress in the log.

        Args:
            cases: What to prepare.
            rank: This process; it starts with its own share, then sees to what the others have not done.
            world_size: Processes that call this with the same cases at the same time.

        Returns:
            How many were prepared now.

        Raises:
            UserError: Cases cannot be used.
        """
        ensure_folder(self.folder)
        _remove_stale(self.folder)
        first = rank * len(cases) // world_size
        built, problems = self._fill(cases, [*range(first, len(cases)), *range(first)])
        if problems:
            raise UserError("cases cannot be used:\n" + "\n".join(problems[index] for index in sorted(problems)))
        return built

    def _fill(self, cases: Sequence[Case], order: Sequence[int]) -> tuple[int, dict[int, str]]:
        """How many were prepared, and what is wrong with which; stops after as many problems as are shown."""
        pace, logged = Pace(len(cases)), 0.0
        built, problems = 0, dict[int, str]()
        for done, index in enumerate(order, start=1):
            try:
                built += self._read(cases[index])[1]
            except UserError as error:
                problems[index] = str(error)
            if len(problems) >= _SHOWN:
                break
            pace.update(done)
            if pace.elapsed_s - logged > _LOG_EVERY_S:
                logged = pace.elapsed_s
                _log.info("prepared %d of %d cases, %s left", done, len(cases), format_duration(pace.eta_s))
        if built:
            _log.info("prepared %s in %s: %s", counted(built, "case"), format_duration(pace.elapsed_s), self.folder)
        return built, problems

    def _read(self, case: Case) -> tuple[CachedCase, bool]:
        """The prepared case, and whether it was prepared now."""
        entry = self.entry(case)
        if entry.exists():
            try:
                return open_entry(entry), False
            except Exception as error:  # noqa: BLE001 - damaged files make readers fail in any way they like
                _log.warning("%s: a damaged cache entry (%s) is made again", entry, error)
                _discard(entry)
        self._build(case, entry)
        return open_entry(entry), True

    def _build(self, case: Case, entry: Path) -> None:
        volume, mask = load_case(case, array_spacing=self.array_spacing)
        prepared = prepare(volume, self.settings)
        components, boxes = label_components(prepare_mask(mask, prepared.grid))
        ensure_folder(self.folder)
        partial = _aside(entry)
        partial.mkdir()
        try:
            _write_array(partial / "image.npy", prepared.image)
            _write_array(partial / "components.npy", components)
            values = {
                "case": case.name,
                "background": prepared.background,
                "grid": prepared.grid.to_dict(),
                "boxes": boxes.tolist(),
                "metadata": case_metadata(volume, mask).to_dict(),
            }
            write_json(partial / "entry.json", values)
            try:
                partial.rename(entry)
            except OSError:
                if not entry.exists():  # otherwise another process was first, with the same content
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def open_entry(entry: Path) -> CachedCase:
    """Map one entry of a cache.

    Raises:
        Exception: It is missing or damaged.
    """
    values = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
    grid = Grid.from_dict(values["grid"])
    image, components = (_map(entry / f"{name}.npy") for name in ("image", "components"))
    if not image.shape == components.shape == grid.shape:
        raise ValueError(f"arrays of {image.shape} and {components.shape} voxels, expected {grid.shape}")
    return CachedCase(
        image=image,
        components=components,
        boxes=np.array(values["boxes"], dtype=np.int64).reshape(-1, 3, 2),
        background=float(values["background"]),
        grid=grid,
        metadata=CaseMetadata.from_dict(values["metadata"]),
    )


def _fingerprint(path: Path, case: Case) -> list[object]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {case.origin} names it") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _map(path: Path) -> NDArray[Any]:
    # As a plain array over the map: numpy's memmap class makes every slice slow.
    return np.asarray(np.lib.format.open_memmap(path, mode="r"))


def _write_array(path: Path, array: NDArray[Any]) -> None:
    array = np.ascontiguousarray(array)
    with atomic_write(path, size=array.nbytes) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)  # not numpy's own writer: it hides a full disk from `atomic_write`


def _aside(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}.partial")


def _discard(entry: Path) -> None:
    """Take an entry away at once, then delete it: nobody may see half of it."""
    aside = _aside(entry)
    try:
        entry.rename(aside)
    except FileNotFoundError:
        return  # another process did
    shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Delete what killed processes left behind, hours ago; younger folders may be being written."""
    for partial in folder.glob(".*.partial"):
        try:
            stale = time.time() - partial.stat().st_mtime > _STALE_S
        except FileNotFoundError:
            continue
        if stale:
            shutil.rmtree(partial, ignore_errors=True)

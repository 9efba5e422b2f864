"""What is known of pictures when copies are looked for; computed once and kept in a file on the disk.

An entry of the file belongs to a path, a size and a time of change, so that a known picture is not even opened. The
file is a zip of JSON and bytes with their checksums, replaced as a whole; it may be deleted at any time, and where it
is damaged the pictures are read again.
"""

import hashlib
import json
import logging
import os
import struct
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import imagehash
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from mlcore.console import with_progress
from mlcore.data.images import content_digest, read_image
from mlcore.errors import UserError, listed
from mlcore.files import atomic_write, ensure_folder

__all__ = ["Fingerprints", "cache_file", "fingerprints"]

_log = logging.getLogger(__name__)

_SIDE = 24  # of the small grey copies
_CONTRAST = 1.5  # deviation of grey levels below which a picture is blank
_SAVE_EVERY_S = 60.0  # a killed run loses no more than that
# Raise the number when other fingerprints are made of the same pixels.
_RECIPE = f"1 Pillow {PIL.__version__} ImageHash {imagehash.__version__}"
_INDEX, _COPIES = "index.json", "copies"
# What zipfile and the conversions raise on files that are cut, overwritten or not ours.
_DAMAGED = (
    OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, MemoryError, OverflowError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What is known of N pictures.

    Attributes:
        digests: SHA-256 of each file.
        hashes: uint64 [N], perceptual hashes.
        small: float32 [N, 576], grey copies of mean 0 and length 1; all 0 where there is no contrast.
    """

    digests: tuple[str, ...]
    hashes: NDArray[np.uint64]
    small: NDArray[np.float32]


def cache_file(folder: Path, dataset: Path) -> Path:
    """The file in `folder` that keeps the fingerprints of a data set, which is known by its own folder."""
    return folder / f"{hashlib.sha256(os.fsencode(dataset.resolve())).hexdigest()[:24]}.zip"


def fingerprints(
    paths: Sequence[Path], *, max_pixels: int, origins: Sequence[str] | None = None, cache: Path | None = None
) -> Fingerprints:
    """Fingerprints of pictures; those that are not known are read, several at a time, with progress in the log.

    Args:
        paths: The image files.
        max_pixels: See `read_image`.
        origins: Where each is named, for messages: "train.csv, line 7".
        cache: File of what is known, read and written; see `cache_file`. None: nothing is kept.

    Raises:
        UserError: Pictures cannot be read; the first ones are named.
    """
    problems: list[str] = []
    with _Cache(cache) as known:
        found = [known.find(path, max_pixels=max_pixels) for path in paths]
        missing = [index for index, entry in enumerate(found) if entry is None]
        results = _in_threads(partial(_look_at, max_pixels=max_pixels), [paths[index] for index in missing])
        progress = with_progress(results, total=len(missing), what="pictures compared")
        for index, result in zip(missing, progress, strict=True):
            if isinstance(result, UserError):
                problems.append(str(result) if origins is None else f"{origins[index]}: {result}")
            else:
                found[index] = result
                known.add(paths[index], result)
    if problems:
        raise UserError(listed(f"{len(problems)} of {len(paths)} images cannot be used:", problems))
    entries = [entry for entry in found if entry is not None]
    return Fingerprints(
        digests=tuple(entry.digest for entry in entries),
        hashes=np.array([entry.phash for entry in entries], dtype=np.uint64),
        small=_normalised(np.array([entry.small for entry in entries], dtype=np.uint8)),
    )


class _Entry(NamedTuple):
    """A fingerprint and the file it was made of."""

    size: int  # bytes
    changed: int  # nanoseconds since 1970
    pixels: int
    digest: str
    phash: int
    small: NDArray[np.uint8]  # [576]


def _look_at(path: Path, *, max_pixels: int) -> _Entry | UserError:
    """The fingerprint of a picture, or why there is none."""
    try:
        state = path.stat()  # before it is read: a change in between is then noticed the next time
        digest = content_digest(path)
        array = read_image(path, max_pixels=max_pixels)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"{path}: cannot be read ({error.strerror or error})")
    grey = Image.fromarray(array).convert("L")
    grey.thumbnail((256, 256), Image.Resampling.BOX, reducing_gap=None)  # hashes shrink much further
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.uint8).ravel()
    phash = int.from_bytes(np.packbits(imagehash.phash(grey).hash).tobytes(), "big")
    return _Entry(state.st_size, state.st_mtime_ns, array.shape[0] * array.shape[1], digest, phash, small)


def _in_threads(look_at: Callable[[Path], _Entry | UserError], paths: Sequence[Path]) -> Iterator[_Entry | UserError]:
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(look_at, paths)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever interrupts does not wait for the rest


def _normalised(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey copies [N, 576] shifted to mean 0 and scaled to length 1; 0 where there is no contrast."""
    small = grey.reshape(-1, _SIDE * _SIDE).astype(np.float32)
    small -= small.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("ij,ij->i", small, small))  # the deviation times the square root of 576
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length >= _CONTRAST * _SIDE)
    small *= scale[:, None]
    return small


# ----------------------------------------------------------------------------------------------------- kept on the disk


class _Cache:
    """Entries by absolute path, written when the block ends, however it does, and once a minute until then.

    Of several processes that write at once the last one wins, which costs no more than time.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._entries = {} if file is None else _read(file)
        self._asked: set[str] = set()
        self._changed = False
        self._saved = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._changed:
            gone = [name for name in self._entries.keys() - self._asked if not Path(name).exists()]
            for name in gone:
                del self._entries[name]
            self._save()

    def find(self, path: Path, *, max_pixels: int) -> _Entry | None:
        """The entry of a picture that has not changed and is not too large."""
        name = str(path.absolute())
        self._asked.add(name)
        entry = self._entries.get(name)
        if entry is None or entry.pixels > max_pixels:
            return None
        try:
            state = path.stat()
        except OSError:  # told when it is read
            return None
        return entry if (state.st_size, state.st_mtime_ns) == (entry.size, entry.changed) else None

    def add(self, path: Path, entry: _Entry) -> None:
        """Remember a new entry."""
        if self._file is None:
            return
        self._entries[str(path.absolute())] = entry
        self._changed = True
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        """Write the file; a disk that is full or read-only costs the next run time, and this one nothing."""
        if self._file is None:
            return
        try:
            ensure_folder(self._file.parent)
            _write(self._file, self._entries)
        except UserError as error:
            _log.warning("fingerprints of pictures are not kept: %s", error)
        self._changed, self._saved = False, time.monotonic()


def _write(file: Path, entries: Mapping[str, _Entry]) -> None:
    rows = [[name, *entry[:-1]] for name, entry in entries.items()]
    index = json.dumps({"recipe": _RECIPE, "pictures": rows}).encode()
    copies = np.stack([entry.small for entry in entries.values()])
    with atomic_write(file, size=len(index) + copies.nbytes) as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(_INDEX, index)
        archive.writestr(_COPIES, copies.tobytes())


def _read(file: Path) -> dict[str, _Entry]:
    """The entries of a file; none where it is missing, damaged, or made by another recipe."""
    try:
        with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("a compressed part")
            index, content = json.loads(archive.read(_INDEX)), archive.read(_COPIES)
        if index["recipe"] != _RECIPE:
            return {}
        copies = np.frombuffer(content, dtype=np.uint8).reshape(-1, _SIDE * _SIDE)
        return {
            str(name): _Entry(int(size), int(changed), int(pixels), str(digest), int(phash), copy)
            for (name, size, changed, pixels, digest, phash), copy in zip(index["pictures"], copies, strict=True)
        }
    except FileNotFoundError:
        return {}
    except _DAMAGED as error:
        _log.warning("%s: cannot be used (%s); the pictures are read again", file, error)
        return {}

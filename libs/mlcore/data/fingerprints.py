"""What is known of pictures when copies are looked for; computed once and kept in a file on the disk.

An entry of the file belongs to a path, a size and a time of change (and a page), so that a known picture is not even
opened. The file is a zip of JSON and bytes with their checksums, replaced as a whole; it may be deleted at any time,
and where it is damaged the pictures are read again.
"""

import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import imagehash
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.console import with_progress
from mlcore.base.errors import UserError, listed
from mlcore.base.files import atomic_write, ensure_folder
from mlcore.base.reading import reading
from mlcore.data.images import content_digest, read_image

__all__ = ["Fingerprints", "Numbered", "ReadPage", "cache_file", "fingerprints"]

_log = logging.getLogger(__name__)

_SIDE = 48  # of the small grey copies
_HASHED = 256  # of those that hashes are made of, which shrink them much further
_CONTRAST = 1.5  # deviation of grey levels below which a picture is blank
_AT_ONCE = 4096  # small copies that are in memory as larger numbers
_SAVE_EVERY_S = 60.0  # a killed run loses no more than that
# Raise the number when other fingerprints are made of the same files.
_RECIPE = f"3 Pillow {PIL.__version__} ImageHash {imagehash.__version__}"
_WHOLE = -1  # the number of a picture that is a file
_INDEX, _COPIES = "index.json", "copies"


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What is known of N pictures.

    Attributes:
        digests: SHA-256 of each file, or where pages are named of each page's pixels.
        hashes: uint64 [N], perceptual hashes.
        small: float16 [N, 2304], grey copies of mean 0 and length 1; all 0 where there is no contrast.
    """

    digests: tuple[str, ...]
    hashes: NDArray[np.uint64]
    small: NDArray[np.float16]


class ReadPage(Protocol):
    """Decodes a page of a file."""

    def __call__(self, path: Path, number: int, *, max_pixels: int) -> NDArray[np.uint8]:
        """Page `number`, from 0, as uint8 [H, W, 3], RGB; raises `UserError` where it cannot be read."""


@dataclass(frozen=True)
class Numbered:
    """Pictures that are pages of files.

    Attributes:
        numbers: For each path, which of its pages, from 0.
        read: Decodes one; called from several threads.
    """

    numbers: Sequence[int]
    read: ReadPage


def cache_file(folder: Path, dataset: Path) -> Path:
    """The file in `folder` that keeps the fingerprints of a data set, which is known by its own folder."""
    return folder / f"{hashlib.sha256(os.fsencode(dataset.resolve())).hexdigest()[:24]}.zip"


def fingerprints(
    paths: Sequence[Path],
    *,
    max_pixels: int,
    pages: Numbered | None = None,
    origins: Sequence[str] | None = None,
    cache: Path | None = None,
) -> Fingerprints:
    """Fingerprints of pictures; those that are not known are read, several at a time, with progress in the log.

    Args:
        paths: The image files.
        max_pixels: See `read_image`.
        pages: Which pages of these files, and how they are read; None: the files are images.
        origins: Where each is named, for messages: "train.csv, line 7".
        cache: File of what is known, read and written; see `cache_file`. None: nothing is kept.

    Raises:
        UserError: Pictures cannot be read; the first ones are named.
    """
    problems: list[str] = []
    numbers = [_WHOLE] * len(paths) if pages is None else pages.numbers
    places = [_Place(*place) for place in zip(paths, numbers, strict=True)]
    look_at = partial(_look_at, read=None if pages is None else pages.read, max_pixels=max_pixels)
    with _Cache(cache) as known:
        found = [known.find(place, max_pixels=max_pixels) for place in places]
        missing = [index for index, entry in enumerate(found) if entry is None]
        results = _in_threads(look_at, [places[index] for index in missing])
        progress = with_progress(results, total=len(missing), what="pictures compared")
        for index, result in zip(missing, progress, strict=True):
            if isinstance(result, UserError):
                problems.append(str(result) if origins is None else f"{origins[index]}: {result}")
            else:
                found[index] = result
                known.add(places[index], result)
    if problems:
        raise UserError(listed(f"{len(problems)} of {len(paths)} images cannot be used:", problems))
    entries = [entry for entry in found if entry is not None]
    return Fingerprints(
        digests=tuple(entry.digest for entry in entries),
        hashes=np.array([entry.phash for entry in entries], dtype=np.uint64),
        small=_normalised(np.array([entry.small for entry in entries], dtype=np.uint8)),
    )


class _Place(NamedTuple):
    """Where a picture is."""

    path: Path
    number: int  # of its page; _WHOLE: the file is the picture

    @property
    def key(self) -> "_Key":
        return str(self.path.absolute()), self.number


_Key = tuple[str, int]


class _Entry(NamedTuple):
    """A fingerprint and the file it was made of."""

    size: int  # bytes
    changed: int  # nanoseconds since 1970
    pixels: int
    digest: str
    phash: int
    small: NDArray[np.uint8]  # [2304]


def _look_at(place: _Place, *, read: ReadPage | None, max_pixels: int) -> _Entry | UserError:
    """The fingerprint of a picture, or why there is none."""
    path = place.path
    try:
        state = path.stat()  # before it is read: a change in between is then noticed the next time
        if read is None:
            digest, array = content_digest(path), read_image(path, max_pixels=max_pixels)
        else:
            array = read(path, place.number, max_pixels=max_pixels)
            digest = _pixel_digest(array)  # the file's would be that of its other pages too
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"{path}: cannot be read ({error.strerror or error})")
    grey = Image.fromarray(array).convert("L")
    # Weighted by distances: averages over whole pixels (BOX) would depend on a copy's size.
    hashed, copied = (grey.resize((side, side), Image.Resampling.BILINEAR) for side in (_HASHED, _SIDE))
    small = np.asarray(copied, dtype=np.uint8).ravel()
    phash = int.from_bytes(np.packbits(imagehash.phash(hashed).hash).tobytes(), "big")
    return _Entry(state.st_size, state.st_mtime_ns, array.shape[0] * array.shape[1], digest, phash, small)


def _pixel_digest(array: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _in_threads(
    look_at: Callable[[_Place], _Entry | UserError], places: Sequence[_Place]
) -> Iterator[_Entry | UserError]:
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(look_at, places)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever interrupts does not wait for the rest


def _normalised(grey: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Grey copies [N, 2304] shifted to mean 0 and scaled to length 1; 0 where there is no contrast."""
    copies = grey.reshape(-1, _SIDE * _SIDE)
    normalised = np.empty(copies.shape, dtype=np.float16)
    for start in range(0, len(copies), _AT_ONCE):
        small = copies[start : start + _AT_ONCE].astype(np.float32)
        small -= small.mean(axis=1, keepdims=True)
        length = np.sqrt(np.einsum("ij,ij->i", small, small))  # the deviation times the square root of 2304
        scale = np.divide(1.0, length, out=np.zeros_like(length), where=length >= _CONTRAST * _SIDE)
        normalised[start : start + _AT_ONCE] = small * scale[:, None]
    return normalised


# ----------------------------------------------------------------------------------------------------- kept on the disk


class _Cache:
    """Entries by absolute path and page, written when the block ends, however it does, and once a minute until then.

    Of several processes that write at once the last one wins, which costs no more than time.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._entries: dict[_Key, _Entry] = {} if file is None else _read(file)
        self._asked: set[_Key] = set()
        self._changed = False
        self._saved = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._changed:
            gone = [key for key in self._entries.keys() - self._asked if not Path(key[0]).exists()]
            for key in gone:
                del self._entries[key]
            self._save()

    def find(self, place: _Place, *, max_pixels: int) -> _Entry | None:
        """The entry of a picture that has not changed and is not too large."""
        self._asked.add(place.key)
        entry = self._entries.get(place.key)
        if entry is None or entry.pixels > max_pixels:
            return None
        try:
            state = place.path.stat()
        except OSError:  # told when it is read
            return None
        return entry if (state.st_size, state.st_mtime_ns) == (entry.size, entry.changed) else None

    def add(self, place: _Place, entry: _Entry) -> None:
        """Remember a new entry."""
        if self._file is None:
            return
        self._entries[place.key] = entry
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


def _write(file: Path, entries: Mapping[_Key, _Entry]) -> None:
    rows = [[*key, *entry[:-1]] for key, entry in entries.items()]
    index = json.dumps({"recipe": _RECIPE, "pictures": rows}).encode()
    copies = np.stack([entry.small for entry in entries.values()])
    with atomic_write(file, size=len(index) + copies.nbytes) as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(_INDEX, index)
        archive.writestr(_COPIES, copies.tobytes())


def _read(file: Path) -> dict[_Key, _Entry]:
    """The entries of a file; none where it is missing, damaged, or made by another recipe."""
    if not file.exists():
        return {}
    try:
        with reading(file, "a file of fingerprints"):
            with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("a compressed part")
                index, content = json.loads(archive.read(_INDEX)), archive.read(_COPIES)
            if index["recipe"] != _RECIPE:
                return {}
            copies = np.frombuffer(content, dtype=np.uint8).reshape(-1, _SIDE * _SIDE)
            return {
                (str(name), int(number)): _Entry(int(size), int(changed), int(pixels), str(digest), int(phash), copy)
                for (name, number, size, changed, pixels, digest, phash), copy in zip(
                    index["pictures"], copies, strict=True
                )
            }
    except UserError as error:
        _log.warning("%s; the pictures are read again", error)
        return {}

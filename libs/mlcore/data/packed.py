"""Reads arrays in files and tar archives by their headers first: nothing in them runs, inflates or lies of its size."""

import math
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.reading import check_unpacked, reading

__all__ = ["StoredArray", "TarFiles", "check_arrays", "read_arrays"]

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# Numpy's remark on files of Python 2, which does not even name them.
warnings.filterwarnings("ignore", message="Reading `.npy` or `.npz` file required additional header parsing")

_MOST_FILES = 10_000_000
_NPZ, _TAR = "an .npz file of plain arrays", "a folder or a tar archive"


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` file, numbers and fixed-width strings only.

    Raises:
        UserError: See `check_arrays`.
    """
    check_arrays(path)
    with reading(path, _NPZ), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
        for name, array in arrays.items():
            _check_letters(array, name)
        return arrays


def _check_letters(array: NDArray[Any], name: str) -> None:
    if array.dtype.kind == "U":
        letters = np.frombuffer(array.astype(array.dtype.newbyteorder("=")).tobytes(), dtype=np.uint32)
        if letters.max(initial=0) > sys.maxunicode:
            raise ValueError(f"{name} holds what is no text")


@dataclass(frozen=True)
class StoredArray:
    """An array that stays in its `.npy` file: rows are read where they stand, when they are asked for.

    Memory holds what was asked for alone, as with a memory map; but a file that becomes shorter meanwhile is an error
    and does not end the process, and pages that were read do not count as the process's own.

    Attributes:
        path: The file.
        dtype: Numbers, or strings of fixed width.
        shape: Its axes.
        offset: Where the numbers begin, in bytes.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def open(cls, path: Path) -> Self:
        """The array of a file.

        Raises:
            UserError: It is none, holds Python objects, is of another size than it says, or is stored by columns.
        """
        with reading(path, "a .npy file of plain numbers"), path.open("rb") as file:
            shape, by_columns, dtype = _check_header(file, path.stat().st_size)
            if by_columns and len(shape) > 1:
                raise UserError(f"{path}: stored by columns; save numpy.ascontiguousarray of it")
            return cls(path, dtype, shape, file.tell())

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """One row, or those of a slice without a step, as an array in memory."""
        start, stop, _ = rows.indices(len(self)) if isinstance(rows, slice) else (rows, rows + 1, 1)
        if not 0 <= start <= max(start, stop) <= len(self):
            raise IndexError(rows)
        inner = self.shape[1:]
        count, before = (number * math.prod(inner) for number in (max(stop - start, 0), start))
        with reading(self.path, "a .npy file of plain numbers"):
            found = np.fromfile(self.path, self.dtype, count, offset=self.offset + before * self.dtype.itemsize)
            if len(found) != count:
                raise ValueError("it has become shorter")
            _check_letters(found, "it")
        return found.reshape(-1, *inner) if isinstance(rows, slice) else found.reshape(inner)


def check_arrays(path: Path) -> None:
    """Look through the headers of a `.npz` file before its content is unpacked.

    Raises:
        UserError: It cannot be read, is damaged or encrypted, holds Python objects or something else than arrays, or
            unpacks to far more than it takes on disk.
    """
    with reading(path, _NPZ):
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise UserError(f"{path}: holds one array; expected a .npz file of named ones")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_unpacked(path, unpacked=sum(member.file_size for member in members), stored=path.stat().st_size)
            for member in members:
                with archive.open(member) as content:
                    _check_header(content, member.file_size)


def _check_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of an array, of which there are `size` bytes with the header."""
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array of format {version}")
    shape, by_columns, dtype = _HEADERS[version](file)
    if dtype.hasobject or dtype.itemsize == 0 or any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"an array of {dtype} {shape}")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"an array of {dtype} {shape} in {size} bytes")
    return shape, by_columns, dtype


class TarFiles:
    """The plain files of a tar archive, packed or not; to be closed by a `with` block.

    Args:
        path: The archive.

    Raises:
        UserError: It is no archive or is damaged, its files together unpack to far more than it takes on disk, one has
            holes (a size beyond what is stored of it), or there are more than 10 million.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(self.path, _TAR):
            self._archive = tarfile.open(path)  # noqa: SIM115 - closed by __exit__
        try:
            with reading(self.path, _TAR):
                self.members = list(self._checked())
        except UserError:
            self._archive.close()
            raise

    def __enter__(self) -> "TarFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def read(self, member: tarfile.TarInfo) -> bytes:
        """The content of one of `members`."""
        with reading(self.path, _TAR):
            file = self._archive.extractfile(member)
            return b"" if file is None else file.read()

    def _checked(self) -> Iterator[tarfile.TarInfo]:
        stored, unpacked = self.path.stat().st_size, 0
        for number, member in enumerate(self._archive):
            if member.issparse():
                raise UserError(f"{self.path}: {member.name}: a file with holes, which is not read; pack it as it is")
            if number >= _MOST_FILES:
                raise UserError(f"{self.path}: more than {_MOST_FILES:,} files")
            unpacked += member.size
            check_unpacked(self.path, unpacked=unpacked, stored=stored)
            if member.isfile():
                yield member

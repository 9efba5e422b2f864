"""The records of a checkpoint: their checksums, and a look through them before torch reads the file.

They must be whole, stored as they are, and a program of data.
"""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mlcore.base.errors import UserError
from mlcore.base.pickle_scan import scan_pickle
from mlcore.base.reading import Bounded
from mlcore.base.safe_pickle import numpy_numbers

__all__ = ["Checksums", "check_records", "more_than_data"]

_ZIP = b"PK\x03\x04"  # begins a file, and each record; numbers of sections below are of PKWARE's APPNOTE
_DESCRIPTOR, _DIRECTORY = b"PK\x07\x08", b"PK\x01\x02"
_DESCRIBED = 1 << 3  # the flag of a record whose checksum and size stand after its data
# Of what torch knows, these take no more memory than the file does; bytearray(8 << 30) would.
_CALLED = {"collections OrderedDict", "collections Counter", "torch Size", "torch device", "_codecs encode"}
_CALLED |= {f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex")}
_CALLED |= {f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")}
_CALLED |= {"torch._utils _rebuild_parameter_with_state"}


def more_than_data(path: Path, asked: str | None) -> UserError:
    """The refusal of a checkpoint that calls `asked`."""
    return UserError(
        f"{path}: refused, because it holds more than tensors and plain values"
        f"{f' (it asks for {asked})' if asked else ''} and loading it could run code. Take the file from its "
        "author again as a plain state dict."
    )


class Checksums(io.RawIOBase):
    """What `torch.save` writes to with `save.compute_crc32` off: enters each record's CRC-32 on the way to `file`.

    torch's own checksum takes two thirds of the time of a save, zlib's less. torch writes every part of a zip (header,
    name, padding, data, descriptor, directory) by itself, one after the other.

    Raises:
        RuntimeError: torch writes in another way.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._naming = 0  # bytes of name and padding that follow the header
        self._described = False  # whether data and a descriptor follow those
        self._size = 0  # of the data so far
        self._checksums: list[int] = []  # of the records so far

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, part: Any, /) -> int:
        """One part of the zip."""
        part = memoryview(part).cast("B")
        self._file.write(self._complete(part))
        return len(part)

    def flush(self) -> None:
        """Nothing stays here."""
        if not self.closed:
            self._file.flush()

    def _complete(self, part: memoryview) -> memoryview | bytes | bytearray:
        if self._naming:
            self._naming -= len(part)
            if self._naming < 0:
                raise RuntimeError("a zip that is not written part by part")
        elif self._described:
            return self._data_or_descriptor(part)
        elif part[:4] == _ZIP:  # 4.3.7
            flags, name, padding = *struct.unpack_from("<H", part, 6), *struct.unpack_from("<HH", part, 26)
            self._described, self._naming, self._size = bool(flags & _DESCRIBED), name + padding, 0
            self._checksums.append(0)
        elif part[:4] == _DIRECTORY:
            return self._directory(bytearray(part))
        return part

    def _data_or_descriptor(self, part: memoryview) -> memoryview | bytes | bytearray:
        ended = self._size and part[:4] == _DESCRIPTOR  # which only a record with data has
        sizes = {16: "<II", 24: "<QQ"}.get(len(part)) if ended else None  # 4.3.9
        if sizes is None or struct.unpack_from(sizes, part, 8) != (self._size, self._size):
            self._size += len(part)
            self._checksums[-1] = zlib.crc32(part, self._checksums[-1])
            return part
        self._described = False
        return _DESCRIPTOR + struct.pack("<I", self._checksums[-1]) + part[8:]

    def _directory(self, entries: bytearray) -> bytearray:
        place = 0
        for checksum in self._checksums:  # 4.3.12
            struct.pack_into("<I", entries, place + 16, checksum)
            place += 46 + sum(struct.unpack_from("<HHH", entries, place + 28))
        if place != len(entries):
            raise RuntimeError("a zip whose directory does not list what was written")
        return entries


def check_records(path: Path, *, allow: Sequence[type] = ()) -> None:
    """Compare every record of a zip checkpoint with its CRC-32, and look through its program; inside `reading`.

    Raises:
        UserError: A record is damaged, packed or not where torch would look, the file is TorchScript, or its program
            calls what makes no data and is no class of `allow`.
    """
    with Bounded(path) as file:
        start = file.read(4)
        file.seek(0)
        if start != _ZIP:  # then torch takes it for one of its older formats
            _check_old_program(file, path, allow)
            return
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: damaged, its end is missing (an interrupted copy?)")
    with zipfile.ZipFile(path) as archive:
        _check_program(archive, path, allow)
        broken = archive.testzip()
    if broken is not None:
        raise UserError(f"{path}: damaged, the checksum of record '{broken}' does not match")


def _check_program(archive: zipfile.ZipFile, path: Path, allow: Sequence[type]) -> None:
    """Refuse what torch does not write: packed records, which can be of any size, and programs that cannot be data."""
    records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
        raise UserError(f"{path}: refused, because its records are compressed or encrypted; torch stores them")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise UserError(f"{path}: damaged, its records are larger than the file")
    if min((record.header_offset for record in records), default=0) > 0:  # torch might read others than zipfile
        raise UserError(f"{path}: damaged, its records do not begin where the file does")
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise UserError(
            f"{path}: refused, because it is a TorchScript program, which loading would run; save its weights with "
            "torch.save(module.state_dict(), FILE) where it comes from"
        )
    for record in records:
        if record.filename.endswith(".pkl"):
            _scan(archive.read(record), path, allow)


def _check_old_program(file: BinaryIO, path: Path, allow: Sequence[type]) -> None:
    """The same for the format before 1.6: five pickles, the last of which names the storages that follow."""
    if tarfile.is_tarfile(path):
        raise UserError(f"{path}: an archive of torch 0.1, which is not read; save it again with a newer torch")
    size = path.stat().st_size
    for _ in range(5):
        if file.tell() < size:
            _scan(file, path, allow)


def _scan(program: bytes | BinaryIO, path: Path, allow: Sequence[type]) -> None:
    """Nothing may be called but what makes tensors and plain values of what is stored."""
    known = {f"{kind.__module__} {kind.__name__}" for kind in allow}
    known |= {" ".join(name.rsplit(".", 1)) for _, name in numpy_numbers()}
    asked = scan_pickle(program) - _CALLED - known
    if asked:
        raise more_than_data(path, min(asked).replace(" ", "."))

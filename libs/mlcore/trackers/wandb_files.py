"""The history inside W&B's own `.wandb` files, which it writes both offline and online.

The container is LevelDB's log format (https://github.com/google/leveldb/blob/main/doc/log_format.md) with a header of
7 bytes and plain CRC-32; the records are W&B's protobuf messages.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["read_wandb_file", "session_files"]

_FILE_HEADER = 7
_BLOCK = 32768
_CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _LAST = 1, 2, 4


def session_files(folder: Path, run_id: str) -> list[Path]:
    """The file of each session of the run `run_id` below W&B's folder `folder`/wandb, in the order they were started."""
    files = Path(folder).glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")
    return sorted(files, key=lambda path: path.parent.name.removeprefix("offline-"))  # run-<date>_<time>-<id>


def read_wandb_file(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of one session's file, in the order logged; W&B's own columns (`_...`) and non-numbers are left out."""
    from wandb.proto import wandb_internal_pb2 as messages

    rows: list[tuple[int, dict[str, float]]] = []
    for data in _records(Path(path).read_bytes()):
        record = messages.Record.FromString(data)  # type: ignore[attr-defined]
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            cells = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            numbers = {name: float(cell) for name, cell in cells.items() if isinstance(cell, int | float)}
            row = {name: number for name, number in numbers.items() if not name.startswith("_")}
            rows.append((int(cells["_step"]), row))
    return rows


def _records(data: bytes) -> Iterator[bytes]:
    """The records of one file; ends quietly where a killed writer stopped."""
    position, record = _FILE_HEADER, b""
    while position + _CHUNK_HEADER.size <= len(data):
        room = _BLOCK - position % _BLOCK
        if room < _CHUNK_HEADER.size:  # the rest of a block too short for a header is padding
            position += room
            continue
        checksum, length, kind = _CHUNK_HEADER.unpack_from(data, position)
        position += _CHUNK_HEADER.size
        chunk = data[position : position + length]
        if len(chunk) < length or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            return
        position += length
        record = chunk if kind in (_FULL, _FIRST) else record + chunk
        if kind in (_FULL, _LAST):
            yield record

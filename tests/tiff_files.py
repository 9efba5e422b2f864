"""TIFF files with the tags that a test wants; Pillow writes some of them as it likes."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["SUBFILE_TYPE", "WHITE_IS_ZERO", "write_grey_tiff"]

SUBFILE_TYPE = 254
WHITE_IS_ZERO = {262: 0}


def write_grey_tiff(path: Path, frames: Sequence[tuple[NDArray[np.generic], Mapping[int, int]]]) -> Path:
    """Write grey frames [H, W] of 8, 16 or 32 bits, uncompressed, each with tags of its own beside the usual ones."""
    content = bytearray(b"II*\0\0\0\0\0")
    link = 4  # where the place of the next directory goes
    for array, more in frames:
        pixels = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        tags = {
            SUBFILE_TYPE: 0, 256: array.shape[1], 257: array.shape[0], 258: 8 * array.itemsize, 259: 1, 262: 1,
            273: len(content), 277: 1, 278: array.shape[0], 279: len(pixels), 339: 3 if array.dtype.kind == "f" else 1,
        } | dict(more)  # fmt: skip
        content += pixels + b"\0" * (len(pixels) % 2)
        struct.pack_into("<I", content, link, len(content))
        content += struct.pack("<H", len(tags))
        for tag, value in sorted(tags.items()):
            content += struct.pack("<HHII", tag, 4, 1, value)
        link = len(content)
        content += b"\0\0\0\0"
    path.write_bytes(content)
    return path

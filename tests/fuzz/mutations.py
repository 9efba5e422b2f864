"""Edits that damage a whole, valid file: of its bytes, of its numbers, of its words, and inside what packs it."""

import gzip
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

__all__ = ["DAMAGE", "Damage", "Edit", "damaged"]

_BINARY = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
_NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"True",
    b"null",
    b"0.5",
    b"65536",
    b"99999999999",
    b"9" * 5000,
    b"0x1f",
    b"",
)
_WORDS = (
    *(b"\0", b"\n", b"\r", b"\x1b[2J", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xae", "가".encode()),
    *(b"<script>alert(1)</script>", b"../../x", b"/dev/zero", b"${env:HOME}", b"a" * 5000, b"[" * 3000, b"{" * 3000),
    *(b'"', b"'", b",", b":", b"{", b"}", b"[", b"]", b"#", b"\t", b"%s{}", b"=1+1", b"NaN", b"null", b"\\ud800", b"-"),
)

Edit = tuple[int, int, int]
"""Which edit, where (of 65,536 places along the file), and how much or which."""

_EDIT = struct.Struct("<BHH")


@dataclass(frozen=True)
class Damage:
    """What a case damages.

    Attributes:
        place: Which file, of any number of them.
        inside: Whether below what packs its content.
        edits: One to six, in order.
    """

    place: int
    inside: bool
    edits: Sequence[Edit]

    @staticmethod
    def parse(drawn: bytes) -> "Damage":
        """That of 7 to 32 drawn bytes."""
        whole = drawn[2 : 2 + (len(drawn) - 2) // _EDIT.size * _EDIT.size]
        edits = [(which % len(_OPERATIONS), place, amount) for which, place, amount in _EDIT.iter_unpack(whole)]
        return Damage(place=drawn[0], inside=drawn[1] % 2 == 1, edits=edits)


DAMAGE = st.binary(min_size=2 + _EDIT.size, max_size=2 + 6 * _EDIT.size).map(Damage.parse)
"""A draw of bytes alone: drawing each number took longer than most parsers do."""


def damaged(content: bytes, edits: Sequence[Edit], *, words: Sequence[bytes] = (), inside: bool = False) -> bytes:
    """The content after the edits.

    Args:
        content: Of a valid file.
        edits: In order.
        words: Words of the format, which are put in and exchanged like those of any.
        inside: Whether they are made below what packs the content, which is then sealed again.
    """
    data = bytearray(content)
    if inside and (opened := _opened(content, edits[0][1])) is not None:
        part, seal = opened
        return seal(damaged(part, edits, words=words, inside=len(edits) % 2 == 1 and part != content))
    for which, place, amount in edits:
        start = place * (len(data) + 1) >> 16
        _OPERATIONS[which](data, start, amount, (*_WORDS, *words, *words))
    return bytes(data)


def _flip(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    if start < len(data):
        data[start] ^= 1 << amount % 8


def _put(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    data[start : start + 1] = bytes([amount % 256])


def _cut(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    del data[start : None if amount % 3 == 0 else start + 1 + amount % 64]


def _repeat(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    part = data[start : start + 1 + amount % 61]
    data[start:start] = part * (1 + amount % 7 if len(data) < 100_000 else 1)


def _move(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    size = 1 + amount % 97
    part, to = data[start : start + size], amount * (len(data) + 1) >> 16
    data[to : to + len(part)], data[start : start + len(part)] = part, data[to : to + len(part)]


def _blank(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    size = min(1 + amount % 64, len(data) - start)
    data[start : start + size] = (b"\0", b"\xff", b" ")[amount % 3] * size


def _integer(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    """One of 1 to 8 bytes in either order; half of them in the first 512 bytes, where headers are."""
    size, order = (1, 2, 4, 8)[amount % 4], ("<", ">")[amount // 4 % 2]
    start = start % min(len(data) + 1, 512) if amount // 8 % 2 else start
    value = _BINARY[amount // 16 % len(_BINARY)] % (1 << 8 * size)
    data[start : start + size] = struct.pack(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[size], value)


def _insert(data: bytearray, start: int, amount: int, words: Sequence[bytes]) -> None:
    data[start:start] = words[amount % len(words)]


def _number(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    """In place of the next number that is written in digits."""
    if found := re.compile(rb"-?\d+(\.\d+)?").search(data, start):
        data[found.start() : found.end()] = _NUMBERS[amount % len(_NUMBERS)]


def _word(data: bytearray, start: int, amount: int, words: Sequence[bytes]) -> None:
    """In place of the next word."""
    if found := re.compile(rb"[A-Za-z_.@]{2,}").search(data, start):
        data[found.start() : found.end()] = words[amount % len(words)]


def _drop(data: bytearray, start: int, amount: int, _: Sequence[bytes]) -> None:
    """What stands up to the next end of a line or a comma."""
    if found := re.compile(rb"[\n,]").search(data, start):
        del data[start : found.end() - amount % 2]


_OPERATIONS: tuple[Callable[[bytearray, int, int, Sequence[bytes]], None], ...] = (
    *(_flip, _put, _cut, _repeat, _move, _blank, _integer, _integer, _insert, _number, _word, _drop),
)


# -------------------------------------------------------------------------------------- inside what packs a content


def _opened(content: bytes, place: int) -> tuple[bytes, Callable[[bytes], bytes]] | None:
    """What is in a packed content, and what packs it again with the right checksums; None: it is not packed."""
    if content[:2] == b"\x1f\x8b":
        return gzip.decompress(content), lambda part: gzip.compress(part, 1)
    if content[:4] == b"PK\x03\x04":
        return _in_zip(content, place)
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return content[8:], lambda part: content[:8] + _sealed_chunks(part)
    if content[257:262] == b"ustar":
        return content, _sealed_tar
    return None


def _in_zip(content: bytes, place: int) -> tuple[bytes, Callable[[bytes], bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    chosen = place % len(members)

    def seal(part: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, (info, whole) in enumerate(members):
                archive.writestr(info.filename, part if number == chosen else whole, info.compress_type)
        return buffer.getvalue()

    return members[chosen][1], seal


def _sealed_chunks(part: bytes) -> bytes:
    """PNG chunks with the checksums that their contents ask for, as far as they are whole."""
    data, start = bytearray(part), 0
    while start + 12 <= len(data):
        end = start + 8 + struct.unpack_from(">I", data, start)[0]
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[start + 4 : end]))
        start = end + 4
    return bytes(data)


def _sealed_tar(part: bytes) -> bytes:
    data = bytearray(part)
    for start in range(0, len(data) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        if data[start + 257 : start + 262] == b"ustar":
            block = data[start : start + tarfile.BLOCKSIZE]
            data[start + 148 : start + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    return bytes(data)

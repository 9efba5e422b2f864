"""Archives whose headers lie, inflate or ask for objects are refused by name and before they are unpacked."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.data.packed import TarFiles, read_arrays


def test_arrays_are_read_whatever_numpy_wrote(tmp_path: Path) -> None:
    arrays = {
        "numbers": np.arange(24.0).reshape(2, 3, 4),
        "columns": np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
        "names": np.array(["가", "bc"]),
        "flags": np.array([True, False]),
        "one": np.array(3),
        "none": np.zeros((0, 4), "f4"),
    }
    np.savez(tmp_path / "plain.npz", **arrays)  # type: ignore[arg-type]
    np.savez_compressed(tmp_path / "packed.npz", **arrays)  # type: ignore[arg-type]
    for name in ("plain.npz", "packed.npz"):
        found = read_arrays(tmp_path / name)
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[key], arrays[key]) and found[key].dtype == arrays[key].dtype for key in arrays)


def _npy(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_npy("(1000000000000, 4)") + bytes(64), r"an array of float32 \(1000000000000, 4\) in"),
        (_npy("(True, 16)") + bytes(64), r"an array of float32 \(True, 16\)"),
        (_npy("(-1, 16)") + bytes(64), r"an array of float32 \(-1, 16\)"),
        (_npy("(10000000000,)", "'|S0'"), r"an array of \|S0"),
        (_npy("(2,)", "'|O'") + pickle.dumps([1, 2]), "an array of object"),
        (_npy("(16,)") + bytes(60), r"an array of float32 \(16,\) in"),
        (b"hello", "damaged or not an .npz file"),
    ],
)
def test_a_header_that_does_not_fit_its_content_is_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("inputs.npy", content)
    with pytest.raises(UserError, match=rf"own\.npz.*{problem}"):
        read_arrays(tmp_path / "own.npz")


@pytest.mark.parametrize(("local", "central", "value"), [(6, 8, b"\x01"), (8, 10, struct.pack("<H", 97))])
def test_encrypted_and_unknown_ways_of_packing_are_refused(
    local: int, central: int, value: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, inputs=np.zeros(4))
    content = bytearray(path.read_bytes())
    start = content.find(b"PK\x01\x02")
    content[local : local + len(value)] = value
    content[start + central : start + central + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"own\.npz: damaged or not an \.npz file"):
        read_arrays(path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez_compressed(path, inputs=np.arange(50))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"own\.npz"):
            read_arrays(path)


def test_arrays_that_inflate_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez_compressed(path, inputs=np.zeros(2**16))
    content = bytearray(path.read_bytes())
    start = content.find(b"PK\x01\x02")
    content[start + 24 : start + 28] = struct.pack("<I", 2**31)  # what it says it unpacks to
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"own\.npz: refused, because .* MiB on disk claim to be 2 GiB"):
        read_arrays(path)


def _tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_the_files_of_a_tar_archive(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", {"a/0.png": b"zero", "a/1.png": b""})
    with TarFiles(path) as archive:
        assert {member.name: archive.read(member) for member in archive.members} == {"a/0.png": b"zero", "a/1.png": b""}


def test_files_with_holes_and_archives_that_inflate_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a/0.png")
    member.size, member.type = 512, tarfile.GNUTYPE_SPARSE
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for place, number in ((386, 0), (398, 512), (483, 6 * 2**30)):  # offset, bytes, and the size it claims
        block[place : place + 12] = tarfile.itn(number, 12, tarfile.GNU_FORMAT)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 256)
    (tmp_path / "sparse.tar").write_bytes(bytes(block) + bytes(512 + 1024))
    with pytest.raises(UserError, match=r"sparse\.tar: a/0\.png: a file with holes"):
        TarFiles(tmp_path / "sparse.tar")
    zeros = tarfile.TarInfo("a/0.png")
    zeros.size = 3 * 2**30
    (tmp_path / "zeros.tar.gz").write_bytes(gzip.compress(zeros.tobuf() + bytes(10_000)))
    with pytest.raises(UserError, match=r"zeros\.tar\.gz: refused, because .* MiB on disk claim to be 3 GiB"):
        TarFiles(tmp_path / "zeros.tar.gz")


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", {"a/0.png": bytes(3000)})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"a\.tar: damaged"), TarFiles(path) as archive:
        archive.read(archive.members[0])

import csv
import errno
import fcntl
import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mlcore.base import files
from mlcore.base.errors import UserError
from mlcore.base.files import (
    atomic_write,
    csv_text,
    ensure_folder,
    format_bytes,
    free_bytes,
    output_folder,
    plain_cell,
    remove_leftovers,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_the_file_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with atomic_write(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), OSError(errno.ENOSPC, "another file")])
def test_an_exception_of_the_block_passes_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def fail_in_the_middle() -> None:
        with atomic_write(tmp_path / "a.bin") as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail_in_the_middle()
    assert caught.value is error
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_full_disk_keeps_the_old_file(tiny_disk: Path) -> None:
    target = tiny_disk / "a.bin"
    target.write_bytes(b"old")
    with (
        pytest.raises(UserError, match=r"a\.bin: no space left.*free.*another output folder"),
        atomic_write(target) as file,
    ):
        file.write(bytes(3 << 20))
    assert names(tiny_disk) == ["a.bin"]
    assert target.read_bytes() == b"old"


def test_full_disk_under_torch_save_is_told_as_such(tiny_disk: Path) -> None:
    with pytest.raises(UserError, match="no space left"), atomic_write(tiny_disk / "model.pth") as file:
        torch.save({"weight": torch.zeros(1 << 20)}, file)
    assert names(tiny_disk) == []


@pytest.mark.parametrize("refused", [False, True], ids=["direct", "refused by the file system"])
@pytest.mark.parametrize("sizes", [[], [1], [8191], [8192], [8193], [100, 8092, 8192, 7], [3 * 8192 + 5, 1]])
def test_what_goes_past_the_page_cache_is_all_there(
    sizes: list[int], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files._Disk.write

    def only_the_usual_way(disk: files._Disk, data: memoryview) -> int:
        if fcntl.fcntl(disk, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(disk, data)

    monkeypatch.setattr(files._PastCache, "_BLOCK", 8192)
    if refused:
        monkeypatch.setattr(files._Disk, "write", only_the_usual_way)
    parts = [np.random.default_rng(size).bytes(size) for size in sizes]
    with atomic_write(tmp_path / "a.bin", past_cache=True) as file:
        for part in parts:
            file.write(part)
        file.flush()
        file.write(b"more")
    assert (tmp_path / "a.bin").read_bytes() == b"".join(parts) + b"more"
    assert names(tmp_path) == ["a.bin"]


def test_full_disk_past_the_page_cache_is_told_as_such(tiny_disk: Path) -> None:
    with pytest.raises(UserError, match="no space left"), atomic_write(tiny_disk / "a.bin", past_cache=True) as file:
        file.write(bytes(files._PastCache._BLOCK + 1))
    assert names(tiny_disk) == []


def test_a_known_size_is_refused_before_writing(tiny_disk: Path) -> None:
    with (
        pytest.raises(UserError, match=r"no space left.*2\.0 MiB needed, 1\.0 MiB free"),
        atomic_write(tiny_disk / "a.bin", size=2 << 20),
    ):
        pytest.fail("the block must not start")
    assert names(tiny_disk) == []


def test_a_failing_write_names_the_path(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the kernel refuses bytes beyond this: a real EFBIG
    try:
        with (
            pytest.raises(UserError, match=r"a\.bin: writing failed \(File too large\)"),
            atomic_write(tmp_path / "a.bin") as file,
        ):
            file.write(bytes(1 << 16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_a_failing_fsync_is_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError, match=r"a\.txt: writing failed \(Input/output error\)"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == []


def test_not_writable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object) -> files._Disk:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "_Disk", denied)  # root may write anywhere, so the refusal is injected
    with pytest.raises(UserError, match=r"a\.txt: not writable \(Permission denied\).*permissions of"):
        write_text(tmp_path / "a.txt", "x")


def test_missing_folder_and_folder_that_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no/a\.txt: cannot be written .*folder must exist"):
        write_text(tmp_path / "no" / "a.txt", "x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        ensure_folder(tmp_path / "file")
    with pytest.raises(UserError, match="file"):
        ensure_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize("kept", [None, "mine.txt", "new/mine.txt"])
def test_of_a_block_that_raises_no_empty_folder_stays(tmp_path: Path, kept: str | None) -> None:
    def work(folder: Path) -> None:
        assert folder.is_dir()
        if kept is not None:
            (tmp_path / kept).touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "new" / "newer") as folder:
        work(folder)
    assert names(tmp_path) == ([] if kept is None else [kept.partition("/")[0]])
    assert not folder.exists()


def test_output_folders_stay_with_what_was_there_and_what_was_written(tmp_path: Path) -> None:
    with output_folder(tmp_path / "new" / "newer"):
        pass
    with pytest.raises(UserError, match="mine"), output_folder(tmp_path / "new"):
        raise UserError("mine")
    assert (tmp_path / "new" / "newer").is_dir()


def test_an_output_that_cannot_be_made_leaves_no_folder_above_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must exist and be a folder"), output_folder(tmp_path / "file" / "new"):
        pass
    assert names(tmp_path) == ["file"]


def test_ensure_folder_creates_parents_and_leaves_no_probe(tmp_path: Path) -> None:
    folder = ensure_folder(tmp_path / "a" / "b")
    assert names(folder) == []


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal; from mlcore.base.files import atomic_write\n"
        f"with atomic_write(pathlib.Path({str(tmp_path)!r}) / 'a.bin') as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (tmp_path / "keep.bin").touch()
    assert len(remove_leftovers(tmp_path)) == 1
    assert names(tmp_path) == ["keep.bin"]


def test_folders_of_a_killed_writer_are_removed_too(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal; from mlcore.base.files import partial_folder\n"
        f"with partial_folder(pathlib.Path({str(tmp_path)!r}) / 'export') as folder:\n"
        "    (folder / 'half').touch(); (folder / '.inner.partial').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (tmp_path / "keep.bin").touch()
    assert len(remove_leftovers(tmp_path)) == 2
    assert names(tmp_path) == ["keep.bin"]


def test_sizes(tmp_path: Path) -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 3 << 30, 5 << 40)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "3.0 GiB", "5.0 TiB",
    ]  # fmt: skip
    assert free_bytes(tmp_path / "not" / "yet") > 0
    assert free_bytes(tmp_path / ("x" * 300) / "y") > 0, "a name that no disk takes"


def test_rows_become_csv_that_reads_back() -> None:
    rows = [["name", "value"], ['a, "b"\nc', 0.1 + 0.2], ("", 1e-320), ["\ud55c", float("nan")]]
    text = csv_text(iter(rows))
    assert "\r" not in text
    assert list(csv.reader(io.StringIO(text))) == [[str(cell) for cell in row] for row in rows]


_FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "'=1", "''+x", "\uff1d1+1", '="한국", x', "-", "\tx"]


def test_a_spreadsheet_evaluates_no_text() -> None:
    cells = [*_FORMULAS, "=a\x1b[1m\u202e", "한국어", "a=b", "'quoted'", Path("-rf"), ""]
    written = [row[0] for row in csv.reader(io.StringIO(csv_text([[cell, 1] for cell in cells])))]
    assert written == [f"'{cell}" for cell in _FORMULAS] + [
        r"'=a\x1b[1m\u202e", "한국어", "a=b", "'quoted'", "'-rf", "",
    ]  # fmt: skip


def test_numbers_stay_numbers_also_as_text() -> None:
    cells = [-0.5, np.float32(-1.5), np.int64(-3), -7, "-0.25", "+1e-5", "-inf", True, None, float("-inf")]
    written = next(csv.reader(io.StringIO(csv_text([cells]))))
    assert written == ["-0.5", "-1.5", "-3", "-7", "-0.25", "+1e-5", "-inf", "True", "", "-inf"]
    assert [plain_cell(cell) for cell in written] == written


def test_text_of_tables_that_are_read_again_comes_back() -> None:
    cells = [*_FORMULAS, "=a\x1b[1m\u202e", "'", "''", "'a", "-5", "'-5", "a\x07", 'say "x", \n y']
    written = next(csv.reader(io.StringIO(csv_text([cells], exact=True), newline="")))
    assert [plain_cell(cell) for cell in written] == cells


@pytest.mark.parametrize("place", ["s3://key:word@bucket/x", "https://host/x", Path("s3://bucket/x")])
def test_an_address_becomes_no_folder(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="an address; expected a local folder"):
        ensure_folder(Path(place))
    assert names(tmp_path) == []

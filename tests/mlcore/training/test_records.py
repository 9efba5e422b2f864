"""What the records of a checkpoint may hold: data of what is stored, where torch looks for it, and nothing else."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mlcore.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mlcore.training.records import Checksums

NUMBERS = struct.pack("<4f", 1, 2, 3, 4)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(size: list[int], stride: list[int], *, offset: int = 0, stored: int = 4) -> bytes:
    storage = b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + number(stored) + b"tQ"
    hooks = named("collections", "OrderedDict") + b")R"
    arguments = storage + number(offset) + numbers(*size) + numbers(*stride) + b"\x89" + hooks
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def archive(path: Path, value: bytes) -> Path:
    """A checkpoint {"w": value} with the one storage "0" of four numbers."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}" + text("w") + value + b"s.")
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", NUMBERS)
    return path


def refused(path: Path, problem: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*{problem}") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


PARTS = {
    "nothing": {},
    "tensors": {"w": torch.randn(100, 30), "b": torch.zeros(0), "half": torch.ones(3).bfloat16(), "step": 4},
    "shared": dict.fromkeys("ab", torch.arange(5)),
    "like a header": {"w": torch.frombuffer(bytearray(b"PK\x03\x04" + bytes(26)), dtype=torch.uint8)},
    "like a descriptor": {"w": torch.frombuffer(bytearray(b"PK\x07\x08" + bytes(12)), dtype=torch.uint8)},
    "like a directory": {"w": torch.frombuffer(bytearray(b"PK\x01\x02" + bytes(60)), dtype=torch.uint8)},
    "many": {str(n): torch.full((n % 7,), n) for n in range(300)},
}


@pytest.mark.parametrize("state", PARTS.values(), ids=PARTS)
def test_a_checkpoint_is_the_file_that_torch_writes(state: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ours.pth", state)
    with (tmp_path / "torchs.pth").open("wb") as file:
        torch.save(state, file)
    with zipfile.ZipFile(tmp_path / "ours.pth") as ours, zipfile.ZipFile(tmp_path / "torchs.pth") as torchs:
        assert ours.testzip() is None
        checksums, torch_checksums = ({r.filename: r.CRC for r in a.infolist()} for a in (ours, torchs))
    own = "archive/.data/serialization_id"  # torch makes it of its checksums
    assert checksums.keys() == torch_checksums.keys()
    assert {name for name, value in checksums.items() if value != torch_checksums[name]} <= {own}
    data, torch_data = ((tmp_path / f"{name}.pth").read_bytes() for name in ("ours", "torchs"))
    assert len(data) == len(torch_data)
    assert sum(a != b for a, b in zip(data, torch_data, strict=True)) <= 40 + 4 + 4, "the id and its checksum, twice"


def test_another_way_of_writing_zips_is_an_error() -> None:
    checksums = Checksums(io.BytesIO())
    checksums.write(b"PK\x03\x04\x00\x00\x08\x08" + bytes(18) + struct.pack("<HH", 4, 0))
    with pytest.raises(RuntimeError, match="part by part"):
        checksums.write(b"nameanddata")
    with pytest.raises(RuntimeError, match="directory"):
        Checksums(io.BytesIO()).write(b"PK\x01\x02" + bytes(42))


def test_the_archives_of_these_tests_are_read(tmp_path: Path) -> None:
    loaded = load_checkpoint(archive(tmp_path / "good.pth", tensor([2, 2], [2, 1])))
    assert loaded["w"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "called",
    ["__builtin__ bytearray", "torch.storage UntypedStorage", "torch FloatTensor", "torch._utils _rebuild_qtensor"],
)
def test_nothing_is_made_that_is_not_stored(called: str, tmp_path: Path) -> None:
    value = named(*called.split()) + number(2**60) + b"\x85R"
    refused(archive(tmp_path / "size.pth", value), rf"it asks for {called.replace(' ', '.')}\)")


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.eye(3, device="meta"), "_rebuild_meta_tensor_no_storage"),
    ],
)
def test_tensors_that_no_model_here_takes_are_refused_by_name(value: Any, asked: str, tmp_path: Path) -> None:
    torch.save({"w": value}, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth", asked)


def test_what_people_keep_in_checkpoints_is_read(tmp_path: Path) -> None:
    kept = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "small": torch.ones(3).to(torch.float8_e4m3fn),
        "unsigned": torch.arange(3).to(torch.uint16),
        "size": torch.Size([1, 2]),
        "kind": torch.bfloat16,
        "device": torch.device("cpu"),
        "names": {"a", "b"},
        "bytes": b"\x00\xff",
    }
    torch.save(kept, tmp_path / "kinds.pth")
    loaded = load_checkpoint(tmp_path / "kinds.pth")
    assert loaded.keys() == kept.keys()
    assert loaded["small"].dtype == torch.float8_e4m3fn
    assert loaded["names"] == {"a", "b"}


@pytest.mark.parametrize(
    "value",
    [
        tensor([2**24], [1]),  # beyond what is stored
        tensor([4], [-1], offset=3),
        tensor([4], [1], offset=-3),
        tensor([-4], [1]),
        tensor([2**40, 2**40], [0, 0]),
        tensor([4], [1], stored=2**34),
        tensor([4], [1], stored=-4),
    ],
)
def test_views_beyond_what_is_stored_are_refused(value: bytes, tmp_path: Path) -> None:
    refused(archive(tmp_path / "view.pth", value), "damaged or not a torch checkpoint")


def test_a_dictionary_with_attributes_is_one_without(tmp_path: Path) -> None:
    attribute = b"}" + text("items") + b"Nsb"  # would stand before the method
    weights = named("collections", "OrderedDict") + b")R" + text("w") + tensor([2, 2], [2, 1]) + b"s" + attribute
    loaded = load_checkpoint(archive(tmp_path / "attributes.pth", weights))
    assert next(iter(loaded["w"].items()))[0] == "w"


def test_what_stands_before_the_archive_is_looked_through_as_torch_would_read_it(tmp_path: Path) -> None:
    good = archive(tmp_path / "good.pth", tensor([2, 2], [2, 1])).read_bytes()
    deep = b"\x80\x02}" + b")" + b"\x85" * 300 + b"K\x01s."
    (tmp_path / "before.pth").write_bytes(deep + good)  # a zip file to zipfile, a pickle to torch
    refused(tmp_path / "before.pth", "nested deeper than 200 levels")
    (tmp_path / "two.pth").write_bytes(good + good)  # zipfile reads the second, torch looks in the first
    refused(tmp_path / "two.pth", "its records do not begin where the file does")


def test_a_torchscript_program_is_not_run_and_what_to_do_is_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pth", "w") as file:
        for name in ("data.pkl", "constants.pkl"):
            file.writestr(f"script/{name}", b"\x80\x02}.")
    refused(tmp_path / "script.pth", r"TorchScript program.*torch\.save\(module\.state_dict\(\), FILE\)")

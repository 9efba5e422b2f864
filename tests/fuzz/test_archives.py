"""What packs arrays and weights: `.npz`, pickles, CIFAR-10, tar archives, checkpoints of runs and of others."""

import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mlcore.base.safe_pickle import load_pickle
from mlcore.data.packed import read_arrays
from mlcore.run import load_run
from mlcore.training.checkpoint import CheckpointStore, load_checkpoint, save_checkpoint
from mlcore.use.answering import unpacked
from quartet.apps.doc_ensemble.ensemble.folds import _read_fold
from quartet.apps.doc_ensemble.ensemble.out_of_fold import OutOfFold, read_out_of_fold
from quartet.apps.perceiver.config import ModelConfig
from quartet.apps.perceiver.data.arrays import read_npz
from quartet.apps.perceiver.data.cifar import load_cifar10
from quartet.apps.perceiver.data.images import ImageSource
from quartet.apps.perceiver.restore import make_model, model_settings
from tests.fuzz.cases import Parser, checks_of

PICKLE = (
    b"cposix\nsystem\n(Vtouch x\ntR.",
    b"\x85" * 3000,
    b"\x80\x02}r\xff\xff\xff\x0f.",
    b"]",
    b"(",
    b".",
    b"\x8c\x05posix",
    b"Q",
    b"\x93",
)
NPY = (
    b"(True, 4)",
    b"(-1,)",
    b"(1000000000000,)",
    b"'|O'",
    b"'<f8'",
    b"'|S0'",
    b"'<U99999'",
    b"True",
    b"[('a', '<f4')]",
)


class Runs:
    """Unpickling it starts a program."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def npy_files(**arrays: Any) -> Callable[[Path], None]:
    """Writes a folder of arrays."""

    def write(folder: Path) -> None:
        (folder / "own").mkdir()
        for name, array in arrays.items():
            np.save(folder / "own" / f"{name}.npy", array)

    return write


def npz(name: str, **arrays: Any) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / name, **arrays)


def npy(text: str, content: bytes = b"") -> bytes:
    """An archive with one array, whose header is `text`."""
    buffer = io.BytesIO()
    header = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inputs.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content)
    return buffer.getvalue()


def flagged(local: int, central: int, value: bytes) -> bytes:
    """An archive with bytes of its first local header and first central record changed."""
    raw = bytearray(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", bytes(4)))
    start = raw.find(b"PK\x01\x02")
    raw[local : local + len(value)] = raw[start + central : start + central + len(value)] = value
    return bytes(raw)


HEADER = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}"
ZIPS = {
    "bool shape": npy(HEADER.format("'<f4'", "(True, 4, 4)"), bytes(64)),
    "huge shape": npy(HEADER.format("'<f4'", "(1000000000000, 4, 4)")),
    "many empty texts": npy(HEADER.format("'|S0'", "(10000000000,)")),
    "deep header": npy("(" * 9000),
    "encrypted": flagged(6, 8, b"\x01"),
    "unknown method": flagged(8, 10, struct.pack("<H", 97)),
    "several disks": flagged(0, 34, struct.pack("<H", 7)) + b"PK\x05\x06" + struct.pack("<4H2LH", 7, 7, 1, 1, 46, 0, 0),
}
FOLDS = {
    "probabilities": np.full((2, 2), 0.5),
    "labels": np.array([0, 1]),
    "pages": np.array(["a", "b"]),
    "fold": 1,
    "member": "m",
    "trained_on": np.array(["c"]),
    "class_names": np.array(["x", "y"]),
}


def out_of_fold(folder: Path) -> None:
    folds = np.array([0, 1])
    OutOfFold(
        probabilities=np.full((1, 2, 2), 0.5),
        labels=folds,
        folds=folds,
        left_out=folds[None],
        pages=("a", "b"),
        class_names=("x", "y"),
        member_names=("m",),
    ).save(folder / "oof.npz")


def cifar(folder: Path) -> None:
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        content = {b"data": np.zeros((2, 3072), "u1"), b"labels": [0, 1]}
        (folder / name).write_bytes(pickle.dumps(content, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}, 2))


def packed_pictures(folder: Path) -> None:
    with tarfile.open(folder / "own.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("a/0.png", "b/1.png"):
            buffer = io.BytesIO()
            Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
            member = tarfile.TarInfo(name)
            member.size = buffer.tell()
            archive.addfile(member, io.BytesIO(buffer.getvalue()))


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("head/1.dcm", "head/2.dcm"):
            archive.writestr(name, name * 20)


def unzip(folder: Path) -> list[str]:
    shutil.rmtree(folder / "files", ignore_errors=True)
    names = sorted(path.name for path in unpacked(folder / "study.zip", folder / "files").iterdir())
    assert names == [f"{number:06d}" for number in range(len(names))]
    return names


SMALL = {
    "d_model": 4,
    "num_heads": 1,
    "num_latents": 2,
    "num_cross_attention_layers": 1,
    "num_self_attention_layers": 0,
}


def run_checkpoint(folder: Path) -> None:
    """A checkpoint of a perceiver's run, as small as it can be."""
    settings = model_settings(ModelConfig(**SMALL, position="none"), input_dim=2, num_classes=2, max_seq_len=4)
    state = {
        "app": "perceiver", "model": make_model(settings).state_dict(), "config": {"run": {"seed": 3}, "data": {}},
        "task": {"model": settings, "class_names": ["a", "b"], "preprocessing": {"kind": "sequence"}},
        "progress": {"step": 3}, "engine": {"ema": {}},
    }  # fmt: skip
    (folder / "checkpoints").mkdir()
    save_checkpoint(folder / "checkpoints" / "step_00000003.pth", state)


def small_state(**more: Any) -> dict[str, Any]:
    return {
        "model": {"weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)},
        "step": 3,
        "name": "x",
        "x": [1, (2.5, None)],
        **more,
    }


def saved(name: str, **options: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(small_state(), folder / name, **options)


PARSERS = [
    Parser(
        name="zip of what is served",
        write=zipped,
        read=unzip,
        edited="*.zip",
        words=(b"../../a", b"/dev/null", b"PK"),
        found={name: ZIPS[name] for name in ("encrypted", "unknown method", "several disks")},
        writes=True,
    ),
    Parser(
        name="npz",
        write=npz("own.npz", inputs=np.zeros((2, 3, 2), "f4"), names=np.array(["가", "b"])),
        read=lambda f: read_arrays(f / "own.npz"),
        found=ZIPS,
    ),
    Parser(
        name="npz of sequences",
        write=npz(
            "own.npz",
            inputs=np.ones((5, 2), "f4"),
            lengths=np.array([2, 3]),
            labels=np.array([0, 1]),
            mask=np.ones(5),
            classes=np.array(["a", "b"]),
        ),
        read=lambda folder: list(read_npz(folder / "own.npz", on_missing="interpolate")),
        found=ZIPS,
    ),
    Parser(
        name="folder of npy",
        write=npy_files(
            inputs=np.ones((5, 2), "f4"), lengths=np.array([2, 3]), labels=np.array([0, 1]), times=np.arange(5.0)
        ),
        read=lambda folder: list(read_npz(folder / "own", on_missing="interpolate")),
        words=(b"<f4", b"|O", b"<U4", b"'fortran_order': True", b"(5, 2)", b"(-1,)"),
        share=0.3,
    ),
    Parser(name="npz of a fold", write=npz("fold.npz", **FOLDS), read=lambda folder: _read_fold(folder / "fold.npz")),
    Parser(
        name="npz of out-of-fold predictions",
        write=out_of_fold,
        read=lambda folder: read_out_of_fold(folder / "oof.npz"),
    ),
    Parser(
        name="pickle",
        write=lambda f: (f / "a.pkl").write_bytes(pickle.dumps({"x": np.arange(4.0), "y": [1, "a", (b"c", {2.5})]}, 4)),
        read=lambda folder: load_pickle(folder / "a.pkl"),
        found={
            "runs": pickle.dumps({"a": Runs()}),
            "deep key": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
            "memo": PICKLE[2],
            "long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
            "long array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"N.",
        },
    ),
    Parser(name="CIFAR-10", write=cifar, read=lambda folder: load_cifar10(folder, "train"), edited="*1", share=0.5),
    Parser(name="tar of pictures", write=packed_pictures, read=lambda folder: ImageSource(folder / "own.tar").load()),
    Parser(
        name="checkpoint",
        write=saved("a.pth"),
        read=lambda folder: load_checkpoint(folder / "a.pth"),
        found={
            "runs": pickle.dumps(Runs()),
            "deep": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
            "long array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"N.",
        },
    ),
    Parser(
        name="checkpoint before torch 1.6",
        write=saved("a.pth", _use_new_zipfile_serialization=False),
        read=lambda folder: load_checkpoint(folder / "a.pth"),
    ),
    Parser(
        name="checkpoint of a run",
        write=run_checkpoint,
        read=lambda folder: load_run(folder / "checkpoints" / "step_00000003.pth", device="cpu"),
        lines=3,  # what is missing, what is unexpected
    ),
    Parser(
        name="checkpoint to go on from",
        write=run_checkpoint,
        read=lambda folder: CheckpointStore(folder / "checkpoints").newest_good(),
    ),
]
for parser in PARSERS:
    parser.__dict__.update(words=(*PICKLE, *NPY))

test_a_damaged_file_is_a_value_or_one_error, test_inputs_that_went_wrong_once = checks_of(PARSERS, found=("refused",))

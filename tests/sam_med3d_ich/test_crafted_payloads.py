"""Files made to run code when opened: none does, and each is named.

Every payload creates a canary file when a plain loader opens it, which is shown first. Then it goes through every
reader of the app, in every kind of file that can carry a pickle.
"""

import argparse
import contextlib
import os
import pickle
import shutil
import subprocess
import timeit
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.training.checkpoint import load_checkpoint
from quartet.apps.sam_med3d_ich.data.case import Case, load_case
from quartet.apps.sam_med3d_ich.data.volume import read_volume
from quartet.apps.sam_med3d_ich.model.weights import read_weights


class Calls:
    """Pickles to a call of a function with arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.parts = function, args

    def __reduce__(self) -> Any:
        return self.parts


def text(value: str) -> bytes:
    """The opcode of protocol 0 that pushes a string."""
    return b"V" + value.encode("raw-unicode-escape") + b"\n"


def pickled(make: Callable[[str, str], Any], protocol: int) -> Callable[[str], bytes]:
    """A pickle of what `make(canary, code)` gives; `code` is Python that creates the canary."""
    return lambda canary: pickle.dumps(make(canary, f"open({canary!r}, 'w').close()"), protocol=protocol)


def dtype_with_metadata(call: Calls) -> np.dtype[Any]:
    return np.dtype("f4", metadata={"unit": call})


THINGS: dict[str, Callable[[str, str], Any]] = {
    "os.system": lambda canary, code: Calls(os.system, f"touch {canary}"),
    "eval": lambda canary, code: Calls(eval, code),
    "exec": lambda canary, code: Calls(exec, code),
    "nested in list and dict": lambda canary, code: {"array": np.ones((2, 2, 2)), "x": [{"y": (Calls(eval, code),)}]},
    "object array": lambda canary, code: {"array": np.array([[[Calls(eval, code)]]], dtype=object)},
    "namespace": lambda canary, code: {"model_state_dict": {}, "args": argparse.Namespace(x=Calls(eval, code))},
}
ONCE: dict[str, Callable[[str, str], Any]] = {
    "subprocess": lambda canary, code: Calls(subprocess.check_output, ["touch", canary]),
    "os.mkdir": lambda canary, code: Calls(os.mkdir, canary),
    "os.symlink": lambda canary, code: Calls(os.symlink, os.sep, canary),
    "shutil.copyfile": lambda canary, code: Calls(shutil.copyfile, __file__, canary),
    "timeit": lambda canary, code: Calls(timeit.timeit, code, "pass", timeit.default_timer, 1),
    "numpy.savetxt": lambda canary, code: Calls(np.savetxt, canary, [1]),
    "numpy.memmap": lambda canary, code: Calls(np.memmap, canary, "u1", "w+", 0, 1),
    "ndarray.tofile": lambda canary, code: Calls(np.ndarray.tofile, np.zeros(1), canary),
    "numpy dtype metadata": lambda canary, code: np.zeros(2, dtype=dtype_with_metadata(Calls(eval, code))),
    "numpy fromiter": lambda canary, code: Calls(np.fromiter, Calls(map, eval, [code]), "O"),
    "numpy fromfunction": lambda canary, code: Calls(np.fromfunction, Calls(eval, f"lambda *_: {code}"), (1,)),
    "pickle in a pickle": lambda canary, code: Calls(pickle.loads, pickle.dumps(Calls(eval, code))),
    "torch tensor beside": lambda canary, code: {"w": torch.zeros(2), "x": Calls(eval, code)},
    "dict key": lambda canary, code: {Calls(eval, f"{code} or 1"): 1},
    "set element": lambda canary, code: {1, Calls(hash, Calls(eval, f"{code} or 2"))},
}


def raw(before: bytes, module: str, name: str, after: bytes) -> Callable[[str], bytes]:
    """Hand-written opcodes around `module.name` with the shell command as its argument."""
    return lambda canary: before + f"c{module}\n{name}\n".encode() + b"(" + text(f"touch {canary}") + b"tR" + after


HARMLESS = pickle.dumps({"array": np.arange(27.0).reshape(3, 3, 3), "spacing": [1, 1, 1]}, protocol=2)
RAW: dict[str, Callable[[str], bytes]] = {
    "posix.system": raw(b"", "posix", "system", b"."),
    "hidden before an array": raw(b"", "posix", "system", b"0" + HARMLESS[2:]),
    "hidden in the memo": raw(b"", "posix", "system", b"q\x000" + HARMLESS[2:]),
    "python 2 names": lambda canary: b"\x80\x02c__builtin__\neval\n(" + text(f"open({canary!r}, 'w').close()") + b"tR.",
    "INST": lambda canary: b"(" + text(f"touch {canary}") + b"ios\nsystem\n.",
    "OBJ": lambda canary: b"(cos\nsystem\n" + text(f"touch {canary}") + b"o.",
    "STACK_GLOBAL": lambda canary: b"\x80\x04\x8c\x05posix\x8c\x06system\x93(" + text(f"touch {canary}") + b"tR.",
    "dotted name": lambda canary: (
        b"\x80\x04\x8c\x07pathlib\x8c\x0aPath.touch\x93(cpathlib\nPath\n(" + text(canary) + b"tRtR."
    ),
    "list of calls": lambda canary: b"](cposix\nsystem\n(" + text(f"touch {canary}") + b"tRe.",
    "array state": lambda canary: (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntV\x62\ntR(I1\n(I1\ntcnumpy\ndtype\n(VO8\nI0\nI1\ntR"
        b"I00\n(lcposix\nsystem\n(" + text(f"touch {canary}") + b"tRatb."
    ),
}

PAYLOADS: dict[str, Callable[[str], bytes]] = {
    **{f"{name}, protocol {p}": pickled(make, p) for name, make in THINGS.items() for p in range(6)},
    **{name: pickled(make, 4) for name, make in ONCE.items()},
    **RAW,
}


# ------------------------------------------------------------------------------------------------- files to carry them


def object_array(path: Path, payload: bytes) -> None:
    """What numpy.save writes for an array of Python objects."""
    with path.open("wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(payload)


def npz(path: Path, payload: bytes) -> None:
    object_array(path.with_suffix(".member"), payload)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".member"), "array.npy")


def pth(path: Path, payload: bytes) -> None:
    """What torch.save writes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


def bare(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)


def read_image(path: Path) -> object:
    return read_volume(path, array_spacing=(1, 1, 1))


def read_row(path: Path) -> object:
    return load_case(Case("x", path, None, 0, "p", "train.csv, line 2"), array_spacing=(1, 1, 1))


def read_checkpoint(path: Path) -> object:
    return load_checkpoint(path, allow=[argparse.Namespace])


Write, Read = Callable[[Path, bytes], None], Callable[[Path], object]
CARRIERS: dict[str, tuple[str, Write, Read]] = {
    "pkl": ("scan.pkl", bare, read_image),
    "row": ("scan.pkl", bare, read_row),
    "npy": ("scan.npy", object_array, read_image),
    "npz": ("scan.npz", npz, read_image),
    "pickle named npy": ("scan.npy", bare, read_image),
    "pickle named npz": ("scan.npz", bare, read_image),
    "pickle named nii": ("scan.nii.gz", bare, read_image),
    "pth": ("model.pth", pth, read_checkpoint),
    "weights": ("model.pth", pth, read_weights),
    "pickle named pth": ("model.pth", bare, read_weights),
}
PLAIN: dict[str, Callable[[Path], object]] = {
    "pkl": lambda path: pickle.loads(path.read_bytes()),
    "npy": lambda path: np.load(path, allow_pickle=True),
    "npz": lambda path: np.load(path, allow_pickle=True)["array"],
    "pickle named npy": lambda path: np.load(path, allow_pickle=True),
    "pth": lambda path: torch.load(path, weights_only=False),
}


def test_payloads_are_many() -> None:
    assert len(PAYLOADS) >= 20


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_fires_when_unpickled_plainly(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    content = PAYLOADS[name](str(canary))
    assert not os.path.lexists(canary)
    with contextlib.suppress(Exception):  # what comes after the call may fail
        pickle.loads(content)
    assert os.path.lexists(canary)


@pytest.mark.parametrize("carrier", PLAIN)
def test_payload_fires_in_a_carrier_read_plainly(tmp_path: Path, carrier: str) -> None:
    canary = tmp_path / "canary"
    name, write, _ = CARRIERS[carrier]
    write(tmp_path / name, PAYLOADS["os.system, protocol 2"](str(canary)))
    with contextlib.suppress(Exception):
        PLAIN[carrier](tmp_path / name)
    assert canary.exists()


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_is_refused(tmp_path: Path, name: str, carrier: str) -> None:
    canary = tmp_path / "canary"
    file, write, read = CARRIERS[carrier]
    path = tmp_path / file
    write(path, PAYLOADS[name](str(canary)))
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert not os.path.lexists(canary)


def test_the_carriers_carry_what_is_harmless(tmp_path: Path) -> None:
    """So that a refusal is for the payload's sake, not for a malformed file's."""
    bare(tmp_path / "a.pkl", HARMLESS)
    assert read_volume(tmp_path / "a.pkl").spacing == (1, 1, 1)
    namespace = argparse.Namespace(lr=0.1)
    pth(tmp_path / "a.pth", pickle.dumps({"epoch": 3, "args": namespace}, protocol=2))
    assert read_checkpoint(tmp_path / "a.pth") == {"epoch": 3, "args": namespace}

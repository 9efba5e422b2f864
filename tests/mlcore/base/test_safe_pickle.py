"""Everything harmless is read back, everything else is refused before it runs."""

import collections
import functools
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.base.safe_pickle import load_pickle

PROTOCOLS = range(6)

ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(4, dtype=">i4"),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array(["ab", "ç"]),
    np.array([b"xyz"]),
    np.zeros((0, 3), dtype=np.float16),
    np.array(3.5),
    np.arange(10)[::2],
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_arrays_are_read_back(array: np.ndarray, protocol: int) -> None:
    back = load_pickle(pickle.dumps(array, protocol=protocol))
    assert isinstance(back, np.ndarray)
    assert back.dtype == pickle.loads(pickle.dumps(array, protocol=protocol)).dtype  # numpy itself may swap bytes
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_are_read_back(protocol: int) -> None:
    shared = [1, 2]
    content = {
        "list": [1, -(2**80), 1.5, None, True, "é", b"\x00\xff"],
        "tuple": (1, (2, ())),
        "set": {1, 2},
        "frozen": frozenset({"a"}),
        "bytes": bytearray(b"\x80abc"),
        "complex": 1 + 2j,
        "ordered": collections.OrderedDict(a=1, b=2),
        "twice": (shared, shared),
        3: {"nested": {"deep": [b""]}},
        "scalar": np.float32(1.25),
    }
    back = load_pickle(pickle.dumps(content, protocol=protocol))
    assert back == content
    assert isinstance(back, dict)
    assert back["twice"][0] is back["twice"][1]


def python2_batch() -> bytes:
    """What the python 2 program behind CIFAR-10's archive wrote: 8-bit strings, numpy 1 names, protocol 2."""

    def short(text: bytes) -> bytes:
        return b"U" + struct.pack("<B", len(text)) + text

    dtype = (
        b"cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
        b"(K\x01K\x02K\x03\x86" + dtype + b"\x89" + short(bytes([0, 127, 128, 200, 254, 255])) + b"tb"
    )
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + b"](K\x06K\x09eu."


def test_strings_of_python_2() -> None:
    raw = python2_batch()
    for encoding, keys in (("bytes", (b"data", b"labels")), ("latin1", ("data", "labels"))):
        back: Any = load_pickle(raw, encoding=encoding)  # type: ignore[arg-type]
        assert tuple(back) == keys
        np.testing.assert_array_equal(back[keys[0]], np.array([[0, 127, 128], [200, 254, 255]], dtype=np.uint8))
        assert back[keys[1]] == [6, 9]


class Calls:
    """Pickles to a call of a function with arguments, and optionally a state."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.parts


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def payloads(canary: str) -> dict[str, bytes]:
    """Crafted pickles; each tries to create the canary file, fill memory, or change this process."""
    import os
    import subprocess

    touch = f"touch {canary}"
    code = f"open({canary!r}, 'w').close()"
    call = f"(S'{touch}'\ntR.".encode()
    evaluate = f"(S{code!r}\ntR.".encode()
    core = b"numpy.core.multiarray"
    made: dict[str, Callable[..., bytes]] = {
        f"{label}, protocol {p}": functools.partial(pickle.dumps, thing, protocol=p)
        for p in PROTOCOLS
        for label, thing in {
            "os.system": Calls(os.system, touch),
            "eval": Calls(eval, code),
            "exec": Calls(exec, code),
            "nested in a dict": {"data": [np.zeros(2), Calls(os.system, touch)]},
            "nested in an array": np.array([Calls(os.system, touch)], dtype=object),
            "as a dict's key": {Calls(eval, code): 1},
            "subprocess": Calls(subprocess.check_output, ["touch", canary]),
            "getattr": Calls(getattr, [], "append"),
            "partial": functools.partial(os.system, touch),
            "numpy function": Calls(np.savetxt, canary, [1]),
            "open": Calls(open, canary, "w"),
            "path": Path(canary),
            "object array": np.array([1, "a", None], dtype=object),
            "dates": np.array(["2020-01-02"], dtype="M8[D]"),
            "structured array": np.zeros(2, dtype=[("a", "f4")]),
            "ndarray subclass": np.ma.masked_array([1]),
            "bytearray of a size": Calls(bytearray, 10**13),
            "defaultdict": collections.defaultdict(list),
        }.items()
    }
    raw = {
        "posix.system": name("posix", "system") + call,
        "nt.system": name("nt", "system") + call,
        "python 2 eval": name("__builtin__", "eval") + evaluate,
        "INST opcode": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "OBJ opcode": b"(" + name("os", "system") + f"S'{touch}'\no.".encode(),
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + call,
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11f2py.os.system.xx\x93" + call,
        "dotted builtin": b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93)R.",
        "persistent id": b"Pos.system\n.",
        "extension code": b"\x80\x02\x82\x01.",
        "numpy runstring": name("numpy.testing._private.utils", "runstring") + evaluate,
        "pickle in a pickle": name("_pickle", "loads") + b"(" + b"B\x04\x00\x00\x00N.N.tR.",
        "codecs with another codec": name("_codecs", "encode") + b"(S'x'\nS'rot13'\ntR.",
        "codecs decode": name("_codecs", "decode") + b"(S'x'\ntR.",
        "array of another class": b"c" + core + b"\n_reconstruct\n" + name("builtins", "set") + b"(K\x00tS'b'\n\x87R.",
        "new array of a huge shape": b"\x80\x02" + name("numpy", "ndarray") + b"(J\xff\xff\xff\x7ft\x81.",
        "state of a function": b"\x80\x02" + name("numpy.core.multiarray", "scalar") + b"}(S'__call__'\nK\x01ub.",
        "slots of a function": b"\x80\x02" + name("numpy", "dtype") + b"N}S'_function'\nK\x01s\x86b.",
        "slots of a class": b"\x80\x02" + name("builtins", "set") + b"N}S'pop'\nK\x01s\x86b.",
        "slots of a dtype": b"\x80\x02" + name("numpy", "dtype") + b"S'u1'\n\x85RN}S'value'\nK\x01s\x86b.",
        "dtype of objects": name("numpy", "dtype") + b"(S'O'\ntR.",
        "array content of another size": pickle.dumps(np.zeros(4), protocol=2).replace(b"K\x04\x85", b"K\xff\x85"),
        "array content of objects": b"\x80\x02"
        + name("numpy.core.multiarray", "_reconstruct")
        + name("numpy", "ndarray")
        + b"K\x00\x85S'b'\n\x87R(K\x01K\x01\x85"
        + name("numpy", "dtype")
        + b"S'u1'\n\x85R\x89]tb.",
        "truncated": pickle.dumps({"a": np.zeros(50)})[:60],
        "empty": b"",
        "text": b"not a pickle",
        "unknown protocol": b"\x80\x09.",
        "stack underflow": b"0000.",
        "negative size": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
        "huge memo": b"\x80\x04Nr\xff\xff\xff\xff",
    }
    return {**{label: build() for label, build in made.items()}, **raw}


LABELS = sorted(payloads("unused"))


@pytest.mark.parametrize("label", LABELS)
def test_payloads_are_refused_and_do_nothing(label: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / "crafted.pkl"
    file.write_bytes(payloads(str(canary))[label])
    with pytest.raises(UserError, match=r"crafted\.pkl"):
        load_pickle(file)
    assert not canary.exists()
    # Nor is anything left behind that would change the next reading.
    np.testing.assert_array_equal(load_pickle(pickle.dumps(np.arange(3), protocol=2)), np.arange(3))


def test_the_canary_would_show(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(payloads(str(canary))["os.system, protocol 2"])
    assert canary.exists()


def test_a_refused_name_is_told() -> None:
    with pytest.raises(UserError, match=r"batch_1: refused and not run: it asks for (posix|nt)\.system"):
        load_pickle(payloads("unused")["os.system, protocol 4"], name="batch_1")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pkl: cannot be read"):
        load_pickle(tmp_path / "absent.pkl")


def test_an_open_file_is_read_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "a.pkl"
    file.write_bytes(b"header" + pickle.dumps([1]))
    with file.open("rb") as stream:
        stream.seek(6)
        assert load_pickle(stream) == [1]

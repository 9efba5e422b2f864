"""Reads pickles of arrays and plain containers; nothing in the file can run.

A pickle is a program: it names functions and calls them. This reader knows a short list of names, each answered by a
stand-in that builds one harmless thing out of checked values, and refuses the file at the first other name.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from mlcore.base.errors import UserError
from mlcore.base.pickle_scan import ScanError, scan_pickle
from mlcore.base.reading import Bounded, reading

_PLAIN_KINDS = "biufcSU"  # numbers and fixed-width strings


def load_pickle(
    source: Path | bytes | BinaryIO, *, name: str = "", encoding: Literal["bytes", "latin1"] = "bytes"
) -> object:
    """Reads a pickle of arrays, numbers, strings, bytes, lists, tuples, dicts and sets.

    Args:
        source: File, content, or an open binary file that can be read twice.
        name: What error messages call it; default: the path.
        encoding: How 8-bit strings of Python 2 are returned: as ``bytes`` or as ``str``.

    Returns:
        The content. Arrays are numpy arrays of plain dtypes (never ``object``).

    Raises:
        UserError: If the file cannot be read, is damaged, or asks for anything but the above.
    """
    name = name or (str(source) if isinstance(source, Path) else "the pickle")
    with reading(name, "a complete pickle of arrays and plain containers"):
        try:
            if isinstance(source, Path):
                with Bounded(source) as file:
                    return _load(file, encoding)
            return _load(io.BytesIO(source) if isinstance(source, bytes) else source, encoding)
        except (_Refused, ScanError) as error:
            asked = " ".join(str(error).split())  # names in a pickle may have lines
            raise UserError(
                f"{name}: refused and not run: {asked}; only arrays and plain containers are read"
            ) from None


def _load(file: BinaryIO, encoding: str) -> object:
    start = file.tell()
    scan_pickle(file)
    file.seek(start)
    return _Reader(file, encoding=encoding).load()


class _Refused(pickle.UnpicklingError):
    pass


class _StandIn:
    """Answers a name with one function, which can only be called: a pickle cannot change its attributes."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise _Refused("the pickle changes a function")

    def __setstate__(self, state: object) -> None:
        raise _Refused("the pickle changes a function")


class _Dtype:
    """Stands in for ``numpy.dtype``, whose own state may hold anything."""

    __slots__ = ("value",)
    value: np.dtype[Any]

    def __init__(self, code: str | bytes, *_: object) -> None:
        dtype = np.dtype(_text(code))
        if dtype.kind not in _PLAIN_KINDS or dtype.itemsize == 0:
            raise _Refused(f"an array of dtype {dtype}")
        object.__setattr__(self, "value", dtype)

    def __setattr__(self, name: str, value: object) -> None:
        raise _Refused("the pickle changes a dtype")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields, *_ = state
        if subarray is not None or names is not None or fields is not None:
            raise _Refused("an array of a structured dtype")
        checked: Any = _text(order)  # numpy refuses what is no byte order
        object.__setattr__(self, "value", self.value.newbyteorder(checked))


class _Array(np.ndarray[Any, Any]):
    """An array that takes its content from checked values alone."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if isinstance(content, str):  # an 8-bit string of Python 2, read as latin1
            content = content.encode("latin1")
        if type(content) is not bytes or type(dtype) is not _Dtype:
            raise _Refused("an array whose content is not bytes")
        checked: Any = (1, tuple(int(n) for n in shape), dtype.value, bool(fortran), content)
        super().__setstate__(checked)


_NDARRAY = object()  # the name `ndarray` serves as an argument of _reconstruct and for nothing else


def _reconstruct(subtype: object, *_: object) -> _Array:
    if subtype is not _NDARRAY:
        raise _Refused("an array of an unknown class")
    return _Array((0,), dtype=np.uint8)


def _from_buffer(content: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Any:
    if not isinstance(content, (bytes, bytearray)) or type(dtype) is not _Dtype:
        raise _Refused("an array whose content is not bytes")
    flat: np.ndarray[Any, Any] = np.frombuffer(bytearray(content), dtype=dtype.value)
    return flat.reshape(shape, order="F" if _text(order) == "F" else "C")


def _scalar(dtype: _Dtype, content: bytes | str) -> Any:
    raw = content.encode("latin1") if isinstance(content, str) else content
    return _from_buffer(raw, dtype, (1,), "C")[0]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them in protocols 0 to 2."""
    if type(text) is not str or encoding != "latin1":
        raise _Refused("an unknown text encoding")
    return text.encode("latin1")


def _byte_container(kind: type[bytes] | type[bytearray]) -> Callable[..., bytes | bytearray]:
    def build(content: bytes | str = b"", encoding: str = "latin-1") -> bytes | bytearray:
        # An integer here would be a size: bytearray(10**12) fills the memory.
        raw = _encode(content, encoding.replace("-", "")) if isinstance(content, str) else memoryview(content)
        return kind(raw)

    return build


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


_NAMES: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _StandIn(_Dtype),
    ("numpy", "ndarray"): _NDARRAY,
    ("_codecs", "encode"): _StandIn(_encode),
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _StandIn(_reconstruct)
    _NAMES[f"{_core}.multiarray", "scalar"] = _StandIn(_scalar)
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _StandIn(_from_buffer)
for _builtins in ("builtins", "__builtin__"):  # Python 3 and Python 2
    _NAMES.update({(_builtins, kind.__name__): kind for kind in (set, frozenset, complex)})
    _NAMES[_builtins, "bytes"] = _StandIn(_byte_container(bytes))
    _NAMES[_builtins, "bytearray"] = _StandIn(_byte_container(bytearray))


def numpy_numbers() -> list[tuple[Any, str]]:
    """What answers the names that a number of numpy asks for, each with its name, for torch's `safe_globals`."""
    answers = [(answer, f"{module}.{name}") for (module, name), answer in _NAMES.items() if name in ("scalar", "dtype")]
    return [*answers, (_Dtype, f"{_Dtype.__module__}.{_Dtype.__name__}")]  # the last for its state


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"it asks for {module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise _Refused(f"it asks for an outside object {pid!r}")

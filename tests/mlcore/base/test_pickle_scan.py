"""What a pickle's opcodes say is found before anything reads them."""

import collections
import io
import pickle
import struct

import numpy as np
import pytest

from mlcore.base.pickle_scan import ScanError, scan_pickle

DATA = [
    {"a": [1, 2.5, "text", b"bytes", None, True], "b": ((1, 2), (3, 4), {5, 6}, frozenset([7]))},
    collections.OrderedDict([("weights", np.zeros((3, 4), "f4")), ("labels", np.arange(5))]),
    [[i] * 3 for i in range(3000)],
    10**50,
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("data", DATA)
def test_data_passes(data: object, protocol: int) -> None:
    scan_pickle(pickle.dumps(data, protocol))


def test_of_several_pickles_in_a_file_each_call_reads_one() -> None:
    file = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps({"a": 2}, 2) + b"rest")
    scan_pickle(file)
    scan_pickle(file)
    assert file.read() == b"rest"


def test_levels_are_counted_through_every_kind_of_container() -> None:
    value: object = 0
    for k in range(201):
        value = [[value], (value,), {"a": value}, collections.OrderedDict(a=value)][k % 4]
    with pytest.raises(ScanError, match="nested deeper than 200 levels"):
        scan_pickle(pickle.dumps(value, 2))
    flat: object = 0
    for _ in range(199):
        flat = [flat]
    scan_pickle(pickle.dumps(flat, 2))


def test_levels_hidden_behind_the_memo_are_counted() -> None:
    # Each list goes into the memo while it is empty and gets its content later.
    empty = b"".join(b"]r" + struct.pack("<I", k) for k in range(300))
    fill = b"".join(b"j" + struct.pack("<II", k, k)[:4] + b"j" + struct.pack("<I", k + 1) + b"a0" for k in range(299))
    with pytest.raises(ScanError, match="nested deeper than 200 levels"):
        scan_pickle(b"\x80\x02(" + empty + fill + b"l.")


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.", "nested deeper than 200"),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nested deeper than 200"),
        (b"\x80\x02}r" + struct.pack("<I", 0x0FFFFFFF) + b".", "its memo is numbered up to 268,435,455"),
        (b"\x80\x02]q\x00h\x00a.", "contains itself"),
        (b"\x80\x02a.", "stack is empty"),
        (b"\x80\x02h\x05.", "not a complete pickle"),
        (b"\x80\x02t.", "not a complete pickle"),
        (b"\x80\x02X" + struct.pack("<I", 2**31) + b"abc", "expected 2147483648 bytes"),
        (b"<!doctype html>", "unknown"),
        (b"", "pickle exhausted"),
    ],
)
def test_what_holds_no_data_is_refused(program: bytes, problem: str) -> None:
    with pytest.raises(ScanError, match=problem):
        scan_pickle(program)


def test_every_cut_of_a_pickle_is_refused() -> None:
    whole = pickle.dumps(DATA[0], 2)
    for length in range(len(whole)):
        with pytest.raises(ScanError):
            scan_pickle(whole[:length])

"""Hostile pickles: each is refused with the one typed error, and none imports, calls or changes anything."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import time
import tracemalloc
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nblstm.errors import WeightFileError
from nblstm.weights.source import Source
from nblstm.weights.unpickler import Function, unpickle

CALLS: list[object] = []


def canary(*arguments: object) -> object:
    """Remember that hostile code ran."""
    CALLS.append(arguments)
    return arguments


class Reducing:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


class WithState:
    """Pickles as an object and a state for its ``__setstate__``."""

    def __setstate__(self, state: object) -> None:
        canary(state)

    def __getstate__(self) -> object:
        return {"a": 1}


def run(program: bytes) -> Any:
    names: dict[tuple[str, str], object] = {
        ("collections", "OrderedDict"): Function(OrderedDict, 0, 0),
        ("torch", "float32"): np.dtype(np.float32),
        ("here", "add"): Function(lambda a, b=1: (a, b), 1, 2),
    }
    source = Source(io.BytesIO(), "hostile.pt", 0)
    return unpickle(source, io.BytesIO(program), names.get, lambda identity: ("storage", identity))


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(-(2**40), 2**40), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(plain)
def test_plain_values_come_out_as_they_went_in(value):
    again = run(pickle.dumps(value, 2))
    assert again == value
    assert repr(again) == repr(value)


def test_an_ordered_dict_keeps_its_metadata():
    state = OrderedDict(a=1, b=2)
    state._metadata = OrderedDict(version=3)  # type: ignore[attr-defined]
    again = run(pickle.dumps(state, 2))
    assert type(again) is OrderedDict and list(again.items()) == [("a", 1), ("b", 2)]
    assert again._metadata == {"version": 3}


def test_a_list_may_hold_itself():
    ring: list[object] = []
    ring.append(ring)
    again = run(pickle.dumps(ring, 2))
    assert again[0] is again


def calls(name: str, module: str = "os") -> bytes:
    """Return the opcodes of GLOBAL."""
    return b"c" + f"{module}\n{name}\n".encode()


HOSTILE = {
    "reduce os.system": pickle.dumps(Reducing(os.system, "touch pwned"), 2)[2:-1],
    "reduce builtins.eval": pickle.dumps(Reducing(eval, "1"), 2)[2:-1],
    "reduce getattr": pickle.dumps(Reducing(getattr, "a", "upper"), 2)[2:-1],
    "reduce our canary": pickle.dumps(Reducing(canary, 1), 2)[2:-1],
    "state": pickle.dumps(WithState(), 2)[2:-1],
    "import of an unknown module": calls("anything", "this"),
    "dotted name": calls("OrderedDict.fromkeys", "collections"),
    "dotted module": calls("dict", "collections.OrderedDict"),
    "name of a prefix": calls("float", "torch"),
    "name without its module": calls("OrderedDict", ""),
    "name without an end": b"ccollections\nOrderedDict",
    "name that is not UTF-8": b"c\xff\n\xff\n",
    "name of a megabyte": calls("a" * 2**20),
    "attribute of an allowed module": calls("load", "torch"),
    "dunder": calls("__builtins__", "collections"),
    "INST": b"(S'touch pwned'\nios\nsystem\n",
    "INST of an allowed class": b"(icollections\nOrderedDict\n",
    "OBJ": b"(" + calls("OrderedDict", "collections") + b"o",
    "NEWOBJ": calls("OrderedDict", "collections") + b")\x81",
    "NEWOBJ_EX": calls("OrderedDict", "collections") + b")}\x92",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pmodule\n",
    "EMPTY_SET": b"\x8f",
    "FROZENSET": b"(\x91",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**62),
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"N\x98",
    "LONG4 of two gigabytes": b"\x8b\xff\xff\xff\x7f",
    "LONG4 of negative length": b"\x8b\xff\xff\xff\xff",
    "BINUNICODE of four gigabytes": b"X\xff\xff\xff\xff",
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 2**62),
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**62),
    "FRAME": b"\x95" + struct.pack("<Q", 2**62),
    "INT as text": b"I" + b"9" * 10000 + b"\n",
    "unknown opcode": b"\xff",
    "protocol 0": b"\x80\x00",
    "protocol 255": b"\x80\xff",
    "text that is not UTF-8": b"X\x01\x00\x00\x00\xff",
    "reduce with nothing": b"R",
    "reduce with arguments alone": b")R",
    "reduce of a string": b"X\x02\x00\x00\x00os)R",
    "reduce of a dtype": calls("float32", "torch") + b")R",
    "reduce of a class of ours": calls("OrderedDict", "collections") + b")R)R",
    "reduce without a tuple": calls("OrderedDict", "collections") + b"]R",
    "reduce with too many arguments": calls("OrderedDict", "collections") + b"N\x85R",
    "reduce with too few arguments": calls("add", "here") + b")R",
    "build with nothing": b"b",
    "build of nothing": b"}b",
    "build of a dict": b"}}b",
    "build of a list": b"]}b",
    "build of a function": calls("add", "here") + b"}b",
    "build of the class": calls("OrderedDict", "collections") + b"}b",
    "build of a dtype": calls("float32", "torch") + b"(K\x03X\x01\x00\x00\x00<tb",
    "build with a tuple of states": calls("OrderedDict", "collections") + b")R}}\x86b",
    "build that hides a method": calls("OrderedDict", "collections") + b")R}X\x05\x00\x00\x00items]sb",
    "build of __class__": calls("OrderedDict", "collections") + b")R}X\x09\x00\x00\x00__class__Nsb",
    "append to nothing": b"Na",
    "append to a tuple": b")Na",
    "append to a dict": b"}Na",
    "appends without a mark": b"]Ne",
    "appends to a string": b"X\x00\x00\x00\x00(Ne",
    "setitem in a list": b"]K\x00Ns",
    "setitem without a key": b"}Ns",
    "setitems without a mark": b"}NNu",
    "setitems of a key alone": b"}(Nu",
    "setitem by a list": b"}]Ns",
    "setitem by a dict": b"}}Ns",
    "setitem by a tuple": b"})Ns",
    "setitem by a giant number": b"}\x8a\x10" + b"\x7f" * 16 + b"Ns",
    "setitem by a storage": b"}NQNs",
    "setitem by a dtype": b"}" + calls("float32", "torch") + b"Ns",
    "stack underflow": b"\x86",
    "stack underflow under a mark": b"NN(\x86",
    "tuple without a mark": b"Nt",
    "mark as the result": b"(",
    "get of nothing": b"h\x00",
    "long get of nothing": b"j\xff\xff\xff\xff",
    "put of nothing": b"q\x00",
    "POP": b"NN0",
    "POP_MARK": b"N(1",
    "DUP": b"N2",
    "persistent id of nothing": b"Q",
    "nothing at all": b"",
    "no end": b"N",
    "nested too deeply": b"N" + b"\x85" * 100_000,
    "nested lists": b"]" + b"]" * 1000 + b"a" * 1000,
    "a function in the result": b"]" + calls("add", "here") + b"a",
    "a function deep in the result": b"}N]" + calls("add", "here") + b"\x85as",
    "a function in the metadata": (
        calls("OrderedDict", "collections") + b")R}X\x09\x00\x00\x00_metadata" + calls("add", "here") + b"sb"
    ),
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_pickles_are_refused(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    end = b"" if program == HOSTILE["no end"] else b"."
    with pytest.raises(WeightFileError) as refused:
        run(b"\x80\x02" + program + end)
    assert len(str(refused.value)) < 500
    assert not CALLS and not list(tmp_path.iterdir())
    assert "this" not in sys.modules and set(sys.modules) == modules


@pytest.mark.parametrize("protocol", range(6))
def test_no_protocol_smuggles_a_call_in(protocol):
    for hostile in (Reducing(canary, 1), WithState(), canary, Reducing):
        with pytest.raises(WeightFileError):
            run(pickle.dumps({"a": hostile}, protocol))
    assert not CALLS


def test_values_shared_a_billion_times_take_no_room():
    program = b"\x80\x02]q\x00"
    for level in range(30):
        program += b"](" + bytes([ord("h"), level]) * 10 + b"eq" + bytes([level + 1])
    tracemalloc.start()
    begin = time.perf_counter()
    result = run(program + b".")
    elapsed, (_, peak) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(result) == 10 and elapsed < 2 and peak < 2**20


def test_a_memo_of_giant_numbers_takes_no_room():
    puts = b"".join(b"r" + struct.pack("<I", 2**32 - 1 - number) for number in range(1000))
    tracemalloc.start()
    assert run(b"\x80\x02N" + puts + b".") is None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@given(st.binary(max_size=200))
@example(b"(" * 200)
def test_random_bytes_are_refused_or_plain(program):
    with suppress(WeightFileError):
        run(b"\x80\x02" + program + b".")


@given(
    st.lists(
        st.sampled_from([bytes([n]) for n in range(256)] + [b"h\x00", b"q\x00", b"K\x01", b"X\0\0\0\0"]), max_size=40
    )
)
def test_random_opcodes_are_refused_or_plain(opcodes):
    program = calls("OrderedDict", "collections") + b")R" + b"".join(opcodes)
    with suppress(WeightFileError):
        run(b"\x80\x02" + program + b".")

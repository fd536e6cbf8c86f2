"""Hostile files of every format, whole: what is known to have fooled other loaders, and thousands of mutants.

Each rule of a format is broken one by one in the tests of that format. Here nothing but the typed error may come out,
and the interpreter itself is asked whether a module was imported, a file opened or a program started meanwhile.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_pickles import DATA, FLOATS, archive, global_name, legacy, made, scripted, storage, tensor, value

from nblstm.errors import WeightFileError
from nblstm.weights.files import load

WATCHED = ("compile", "ctypes", "exec", "import", "marshal", "open", "os.", "pickle", "shutil", "socket", "subprocess")
EVENTS: list[str] = []
WATCHING: list[bool] = []


def watch(event: str, _: object) -> None:
    if WATCHING and event.startswith(WATCHED):
        EVENTS.append(event)


sys.addaudithook(watch)


@contextmanager
def nothing_happens(folder: Path) -> Iterator[None]:
    """Fail if a module is imported, a file opened or a program started in the block, or a file is in `folder`."""
    for name in ("torch_checkpoint.pt", "legacy_checkpoint.pt", "torchscript.pt"):
        load(DATA / name)  # what honest files have Python import
    modules = set(sys.modules)
    EVENTS.clear()
    WATCHING.append(True)
    try:
        yield
    finally:
        WATCHING.clear()
    assert not EVENTS and set(sys.modules) == modules and not list(folder.iterdir())


def call(module: str, name: str, *arguments: object) -> bytes:
    """Return the opcodes that call something."""
    return global_name(module, name) + value(arguments) + b"R"


# What published attacks on pickles, scanners of pickles and torch's own restricted loader called
CALLS = {
    "os.system": call("os", "system", "touch pwned"),
    "posix.system": call("posix", "system", "touch pwned"),
    "nt.system": call("nt", "system", "echo > pwned"),
    "subprocess.Popen": call("subprocess", "Popen", ["touch", "pwned"]),
    "eval": call("__builtin__", "eval", "open('pwned', 'w')"),
    "exec": call("builtins", "exec", "open('pwned', 'w')"),
    "open": call("io", "open", "pwned", "w"),
    "getattr": call("__builtin__", "getattr", "a", "upper"),
    "__import__": call("__builtin__", "__import__", "this"),
    "compile": call("builtins", "compile", "1", "", "eval"),
    "webbrowser.open": call("webbrowser", "open", "http://localhost"),
    "runpy._run_code": call("runpy", "_run_code", "open('pwned', 'w')", {}),
    "pip.main": call("pip", "main", ["install", "pwned"]),
    "pty.spawn": call("pty", "spawn", "sh"),
    "code.interact": call("code", "interact"),
    "marshal.loads": call("marshal", "loads", "c"),
    "pickle.loads": call("pickle", "loads", "cos\nsystem\n(S'touch pwned'\ntR."),
    "timeit.timeit": call("timeit", "timeit", "open('pwned', 'w')"),
    "bdb.Bdb.run": call("bdb", "Bdb.run", "open('pwned', 'w')"),
    "operator.attrgetter": call("operator", "attrgetter", "system"),
    "functools.partial": call("functools", "partial", "a"),
    "numpy.testing": call("numpy.testing._private.utils", "runstring", "open('pwned', 'w')", {}),
    "numpy.load": call("numpy", "load", "pwned"),
    "shutil.rmtree": call("shutil", "rmtree", "."),
    "socket.create_connection": call("socket", "create_connection", ("localhost", 9)),
    "ctypes.CDLL": call("ctypes", "CDLL", "pwned.so"),
    "importlib.import_module": call("importlib", "import_module", "this"),
    "torch.load": call("torch", "load", "pwned"),
    "torch.hub.load": call("torch.hub", "load", "pwned", "pwned"),
    "torch.jit.load": call("torch.jit", "load", "pwned"),
    "torch.compile": call("torch", "compile", "pwned"),
    "torch._utils._get_obj_from_path": call("torch._utils", "_import_dotted_name", "os.system"),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", "cos\nsystem\n(S'touch pwned'\ntR."),
    "nblstm.load": call("nblstm", "load", "pwned"),
    "a dotted walk through torch": call("torch", "serialization.os.system", "touch pwned"),
    "a dotted walk through an allowed name": call("collections", "OrderedDict.__init__.__globals__"),
    "copyreg._reconstructor": call("copyreg", "_reconstructor", "a", "b", None),
    "_codecs.encode": call("_codecs", "encode", "a", "latin1"),
    "a bytearray of gigabytes": call("builtins", "bytearray", 2**40),
    "a call before a broken end": call("os", "system", "touch pwned") + b"\xff\xff",
    "a call whose result is thrown away": call("os", "system", "touch pwned") + b"0N",
    "SETITEM into a tensor": tensor(storage()) + value(0) + value(1) + b"s",
    "APPEND to a tensor": tensor(storage()) + value(0) + b"a",
    "BUILD of a tensor": tensor(storage()) + value((0, 2**40, (9,), (1,))) + b"b",
    "state for a dict that is a method": global_name("collections", "OrderedDict") + b")R" + value({"get": 1}) + b"b",
}
CODE = {"__torch__": 'class Net(Module):\n  __parameters__ = []\n  def forward(self) -> int:\n    open("pwned", "w")\n'}


@pytest.mark.parametrize("program", CALLS.values(), ids=CALLS.keys())
def test_published_attacks_by_pickle_are_refused(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attribute = value("a") + program
    files = (
        archive(program, FLOATS),
        archive(b"}" + value("a") + program + b"s", FLOATS),
        legacy(program.replace(storage(), b"N")),
        scripted(made("__torch__", "Net", attribute), CODE, FLOATS),
    )
    for file in files:
        with nothing_happens(tmp_path), pytest.raises(WeightFileError) as refused:
            load(file)
        assert len(str(refused.value)) < 500


def test_code_that_is_packed_millions_of_times_is_refused(tmp_path):
    program = b"\x80\x02" + made("__torch__", "Net", b"") + b"."
    content = packed(**{"data.pkl": program, "constants.pkl": b"\x80\x02).", "code/__torch__.py": b"\n" * 2**25})
    with nothing_happens(tmp_path), pytest.raises(WeightFileError, match=r"at most \d+ bytes of 'a/code/__torch__.py'"):
        load(io.BytesIO(content))


def test_names_in_errors_give_a_terminal_no_orders():
    name = "__torch__.torch.classes.\x1b]0;pwned\x07" + "x" * 900
    with pytest.raises(WeightFileError) as refused:
        load(scripted(made(name, "Y", b""), CODE, FLOATS))
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500


def test_one_dict_is_the_state_of_one_object():
    state = b"}(" + value("a") + b"Nuq\x06"
    program = global_name("__torch__", "Net") + b"q\x05)\x81" + state + b"bh\x05)\x81h\x06b\x86"
    with pytest.raises(WeightFileError, match="a state of its own"):
        load(scripted(program, CODE, FLOATS))


def changed(content: bytes, place: int, *values: int) -> bytes:
    """Return `content` with other bytes from `place` on, counted from the end where it is negative."""
    changed = bytearray(content)
    changed[place : place + len(values) or None] = values
    return bytes(changed)


HONEST = archive(tensor(storage()), FLOATS).getvalue()
ENTRY = HONEST.rindex(b"PK\x01\x02")  # of data/0 in the directory
END = HONEST.rindex(b"PK\x05\x06")


def bomb() -> bytes:
    """Return an archive of ten gigabytes in ten megabytes, all of them the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/data.pkl", bytes(2**24))
    local, directory = file.getvalue().split(b"PK\x01\x02")
    entry, end = b"PK\x01\x02" + directory.split(b"PK\x05\x06")[0], directory.split(b"PK\x05\x06")[1]
    entries = b"".join(entry[:-3] + b"%03d" % n for n in range(640))
    counts = struct.pack("<HHHHII", 0, 0, 640, 640, len(entries), len(local)) + end[-2:]
    return local + entries + b"PK\x05\x06" + counts


def two_folders() -> bytes:
    """Return an archive with a harmless data.pkl in the folder that a scanner may look into first."""
    file = archive(tensor(storage()), FLOATS)
    with zipfile.ZipFile(file, "a") as packed:
        packed.writestr("archive/data.pkl", b"\x80\x02N.")
    return file.getvalue()


def packed(**members: bytes) -> bytes:
    """Return an archive of packed members in the folder a."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(f"a/{name}", content)
    return file.getvalue()


def npz_of_many_axes() -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({('9' * 19 + ', ') * 300}), }}\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("a.npy", array)
    return file.getvalue()


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
FILES = {
    "zip: encrypted": changed(HONEST, ENTRY + 8, 1, 0),
    "zip: in an unknown compression": changed(HONEST, ENTRY + 10, 99, 0),
    "zip: in LZMA": changed(HONEST, ENTRY + 10, 14, 0),
    "zip: said to be deflated": changed(HONEST, ENTRY + 10, 8, 0),
    "zip: another checksum": changed(HONEST, ENTRY + 16, 1, 2, 3, 4),
    "zip: packed to four gigabytes": changed(HONEST, ENTRY + 20, 255, 255, 255, 255),
    "zip: unpacked to four gigabytes": changed(HONEST, ENTRY + 24, 254, 255, 255, 255),
    "zip: member beyond the end": changed(HONEST, ENTRY + 42, 0, 0, 0, 127),
    "zip: member in another one": changed(HONEST, ENTRY + 42, 1, 0, 0, 0),
    "zip: directory beyond the end": changed(HONEST, END + 16, 255, 255, 255, 127),
    "zip: directory of another size": changed(HONEST, END + 12, 1, 0, 0, 0),
    "zip: no directory": HONEST[:ENTRY],
    "zip: a second archive behind it": HONEST + archive(b"N", root="b").getvalue()[:-5],
    "zip: a bomb of members that share their bytes": bomb(),
    "zip: data.pkl in two folders": two_folders(),
    "zip: a packed program of millions of dicts": packed(**{"data.pkl": b"\x80\x02" + b"}" * 2**24 + b"."}),
    "npz: a shape of 300 giant axes": npz_of_many_axes(),
    "safetensors: half a surrogate pair as a name": safetensors(
        b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)
    ),
    "safetensors: header of 2**64 - 1 bytes": safetensors(b"{}", b"", 2**64 - 1),
    "safetensors: header of the most bytes": safetensors(b"{}", b"", 100_000_000),
    "safetensors: deep nesting": safetensors(b"{" + b'"a":[' * 10**6),
    "safetensors: sizes that overflow": safetensors(
        json.dumps({"a": {"dtype": "F32", "shape": [2**32, 2**32, 4], "data_offsets": [0, 0]}}).encode()
    ),
    "safetensors: tensors that overlap": safetensors(json.dumps({"a": F32, "b": F32}).encode(), bytes(8)),
    "safetensors: a program behind the data": safetensors(json.dumps({"a": F32}).encode(), bytes(8) + b"\x80\x02N."),
    "safetensors: the same name twice": safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
    "safetensors: infinity": safetensors(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}', bytes(8)),
    "a pickle": pickle.dumps({"a": 1}),
    "a pickle of protocol 0": b"cos\nsystem\n(S'touch pwned'\ntR.",
    "a pickle in gzip": zlib.compress(b"cos\nsystem\n(S'touch pwned'\ntR.", wbits=31),
    "a pickle in 7z": b"7z\xbc\xaf\x27\x1c" + bytes(100),
    "a shell script": b"#!/bin/sh\ntouch pwned\n",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_published_attacks_by_file_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(io.BytesIO(HONEST)).shape == (2, 3)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with nothing_happens(tmp_path), pytest.raises(WeightFileError) as refused:
            load(io.BytesIO(content))
        assert tracemalloc.get_traced_memory()[1] < 8 * len(content) + 2**21 and time.perf_counter() - begin < 5
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 500


# Mutants


def packed_again(content: bytes, change: Any) -> bytes:
    """Return an archive with one member changed and all checksums right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(file, "w") as packed:
        names = whole.namelist()
        place = change.random.choice(len(names), p=[0.5] + [0.5 / (len(names) - 1)] * (len(names) - 1))
        for number, name in enumerate(names):
            member = whole.read(name)
            packed.writestr(name, change(member) if number == place else member)
    return file.getvalue()


class Change:
    """Changes bytes at random: flips, values that matter, cuts, and pieces moved from one place to another."""

    VALUES = (
        b"\0",
        b"\x7f",
        b"\xff",
        b"\xff" * 4,
        b"\xff" * 8,
        b"\0" * 8,
        b"\x01\0\0\0",
        b"R",
        b"b",
        b"\x81",
        b"Q",
        b"0",
    )

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, content: bytes) -> bytes:
        for _ in range(self.random.integers(1, 4)):
            content = self.once(content)
        return content

    def once(self, content: bytes) -> bytes:
        start, other = sorted(self.random.integers(len(content) + 1, size=2))
        count = self.random.integers(1, 17)
        piece = content[other : other + count]
        kind = self.random.integers(6)
        if kind == 0 and start < len(content):
            return changed(content, start, content[start] ^ 1 << self.random.integers(8))
        if kind == 1:
            piece = self.VALUES[self.random.integers(len(self.VALUES))]
            return content[:start] + piece + content[start + len(piece) :]
        if kind == 2:
            return content[:start] + content[start + count :]
        if kind == 3:
            return content[:start] + piece + content[start:]
        if kind == 4:
            return content[:start] + piece + content[start + len(piece) :]
        return content[:other] if self.random.integers(4) == 0 else content + piece


def arrays_in(result: Any) -> Iterator[Any]:
    """Return every array in a value that may hold itself."""
    left, seen = [result], set()
    while left:
        found = left.pop()
        if isinstance(found, np.ndarray):
            yield found
        elif isinstance(found, (dict, list, tuple)) and id(found) not in seen:
            seen.add(id(found))
            left.extend(found.values() if isinstance(found, dict) else found)


def small_files() -> dict[str, bytes]:
    arrays = {"weight": np.ones((2, 3), np.float32), "bias": np.arange(3), "flag": np.array(True)}
    npz, packed = io.BytesIO(), io.BytesIO()
    np.savez(npz, **arrays)
    np.savez_compressed(packed, **arrays)
    entries = {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}, "bias": F32 | {"dtype": "I32"}}
    return {
        "npz": npz.getvalue(),
        "packed npz": packed.getvalue(),
        "safetensors": safetensors(json.dumps({"__metadata__": {"a": "b"}} | entries).encode(), bytes(32)),
        **{
            name: (DATA / name).read_bytes()
            for name in ("torch_state_dict.pt", "torch_checkpoint.pt", "torchscript.pt")
        },
        **{name: (DATA / name).read_bytes() for name in ("legacy_state_dict.pt", "legacy_checkpoint.pt")},
    }


def test_mutants_end_in_the_typed_error_or_in_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, outcomes, begin = Change(0), {False: 0, True: 0}, time.perf_counter()
    for content in small_files().values():
        is_zip = zipfile.is_zipfile(io.BytesIO(content))
        mutants = [packed_again(content, change) if is_zip and n % 2 else change(content) for n in range(500)]
        with nothing_happens(tmp_path):
            for mutant in mutants:
                outcomes[survives(mutant)] += 1
            tracemalloc.start()
            for mutant in mutants[::10]:
                survives(mutant)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2**24
    assert time.perf_counter() - begin < 100
    assert min(outcomes.values()) > 300, outcomes


def survives(mutant: bytes) -> bool:
    """Say whether a mutant loads; then its arrays can be read."""
    begin = time.perf_counter()
    try:
        result = load(io.BytesIO(mutant))
    except WeightFileError as error:
        assert len(str(error)) < 600
        result = None
    assert time.perf_counter() - begin < 5
    for array in arrays_in(result):
        assert array.nbytes < 2**27 and (array.size == 0 or array.flat[0].dtype == array.flat[-1].dtype)
    return result is not None

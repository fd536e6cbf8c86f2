"""The .safetensors format: the safetensors package as the oracle, and every rule of the format broken once."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nblstm.errors import WeightFileError
from nblstm.weights.files import load, save

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
ARRAYS = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
        assert ours[name].tobytes() == array.tobytes()
        assert ours[name].flags.writeable and ours[name].flags.aligned and ours[name].flags.c_contiguous


@settings(max_examples=60)
@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_what_is_saved_is_loaded(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    save(path, arrays)
    assert_same(load(path), arrays)


@settings(max_examples=60)
@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_the_peer_writes_the_same_bytes_and_reads_ours(tmp_path_factory, arrays):
    peer = pytest.importorskip("safetensors.numpy")
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    save(path, arrays)
    assert path.read_bytes() == peer.save(arrays)
    assert_same(load(io.BytesIO(peer.save(arrays, {"format": "pt", "ü": "é"}))), peer.load_file(path))


def test_bfloat16_of_the_peer_is_widened_exactly(torch):
    peer = pytest.importorskip("safetensors.torch")
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    ours = load(io.BytesIO(peer.save({"every": every, "odd": torch.ones(3, dtype=torch.uint8)})))
    np.testing.assert_array_equal(ours["every"].view(np.int32), every.float().view(torch.int32).numpy())


def test_kept_bfloat16_goes_both_ways_with_the_peers_bytes(tmp_path, torch):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    peer = pytest.importorskip("safetensors.torch")
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16).view(2, -1)
    theirs = peer.save({"every": every, "odd": torch.ones(3, dtype=torch.uint8), "scalar": every[0, 5].clone()})
    ours = load(io.BytesIO(theirs), keep_bfloat16=True)
    assert ours["every"].dtype == ours["scalar"].dtype == bfloat16 and ours["scalar"].shape == ()
    save(tmp_path / "a.safetensors", ours)
    assert (tmp_path / "a.safetensors").read_bytes() == theirs
    save(tmp_path / "b.safetensors", {"strided": ours["every"].T[::3]})
    strided = load(tmp_path / "b.safetensors", keep_bfloat16=True)["strided"]
    np.testing.assert_array_equal(strided.view(np.uint16), every.view(torch.int16).numpy().view(np.uint16).T[::3])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2"])
def test_any_layout_in_memory_is_written(tmp_path, order, dtype):
    array = np.asarray(np.arange(6).reshape(2, 3), dtype, order=order)
    save(tmp_path / "a.safetensors", {"a": array, "b": array[::-1, ::2]})
    loaded = load(tmp_path / "a.safetensors")
    native = np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(loaded["a"], array.astype(native), strict=True)
    np.testing.assert_array_equal(loaded["b"], array[::-1, ::2].astype(native), strict=True)


def test_tensors_need_not_be_aligned():
    entries = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    loaded = load(file_of(entries, bytes([7]) + np.array([1, 2], "<f4").tobytes()))
    assert loaded["a"].tolist() == [7] and loaded["b"].tolist() == [1, 2] and loaded["b"].flags.aligned


# Every rule of the format, broken


def entry(dtype: object, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(header: object, data: bytes = b"", length: int | None = None) -> io.BytesIO:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO((len(text) if length is None else length).to_bytes(8, "little") + text + data)


A = entry("F32", [2], 0, 8)
REFUSED = {
    "header longer than the file": (file_of({"a": A}, bytes(8), 2**40), "header of 2 to 100000000"),
    "header that passes the end": (file_of({"a": A}, bytes(8), 1000), "expected 1000 bytes"),
    "header without an end": (file_of(b'{"a": '), "header in JSON"),
    "header that is a list": (file_of(b"[]{}"), "begins with"),
    "header of deep nesting": (file_of(b'{"a":' + b"[" * 100_000), "header in JSON"),
    "header that is not UTF-8": (file_of(b'{"\xff": 1}'), "header in JSON"),
    "header after a space": (file_of(b" {}"), "begins with"),
    "header with a second value": (file_of(b"{} {}"), "header in JSON"),
    "giant number": (file_of(b'{"a": ' + b"9" * 10_000 + b"}"), "header in JSON|dtype, shape and"),
    "a name twice": (file_of(b'{"a": 1, "a": 2}'), "a name stands in it twice"),
    "a field twice": (file_of(json.dumps({"a": A}).replace("shape", "dtype").encode(), bytes(8)), "stands in it twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "text for text"),
    "metadata that is a list": (file_of({"__metadata__": []}), "text for text"),
    "an entry that is a list": (file_of({"a": []}), "dtype, shape and data_offsets"),
    "an entry without shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "dtype, shape and"),
    "an entry with more": (file_of({"a": A | {"code": "print(1)"}}, bytes(8)), "dtype, shape and data_offsets"),
    "three offsets": (file_of({"a": A | {"data_offsets": [0, 4, 8]}}, bytes(8)), "dtype, shape and data_offsets"),
    "unknown dtype": (file_of({"a": entry("F8_E4M3", [8], 0, 8)}, bytes(8)), "got 'F8_E4M3'"),
    "dtype that is a number": (file_of({"a": entry(4, [2], 0, 8)}, bytes(8)), "dtype, shape and data_offsets"),
    "dtype without a name": (file_of({"a": entry("", [2], 0, 8)}, bytes(8)), "got ''"),
    "negative size": (file_of({"a": entry("F32", [-2, -1], 0, 8)}, bytes(8)), "that an array can have"),
    "size of a fraction": (file_of({"a": entry("F32", [2.0], 0, 8)}, bytes(8)), "that an array can have"),
    "size that is a bool": (file_of({"a": entry("F32", [2, True], 0, 8)}, bytes(8)), "that an array can have"),
    "sizes that overflow": (file_of({"a": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8)), "that an array can have"),
    "giant beside a zero": (file_of({"a": entry("F32", [0, 2**62], 0, 0)}), "that an array can have"),
    "too many dimensions": (file_of({"a": entry("F32", [1] * 65, 0, 4)}, bytes(4)), "that an array can have"),
    "negative offset": (file_of({"a": entry("F32", [2], -8, 0)}, bytes(8)), "that an array can have"),
    "offsets the other way round": (file_of({"a": entry("F32", [2], 8, 0)}, bytes(8)), "expected 8 bytes"),
    "offsets of another size": (file_of({"a": entry("F32", [2], 0, 12)}, bytes(12)), "expected 8 bytes"),
    "hole at the beginning": (file_of({"a": entry("F32", [2], 4, 12)}, bytes(12)), "begins at byte 0"),
    "hole between": (file_of({"a": A, "b": entry("F32", [1], 12, 16)}, bytes(16)), "begins at byte 8"),
    "overlap": (file_of({"a": A, "b": entry("F32", [2], 4, 12)}, bytes(12)), "begins at byte 8"),
    "the same bytes twice": (file_of({"a": A, "b": A}, bytes(8)), "begins at byte 8"),
    "data cut short": (file_of({"a": A}, bytes(7)), "expected 8 bytes of data, got 7"),
    "data left over": (file_of({"a": A}, bytes(9)), "expected 8 bytes of data, got 9"),
    "data far beyond": (file_of({"a": entry("F32", [2**38], 0, 2**40)}, bytes(8)), "bytes of data, got 8"),
}


@pytest.mark.parametrize(("file", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_broken_rules_are_refused(file, words):
    with pytest.raises(WeightFileError, match=words) as refused:
        load(file)
    assert len(str(refused.value)) < 500


def test_an_empty_tensor_may_stand_anywhere():
    header = {"a": A, "b": entry("F32", [0, 3], 8, 8), "c": entry("F32", [0], 0, 0), "d": entry("U8", [], 8, 9)}
    assert {name: array.shape for name, array in load(file_of(header, bytes(9))).items()} == {
        "a": (2,),
        "b": (0, 3),
        "c": (0,),
        "d": (),
    }


def test_damage_ends_in_the_typed_error_or_in_arrays(tmp_path):
    save(tmp_path / "a.safetensors", {"weight": np.ones((2, 3), np.float32), "bias": np.arange(3)})
    content = (tmp_path / "a.safetensors").read_bytes()
    places = range(len(content))
    flips = [bytes([*content[:n], content[n] ^ 1 << bit, *content[n + 1 :]]) for n in places for bit in range(8)]
    cuts = [content[:n] for n in places]
    for n, mutant in enumerate(flips + cuts):
        try:
            loaded = load(io.BytesIO(mutant))
        except WeightFileError:
            continue
        assert n < len(flips) and all(array.size in (3, 6) for array in loaded.values())

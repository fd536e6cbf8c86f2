"""Files of torch.save before torch 1.6: what torch wrote then and does not now, and what no file may say.

The recorded files and the comparisons with torch are in test_weights_torch_file.py, for both formats at once.
"""

from __future__ import annotations

import io
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from torch_pickles import (
    DATA,
    assert_same,
    counted,
    global_name,
    legacy,
    legacy_storage,
    saved,
    tensor,
    value,
)

from nblstm.errors import WeightFileError
from nblstm.weights.files import load

FLOATS = {"7": (6, counted(6).tobytes())}
TENSOR = tensor(legacy_storage())


def test_a_file_made_by_hand_is_read_as_torch_reads_it(torch):
    file = legacy(b"(" + TENSOR + tensor(legacy_storage(), 1, (5,), (1,)) + b"t", FLOATS)
    ours = load(file)
    file.seek(0)
    assert_same(ours, torch.load(file, weights_only=True, map_location="cpu"))
    assert ours[0].tolist() == [[0, 1, 2], [3, 4, 5]] and np.shares_memory(*ours)


def test_several_storages_in_any_order_are_read():
    second = tensor(legacy_storage("LongStorage", "a", 2), 0, (2,), (1,))
    file = legacy(b"(" + TENSOR + second + b"t", {"a": (2, counted(2, dtype="<i8").tobytes())} | FLOATS)
    first, second = load(file)
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]] and second.tolist() == [0, 1] and second.dtype == np.int64


@pytest.mark.parametrize("little", [True, False])
def test_numbers_are_little_endian_whatever_machine_wrote_them(torch, little):
    file = io.BytesIO(legacy(TENSOR, FLOATS).getvalue().replace(b"\x88s", b"\x88s" if little else b"\x89s"))
    assert (b"\x89s" in file.getvalue()) is not little
    np.testing.assert_array_equal(load(file), counted(2, 3), strict=True)
    file.seek(0)
    np.testing.assert_array_equal(
        torch.load(file, weights_only=True, map_location="cpu").numpy(), counted(2, 3), strict=True
    )


def test_views_of_a_storage_are_read_as_torch_reads_them(torch):
    views = [tensor(legacy_storage(view=(key, 1 + n, 4)), 0, (2, 2), (2, 1)) for n, key in enumerate("ab")]
    file = legacy(b"(" + b"".join(views) + TENSOR + b"t", FLOATS)
    ours = load(file)
    assert [array.tolist() for array in ours[:2]] == [[[1, 2], [3, 4]], [[2, 3], [4, 5]]]
    assert np.shares_memory(ours[0], ours[1]) and np.shares_memory(ours[0], ours[2])
    file.seek(0)
    assert_same(ours, torch.load(file, weights_only=True, map_location="cpu"))


def test_a_state_dict_of_python_2_is_read_as_torch_reads_it(torch):
    """It had strings of bytes, an OrderedDict of pairs and, before torch 0.4, tensors without a gradient."""

    def text(plain: str) -> bytes:
        return b"U" + bytes([len(plain)]) + plain.encode()

    storage = legacy_storage().replace(value("storage"), text("storage")).replace(value("cuda:1"), text("cpu"))
    old = global_name("torch._utils", "_rebuild_tensor") + b"(" + storage + value(0) + value((6,)) + value((1,)) + b"tR"
    pairs = b"](]" + b"(" + text("weight") + old + b"e]" + b"(" + text("bias") + TENSOR + b"ee"
    file = legacy(global_name("collections", "OrderedDict") + pairs + b"\x85R", FLOATS)
    ours = load(file)
    assert type(ours) is OrderedDict and list(ours) == ["weight", "bias"]
    file.seek(0)
    assert_same(ours, torch.load(file, weights_only=True, map_location="cpu"))


def test_bytes_of_newer_dtypes_are_read(torch):
    for name in ("uint16", "uint32", "uint64"):  # torch writes these, and cannot read them
        tensor = torch.arange(5).to(getattr(torch, name))
        ours = load(saved(torch, tensor, _use_new_zipfile_serialization=False))
        np.testing.assert_array_equal(ours, tensor.numpy(), strict=True)


@pytest.mark.filterwarnings("ignore")
def test_a_model_saved_whole_is_refused_by_name(torch):
    file = saved(torch, torch.nn.LSTM(2, 2), _use_new_zipfile_serialization=False)
    with pytest.raises(WeightFileError, match=r"'torch\.nn\.modules\.rnn\.LSTM'.*save model\.state_dict\(\)"):
        load(file)


def test_an_open_file_with_more_behind_it_is_read(tmp_path):
    path = tmp_path / "two.pt"
    path.write_bytes((DATA / "legacy_state_dict.pt").read_bytes() + legacy(TENSOR, FLOATS).getvalue())
    with open(path, "rb") as file:
        assert load(file).keys() == load(DATA / "torch_state_dict.pt").keys()
        assert not file.closed


def test_storages_are_read_into_place():
    count = 2**20
    file = legacy(tensor(legacy_storage(count=count), 0, (count,), (1,)), {"7": (count, bytes(4 * count))})
    tracemalloc.start()
    try:
        assert load(file).nbytes == 4 * count
        assert tracemalloc.get_traced_memory()[1] < 4.2 * count
    finally:
        tracemalloc.stop()


SYSTEM = global_name("posix", "system") + value(("touch pwned",)) + b"R"
REFUSED: dict[str, tuple[io.BytesIO, str]] = {
    "another version": (legacy(TENSOR, FLOATS, version=1002), "expected version 1001 .*, got 1002"),
    "a version that is a list": (legacy(TENSOR, FLOATS, version=[]), "got list"),
    "a call in the value": (legacy(SYSTEM), "'posix.system'"),
    "a storage of another count": (legacy(TENSOR, {"7": (5, bytes(24))}), "expected 6 numbers in storage '7', got 5"),
    "a negative count": (legacy(TENSOR, {"7": (-1, bytes(24))}), "got -1"),
    "a count that wraps around": (legacy(tensor(legacy_storage(count=2**62)), {"7": (2**62, bytes(24))}), "a file of"),
    "a giant storage": (legacy(tensor(legacy_storage(count=2**40)), {"7": (2**40, bytes(24))}), "a file of"),
    "a giant storage without a tensor": (
        legacy(value([]) + b"(" + TENSOR + legacy_storage(key="8", count=2**40) + b"e", FLOATS),
        "a bare Storage",
    ),
    "a negative storage": (legacy(tensor(legacy_storage(count=-6)), FLOATS), "persistent id of a storage"),
    "storages that share the file": (
        legacy(
            b"(" + b"".join(tensor(legacy_storage(key=str(n), count=60), 0, (60,), (1,)) for n in range(9)) + b"t",
            {str(n): (60, b"" if n else bytes(240)) for n in range(9)},
        ),
        "a file of",
    ),
    "a missing key": (legacy(TENSOR, FLOATS, keys=[]), "the 1 storages of its tensors, got a list of 0"),
    "a key twice": (legacy(TENSOR, FLOATS, keys=["7", "7"]), "a list of 2"),
    "a key of no tensor": (legacy(TENSOR, FLOATS, keys=["7", "8"]), "a list of 2"),
    "keys that are numbers": (legacy(TENSOR, FLOATS, keys=[7]), "a list of the storages' keys"),
    "keys that are a dict": (legacy(TENSOR, FLOATS, keys={"7": 1}), "a list of the storages' keys, got dict"),
    "a storage of two kinds": (
        legacy(b"(" + TENSOR + tensor(legacy_storage("IntStorage")) + b"t", FLOATS),
        "storage '7' as it was before",
    ),
    "a storage of two counts": (
        legacy(b"(" + TENSOR + tensor(legacy_storage(count=5), 0, (1,), (1,)) + b"t", FLOATS),
        "storage '7' as it was before",
    ),
    "a tensor beyond its storage": (legacy(tensor(legacy_storage(), 1), FLOATS), "number 6 of it"),
    "a tensor beyond its view": (
        legacy(tensor(legacy_storage(view=("8", 1, 5))), FLOATS),
        "inside its storage of 5 numbers",
    ),
    "a view beyond its storage": (legacy(tensor(legacy_storage(view=("8", 1, 6))), FLOATS), "a view of the 6 numbers"),
    "a view of negative size": (legacy(tensor(legacy_storage(view=("8", 1, -1))), FLOATS), "a view of the 6 numbers"),
    "a view that wraps around": (
        legacy(tensor(legacy_storage(view=("8", 2**63 - 1, 2**63 - 1))), FLOATS),
        "a view of the 6 numbers",
    ),
    "a view that is text": (legacy(tensor(legacy_storage(view="8")), FLOATS), "a view of the 6 numbers"),
    "a persistent id of the zip format": (
        legacy(
            tensor(b"(" + value("storage") + global_name("torch", "FloatStorage") + value("7") + value(0) + b"K\x06tQ")
        ),
        "persistent id of a storage",
    ),
    "a module with its source": (legacy(value(("module", "a", "b", "c")) + b"Q"), "persistent id of a storage"),
    "pairs that are none": (legacy(global_name("collections", "OrderedDict") + value(([1],)) + b"R"), "pairs in an"),
    "pairs with a list as a key": (
        legacy(global_name("collections", "OrderedDict") + value(([[[], 1]],)) + b"R"),
        "a string as each key",
    ),
    "numbers cut short": (io.BytesIO(legacy(TENSOR, FLOATS).getvalue()[:-1]), "cut short"),
    "no numbers": (legacy(TENSOR, keys=["7"]), "cut short"),
    "no list of keys": (io.BytesIO(legacy(b"N").getvalue()[:-4]), "a whole pickle"),
    "the magic number alone": (io.BytesIO(legacy(b"N").getvalue()[:15]), "a whole pickle"),
}
for place, name in enumerate(["version", "machine", "value", "keys"]):
    pickles = [b"\x80\x02" + part + b"." for part in (value(1001), value({}), value(None), value([]))]
    pickles[place] = b"\x80\x02" + SYSTEM + b"."
    REFUSED[f"a call in place of the {name}"] = io.BytesIO(legacy(b"N").getvalue()[:15] + b"".join(pickles)), "posix"


@pytest.mark.parametrize(("file", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_broken_files_are_refused(file, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(WeightFileError, match=words) as refused:
            load(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 500 and not list(tmp_path.iterdir())


def test_a_file_cut_short_anywhere_is_refused():
    content = (DATA / "legacy_state_dict.pt").read_bytes()
    for end in range(1, len(content)):
        with pytest.raises(WeightFileError):
            load(io.BytesIO(content[:end]))

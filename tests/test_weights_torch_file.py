"""Files of torch.save: recorded ones, live torch as the oracle, and archives made by hand that torch never wrote."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_pickles import (
    DATA,
    FLOATS,
    archive,
    assert_as_torch,
    counted,
    global_name,
    saved,
    storage,
    tensor,
    value,
)

from nblstm.errors import WeightFileError
from nblstm.weights.files import load

# Recorded files, where torch may be missing


@pytest.mark.parametrize("name", ["torch_state_dict.pt", "legacy_state_dict.pt"])
def test_recorded_state_dict(name):
    state = load(DATA / name)
    assert type(state) is OrderedDict
    assert state._metadata["rnn"] == {"version": 1}
    shapes = {name: array.shape for name, array in state.items()}
    directions = ("_l0", "_l0_reverse")
    names = {"weight_ih": (8, 3), "weight_hh": (8, 1), "bias_ih": (8,), "bias_hh": (8,), "weight_hr": (1, 2)}
    expected = {f"rnn.{name}{direction}": shape for direction in directions for name, shape in names.items()}
    assert shapes == expected | {"head.weight": (1, 2), "head.bias": (1,)}
    for array in state.values():
        np.testing.assert_array_equal(array, counted(*array.shape), strict=True)


@pytest.mark.parametrize("name", ["torch_checkpoint.pt", "legacy_checkpoint.pt"])
def test_recorded_checkpoint(name):
    checkpoint = load(DATA / name)
    arrays = {key: value for key, value in checkpoint.items() if isinstance(value, np.ndarray)}
    dtypes = checkpoint.pop("dtypes")
    assert {key: value for key, value in checkpoint.items() if key not in arrays} == {
        "epoch": 7,
        "loss": 0.5,
        "flags": [True, False, None],
        "large": 2**70,
        "nested": {"lr": 1e-3, "betas": (0.9, 0.999), 3: "three"},
        "size": (2, 3),
        "dtype": np.dtype(np.float16),
        "device": "cuda:0",
    }
    expected = {
        "parameter": counted(2, 3),
        "scalar": np.array(3, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "first": counted(4, 3),
        "second": (12 + counted(3, 4)).T,
        "expanded": np.array([[1, 2]] * 3, np.float32),
    }
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert len(dtypes) == 15
    for name, array in dtypes.items():
        np.testing.assert_array_equal(
            array, counted(4, dtype="float32" if name == "bfloat16" else name), err_msg=name, strict=True
        )


@pytest.mark.parametrize("name", ["torch_checkpoint.pt", "legacy_checkpoint.pt"])
def test_arrays_share_memory_where_tensors_did(name):
    checkpoint = load(DATA / name)
    assert checkpoint["first"].base is checkpoint["second"].base
    checkpoint["expanded"][0, 0] = 5
    assert checkpoint["expanded"][:, 0].tolist() == [5, 5, 5]


# torch as the oracle


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}, {"bias": False}])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_layers_as_torch_loads_them(torch, kind, options):
    if (kind.endswith("Cell") and options.keys() - {"bias"}) or (kind != "LSTM" and "proj_size" in options):
        options = {}
    layer = getattr(torch.nn, kind)(5, 3, **options)
    assert_as_torch(torch, layer.state_dict())
    assert_as_torch(torch, {"model": layer.double().state_dict(), "step": 3})


def test_values_as_torch_loads_them(torch):
    base = torch.randn(6, 4)
    optimizer = torch.optim.Adam([torch.nn.Parameter(base.clone())])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    assert_as_torch(torch, base)
    assert_as_torch(torch, [base[1:3], base.t(), base[::2, 1::2], base.expand(3, 6, 4), base[:0], base[2, 3]])
    assert_as_torch(torch, optimizer.state_dict())
    assert_as_torch(
        torch, {"": {}, "list": [], "tuple": (), "ints": (0, -1, 255, 256, 65536, -(2**40)), "t": "é\n\x00"}
    )
    assert_as_torch(torch, {"shared": [base] * 300, "names": {f"name {i}": i for i in range(2000)}})


def test_every_bfloat16_is_widened_exactly(torch):
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    widened = load(saved(torch, every)).view(np.uint32)
    np.testing.assert_array_equal(widened, every.float().view(torch.int32).numpy().view(np.uint32))


@settings(max_examples=40)
@given(st.data())
def test_views_as_torch_loads_them(torch, data):
    count = data.draw(st.integers(1, 60), "count")
    dtype = getattr(torch, data.draw(st.sampled_from(["float32", "float64", "bfloat16", "int16", "bool", "uint16"])))
    base = torch.arange(count).to(dtype)
    views = []
    for _ in range(data.draw(st.integers(1, 3), "views")):
        offset = data.draw(st.integers(0, count - 1))
        size, stride, room = [], [], count - 1 - offset
        for _ in range(data.draw(st.integers(0, 3))):
            stride.append(data.draw(st.integers(0, 5)))
            size.append(data.draw(st.integers(0, room // stride[-1] + 1 if stride[-1] else 4)))
            room -= max(size[-1] - 1, 0) * stride[-1]
        views.append(base.as_strided(size, stride, offset))
    assert_as_torch(torch, views, legacy=dtype is not torch.uint16)  # of which torch cannot read its own old files


def test_files_without_checksums_are_read(torch):
    torch.serialization.set_crc32_options(False)
    try:
        file = saved(torch, {"a": torch.arange(3.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert load(file)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda torch: torch.nn.LSTM(2, 2), r"'torch\.nn\.modules\.rnn\.LSTM'.*save model\.state_dict\(\)"),
        (lambda torch: {"a": torch.ones(2, 2).to_sparse()}, r"a sparse tensor .*Save tensor\.to_dense\(\)"),
        (lambda torch: {"a": torch.ones(2, 2).to_sparse_csr()}, "a sparse tensor"),
        (lambda torch: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"a quantised .*dequantize\(\)"),
        (lambda torch: torch.ones(2, device="meta"), "of the device meta"),
        (lambda torch: torch.nested.nested_tensor([torch.ones(2)]), r"a nested tensor.*unbind\(\)"),
        (lambda torch: {"loss": np.float64(0.5)}, r"a number of NumPy .*number\.item\(\)"),
        (lambda torch: {"curve": np.ones(2)}, r"an array of NumPy .*from_numpy"),
        (lambda torch: {"names": np.array([None])}, "an array of NumPy"),
        (lambda torch: torch.ones(2).to(torch.float8_e5m2), "float8_e5m2"),
        (lambda torch: torch.ones(2, dtype=torch.complex64).conj(), "resolve_conj"),
        (lambda torch: {"path": Path("a")}, "pathlib"),
        (lambda torch: {"set": {1, 2}}, "set"),
        (lambda torch: {"layer": torch.ones(2).untyped_storage()}, "a bare Storage"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch warns of some of these when it saves them
def test_what_is_no_state_dict_is_refused_by_name(torch, make, words):
    with pytest.raises(WeightFileError, match=words):
        load(saved(torch, make(torch)))


def test_other_protocols_are_refused_by_name(torch):
    with pytest.raises(WeightFileError, match="protocol 4"):
        load(saved(torch, {"a": 1}, pickle_protocol=4))


def test_kept_bfloat16_has_torchs_bits(torch):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    value = {"every": every, "view": every[4:10].view(3, 2).t(), "none": every[:0], "dtype": torch.bfloat16}
    for zipped in (True, False):
        ours = load(saved(torch, value, _use_new_zipfile_serialization=zipped), keep_bfloat16=True)
        assert ours["dtype"] == ours["every"].dtype == bfloat16
        np.testing.assert_array_equal(ours["every"].view(np.uint16), np.arange(2**16, dtype=np.uint16), strict=True)
        assert ours["view"].view(np.uint16).tolist() == [[4, 6, 8], [5, 7, 9]] and ours["none"].shape == (0,)
        assert np.shares_memory(ours["every"], ours["view"]) and ours["view"].flags.writeable


def test_complex_numbers_and_parameters_with_state_are_read(torch):
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.tag = "kept by torch alone"
    ours = load(saved(torch, {"z": [1.5 - 2j], "parameter": parameter}))
    assert ours["z"] == [1.5 - 2j] and ours["parameter"].tolist() == [0, 1, 2]


# Archives made by hand


def test_an_archive_made_by_hand_is_read():
    np.testing.assert_array_equal(load(archive(tensor(storage()), FLOATS)), counted(2, 3), strict=True)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_packed_again_are_read(method):
    assert load(archive(tensor(storage()), FLOATS, method=method)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("DoubleStorage", "f8"), ("FloatStorage", "f4"), ("ShortStorage", "i2"), ("ComplexFloatStorage", "c8")],
)
@pytest.mark.parametrize(("byte_order", "code"), [(b"little", "<"), (b"big", ">")])
def test_both_byte_orders_are_read(kind, dtype, byte_order, code):
    members = {"data/0": counted(6, dtype=code + dtype).tobytes(), "byteorder": byte_order}
    np.testing.assert_array_equal(
        load(archive(tensor(storage(kind)), members)), counted(2, 3, dtype=dtype), strict=True
    )


def test_big_endian_bfloat16_is_read():
    members = {"data/0": (counted(6).view(np.uint32) >> 16).astype(">u2").tobytes(), "byteorder": b"big"}
    np.testing.assert_array_equal(
        load(archive(tensor(storage("BFloat16Storage")), members)), counted(2, 3), strict=True
    )


def test_a_bool_is_whatever_is_not_zero():
    read = load(archive(tensor(storage("BoolStorage")), {"data/0": bytes([0, 1, 2, 255, 0, 7])}))
    assert read.view(np.uint8).tolist() == [[0, 1, 1], [1, 0, 1]]


REFUSED = {
    "offset beyond the storage": tensor(storage(), 1),
    "offset far beyond the storage": tensor(storage(), 2**62, (), ()),
    "negative offset": tensor(storage(), -1, (1,), (1,)),
    "offset that is no number": tensor(storage(), "0"),
    "offset that is a bool": tensor(storage(), False),
    "size beyond the storage": tensor(storage(), 0, (7,), (1,)),
    "negative size": tensor(storage(), 0, (-1,), (1,)),
    "size beyond 64 bits": tensor(storage(), 0, (2**64,), (0,)),
    "sizes whose product overflows": tensor(storage(), 0, (2**31, 2**31, 4), (0, 0, 0)),
    "sizes that are giant beside a zero": tensor(storage(), 0, (0, 2**62), (0, 0)),
    "size that is a list": tensor(storage(), 0, [2, 3]),
    "size of fractions": tensor(storage(), 0, (2.0, 3.0)),
    "stride beyond the storage": tensor(storage(), 0, (2,), (6,)),
    "stride that overflows": tensor(storage(), 0, (5,), (2**62,)),
    "negative stride": tensor(storage(), 5, (2,), (-1,)),
    "fewer strides than sizes": tensor(storage(), 0, (2, 3), (1,)),
    "more dimensions than NumPy has": tensor(storage(), 0, (1,) * 65, (1,) * 65),
    "stride of zero over a giant": tensor(storage(), 0, (2**30,), (0,)),
    "many views of one storage": value([]) + b"(" + tensor(storage(), 0, (2**22,), (0,)) * 5 + b"e",
    "storage of another size": tensor(storage(count=5), 0, (5,), (1,)),
    "storage of a negative size": tensor(storage(count=-6)),
    "storage of a giant size": tensor(storage(count=2**62)),
    "storage that is not there": tensor(storage(key="1")),
    "storage whose key is a number": tensor(storage(key=0)),
    "storage whose key climbs": tensor(storage(key="../data/0")),
    "storage of two dtypes": b"(" + tensor(storage()) + tensor(storage("IntStorage")) + b"t",
    "quantised storage": tensor(storage("QInt32Storage")),
    "storage that is none": tensor(value("storage")),
    "tensor over a tensor": tensor(tensor(storage())),
    "persistent id of another kind": value(("module", "a")) + b"Q",
    "persistent id that is a number": value(3) + b"Q",
    "persistent id of a tensor": b"("
    + tensor(storage())
    + value("FloatStorage")
    + value("0")
    + value("cpu")
    + b"K\x06tQ",
    "metadata": tensor(storage(), last=value({"conj": True})),
    "metadata that is a tensor": tensor(storage(), last=tensor(storage())),
    "untyped tensor of a typed dtype": tensor(storage(), last=global_name("torch", "float32")).replace(b"_v2", b"_v3"),
    "untyped tensor without dtype": tensor(storage(), last=value(None)).replace(b"_v2", b"_v3"),
    "parameter of nothing": global_name("torch._utils", "_rebuild_parameter") + value((None, True, None)) + b"R",
    "size of text": global_name("torch", "Size") + value((("a",),)) + b"R",
    "device without a name": global_name("torch", "device") + value((0,)) + b"R",
    "device of a long name": global_name("torch", "device") + value(("a" * 1000,)) + b"R",
    "a bare storage": storage(),
    "a bare storage class": value([]) + global_name("torch", "FloatStorage") + b"a",
    "a bare function": global_name("collections", "OrderedDict"),
}


@pytest.mark.parametrize("program", REFUSED.values(), ids=REFUSED.keys())
def test_tensors_outside_the_file_are_refused(program):
    with pytest.raises(WeightFileError):
        load(archive(program, FLOATS))


def test_single_elements_may_have_any_stride():
    assert load(archive(tensor(storage(), 5, (1, 1), (2**62, 7)), FLOATS)).tolist() == [[5]]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (archive(tensor(storage()), FLOATS | {"byteorder": b"middle"}), "byte order little or big, got 'middle'"),
        (archive(tensor(storage()), FLOATS | {"constants.pkl": b""}), "a module in a TorchScript archive, got ndarray"),
        (archive(b"N", root="a/b"), "expected one <folder>/data.pkl .*got a zip archive of 'a/b/data.pkl'"),
    ],
)
def test_archives_of_other_kinds_are_refused(file, words):
    with pytest.raises(WeightFileError, match=words):
        load(file)


def test_two_members_of_one_name_are_refused():
    file = archive(tensor(storage()), FLOATS)
    with zipfile.ZipFile(file, "a") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr("any folder/data/0", bytes(24))
    with pytest.raises(WeightFileError, match="two members of one name"):
        load(file)


# Damage: every cut, and a flipped bit in every byte


def loads_or_is_refused(content: bytes) -> Any:
    try:
        return load(io.BytesIO(content))
    except WeightFileError:
        return None


def test_a_file_cut_short_anywhere_is_refused():
    content = (DATA / "torch_state_dict.pt").read_bytes()
    for end in range(len(content)):
        assert loads_or_is_refused(content[:end]) is None


def test_a_flipped_bit_never_gives_other_numbers():
    content = archive(tensor(storage()), FLOATS | {"byteorder": b"little"}).getvalue()
    read = 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        result = loads_or_is_refused(bytes(flipped))
        if result is not None:  # dates and other fields that do not matter
            np.testing.assert_array_equal(result, counted(2, 3), strict=True)
            read += 1
    assert 0 < read < 4 * len(content)


@pytest.mark.parametrize("name", ["torch_state_dict.pt", "torch_checkpoint.pt"])
def test_overwritten_bytes_never_give_other_numbers(name):
    content = (DATA / name).read_bytes()
    original = pickle.dumps(load(DATA / name))
    random = np.random.default_rng(0)
    for _ in range(1000):
        mutant = np.frombuffer(content, np.uint8).copy()
        start, count = random.integers(len(content)), random.integers(1, 9)
        mutant[start : start + count] = random.choice([0, 1, 0x7F, 0xFF, random.integers(256)])
        result = loads_or_is_refused(mutant.tobytes())
        assert result is None or pickle.dumps(result) == original

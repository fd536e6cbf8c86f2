"""Whatever a layer is given, it answers, or raises ValueError, TypeError or RuntimeError; the process lives on."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from cases import as_tuple
from hypothesis import given, settings
from hypothesis import strategies as st

import nblstm
from nblstm import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

REFUSED = (ValueError, TypeError, RuntimeError)
JUNK = [None, "", "text", -1, 0, 1, 2, 2.5, float("nan"), True, [], {}, object(), np.float32(1), np.zeros(2), b"bytes"]
DTYPES = ["float32", "float64", "float16", "int64", "bool", ">f4", "complex64", "object", "U3"]

junk = st.sampled_from(JUNK)
sizes = st.one_of(st.integers(1, 6), junk)
flags = st.one_of(st.booleans(), junk)


@st.composite
def arrays(draw: st.DrawFn, max_dims: int = 4) -> Any:
    """Arrays of any dtype, few dimensions and odd memory: strided, reversed, transposed, read-only, unaligned."""
    dtype = draw(st.one_of(st.just("float32"), st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 6), max_size=max_dims))
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    change = draw(st.sampled_from(["none", "reversed", "transposed", "strided", "one value", "unaligned", "read-only"]))
    if change == "reversed":
        array = array[::-1] if array.ndim else array
    elif change == "transposed":
        array = array.T
    elif change == "strided":
        array = array[..., ::2] if array.ndim else array
    elif change == "one value":
        array = np.broadcast_to(array[:1], array.shape) if array.ndim and len(array) else array
    elif change == "unaligned" and dtype == "float32":
        array = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(np.float32).reshape(array.shape)
    elif change == "read-only":
        array.flags.writeable = False
    return array


anything = st.one_of(arrays(), junk)
layers = st.sampled_from(
    [
        LSTM(3, 4, seed=1),
        LSTM(2, 5, num_layers=2, dropout=0.5, batch_first=True, seed=1),
        LSTM(1, 3, bidirectional=True, proj_size=2, seed=1),
        GRU(3, 4, batch_first=True, seed=1),
        RNN(2, 5, 2, "relu", bidirectional=True, seed=1),
    ]
)
cells = st.sampled_from([LSTMCell(3, 4, seed=1), GRUCell(3, 4, seed=1), RNNCell(3, 4, nonlinearity="relu", seed=1)])


@settings(max_examples=300)
@given(
    kind=st.sampled_from([(LSTM, "proj_size", sizes), (RNN, "nonlinearity", st.sampled_from(["tanh", "relu"]) | junk)]),
    arguments=st.tuples(sizes, sizes, sizes),
    options=st.tuples(flags, flags, junk, flags),
    dtype=st.one_of(st.none(), junk),
    data=st.data(),
)
def test_constructor(kind: Any, arguments: Any, options: Any, dtype: Any, data: st.DataObject) -> None:
    build, own, values = kind
    named = dict(zip(("bias", "batch_first", "dropout", "bidirectional"), options, strict=True))
    named |= {own: data.draw(values)} | ({} if dtype is None else {"dtype": dtype})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dropout in a single layer
            layer = build(*arguments, **named)
    except REFUSED:
        return
    assert layer(np.zeros((2, 1, layer.input_size), layer.dtype))[0].shape[:2] == (2, 1)


@settings(max_examples=600)
@given(layer=layers, x=anything, hx=st.one_of(st.none(), anything, st.tuples(anything, anything)), out=anything)
def test_any_arrays(layer: Any, x: Any, hx: Any, out: Any) -> None:
    try:
        output, _ = layer(x, hx, out=out)
    except REFUSED:
        return
    assert output.dtype == np.float32


@settings(max_examples=600)
@given(data=st.data(), layer=layers)
def test_nearly_right_calls(data: st.DataObject, layer: Any) -> None:
    """Right calls of which one or two sizes, or one argument, may be off."""
    draw = data.draw
    near = st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, 1, -1])
    batch, steps = draw(st.integers(0, 5)), draw(st.integers(0, 6))
    first, second = (batch, steps) if layer.batch_first else (steps, batch)
    rows, outputs = layer.num_layers * (1 + layer.bidirectional), layer.proj_size or layer.hidden_size

    def zeros(*shape: int) -> Any:
        return np.zeros([max(0, size + draw(near)) for size in shape], np.float32)

    x = zeros(first, second, layer.input_size)
    states = zeros(rows, batch, outputs), zeros(rows, batch, layer.hidden_size)
    hx = draw(st.sampled_from([None, states, states[0]]))
    out = draw(st.sampled_from([None, zeros(first, second, outputs * (1 + layer.bidirectional))]))
    lengths = draw(st.one_of(st.none(), st.lists(st.integers(0, 7), min_size=max(0, batch - 1), max_size=batch + 1)))
    call = draw(st.one_of(st.none(), st.integers(-1, 2**64)))
    try:
        output, _ = layer(x, hx, lengths=lengths, out=out, dropout_call=call)
    except REFUSED:
        return
    assert np.isfinite(output).all()


@settings(max_examples=300)
@given(
    layer=layers,
    data=arrays(),
    batch_sizes=st.one_of(st.lists(st.integers(-1, 5), max_size=5), anything),
    order=st.one_of(st.none(), st.permutations([0, 1, 2]), anything),
    inverse=st.one_of(st.none(), st.permutations([0, 1, 2]), anything),
)
def test_packed_sequences(layer: Any, data: Any, batch_sizes: Any, order: Any, inverse: Any) -> None:
    packed = nblstm.PackedSequence(data, batch_sizes, order, inverse)
    for call in (layer, nblstm.pad_packed_sequence, nblstm.unpack_sequence):
        try:
            call(packed)
        except REFUSED:
            continue


@settings(max_examples=300)
@given(cell=cells, x=anything, hx=st.one_of(st.none(), anything, st.tuples(anything, anything)))
def test_cell(cell: Any, x: Any, hx: Any) -> None:
    try:
        states = cell(x, hx)
    except REFUSED:
        return
    assert all(state.shape[-1] == 4 for state in as_tuple(states))


@settings(max_examples=300)
@given(
    names=st.lists(st.one_of(st.sampled_from(["weight_ih_l0", "bias_hh_l0", "x", ""]), junk)), values=st.lists(anything)
)
def test_state_dicts(names: Any, values: Any) -> None:
    layer = LSTM(3, 4, seed=1)
    hashable = [name for name in names if getattr(type(name), "__hash__", None)]
    state_dict = dict(zip(hashable, values, strict=False))
    for load in (layer.load_state_dict, layer.set_parameters, lambda given: layer.load_state_dict(given, strict=False)):
        try:
            load(state_dict)
        except REFUSED:
            continue
    assert layer(np.zeros((1, 1, 3), np.float32))[0].shape == (1, 1, 4)


@settings(max_examples=300)
@given(
    names=st.lists(st.one_of(st.sampled_from(["weight_ih_l0", "weight_hh_l0", "weight_ih", "weight_hh", ""]), junk)),
    values=st.lists(anything),
    other=junk,
    prefix=st.one_of(st.just(""), junk),
    extension=st.sampled_from(["npz", "safetensors"]),
)
def test_weights(
    names: Any, values: Any, other: Any, prefix: Any, extension: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hashable = [name for name in names if getattr(type(name), "__hash__", None)]
    path = tmp_path_factory.getbasetemp() / f"fuzz.{extension}"
    for state_dict in (dict(zip(hashable, values, strict=False)), other):
        calls = (
            lambda given=state_dict: LSTM.from_state_dict(given, prefix),
            lambda given=state_dict: LSTMCell.from_state_dict(given, prefix, dtype=other),
            lambda given=state_dict: RNN.from_state_dict(given, prefix, nonlinearity=other),
            lambda given=state_dict: nblstm.save(path, given),
        )
        for call in calls:
            try:
                call()
            except REFUSED:
                continue


@settings(max_examples=300)
@given(x=anything, lengths=anything, batch_first=flags, enforce_sorted=flags, padding=junk, total=junk)
def test_sequences(x: Any, lengths: Any, batch_first: Any, enforce_sorted: Any, padding: Any, total: Any) -> None:
    calls = (
        lambda: nblstm.pack_padded_sequence(x, lengths, batch_first, enforce_sorted),
        lambda: nblstm.unpad_sequence(x, lengths, batch_first),
        lambda: nblstm.pad_sequence(x, batch_first, padding),
        lambda: nblstm.pack_sequence(x, enforce_sorted),
        lambda: nblstm.pad_packed_sequence(nblstm.pack_sequence([x]), batch_first, padding, total),
    )
    for call in calls:
        try:
            call()
        except REFUSED:
            continue

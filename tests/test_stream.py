"""Streams: the bits of a whole call, step by step, whatever form the input has."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import KINDS, as_tuple, layers, of_each, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.compiler_lock import global_compiler_lock

import nblstm
from nblstm import LSTM, LSTMCell, RNNCell
from nblstm.engine import plan, stepping
from nblstm.engine.plan import Plan
from nblstm.kernels.job import FIELDS, UNITS


@settings(max_examples=60, deadline=None)
@given(
    layer=layers(st.integers(1, 20), st.integers(1, 40), most=3, dtypes=[np.float32, np.float64]),
    rows=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    begins=st.booleans(),
)
def test_steps_are_a_call(layer: Any, rows: int, seed: int, begins: bool) -> None:
    layer.eval()
    x, hx = random_inputs(layer, 6, rows, seed=seed)
    if layer.bidirectional:
        with pytest.raises(ValueError, match="one direction because the reverse direction begins with the last step"):
            layer.stream()
        return
    x = x.swapaxes(0, 1) if layer.batch_first else x
    hx = hx if begins else None
    output, last = layer(x, hx)
    stream = layer.stream(rows, hx)
    for t in range(6):
        step, expected = (a[:, t] if layer.batch_first else a[t] for a in (x, output))
        assert np.array_equal(stream(step if t % 2 else np.ascontiguousarray(step)), expected)
    assert all(np.array_equal(a, b) for a, b in zip(as_tuple(stream.state), as_tuple(last), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_several_threads_take_the_thorough_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = KINDS[kind](40, 40, 2, seed=0)
    x, hx = random_inputs(layer, 4, 3)
    output, last = layer(x, hx)
    monkeypatch.setattr(plan, "choose", lambda *arguments: Plan(UNITS, 2, 2))
    layer.to(np.float64).to(np.float32)  # another version of the weights, which has no plans yet
    stream = layer.stream(3, hx)
    assert np.array_equal(np.stack([stream(step) for step in x]), output)
    assert all(np.array_equal(a, b) for a, b in zip(as_tuple(stream.state), as_tuple(last), strict=True))
    assert stepping.step_of(layer._weights.packed(layer._pack)[0][0], 3) is None


def test_every_other_step_reads_the_weights_backwards() -> None:
    lstm = LSTM(5, 150, num_layers=2, seed=0)
    weights = [direction for (direction,) in lstm._weights.packed(lstm._pack)]
    stepper = stepping.Stepper(weights, 1, [np.zeros((2, 1, 150), np.float32) for _ in range(2)])
    turns = []
    for _ in range(4):
        turns.append(stepper._jobs[:, FIELDS.index("turn")].tolist())
        assert stepper.step(np.ones(5, np.float32), np.empty(150, np.float32))
    assert turns == [[0, 0], [1, 1], [0, 0], [1, 1]]


def test_one_row_needs_no_axis_for_it() -> None:
    layer = LSTM(3, 5, seed=0)
    x, _ = random_inputs(layer, 4, 1)
    stream, twin = layer.stream(), layer.stream()
    for step in x:
        flat, whole = stream(step[0]), twin(step)
        assert flat.shape == (5,) and whole.shape == (1, 5) and np.array_equal(flat, whole[0])


def test_out() -> None:
    layer = LSTM(3, 5, seed=0)
    x, _ = random_inputs(layer, 4, 2)
    expected, _ = layer(x)
    stream, y, wide = layer.stream(2), np.empty((2, 5), np.float32), np.zeros((2, 10), np.float32)
    for t, step in enumerate(x):
        out = wide[:, ::2] if t % 2 else y
        assert stream(step, out=out) is out and np.array_equal(out, expected[t])


def test_with_out_nothing_is_allocated() -> None:
    stream, x, y = LSTM(8, 16, 2, seed=0).stream(), np.ones((1, 8), np.float32), np.empty((1, 16), np.float32)
    stream(x, out=y)
    # Else a thread that the tests before have started may be compiling what it runs.
    with global_compiler_lock:
        tracemalloc.start()
        try:
            for _ in range(10):  # Python's own: the list of free objects
                stream(x, out=y)
            before = tracemalloc.take_snapshot()
            peak = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            for _ in range(100):
                stream(x, out=y)
            grown = tracemalloc.take_snapshot().compare_to(before, "filename")
            assert sum(one.size_diff for one in grown if "tracemalloc" not in one.traceback[0].filename) < 2048
            assert tracemalloc.get_traced_memory()[1] - peak < 1 << 20
        finally:
            tracemalloc.stop()


def test_state_reset_and_copy() -> None:
    layer = KINDS["LSTM"](3, 5, 2, seed=0)
    x, hx = random_inputs(layer, 6, 2)
    stream = layer.stream(2, hx)
    first = [stream(step) for step in x[:3]]
    state = stream.state
    twins = [stream.copy(), copy.copy(stream), copy.deepcopy(stream)]
    rest = [stream(step) for step in x[3:]]
    for twin in twins:
        assert all(np.array_equal(twin(step), y) for step, y in zip(x[3:], rest, strict=True))
    of_each(lambda array: array.fill(7), stream.state)  # a copy
    stream.reset(state)
    assert all(np.array_equal(stream(step), y) for step, y in zip(x[3:], rest, strict=True))
    stream.reset(hx)
    assert all(np.array_equal(stream(step), y) for step, y in zip(x[:3], first, strict=True))
    stream.reset()
    assert not any(array.any() for array in stream.state)


def test_a_stream_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="pickle the layer"):
        pickle.dumps(LSTM(3, 5, seed=0).stream())


def test_it_keeps_its_weights() -> None:
    layer, same = LSTM(3, 5, seed=0), LSTM(3, 5, seed=0)
    x, _ = random_inputs(layer, 3, 1)
    stream = layer.stream()
    layer.set_parameters({"weight_hh_l0": 2 * layer.weight_hh_l0})
    assert all(np.array_equal(stream(step), y) for step, y in zip(x, same(x)[0], strict=True))


def test_no_dropout() -> None:
    layer = LSTM(3, 5, 2, dropout=0.5, seed=0)
    x, _ = random_inputs(layer, 3, 1)
    stream, expected = layer.stream(), layer.eval()(x)[0]
    assert all(np.array_equal(stream(step), y) for step, y in zip(x, expected, strict=True))


@pytest.mark.parametrize(
    "x, error, words",
    [
        (np.ones((2, 3)), ValueError, "dtype"),
        (np.ones((3, 2), np.float32), RuntimeError, r"expected \(2, 3\) because input_size=3 and batch_size=2"),
        (np.ones((2, 4), np.float32), RuntimeError, r"got \(2, 4\)"),
        (np.ones(3, np.float32), ValueError, "batch_size=2"),
        (np.ones(6, np.float32), ValueError, "batch_size=2"),
        (np.ones((1, 2, 3), np.float32), ValueError, r"got \(1, 2, 3\)"),
        (np.ones((2, 3), np.complex64), ValueError, "dtype"),
        (np.ma.masked_all((2, 3), np.float32), TypeError, "without masked elements"),
        ("abc", TypeError, "input"),
        (None, TypeError, "input"),
    ],
)
def test_bad_input(x: Any, error: type[Exception], words: str) -> None:
    stream = LSTM(3, 5, seed=0).stream(2)
    with pytest.raises(error, match=words):
        stream(x)
    assert not stream.state[0].any()


@pytest.mark.parametrize("out", [np.empty((5, 2), np.float32), np.empty((2, 5)), np.empty(10, np.float32), [1.0]])
def test_bad_out(out: Any) -> None:
    stream = LSTM(3, 5, seed=0).stream(2)
    with pytest.raises((ValueError, TypeError), match="out"):
        stream(np.ones((2, 3), np.float32), out=out)
    assert not stream.state[0].any()


def test_out_that_cannot_be_written_to() -> None:
    out = np.zeros((1, 5), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        LSTM(3, 5, seed=0).stream()(np.ones((1, 3), np.float32), out=out)


@pytest.mark.parametrize(
    "arguments, error", [((0,), ValueError), ((1.5,), TypeError), ((2, 3), TypeError), ((2, np.ones(3)), TypeError)]
)
def test_bad_arguments(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        LSTM(3, 5, seed=0).stream(*arguments)


@pytest.mark.parametrize("cell", [LSTMCell(3, 5, seed=0), RNNCell(3, 5, seed=0)], ids=repr)
def test_a_cell_sees_arrays_of_the_right_size_and_another_shape(cell: Any) -> None:
    with pytest.raises(RuntimeError, match=r"got \(3, 2\)"):
        cell(np.ones((3, 2), np.float32))
    wrong = np.ones((5, 2), np.float32)
    with pytest.raises(RuntimeError, match=r"\[5, 2\]"):
        cell(np.ones((2, 3), np.float32), (wrong, wrong) if isinstance(cell, LSTMCell) else wrong)


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_a_cell_does_the_same_both_ways(kind: str) -> None:
    cell = {"LSTM": LSTMCell, "RNN": RNNCell}[kind](7, 40, seed=0)
    random = np.random.default_rng(0)
    x, h, c = (random.standard_normal((5, size)).astype(np.float32) for size in (7, 40, 40))
    hx = (h, c) if kind == "LSTM" else h
    for states in (hx, None):
        quick, thorough = cell._quick_step(x, states), cell._thorough_step(x, states)
        assert quick is not None and all(np.array_equal(a, b) for a, b in zip(quick, thorough, strict=True))
    strided = np.asfortranarray(x)
    assert cell._quick_step(strided, hx) is None
    assert all(np.array_equal(a, b) for a, b in zip(as_tuple(cell(strided, hx)), as_tuple(cell(x, hx)), strict=True))


def test_what_broadcast_arrays_returns() -> None:
    """Its flags warn when they are read. In a process of its own, in which Numba has seen no other array."""
    script = """
import warnings
import numpy as np
import nblstm
x, _ = np.broadcast_arrays(np.ones((2, 3), np.float32), np.zeros((2, 1)))
warnings.simplefilter("error")
stream = nblstm.LSTM(3, 5, seed=0).stream(2)
twin = stream.copy()
cell = nblstm.LSTMCell(3, 5, seed=0)
h, c = cell(x)
assert np.array_equal(h, cell(x.copy())[0])
assert np.array_equal(stream(x), twin(x.copy()))
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(nblstm.__file__).parents[1], timeout=300)


def test_arrays_that_are_not_plain() -> None:
    layer, cell = LSTM(3, 5, seed=0), LSTMCell(3, 5, seed=0)
    x, _ = random_inputs(layer, 1, 1)
    x = x[0]
    expected, (h, c) = layer(x[None])[0][0], cell(x)
    unaligned = np.frombuffer(bytearray(x.nbytes + 1), np.float32, 3, 1).reshape(1, 3)
    unaligned[...] = x
    masked, records = np.ma.array(x), x.view(np.recarray)
    masked.flags.writeable = False  # for which Numba has no type
    for form in (unaligned, np.frombuffer(x.tobytes(), np.float32).reshape(1, 3), x, masked, records):
        assert np.array_equal(layer.stream()(form), expected) and np.array_equal(cell(form)[0], h)
    swapped = x.astype(x.dtype.newbyteorder())
    for call in (layer.stream(), cell):
        try:
            found = call(swapped)
        except ValueError:
            continue
        assert np.array_equal(found[0] if call is cell else found, h if call is cell else expected)
    with pytest.raises(ValueError, match="out"):
        layer.stream()(x, out=np.zeros((1, 5), np.dtype(np.float32).newbyteorder()))
    swapped_h = h.astype(h.dtype.newbyteorder())
    with pytest.raises(ValueError, match="dtype"):
        cell(x, (swapped_h, c))

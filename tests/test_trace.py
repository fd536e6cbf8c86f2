"""`trace` of every layer: the equations hold between what it returns, in every form of input."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm import GRU, LSTM, RNN
from nblstm.engine import plan, run
from nblstm.engine.plan import Plan
from nblstm.kernels.job import ROWS, UNITS
from nblstm.reference import sigmoid

LAYERS = [
    LSTM(5, 9, num_layers=2, bidirectional=True, seed=0),
    LSTM(5, 17, num_layers=2, proj_size=6, seed=1),
    LSTM(5, 8, bias=False, seed=2),
    GRU(5, 9, num_layers=2, bidirectional=True, seed=3),
    GRU(5, 33, num_layers=3, seed=4),
    GRU(5, 8, bias=False, seed=5),
    RNN(5, 9, num_layers=2, bidirectional=True, seed=6),
    RNN(5, 12, nonlinearity="relu", seed=7),
]
LENGTHS = np.array([4, 7, 1, 6])


@pytest.fixture(params=LAYERS, ids=repr)
def layer(request: pytest.FixtureRequest) -> Any:
    """Each layer in turn, in float64: what is compared are the places, not the last digits."""
    return copy.deepcopy(request.param).to(np.float64)


def inputs(layer: Any) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    h = random.standard_normal((rows, 4, getattr(layer, "proj_size", 0) or layer.hidden_size))
    c = random.standard_normal((rows, 4, layer.hidden_size))
    return random.standard_normal((7, 4, 5)), (h, c) if isinstance(layer, LSTM) else h


def step(layer: Any, suffix: str, x: Any, h: Any, c: Any) -> dict[str, Any]:
    """Return by name what one step makes of x, h and c."""
    w = {name.removesuffix(suffix): array for name, array in layer.named_parameters() if name.endswith(suffix)}
    from_x = x @ w["weight_ih"].T + w.get("bias_ih", 0)
    from_h = h @ w["weight_hh"].T + w.get("bias_hh", 0)
    if isinstance(layer, RNN):
        total = from_x + from_h
        return {"h": np.tanh(total) if layer.nonlinearity == "tanh" else np.maximum(total, 0)}
    if isinstance(layer, GRU):
        (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(from_x, 3, axis=1), np.split(from_h, 3, axis=1)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        n = np.tanh(n_x + r * n_h)
        return {"r": r, "z": z, "n": n, "h": (1 - z) * n + z * h}
    i, f, g, o = np.split(from_x + from_h, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c + i * g
    h = o * np.tanh(c)
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h @ w["weight_hr"].T if "weight_hr" in w else h}


def expected(layer: Any, x: Any, hx: Any, lengths: Any) -> list[dict[str, Any]]:
    """Return by name what every layer and direction goes through, (T, B, size) each, step by step in NumPy."""
    h_0, c_0 = hx if isinstance(hx, tuple) else (hx, hx)
    traces: list[dict[str, Any]] = []
    for suffixes in layer._suffixes():
        for suffix in suffixes:
            h, c = h_0[len(traces)].copy(), c_0[len(traces)].copy()
            found: dict[str, Any] = {}
            steps = range(len(x))
            for t in reversed(steps) if suffix.endswith("_reverse") else steps:
                alive = lengths > t
                for name, values in step(layer, suffix, x[t], h, c).items():
                    found.setdefault(name, np.zeros((len(x), *values.shape)))[t, alive] = values[alive]
                h[alive], c[alive] = found["h"][t, alive], found.get("c", found["h"])[t, alive] if "c" in found else 0
            traces.append(found)
        x = np.concatenate([trace["h"] for trace in traces[-len(suffixes) :]], axis=2)
    return traces


def assert_traces(got: tuple[Any, ...], traces: list[dict[str, Any]]) -> None:
    assert len(got) == len(traces)
    for found, trace in zip(got, traces, strict=True):
        assert set(found._fields) == set(trace)
        for name, values in trace.items():
            assert getattr(found, name).shape == values.shape, name
            assert np.allclose(getattr(found, name), values, rtol=0, atol=1e-13), name


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize(
    "way", [Plan(ROWS, 1, 1), Plan(ROWS, 2, 2), Plan(UNITS, 2, 2)], ids=["serial", "rows", "units"]
)
def test_every_state_and_gate(layer: Any, lengths: Any, way: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "choose", lambda *arguments: way)
    monkeypatch.setattr(plan, "choose_for_layers", lambda *arguments: None)
    layer.to(np.float32).to(np.float64)  # another version of the weights, which has no plans yet
    x, hx = inputs(layer)
    traces = expected(layer, x, hx, np.full(4, 7) if lengths is None else lengths)
    assert_traces(layer.trace(x, hx, lengths=lengths), traces)


def test_the_other_forms_hold_the_same_numbers(layer: Any) -> None:
    x, hx = inputs(layer)
    dense = layer.trace(x, hx, lengths=LENGTHS)
    packed = layer.trace(nblstm.pack_padded_sequence(x, LENGTHS, enforce_sorted=False), hx)
    for one, other in zip(dense, packed, strict=True):
        for values, sequence in zip(one, other, strict=True):
            padded, lengths = nblstm.pad_packed_sequence(sequence, total_length=7)
            assert np.array_equal(padded, values) and np.array_equal(lengths, LENGTHS)
    one_row = layer.trace(x[:, 1], tuple(state[:, 1] for state in hx) if isinstance(hx, tuple) else hx[:, 1])
    for one, other in zip(dense, one_row, strict=True):
        assert all(np.array_equal(values[:, 1], row) for values, row in zip(one, other, strict=True))


def test_batch_first() -> None:
    time_first, batch_first = GRU(5, 9, seed=0), GRU(5, 9, batch_first=True, seed=0)
    x = np.ones((7, 4, 5), np.float32)
    (one,), (other,) = time_first.trace(x), batch_first.trace(x.swapaxes(0, 1))
    assert all(np.array_equal(a.swapaxes(0, 1), b) for a, b in zip(one, other, strict=True))


def test_h_is_the_output_to_the_bit(layer: Any) -> None:
    x, hx = inputs(layer)
    output, states = layer(x, hx, lengths=LENGTHS)
    traces = layer.trace(x, hx, lengths=LENGTHS)
    directions = 2 if layer.bidirectional else 1
    assert np.array_equal(np.concatenate([trace.h for trace in traces[-directions:]], axis=2), output)
    h_n = states[0] if isinstance(states, tuple) else states
    last = [trace.h[LENGTHS - 1, range(4)] for trace in traces]
    assert all(np.array_equal(h_n[k], last[k]) for k in range(0, len(traces), directions))


def test_a_sequence_of_many_chunks(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, hx = inputs(layer)
    whole = layer.trace(x, hx, lengths=LENGTHS)
    monkeypatch.setattr(run, "_CHUNK_BYTES", 1)
    for one, other in zip(whole, layer.trace(x, hx, lengths=LENGTHS), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_dropout_comes_after_h() -> None:
    layer = LSTM(5, 9, num_layers=2, dropout=0.5, seed=0)
    x = np.ones((7, 4, 5), np.float32)
    lower, upper = layer.trace(x, dropout_call=3)
    output, _ = layer(x, dropout_call=3)
    assert np.all(lower.h != 0) and np.array_equal(upper.h, output)


def test_bad_input_is_that_of_a_call() -> None:
    with pytest.raises(RuntimeError, match=r"GRU input: expected \(T, B, 5\)"):
        GRU(5, 9).trace(np.ones((7, 4, 6), np.float32))


def test_empty_batch() -> None:
    (trace,) = LSTM(5, 9).trace(np.ones((7, 0, 5), np.float32))
    assert trace.i.shape == (7, 0, 9)

"""Networks inside compiled code: the bits of the layers, whatever the caller's options, and clear errors."""

from __future__ import annotations

import os
import pickle
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from cases import KINDS, as_tuple, layers, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError
from numba.core.runtime import _nrt_python as nrt

import nblstm
from nblstm import GRU, LSTM, RNN, nopython
from nblstm.kernels.disk_cache import DIGEST
from nblstm.kernels.job import ONE_ROW_FIELDS

PACKAGE = Path(__file__).resolve().parent.parent / "nblstm"


def functions_of(layer: Any) -> tuple[Any, Any, Any]:
    """Return the step, the sequence and the step back for a layer's class."""
    kind = type(layer).__name__.lower()
    return tuple(getattr(nopython, f"{kind}_{what}") for what in ("step", "sequence", "step_backward"))  # type: ignore


def random_states(layer: Any, seed: int = 0) -> tuple[Any, ...]:
    """Return states (L, P) and, of an LSTM, (L, H)."""
    _, hx = random_inputs(layer, 1, 1, seed=seed)
    return tuple(np.ascontiguousarray(state[:, 0]) for state in as_tuple(hx))


def in_form(layer: Any, states: tuple[Any, ...]) -> Any:
    return states if isinstance(layer, LSTM) else states[0]


networks = layers(st.integers(1, 20), st.integers(1, 40), most=3, dtypes=[np.float32, np.float64])


@settings(max_examples=40, deadline=None)
@given(layer=networks, steps=st.integers(1, 20), seed=st.integers(0, 2**32), in_place=st.booleans())
def test_steps_and_sequences_are_a_call(layer: Any, steps: int, seed: int, in_place: bool) -> None:
    layer.eval()
    if layer.bidirectional:
        with pytest.raises(ValueError, match="one direction because the reverse direction begins with the last step"):
            layer.nopython_weights()
        return
    weights, states = layer.nopython_weights(), random_states(layer, seed)
    x = np.random.default_rng(seed).standard_normal((steps, layer.input_size)).astype(states[0].dtype)
    expected, last = layer(x, in_form(layer, states))
    step, sequence, _ = functions_of(layer)
    output, after = np.empty_like(expected), tuple(map(np.empty_like, states))
    sequence(weights, x, *states, output, *after)
    assert np.array_equal(output, expected)
    assert all(np.array_equal(a, b) for a, b in zip(after, as_tuple(last), strict=True))
    now = tuple(state.copy() for state in states)
    for t in range(steps):
        then = now if in_place else tuple(map(np.empty_like, now))
        step(weights, x[t], *now, *then)
        now = then
        assert np.array_equal(now[0][-1], expected[t])
    assert all(np.array_equal(a, b) for a, b in zip(now, as_tuple(last), strict=True))


@settings(max_examples=40, deadline=None)
@given(layer=networks.filter(lambda layer: not layer.bidirectional), seed=st.integers(0, 2**32))
def test_a_step_back_is_that_of_vjp(layer: Any, seed: int) -> None:
    layer.eval()
    weights, states, random = (
        layer.nopython_weights(backward=True),
        random_states(layer, seed),
        np.random.default_rng(1),
    )
    x = random.standard_normal((1, layer.input_size)).astype(states[0].dtype)
    d_states = tuple(random.standard_normal(state.shape).astype(state.dtype) for state in states)
    _, backward = layer.vjp(x, in_form(layer, states))
    expected = backward(None, in_form(layer, d_states))
    d_x, parameters = np.empty_like(x[0]), layer.state_dict()
    d_parameters = np.zeros(sum(value.size for value in parameters.values()), x.dtype)
    gradients = tuple(gradient.copy() for gradient in d_states)
    functions_of(layer)[2](weights, x[0], *states, *gradients, d_x, d_parameters)
    assert np.array_equal(d_x, expected.input[0])
    assert all(np.array_equal(a, b) for a, b in zip(gradients, as_tuple(expected.hx), strict=True))
    flat = np.concatenate([expected.parameters[name].ravel() for name in parameters])
    assert np.array_equal(d_parameters, flat)
    functions_of(layer)[2](weights, x[0], *states, *map(np.copy, d_states), d_x, d_parameters)
    assert np.allclose(d_parameters, 2 * flat, rtol=1e-5, atol=1e-6)  # it adds
    functions_of(layer)[2](weights, x[0], *states, *map(np.copy, d_states), d_x, d_parameters[:0])


@pytest.mark.parametrize("layer", [LSTM(4, 3, seed=1), GRU(4, 13, seed=1), RNN(4, 21, seed=1)], ids=repr)
def test_a_step_back_from_an_infinite_input_is_that_from_a_huge_one(layer: Any) -> None:
    """As of vjp (tests/test_vjp.py): padded units, which are no numbers then, have no part in it."""
    weights, results = layer.nopython_weights(backward=True), []
    for value in (np.inf, 1e30):
        x, d_x = np.array([1, value, -1, 2], np.float32), np.zeros(4, np.float32)
        states = random_states(layer)
        gradients = tuple(np.ones_like(state) for state in states)
        functions_of(layer)[2](weights, x, *states, *gradients, d_x, np.empty(0, np.float32))
        results.append((d_x, *gradients))
    for infinite, huge in zip(*results, strict=True):
        assert np.isfinite(huge).all() and np.array_equal(infinite, huge)


@numba.njit
def go(weights: Any, x: Any, h: Any, c: Any, output: Any) -> None:
    for t in range(x.shape[0]):
        nopython.lstm_step(weights, x[t], h, c, h, c)
        output[t] = h[-1]


OPTIONS = [{"fastmath": True}, {"error_model": "python", "boundscheck": True}, {"nogil": True, "inline": "always"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_callers_options_change_nothing(options: dict[str, Any]) -> None:
    layer = LSTM(5, 21, 2, seed=0)
    x, _ = random_inputs(layer, 6, 1)
    expected, _ = layer(x[:, 0])
    (h, c), output = (np.zeros((2, 21), np.float32) for _ in range(2)), np.empty_like(expected)
    numba.njit(**options)(go.py_func)(layer.nopython_weights(), np.ascontiguousarray(x[:, 0]), h, c, output)
    assert np.array_equal(output, expected)


@numba.njit(parallel=True)
def go_together(weights: Any, x: Any, h: Any, c: Any, output: Any) -> None:
    for row in numba.prange(x.shape[1]):
        for t in range(x.shape[0]):
            nopython.gru_step(weights, x[t, row], h[row], h[row])
            output[t, row] = h[row, -1]


def test_rows_in_the_users_parallel_loop() -> None:
    layer = GRU(4, 9, 2, seed=0)
    x, _ = random_inputs(layer, 7, 12)
    expected, _ = layer(x)
    h, output = np.zeros((12, 2, 9), np.float32), np.empty_like(expected)
    go_together(layer.nopython_weights(), x, h, h, output)
    assert np.array_equal(output, expected)


def test_threads_share_the_weights() -> None:
    layer = LSTM(16, 32, seed=0)
    weights, run = layer.nopython_weights(), numba.njit(nogil=True)(go.py_func)
    inputs = [random_inputs(layer, 50, 1, seed=seed)[0][:, 0] for seed in range(8)]

    def one(x: Any) -> Any:
        (h, c), output = (np.zeros((1, 32), np.float32) for _ in range(2)), np.empty((50, 32), np.float32)
        run(weights, np.ascontiguousarray(x), h, c, output)
        return output

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, inputs))
    assert all(np.array_equal(a, layer(x)[0]) for a, x in zip(found, inputs, strict=True))


def test_nothing_is_allocated() -> None:
    layer = LSTM(5, 300, 2, proj_size=7, seed=0)
    weights = layer.nopython_weights(backward=True)

    @numba.njit
    def both(weights: Any, x: Any, h: Any, c: Any, d_h: Any, d_c: Any, d_x: Any, d_parameters: Any) -> None:
        nopython.lstm_step(weights, x, h, c, h, c)
        nopython.lstm_step_backward(weights, x, h, c, d_h, d_c, d_x, d_parameters)

    @numba.njit
    def neither(weights: Any, x: Any, h: Any, c: Any, d_h: Any, d_c: Any, d_x: Any, d_parameters: Any) -> None:
        pass

    x, h, c = np.ones(5, np.float32), np.zeros((2, 7), np.float32), np.zeros((2, 300), np.float32)
    arguments = weights, x, h, c, h.copy(), c.copy(), x.copy(), x[:0]
    nrt.memsys_enable_stats()

    def allocations(function: Any) -> int:
        function(*arguments)
        before = nrt.memsys_get_stats_alloc()
        function(*arguments)
        return int(nrt.memsys_get_stats_alloc() - before)

    assert allocations(both) == allocations(neither) > 0  # a record for each array that comes from Python


def test_one_type_for_all_sizes_with_the_version_of_the_kernels_in_it() -> None:
    kinds = {numba.typeof(LSTM(*sizes).nopython_weights()) for sizes in [(3, 4), (9, 33, 3), (300, 200, 2)]}
    kinds |= {numba.typeof(LSTM(3, 5, proj_size=2, bias=False).nopython_weights(backward=True))}
    assert len(kinds) == 1 and DIGEST[:16] in str(kinds.pop())
    assert numba.typeof(GRU(3, 4).nopython_weights()) not in kinds
    with pytest.raises(ValueError, match="read-only"):
        LSTM(3, 4).nopython_weights().panels[0] = 1


@pytest.mark.parametrize("sizes", [(3, 4, 3), (500, 9, 2), (7, 2000), (9000, 3)])
def test_all_layers_take_as_many_steps_at_once(sizes: tuple[int, ...]) -> None:
    blocks = LSTM(*sizes).nopython_weights().jobs[:, ONE_ROW_FIELDS.index("block")]
    assert (blocks == blocks[0]).all() and 1 <= blocks[0] <= 8


USER = """
import sys, numba, numpy as np
from nblstm import LSTM, nopython
@numba.njit(cache=True)
def last(weights, x, h, c):
    nopython.lstm_step(weights, x, h, c, h, c)
    return h[0, 0]
weights = LSTM(3, 4, seed=0).nopython_weights()
h, c = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
print(last(weights, np.ones(3, np.float32), h, c), sum(last.stats.cache_hits.values()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["kernels/one_row.py", "nopython.py"])
def test_a_function_that_the_user_caches_is_compiled_anew_after_an_upgrade(tmp_path: Path, changed: str) -> None:
    user, root = tmp_path / "user.py", tmp_path / "root"
    user.write_text(USER)
    shutil.copytree(PACKAGE, root / "nblstm", ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> tuple[float, int]:
        command = [sys.executable, str(user)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True, timeout=300)
        value, hits = done.stdout.split()
        return float(value), int(hits)

    (value, hits), again = run(), run()
    assert hits == 0 and again == (value, 1)
    file = root / "nblstm" / changed
    file.write_text(file.read_text() + "\n# a later version\n")
    assert run() == (value, 0)


def test_weights_are_no_global() -> None:
    weights, x = LSTM(3, 4, seed=0).nopython_weights(), np.ones(3, np.float32)

    @numba.njit
    def closed_over(x: Any, h: Any) -> None:
        nopython.lstm_step(weights, x, h, h, h, h)

    with pytest.raises(TypingError, match="expected an argument of the function, got a global or a closed-over name"):
        closed_over(x, np.zeros((1, 4), np.float32))


def test_equal_columns_have_equal_gradients() -> None:
    layer = LSTM(9, 4, seed=0)
    layer.set_parameters({"weight_ih_l0": np.repeat(layer.weight_ih_l0[:, :1], 9, axis=1)})
    weights, x = layer.nopython_weights(backward=True), np.full(9, 0.7, np.float32)
    states, gradients = random_states(layer), np.zeros(sum(a.size for a in layer.state_dict().values()), np.float32)
    for _ in range(20):
        nopython.lstm_step_backward(weights, x, *states, *map(np.copy, states), np.empty_like(x), gradients)
    columns = gradients[: 16 * 9].reshape(16, 9)
    assert (columns == columns[:, :1]).all() and columns.any()


def test_what_would_take_too_much_of_the_stack_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes whose step takes up to 1 MB of the stack, got 1.[0-9] MB"):
        LSTM(100_000, 4).nopython_weights()


def test_weights_travel_to_another_process(tmp_path: Path) -> None:
    layer = RNN(3, 5, 2, seed=0)
    (tmp_path / "weights").write_bytes(pickle.dumps(layer.nopython_weights(backward=True)))
    script = """
import pickle, sys, numpy as np
from nblstm import nopython
weights, h = pickle.load(open(sys.argv[1], "rb")), np.zeros((2, 5), np.float32)
nopython.rnn_step(weights, np.ones(3, np.float32), h, h)
nopython.rnn_step_backward(weights, np.ones(3, np.float32), h, h.copy(), np.ones(3, np.float32), h[0, :0])
print(h[1].tobytes().hex())
"""
    command = [sys.executable, "-c", script, str(tmp_path / "weights")]
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
    assert done.stdout.strip() == layer(np.ones((1, 3), np.float32))[0].tobytes().hex()


def test_weights_of_another_version_are_refused() -> None:
    restore, (kind, _, *rest) = LSTM(3, 4).nopython_weights().__reduce__()
    with pytest.raises(ValueError, match="packed by another nblstm or for another CPU"):
        restore(kind, ("kernels_of_yore",), *rest)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_their_time(kind: str) -> None:
    layer = KINDS[kind](3, 4, seed=0)
    weights, states, x = layer.nopython_weights(), random_states(layer), np.ones((1, 3), np.float32)
    expected, _ = layer(x, in_form(layer, states))
    layer.set_parameters({name: 2 * value for name, value in layer.state_dict().items()})
    functions_of(layer)[0](weights, x[0], *states, *states)
    assert np.array_equal(states[0], expected)


def refusals() -> dict[str, tuple[Any, type[Exception], str]]:
    weights = LSTM(3, 4, 2, seed=0).nopython_weights()
    gru, double = GRU(3, 4, 2, seed=0).nopython_weights(), LSTM(3, 4, 2, dtype=np.float64).nopython_weights()
    x, h = np.zeros(3, np.float32), np.zeros((2, 4), np.float32)
    frozen = h.copy()
    frozen.flags.writeable = False
    return {
        "weights of a GRU": ((gru, x, h, h, h, h), TypingError, "expected LSTMWeights"),
        "no weights": ((x, x, h, h, h, h), TypingError, "expected LSTMWeights"),
        "another dtype": ((double, x, h, h, h, h), TypingError, "a C-contiguous float64 array of 1 axes"),
        "axes of x": ((weights, h, h, h, h, h), TypingError, "a C-contiguous float32 array of 1 axes"),
        "strides": ((weights, np.zeros(6, np.float32)[::2], h, h, h, h), TypingError, "a C-contiguous"),
        "axes of h": ((weights, x, x, h, h, h), TypingError, "array of 2 axes"),
        "read-only": ((weights, x, h, h, frozen, h), TypingError, "an array that can be written to"),
        "size of x": ((weights, np.zeros(4, np.float32), h, h, h, h), ValueError, r"x and d_x: expected \(I,\)"),
        "size of h": ((weights, x, h[:1], h, h, h), ValueError, r"h \(L, P\)"),
        "size of c": ((weights, x, h, h[:1], h, h), ValueError, r"c \(L, H\)"),
        "size of h_out": ((weights, x, h, h, h[:1], h), ValueError, r"h \(L, P\)"),
        "size of c_out": ((weights, x, h, h, h, h[:, :3].copy()), ValueError, r"c \(L, H\)"),
    }


@pytest.mark.parametrize("case", refusals())
def test_refusals(case: str) -> None:
    arguments, error, text = refusals()[case]
    with pytest.raises(error, match=text):
        nopython.lstm_step(*arguments)


def test_refusals_of_sequences_and_steps_back() -> None:
    layer = LSTM(3, 4, seed=0)
    weights, h = layer.nopython_weights(), np.zeros((1, 4), np.float32)
    x, output = np.zeros((5, 3), np.float32), np.zeros((5, 4), np.float32)
    for wrong in (output[:4], np.zeros((5, 5), np.float32)):
        with pytest.raises(ValueError, match="output"):
            nopython.lstm_sequence(weights, x, h, h, wrong, h, h)
    nopython.lstm_sequence(weights, x[:0], h, h, output[:0], h, h)
    with pytest.raises(ValueError, match="backward=True"):
        nopython.lstm_step_backward(weights, x[0], h, h, h, h, x[0], x[0, :0])
    with pytest.raises(ValueError, match="d_parameters"):
        back = layer.nopython_weights(backward=True)
        nopython.lstm_step_backward(back, x[0], h, h, h, h, x[0], np.zeros(7, np.float32))
    with pytest.raises(TypeError, match="backward"):
        layer.nopython_weights(backward="yes")


def test_the_market_simulator() -> None:
    market = runpy.run_path(str(PACKAGE.parent / "examples" / "market_simulator.py"))
    random, lstm = np.random.default_rng(0), LSTM(market["INPUTS"], market["UNITS"], seed=0)
    readout, noise = (random.standard_normal(size).astype(np.float32) for size in (market["UNITS"], 300))
    profit, price, _ = market["run"](lstm, readout, noise)
    stream, own_price, trend, position, own_profit = lstm.stream(), 0.0, 0.0, 0.0, 0.0
    for shock in noise:
        change = shock - 0.05 * (own_price - trend) + 0.02 * position
        own_price += change
        trend = 0.99 * trend + 0.01 * own_price
        own_profit += position * change
        position = np.tanh(readout @ stream(np.array([change, own_price - trend, position], np.float32)))
    assert np.allclose([profit, price], [own_profit, own_price], rtol=1e-3, atol=1e-3)


def test_the_module_is_part_of_the_package() -> None:
    assert nblstm.nopython is nopython and "nopython" in nblstm.__all__

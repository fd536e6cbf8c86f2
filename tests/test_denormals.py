"""States that decay become zero where the normal numbers end; what is above stays as exact as ever.

Below, some CPUs take a hundred cycles for an operation, and rounding may hold a state there for good: at f = 0.999 it
stops at 500 times the smallest number of all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm import reference
from nblstm.arrays import Array

KINDS: dict[str, Any] = {
    "lstm": nblstm.LSTM,
    "projection": partial(nblstm.LSTM, proj_size=5),
    "gru": nblstm.GRU,
    "tanh": nblstm.RNN,
    "relu": partial(nblstm.RNN, nonlinearity="relu"),
}
INPUTS, UNITS, ROWS = 3, 19, 2


def decaying(kind: str, dtype: Any) -> Any:
    """Return a layer without biases whose states, without input, fall by a little at each step and do not oscillate."""
    layer = KINDS[kind](INPUTS, UNITS, seed=0, dtype=dtype)
    parameters = {name: np.zeros_like(value) for name, value in layer.named_parameters()}
    if kind in ("tanh", "relu"):
        np.fill_diagonal(parameters["weight_hh_l0"], 0.9)
    else:
        parameters["bias_ih_l0"][UNITS : 2 * UNITS] = 2.0  # the forget gate, and the update gate of a GRU: 0.88
    if kind == "projection":
        np.fill_diagonal(parameters["weight_hr_l0"], 1.0)
    layer.set_parameters(parameters)
    return layer


def states_of(layer: Any, size: float) -> Any:
    """Return a first state of numbers of about `size`."""
    rng = np.random.default_rng(0)
    outputs = layer.weight_hr_l0.shape[0] if layer.proj_size else UNITS
    h, c = (((1 + rng.random((1, ROWS, n))) * size).astype(layer.weight_ih_l0.dtype) for n in (outputs, UNITS))
    return (h, c) if isinstance(layer, nblstm.LSTM) else h


def is_denormal(x: Array) -> Array:
    found: Array = (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)
    return found


def as_list(states: Any) -> list[Array]:
    return list(states) if isinstance(states, tuple) else [states]


@pytest.mark.parametrize("kind", KINDS)
def test_a_decaying_state_ends_in_zero(kind: str, dtype: Any) -> None:
    layer = decaying(kind, dtype)
    x = np.zeros((200, ROWS, INPUTS), dtype)
    output, states = layer(x, states_of(layer, float(np.finfo(dtype).tiny) * 1e4))
    assert output[0].all() and not is_denormal(output).any()
    assert not any(state.any() for state in as_list(states))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_above_is_exact(kind: str, dtype: Any) -> None:
    layer = decaying(kind, dtype)
    x = np.zeros((60, ROWS, INPUTS), dtype)
    first = states_of(layer, float(np.finfo(dtype).tiny) * 1e4)
    output, _ = layer(x, first)
    weights: dict[str, Any] = {
        reference_name(name): value.astype(np.float64) for name, value in layer.named_parameters()
    }
    step = {"gru": reference.gru_step, "tanh": reference.rnn_step, "relu": reference.rnn_step}.get(
        kind, reference.lstm_step
    )
    if kind == "relu":
        weights["nonlinearity"] = "relu"
    state = [array[0].astype(np.float64) for array in as_list(first)]
    for y in output:
        state = as_list(step(np.zeros((ROWS, INPUTS)), *state, **weights))
        above = np.abs(state[0]) > 1.01 * np.finfo(dtype).tiny
        np.testing.assert_allclose(y[above], state[0][above], rtol=3e-5 if dtype == np.float32 else 1e-13)


def reference_name(parameter: str) -> str:
    """Return the name in `nblstm.reference` of a parameter of the first layer: w_ih for weight_ih_l0."""
    return parameter.removesuffix("_l0").replace("weight", "w").replace("bias", "b")


@pytest.mark.parametrize("kind", KINDS)
def test_steps_one_by_one_give_the_same(kind: str, dtype: Any) -> None:
    layer = decaying(kind, dtype)
    x = np.zeros((60, ROWS, INPUTS), dtype)
    first = states_of(layer, float(np.finfo(dtype).tiny) * 1e2)
    output, _ = layer(x, first)
    stream = layer.stream(ROWS, first)
    assert np.array_equal(output, [stream(step) for step in x])
    (kept, _), _ = layer.vjp(x, first)
    assert np.array_equal(output, kept)


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh", "relu"])
def test_nan_stays_nan(kind: str, dtype: Any) -> None:
    layer = decaying(kind, dtype)
    x = np.zeros((2, ROWS, INPUTS), dtype)
    first = states_of(layer, 1.0)
    as_list(first)[-1][0, 0, 0] = np.nan
    output, _ = layer(x, first)
    assert np.isnan(output[0, 0, 0]) and not np.isnan(output[:, 1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_decaying_gradient_ends_in_zero(kind: str, dtype: Any) -> None:
    layer = decaying(kind, dtype)
    x = np.zeros((200, ROWS, INPUTS), dtype)
    (output, _), backward = layer.vjp(x, states_of(layer, 1.0))
    d_output = np.zeros_like(output)
    d_output[-1] = np.finfo(dtype).tiny * 1e4
    gradients = backward(d_output)
    assert not any(state.any() for state in as_list(gradients.hx))

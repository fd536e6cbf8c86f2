"""LSTMCell gives the numbers of torch.nn.LSTMCell, and the bits of one step of LSTM."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from cases import assert_same_bits

from nblstm import LSTM, LSTMCell, reference

SIZES = [(1, 1, 1), (3, 5, 2), (10, 20, 1), (7, 33, 6), (4, 16, 13)]  # I, H, B


def _inputs(cell: LSTMCell, batch: int) -> tuple[Any, tuple[Any, Any]]:
    random = np.random.default_rng(2)
    shapes = (batch, cell.input_size), (batch, cell.hidden_size), (batch, cell.hidden_size)
    x, h, c = (random.standard_normal(shape, np.float32).astype(cell.dtype) for shape in shapes)
    return x, (h, c)


@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_one_step_of_the_layer(input_size: int, hidden_size: int, batch: int, bias: bool, dtype: Any) -> None:
    cell = LSTMCell(input_size, hidden_size, bias, dtype=dtype, seed=1)
    layer = LSTM(input_size, hidden_size, bias=bias, dtype=dtype)
    layer.set_parameters({f"{name}_l0": array for name, array in cell.named_parameters()})
    x, (h, c) = _inputs(cell, batch)
    _, (h_n, c_n) = layer(x[None], (h[None], c[None]))
    assert_same_bits(cell(x, (h, c)), (h_n[0], c_n[0]))
    assert_same_bits(cell(x[0], (h[0], c[0])), (h_n[0, 0], c_n[0, 0]))
    assert_same_bits(cell(x), cell(x, (np.zeros_like(h), np.zeros_like(c))))


@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
def test_equations(input_size: int, hidden_size: int, batch: int, dtype: Any) -> None:
    cell = LSTMCell(input_size, hidden_size, dtype=dtype, seed=1)
    x, hx = _inputs(cell, batch)
    weights = [array.astype(np.float64) for _, array in cell.named_parameters()]
    expected = reference.lstm_step(*(array.astype(np.float64) for array in (x, *hx)), *weights)
    for found, exact in zip(cell(x, hx), expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12 if dtype == np.float64 else 1e-6)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_torch(bias: bool, dtype: Any, torch: Any) -> None:
    cell = LSTMCell(5, 9, bias, dtype=dtype, seed=1)
    module = torch.nn.LSTMCell(5, 9, bias, dtype=getattr(torch, str(cell.dtype)))
    module.load_state_dict({name: torch.tensor(array) for name, array in cell.named_parameters()})
    assert repr(cell) == repr(module)
    assert list(cell.state_dict()) == list(module.state_dict())
    x, hx = _inputs(cell, 4)
    for row in (slice(None), 0):
        states = hx[0][row], hx[1][row]
        with torch.inference_mode():
            expected = module(torch.tensor(x[row]), tuple(torch.tensor(state) for state in states))
        for found, tensor in zip(cell(torch.tensor(x[row]), states), expected, strict=True):
            assert found.shape == tensor.shape
            np.testing.assert_allclose(found, tensor.numpy(), rtol=0, atol=1e-12 if dtype == np.float64 else 1e-6)


def test_a_loop_of_steps_is_the_layer() -> None:
    layer = LSTM(5, 9, seed=1)
    cell = LSTMCell(5, 9)
    cell.load_state_dict({name.removesuffix("_l0"): array for name, array in layer.named_parameters()})
    x = np.random.default_rng(2).standard_normal((12, 3, 5), np.float32)
    state = None
    outputs = []
    for step in x:
        state = cell(step, state)
        outputs.append(state[0])
    output, (_, c_n) = layer(x)
    assert state is not None
    assert_same_bits((np.stack(outputs), state[1]), (output, c_n[0]))


def test_no_rows_and_no_features() -> None:
    h, c = LSTMCell(5, 9)(np.zeros((0, 5), np.float32))
    assert h.shape == c.shape == (0, 9)
    cell = LSTMCell(0, 9, seed=1)
    one_more = LSTMCell(1, 9)
    one_more.set_parameters({**cell.state_dict(), "weight_ih": np.ones((36, 1))})
    assert_same_bits(cell(np.zeros((2, 0), np.float32)), one_more(np.zeros((2, 1), np.float32)))


def test_copies() -> None:
    cell = LSTMCell(5, 9, seed=1)
    x, hx = _inputs(cell, 4)
    expected = cell(x, hx)
    for twin in (copy.copy(cell), copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert repr(twin) == repr(cell)
        assert_same_bits(twin(x, hx), expected)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda cell, z: cell(z(2, 5), (z(2, 9), z(2, 8))), RuntimeError, r"Expected hidden\[1\] size \(2, 9\)"),
        (lambda cell, z: cell(z(2, 5), (z(2, 9), z(2, 9).astype(float))), ValueError, r"hx\[1\].*float64"),
        (lambda cell, z: LSTMCell(5, 9, dtype=np.float16), TypeError, "expected float32 or float64"),
    ],
)
def test_bad_input(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(LSTMCell(5, 9), lambda *shape: np.zeros(shape, np.float32))

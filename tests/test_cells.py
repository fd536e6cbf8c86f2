"""Cells give the numbers of torch's cells, and the bits of one step of their layers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from cases import CELLS, KINDS, as_tuple, assert_same_bits, of_each, own_options, torch_cell

from nblstm import GRUCell, LSTMCell, RNNCell, reference

SIZES = [(1, 1, 1), (3, 5, 2), (10, 20, 1), (7, 33, 6), (4, 16, 13)]  # I, H, B


@pytest.fixture(params=CELLS, ids=str)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _inputs(cell: Any, batch: int) -> tuple[Any, Any]:
    random = np.random.default_rng(2)
    shapes = (batch, cell.input_size), (batch, cell.hidden_size), (batch, cell.hidden_size)
    x, h, c = (random.standard_normal(shape, np.float32).astype(cell.dtype) for shape in shapes)
    return x, ((h, c) if isinstance(cell, LSTMCell) else h)


@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_one_step_of_the_layer(
    kind: str, input_size: int, hidden_size: int, batch: int, bias: bool, dtype: Any
) -> None:
    cell = CELLS[kind](input_size, hidden_size, bias, dtype=dtype, seed=1)
    layer = KINDS[kind](input_size, hidden_size, bias=bias, dtype=dtype)
    layer.set_parameters({f"{name}_l0": array for name, array in cell.named_parameters()})
    x, hx = _inputs(cell, batch)
    _, states = layer(x[None], of_each(lambda state: state[None], hx))
    assert_same_bits(cell(x, hx), of_each(lambda state: state[0], states))
    row = of_each(lambda state: state[0], hx)
    assert_same_bits(cell(x[0], row), of_each(lambda state: state[0, 0], states))
    assert_same_bits(cell(x), cell(x, of_each(np.zeros_like, hx)))


@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
def test_equations(kind: str, input_size: int, hidden_size: int, batch: int, dtype: Any) -> None:
    cell = CELLS[kind](input_size, hidden_size, dtype=dtype, seed=1)
    x, hx = _inputs(cell, batch)
    step = getattr(reference, f"{type(cell).__name__.removesuffix('Cell').lower()}_step")
    arrays = x, *as_tuple(hx), *(array for _, array in cell.named_parameters())
    exact = step(*(array.astype(np.float64) for array in arrays), **own_options(cell))
    for found, expected in zip(as_tuple(cell(x, hx)), as_tuple(exact), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 if dtype == np.float64 else 1e-6)


def test_relu_at_the_ends(dtype: Any) -> None:
    cell = RNNCell(1, 2, bias=False, nonlinearity="relu", dtype=dtype)
    cell.set_parameters({"weight_ih": [[1], [-1]]})
    x = np.array([[np.inf], [-np.inf], [np.nan], [3]], dtype)
    np.testing.assert_array_equal(cell(x), [[np.inf, 0], [0, np.inf], [np.nan, np.nan], [3, 0]])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_torch(kind: str, bias: bool, dtype: Any, torch: Any) -> None:
    cell = CELLS[kind](5, 9, bias, dtype=dtype, seed=1)
    module = torch_cell(torch, cell)
    assert repr(cell).replace("'", "") == repr(module)  # torch prints nonlinearity=relu
    assert list(cell.state_dict()) == list(module.state_dict())
    x, hx = _inputs(cell, 4)
    for row in (slice(None), 0):
        states = of_each(lambda state, row=row: state[row], hx)
        with torch.inference_mode():
            expected = module(torch.tensor(x[row]), of_each(torch.tensor, states))
        for found, tensor in zip(as_tuple(cell(torch.tensor(x[row]), states)), as_tuple(expected), strict=True):
            assert found.shape == tensor.shape
            np.testing.assert_allclose(found, tensor.numpy(), rtol=0, atol=1e-12 if dtype == np.float64 else 1e-6)


def test_a_loop_of_steps_is_the_layer(kind: str) -> None:
    layer = KINDS[kind](5, 9, seed=1)
    cell = CELLS[kind](5, 9)
    cell.load_state_dict({name.removesuffix("_l0"): array for name, array in layer.named_parameters()})
    x = np.random.default_rng(2).standard_normal((12, 3, 5), np.float32)
    states = None
    outputs = []
    for step in x:
        states = cell(step, states)
        outputs.append(as_tuple(states)[0])
    output, last = layer(x)
    assert_same_bits((np.stack(outputs), states), (output, of_each(lambda state: state[0], last)))


def test_no_rows_and_no_features(kind: str) -> None:
    for state in as_tuple(CELLS[kind](5, 9)(np.zeros((0, 5), np.float32))):
        assert state.shape == (0, 9)
    cell = CELLS[kind](0, 9, seed=1)
    one_more = CELLS[kind](1, 9)
    one_more.set_parameters({**cell.state_dict(), "weight_ih": np.ones((len(cell.weight_ih), 1))})
    assert_same_bits(cell(np.zeros((2, 0), np.float32)), one_more(np.zeros((2, 1), np.float32)))


def test_copies(kind: str) -> None:
    cell = CELLS[kind](5, 9, seed=1)
    x, hx = _inputs(cell, 4)
    expected = cell(x, hx)
    loaded = type(cell).from_state_dict({"a." + name: a for name, a in cell.named_parameters()}, **own_options(cell))
    for twin in (copy.copy(cell), copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), loaded):
        assert repr(twin) == repr(cell)
        assert_same_bits(twin(x, hx), expected)


def test_from_state_dict_takes_the_cell_of_its_kind() -> None:
    """Gates are counted in the shapes."""
    cells = LSTMCell(5, 9, seed=1), GRUCell(5, 9, seed=2), RNNCell(5, 9, seed=3)
    named = {f"{type(cell).__name__}.{name}": array for cell in cells for name, array in cell.named_parameters()}
    for cell in cells:
        assert_same_bits(type(cell).from_state_dict(named).weight_hh, cell.weight_hh)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda z: LSTMCell(5, 9)(z(2, 5), (z(2, 9), z(2, 8))),
            RuntimeError,
            r"Expected hidden\[1\] size \(2, 9\)",
        ),
        (lambda z: LSTMCell(5, 9)(z(2, 5), (z(2, 9), z(2, 9).astype(float))), ValueError, r"hx\[1\].*float64"),
        (lambda z: GRUCell(5, 9)(z(2, 5), z(2, 8)), RuntimeError, r"Expected hidden size \(2, 9\), got \[2, 8\]"),
        (lambda z: GRUCell(5, 9)(z(2, 5), z(2, 9).astype(float)), ValueError, r"GRUCell hx:.*float64"),
        (lambda z: LSTMCell(5, 9, dtype=np.float16), TypeError, "expected float32 or float64"),
    ],
)
def test_bad_input(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(lambda *shape: np.zeros(shape, np.float32))

"""`vjp` of every cell: gradients as torch has them, the bits of one step of the layer, a loop that is the layer's."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from cases import CELLS, KINDS, as_tuple, assert_same_bits, of_each, torch_cell
from gradients import PLANS, flat, gradients_of, torch_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

import nblstm
from nblstm import GRUCell, LSTMCell
from nblstm.engine import plan
from nblstm.engine.plan import Plan


@pytest.fixture(params=CELLS, ids=str)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def inputs_of(cell: Any, batch: int | None, *, steps: int | None = None, seed: int = 2) -> tuple[Any, Any]:
    """Return x (B, I), or (T, B, I), and hx; without B if `batch` is None."""
    random = np.random.default_rng(seed)
    rows = () if batch is None else (batch,)

    def drawn(*shape: int) -> Any:
        return random.standard_normal(shape, np.float32).astype(cell.dtype)

    x = drawn(*(() if steps is None else (steps,)), *rows, cell.input_size)
    h, c = drawn(*rows, cell.hidden_size), drawn(*rows, cell.hidden_size)
    return x, ((h, c) if isinstance(cell, LSTMCell) else h)


def by_torch(torch: Any, cell: Any, x: Any, hx: Any, d_state: Any) -> dict[str, Any]:
    """Return torch's gradients by the names of `flat`."""
    module, dtype = torch_cell(torch, cell), getattr(torch, str(cell.dtype))
    x_in, states = (of_each(lambda a: torch.tensor(a, dtype=dtype, requires_grad=True), part) for part in (x, hx))
    asked = zip(as_tuple(module(x_in, states)), as_tuple(d_state), strict=True)
    return torch_gradients(torch, module, x_in, states, asked)


@settings(max_examples=150)
@given(
    kind=st.sampled_from(list(CELLS)),
    sizes=st.tuples(st.integers(0, 20), st.integers(1, 24)),
    bias=st.booleans(),
    batch=st.none() | st.integers(0, 14),
    from_zeros=st.booleans(),
    seed=st.integers(0, 2**32),
    split=st.sampled_from(PLANS),
)
def test_against_torch(
    torch: Any,
    kind: str,
    sizes: tuple[int, int],
    bias: bool,
    batch: int | None,
    from_zeros: bool,
    seed: int,
    split: Plan,
) -> None:
    cell = CELLS[kind](*sizes, bias, dtype=np.float64, seed=seed)
    x, hx = inputs_of(cell, batch, seed=seed)
    hx = of_each(np.zeros_like, hx) if from_zeros else hx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "choose", lambda *arguments: split)
        states, backward = cell.vjp(x, None if from_zeros else hx)
        _, d_state = gradients_of(None, states, seed)
        got = flat(backward(d_state))
    expected = by_torch(torch, cell, x, hx, d_state)
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype, name
        scale = np.abs(array).max(initial=1)
        assert np.abs(got[name] - array).max(initial=0) <= 1e-10 * scale, name


def test_float32_errs_as_torch_does(kind: str, torch: Any) -> None:
    cell = CELLS[kind](40, 70, seed=3)
    x, hx = inputs_of(cell, 20)
    states, backward = cell.vjp(x, hx)
    _, d_state = gradients_of(None, states, 5)
    got = flat(backward(d_state))
    peer = by_torch(torch, cell, x, hx, d_state)
    exact = by_torch(torch, cell.to(np.float64), x, hx, d_state)
    for name, array in exact.items():
        error, peer_error = (np.abs(one[name] - array).max() for one in (got, peer))
        assert error <= 3 * peer_error + 2e-7 * np.abs(array).max(), name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("d_value", [1, np.nan])
def test_what_is_no_number_goes_back_as_in_torch(kind: str, value: float, d_value: float, torch: Any) -> None:
    """A relu lets a gradient pass where its state is NaN: a run that has diverged must not look healthy."""
    cell = CELLS[kind](3, 5, dtype=np.float64, seed=1)
    x, hx = inputs_of(cell, 4)
    x[1, 0] = value
    states, backward = cell.vjp(x, hx)
    d_state = of_each(np.ones_like, states)
    as_tuple(d_state)[0][1] = d_value
    got = flat(backward(d_state))
    for name, expected in by_torch(torch, cell, x, hx, d_state).items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("batch", [None, 1, 13])
def test_one_step_of_the_layer(kind: str, batch: int | None, dtype: Any) -> None:
    cell, layer = CELLS[kind](7, 33, dtype=dtype, seed=1), KINDS[kind](7, 33, dtype=dtype)
    layer.set_parameters({f"{name}_l0": array for name, array in cell.named_parameters()})
    x, hx = inputs_of(cell, batch)
    states, backward = cell.vjp(x, hx)
    assert_same_bits(states, cell(x, hx))
    _, d_state = gradients_of(None, states, 0)
    (_, _), backward_of_layer = layer.vjp(x[None], of_each(lambda state: state[None], hx))
    expected = backward_of_layer(d_state=of_each(lambda state: state[None], d_state))
    got = backward(d_state)
    assert_same_bits((got.input, got.hx), (expected.input[0], of_each(lambda state: state[0], expected.hx)))
    for name, array in got.parameters.items():
        assert_same_bits(array, expected.parameters[f"{name}_l0"])


@pytest.mark.parametrize("own_state", [True, False], ids=["hx", "zeros"])
def test_a_loop_of_steps_is_the_layer(kind: str, own_state: bool) -> None:
    cell, layer = CELLS[kind](5, 9, dtype=np.float64, seed=1), KINDS[kind](5, 9, dtype=np.float64)
    layer.set_parameters({f"{name}_l0": array for name, array in cell.named_parameters()})
    x, hx = inputs_of(cell, 3, steps=20)
    hx = hx if own_state else None
    (output, last), backward = layer.vjp(x, of_each(lambda state: state[None], hx))
    d_output, d_last = gradients_of(output, last, 4)
    expected = flat(backward(d_output, d_last))

    states, steps = hx, []
    for x_t in x:
        states, backward = cell.vjp(x_t, states)
        steps.append(backward)
    d_state, d_x, total = of_each(lambda state: state[0], d_last), [], {}
    for backward, d_h in zip(steps[::-1], d_output[::-1], strict=True):
        first, *others = as_tuple(d_state)
        gradients = backward((first + d_h, *others) if others else first + d_h)
        d_x.insert(0, gradients.input)
        d_state = gradients.hx
        total = {name: total.get(name, 0) + array for name, array in gradients.parameters.items()}
    got = {"input": np.stack(d_x), **{f"hx[{n}]": state[None] for n, state in enumerate(as_tuple(d_state))}}
    got |= {f"{name}_l0": array for name, array in total.items()}
    assert list(got) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-13 * np.abs(array).max(), err_msg=name)


def test_every_split_gives_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = CELLS[kind](7, 48, seed=0)
    x, hx = inputs_of(cell, 5)
    with nblstm.num_threads(1):
        states, backward = cell.vjp(x, hx)
        _, d_state = gradients_of(None, states, 0)
        expected = flat(backward(d_state))
    for split in PLANS:
        monkeypatch.setattr(plan, "choose", lambda *arguments, split=split: split)
        cell.to(np.float64).to(np.float32)  # another version of the weights, which has no plans yet
        with nblstm.num_threads(2):
            _, backward = cell.vjp(x, hx)
            for _ in range(2):
                got = flat(backward(d_state))
                assert all(np.array_equal(got[name], array) for name, array in expected.items()), split


def test_what_becomes_of_states_and_weights_does_not_matter(kind: str) -> None:
    cell = CELLS[kind](4, 9, seed=0)
    x, hx = inputs_of(cell, 3)
    x_before, hx_before = x.copy(), of_each(np.copy, hx)
    states, backward = cell.vjp(x, hx)
    _, d_state = gradients_of(None, states, 0)
    d_before = of_each(np.copy, d_state)
    first = backward(d_state)
    assert_same_bits((x, hx, d_state), (x_before, hx_before, d_before))
    expected = of_each(np.copy, tuple(flat(first).values()))
    for array in (*as_tuple(states), *as_tuple(hx), *flat(first).values()):
        array[...] = 7
    cell.set_parameters({"weight_hh": 2 * cell.weight_hh})
    assert_same_bits(tuple(flat(backward(d_state)).values()), expected)


def test_four_threads_at_once() -> None:
    cell = LSTMCell(8, 32, seed=0)
    inputs = [inputs_of(cell, 6, seed=n) for n in range(4)]

    def gradients(n: int) -> dict[str, Any]:
        states, backward = cell.vjp(*inputs[n])
        return flat(backward(states))

    expected, found = [gradients(n) for n in range(4)], [{}] * 4

    def work(n: int) -> None:
        for _ in range(20):
            found[n] = gradients(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for got, wanted in zip(found, expected, strict=True):
        assert all(np.array_equal(got[name], array) for name, array in wanted.items())


def test_inputs_of_any_strides(kind: str) -> None:
    cell = CELLS[kind](4, 9, seed=0)
    x, hx = inputs_of(cell, 3)
    states, backward = cell.vjp(x, hx)
    _, d_state = gradients_of(None, states, 0)
    expected = tuple(flat(backward(d_state)).values())
    x, hx, d_state = (of_each(np.asfortranarray, part) for part in (x, hx, d_state))
    _, backward = cell.vjp(x, hx)
    assert_same_bits(tuple(flat(backward(d_state)).values()), expected)


def test_what_is_not_asked_for(kind: str) -> None:
    cell = CELLS[kind](4, 9, seed=0)
    x, hx = inputs_of(cell, 3)
    states, backward = cell.vjp(x, hx)
    _, d_state = gradients_of(None, states, 0)
    asked = backward(d_state)
    _, backward = cell.vjp(x, hx, input=False)
    gradients = backward(d_state)
    assert gradients.input is None
    assert_same_bits((gradients.hx, *gradients.parameters.values()), (asked.hx, *asked.parameters.values()))


@pytest.mark.parametrize(
    ("d_state", "error", "words"),
    [
        (None, TypeError, "LSTMCell backward d_state: expected a tuple of 2 arrays, got NoneType"),
        ((np.ones((3, 9), np.float32),) * 3, RuntimeError, "LSTMCell backward d_state: expected 2 arrays"),
        ((np.ones((3, 9), np.float32), np.ones((3, 9))), ValueError, r"d_state\[1\]: expected dtype float32"),
        ((np.ones((3, 9), np.float32), np.ones((1, 3, 9), np.float32)), ValueError, r"expected \(3, 9\) because"),
        ((np.ones((3, 9), np.float32), None), TypeError, r"LSTMCell backward d_state\[1\]: expected an array"),
    ],
)
def test_bad_gradients(d_state: Any, error: type[Exception], words: str) -> None:
    _, backward = LSTMCell(4, 9, seed=0).vjp(np.ones((3, 4), np.float32))
    with pytest.raises(error, match=words):
        backward(d_state)


def test_bad_calls() -> None:
    cell = GRUCell(4, 9, seed=0)
    _, backward = cell.vjp(np.ones(4, np.float32))
    with pytest.raises(TypeError, match="GRUCell backward d_state: expected one array because"):
        backward((np.ones(9, np.float32),))
    with pytest.raises(ValueError, match=r"GRUCell backward d_state: expected \(9,\) because"):
        backward(np.ones((1, 9), np.float32))
    with pytest.raises(TypeError, match=r"GRUCell\.vjp: input should be of type bool"):
        cell.vjp(np.ones(4, np.float32), input=1)
    with pytest.raises(RuntimeError, match=r"GRUCell input: expected \(B, 4\)"):
        cell.vjp(np.ones((3, 5), np.float32))

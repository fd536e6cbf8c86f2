"""Gradients on the GPU: those of the CPU, which are held to PyTorch's, for every variant and way to call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, as_tuple, of_each, random_inputs
from gradients import flat, gradients_of

import nblstm
from nblstm.cuda import engine
from nblstm.cuda.device import SIMULATED, limits

NAMES = ["LSTM: plain", "GRU: plain", "RNN: no bias", "RNN relu: plain", "LSTM: projection", "LSTM: everything"]
CHOSEN = [case for case in CASES if case.name in NAMES] if SIMULATED else CASES


def assert_same_gradients(layer: Any, x: Any, hx: Any, limit: float = 1e-10, **options: Any) -> None:
    """Hold what `vjp` gives on the GPU to what it gives on the CPU, relative to the largest number of each array."""
    (output, states), backward = layer.to("cpu").vjp(x, hx, **options)
    packed = isinstance(output, nblstm.PackedSequence)
    d_output, d_state = gradients_of(output.data if packed else output, states, seed=5)
    on_cpu = backward(d_output, d_state)
    (output_2, states_2), backward = layer.to("cuda").vjp(x, hx, **options)
    on_gpu = backward(d_output, d_state)
    if packed:
        output, output_2 = output.data, output_2.data
        on_cpu, on_gpu = (gradients._replace(input=gradients.input.data) for gradients in (on_cpu, on_gpu))
    want = {**flat(on_cpu), "output": output, **{f"state {n}": s for n, s in enumerate(as_tuple(states))}}
    got = {**flat(on_gpu), "output": output_2, **{f"state {n}": s for n, s in enumerate(as_tuple(states_2))}}
    assert got.keys() == want.keys()
    for name, expected in want.items():
        if expected is None:
            assert got[name] is None
            continue
        found = np.asarray(got[name])
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
        atol = limit * np.abs(np.nan_to_num(expected)).max(initial=0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_gradients(case: Case) -> None:
    assert_same_gradients(case.layer(np.float64), *case.inputs(np.float64))


def test_gradients_in_float32() -> None:
    for build in (nblstm.LSTM, nblstm.GRU):
        layer = build(3, 5, seed=0)
        assert_same_gradients(layer, *random_inputs(layer, 4, 3), limit=5e-6)


@pytest.mark.parametrize("options", [{"proj_size": 2}, {}], ids=["projection", "plain"])
def test_a_launch_a_step(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "limits", lambda index: limits(index)._replace(cooperative=False))
    layer = nblstm.LSTM(3, 7, bidirectional=True, dtype=np.float64, seed=0, **options)
    assert_same_gradients(layer, *random_inputs(layer, 3, 3))


@pytest.mark.parametrize("build", [nblstm.LSTM, nblstm.GRU])
def test_lengths(build: Any) -> None:
    layer = build(3, 4, 2, bidirectional=True, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 6, 4)
    lengths = [2, 5, 1, 5]
    for row, length in enumerate(lengths):
        x[length:, row] = np.nan
    assert_same_gradients(layer, x, hx, lengths=lengths)


@pytest.mark.parametrize("case", [case for case in CHOSEN if case.name.endswith(": plain")], ids=lambda case: case.name)
def test_nan(case: Case) -> None:
    layer = case.layer(np.float64)
    x, hx = case.inputs(np.float64)
    x[1, 0] = np.nan
    assert_same_gradients(layer, x, hx)


def test_packed() -> None:
    layer = nblstm.GRU(3, 4, bidirectional=True, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 5, 3)
    packed = nblstm.pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False)
    assert_same_gradients(layer, packed, hx)


def test_batch_first_and_unbatched_and_no_input() -> None:
    layer = nblstm.LSTM(3, 4, batch_first=True, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 3, 2)
    assert_same_gradients(layer, np.ascontiguousarray(x.swapaxes(0, 1)), hx)
    assert_same_gradients(layer, x[:, 0], of_each(lambda state: state[:, 0], hx))
    assert_same_gradients(layer, np.ascontiguousarray(x.swapaxes(0, 1)), None, input=False)


def test_dropout() -> None:
    layer = nblstm.LSTM(3, 4, 2, dropout=0.4, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 3, 2)
    assert_same_gradients(layer, x, hx, dropout_call=3)
    assert_same_gradients(layer, nblstm.pack_padded_sequence(x, [3, 1]), hx, dropout_call=4)


def test_many_rows_go_in_chains_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nblstm.RNN(2, 2, dtype=np.float64, seed=0)
    assert_same_gradients(layer, *random_inputs(layer, 11, 7))


def test_either_gradient_alone_and_again() -> None:
    layer = nblstm.LSTM(3, 4, dtype=np.float64, seed=0).to("cuda")
    x, _ = random_inputs(layer, 3, 2)
    (output, states), backward = layer.vjp(x)
    d_output, d_state = gradients_of(np.asarray(output), of_each(np.asarray, states), seed=1)
    both, first, second = backward(d_output, d_state), backward(d_output), backward(d_state=d_state)
    for name, total in flat(both).items():
        parts = np.asarray(flat(first)[name]) + np.asarray(flat(second)[name])
        np.testing.assert_allclose(np.asarray(total), parts, atol=1e-12)


def test_what_comes_is_checked() -> None:
    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    x, _ = random_inputs(layer, 3, 2)
    (output, _), backward = layer.vjp(x)
    with pytest.raises(ValueError, match="neither"):
        backward()
    with pytest.raises(ValueError, match=r"d_output: expected \(3, 2, 4\)"):
        backward(np.zeros((3, 2, 5), np.float32))
    with pytest.raises(TypeError, match="tuple of 2"):
        backward(output, output)

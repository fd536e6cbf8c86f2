"""Layers on the GPU: the numbers of `reference.py` for every variant, and the CPU's for every way to call."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
from cases import CASES, Case, as_tuple, assert_parity, assert_same_bits, of_each, oracle, random_inputs, rows_of

import nblstm
from nblstm.cuda import engine, plan
from nblstm.cuda.device import SIMULATED, Limits, limits

# The simulator takes microseconds for a multiply-add.
WORK = 10_000 if SIMULATED else 10**12
DTYPES = [np.float32, np.float64]


def work(case: Case) -> int:
    layers = case.arguments.get("num_layers", 1) * (1 + case.arguments.get("bidirectional", False))
    return layers * case.steps * case.batch * case.hidden_size * (case.input_size + case.hidden_size)


SMALL = [case for case in CASES if work(case) <= WORK and (case.steps <= 10 or not SIMULATED)]


def host(result: Any) -> Any:
    output, states = result
    return np.asarray(output), of_each(np.asarray, states)


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the blocks of a launch not wait for one another."""
    monkeypatch.setattr(engine, "limits", lambda index: limits(index)._replace(cooperative=False))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_forward(case: Case, dtype: Any, peer: cases.Peer) -> None:
    layer, (x, hx) = case.layer(dtype), case.inputs(dtype)
    exact, by_peer = oracle(layer, x, hx), peer(layer, x, hx, None)
    assert_parity(host(layer.to("cuda")(x, hx)), exact, by_peer)


@pytest.mark.parametrize("name", ["LSTM: plain", "GRU: plain", "RNN relu: plain", "LSTM: everything"])
def test_a_launch_a_step(name: str, step_by_step: None) -> None:
    (case,) = (case for case in CASES if case.name == name)
    layer, (x, hx) = case.layer(np.float64), case.inputs(np.float64)
    exact = oracle(layer, x, hx)
    assert_parity(host(layer.to("cuda")(x, hx)), exact)


def test_zeros_are_the_first_states() -> None:
    for build in (nblstm.LSTM, nblstm.GRU):
        layer = build(3, 4, dtype=np.float64, seed=0)
        x, _ = random_inputs(layer, 3, 2)
        exact = oracle(layer, x)
        assert_parity(host(layer.to("cuda")(x)), exact)


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    plan.choose.cache_clear()
    monkeypatch.setattr(plan, "_ROW_BLOCK", 4)
    layer = nblstm.LSTM(3, 5, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 3, 11)
    exact = oracle(layer, x, hx)
    assert_parity(host(layer.to("cuda")(x, hx)), exact)
    plan.choose.cache_clear()


def test_the_input_goes_in_a_few_steps_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nblstm.GRU(3, 4, bidirectional=True, dtype=np.float64, seed=0).to("cuda")
    x, hx = random_inputs(layer, 7, 3)
    lengths = [7, 3, 5]
    whole, padded = host(layer(x, hx)), host(layer(x, hx, lengths=lengths))
    monkeypatch.setattr(engine, "_BYTES_AT_ONCE", 3 * 2 * 3 * 12 * 8)
    assert_same_bits(host(layer(x, hx)), whole)
    assert_same_bits(host(layer(x, hx, lengths=lengths)), padded)


@pytest.mark.parametrize("build", [nblstm.LSTM, nblstm.GRU])
def test_lengths(build: Any) -> None:
    layer = build(3, 4, 2, bidirectional=True, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 6, 4)
    lengths = [2, 5, 1, 5]
    exact = oracle(layer, x, hx, lengths)
    for row, length in enumerate(lengths):
        x[length:, row] = np.nan
    assert_parity(host(layer.to("cuda")(x, hx, lengths=lengths)), exact)


def test_packed() -> None:
    layer = nblstm.LSTM(3, 4, bidirectional=True, proj_size=2, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 5, 3)
    lengths = [2, 5, 3]
    packed = nblstm.pack_padded_sequence(x, lengths, enforce_sorted=False)
    exact = oracle(layer, x, hx, lengths)
    output, states = layer.to("cuda")(packed, hx)
    assert isinstance(output, nblstm.PackedSequence)
    padded, _ = nblstm.pad_packed_sequence(output._replace(data=np.asarray(output.data)))
    assert_parity((padded, of_each(np.asarray, states)), exact)


def test_batch_first_and_unbatched() -> None:
    layer = nblstm.LSTM(3, 4, batch_first=True, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 5, 3)
    output, states = oracle(layer, x, hx)
    layer.to("cuda")
    found = layer(np.ascontiguousarray(x.swapaxes(0, 1)), hx)
    assert_parity(host(found), (output.swapaxes(0, 1), states))
    one = layer(x[:, 1], of_each(lambda state: state[0], rows_of(hx, 1)[:2]) and tuple(s[:, 1] for s in hx))
    assert_parity(host(one), (output[:, 1], tuple(state[:, 1] for state in states)))


def test_the_mask_of_dropout_is_the_cpus() -> None:
    layer = nblstm.GRU(3, 6, 2, dropout=0.5, dtype=np.float64, seed=3)
    x, hx = random_inputs(layer, 4, 3)
    packed = nblstm.pack_padded_sequence(x, [2, 4, 3], enforce_sorted=False)
    want, want_packed = layer(x, hx, dropout_call=7), layer(packed, hx, dropout_call=8)
    drawn = layer(x, hx)
    layer.to("cuda")
    assert_parity(host(layer(x, hx, dropout_call=7)), want)
    output, state = layer(packed, hx, dropout_call=8)
    assert_parity((np.asarray(output.data), np.asarray(state)), (want_packed[0].data, want_packed[1]))
    with pytest.raises(AssertionError):
        assert_parity(host(layer(x, hx)), drawn)  # the next mask, not the same one
    assert_parity(host(layer.eval()(x, hx)), oracle(layer, x, hx))


def test_the_same_bits_every_time() -> None:
    layer = nblstm.LSTM(5, 9, seed=0).to("cuda")
    x, hx = random_inputs(layer, 6, 5)
    first = host(layer(x, hx))
    assert_same_bits(host(layer(x, hx)), first)


def test_nan_stays_in_its_row() -> None:
    layer = nblstm.LSTM(3, 4, dtype=np.float64, seed=0)
    x, hx = random_inputs(layer, 4, 3)
    output, _ = oracle(layer, x, hx)
    x[2, 1] = np.nan
    found = np.asarray(layer.to("cuda")(x, hx)[0])
    assert np.isnan(found[2:, 1]).all()
    np.testing.assert_allclose(np.delete(found, 1, axis=1), np.delete(output, 1, axis=1), atol=1e-12)
    np.testing.assert_allclose(found[:2], output[:2], atol=1e-12)


def test_an_empty_batch() -> None:
    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    output, (h, c) = layer(np.empty((5, 0, 3), np.float32))
    assert (output.shape, h.shape, c.shape) == ((5, 0, 4), (1, 0, 4), (1, 0, 4))


@pytest.mark.parametrize("batch", [1, 3, 8, 64, 200])
@pytest.mark.parametrize("size", [(4, 64, 0), (4, 1024, 0), (3, 700, 0), (1, 333, 0), (4, 1024, 256), (4, 3000, 0)])
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("shared", [48 << 10, 99 << 10, 227 << 10])
def test_plans_stay_within_their_limits(batch: int, size: tuple[int, int, int], itemsize: int, shared: int) -> None:
    gates, units, outputs = size
    first = outputs or units
    products = plan.Products(gates, (units, outputs), (first, units if outputs else 0), itemsize)
    plans = plan.choose(products, batch, 2, Limits(132, shared, True))
    assert plans and not plans[-1].persistent
    for one in plans:
        assert one.shared_bytes <= shared
        assert not one.persistent or one.blocks * one.directions <= 132
        for slice_, count, owner in zip(one.places, products.outputs, (gates, 1), strict=True):
            assert slice_.own * one.blocks >= count and slice_.own * owner <= slice_.width
            assert slice_.own * slice_.row_block <= plan.ITEMS * plan.THREADS
            tiles = slice_.width // plan.COLUMNS * slice_.row_block // one.rows
            assert tiles * slice_.slices <= plan.THREADS and slice_.slices >= 1
            assert slice_.row_block <= plan.THREADS and slice_.row_block % one.rows == 0


def test_states_are_tuples_where_they_are_on_the_cpu() -> None:
    for build in (nblstm.LSTM, nblstm.RNN):
        layer = build(2, 3, seed=0)
        x, _ = random_inputs(layer, 2, 2)
        assert len(as_tuple(layer(x)[1])) == len(as_tuple(layer.to("cuda")(x)[1]))

"""`vjp` of every layer: gradients as torch and finite differences have them, the same bits however they are split."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import KINDS, as_tuple, assert_same_bits, layers, of_each, random_inputs, torch_twin
from gradients import PLANS, flat, gradients_of, torch_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

import nblstm
from nblstm import GRU, LSTM, RNN
from nblstm.engine import backward as way_back
from nblstm.engine import plan
from nblstm.engine.plan import Plan


def by_torch(torch: Any, layer: Any, x: Any, hx: Any, lengths: Any, d_output: Any, d_state: Any) -> dict[str, Any]:
    """Return torch's gradients by the names of `flat`."""
    module = torch_twin(torch, layer).train()
    kind = getattr(torch, str(layer.dtype))
    x_in = torch.tensor(x, dtype=kind, requires_grad=True)
    states = of_each(lambda state: torch.tensor(state, dtype=kind, requires_grad=True), hx)
    rnn = torch.nn.utils.rnn
    if lengths is None:
        output, last = module(x_in, states)
    else:
        packed = rnn.pack_padded_sequence(x_in, torch.tensor(lengths), enforce_sorted=False)
        output, last = module(packed, states)
        output, _ = rnn.pad_packed_sequence(output, total_length=len(x))
    asked = [] if d_output is None else [(output, d_output)]
    asked += [] if d_state is None else zip(as_tuple(last), as_tuple(d_state), strict=True)
    return torch_gradients(torch, module, x_in, states, asked)


@st.composite
def calls(draw: st.DrawFn) -> Any:
    layer = draw(layers(st.integers(1, 20), st.integers(1, 24), most=3, dtypes=[np.float64]))
    steps, batch = draw(st.integers(1, 9)), draw(st.integers(1, 14))
    lengths = draw(st.none() | st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
    return layer, steps, batch, lengths


@settings(max_examples=150)
@given(
    call=calls(),
    seed=st.integers(0, 2**32),
    split=st.sampled_from(PLANS),
    which=st.sampled_from(["both", "output", "state"]),
    rows=st.sampled_from([5, 256]),
)
def test_against_torch(torch: Any, call: Any, seed: int, split: Plan, which: str, rows: int) -> None:
    layer, steps, batch, lengths = call
    x, hx = random_inputs(layer, steps, batch, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "choose", lambda *arguments: split)
        patch.setattr(plan, "choose_for_layers", lambda *arguments: None)
        patch.setattr(way_back, "ROWS_AT_ONCE", rows)
        patch.setattr(way_back, "_BYTES_AT_ONCE", 0)
        (output, states), backward = layer.vjp(x, hx, lengths=lengths)
        d_output, d_state = gradients_of(output, states, seed)
        d_output, d_state = (None if which == "state" else d_output), (None if which == "output" else d_state)
        got = flat(backward(d_output, d_state))
    expected = by_torch(torch, layer, x, hx, lengths, d_output, d_state)
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape, name
        assert np.abs(got[name] - array).max() <= 1e-10 * max(1, np.abs(array).max()), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_float32_errs_as_torch_does(kind: str, arguments: dict[str, Any], torch: Any) -> None:
    layer = KINDS[kind](40, 70, **arguments, seed=3)
    x, hx = random_inputs(layer, 30, 20)
    (output, states), backward = layer.vjp(x, hx)
    d_output, d_state = gradients_of(output, states, 5)
    got = flat(backward(d_output, d_state))
    peer = by_torch(torch, layer, x, hx, None, d_output, d_state)
    exact = by_torch(torch, layer.to(np.float64), x, hx, None, d_output, d_state)
    for name, array in exact.items():
        error, peer_error = (np.abs(one[name] - array).max() for one in (got, peer))
        assert error <= 3 * peer_error + 2e-7 * np.abs(array).max(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [None, [6, 2, 4]], ids=["whole", "lengths"])
def test_against_finite_differences(kind: str, lengths: Any) -> None:
    own = {"proj_size": 3} if kind == "LSTM" else {}
    layer = KINDS[kind](4, 5, 2, bidirectional=True, dtype=np.float64, seed=2, **own)
    x, hx = random_inputs(layer, 6, 3)
    (output, states), backward = layer.vjp(x, hx, lengths=lengths)
    d_output, d_state = gradients_of(output, states, 1)
    gradients = backward(d_output, d_state)

    def value(x: Any, hx: Any) -> float:
        output, states = layer(x, hx, lengths=lengths)
        pairs = zip((output, *as_tuple(states)), (d_output, *as_tuple(d_state)), strict=True)
        return float(sum((a * b).sum() for a, b in pairs))

    random, step = np.random.default_rng(0), 1e-5
    direction = random.standard_normal(x.shape)
    slope = (value(x + step * direction, hx) - value(x - step * direction, hx)) / (2 * step)
    assert np.isclose(slope, (gradients.input * direction).sum(), rtol=1e-6, atol=1e-7)
    ways = of_each(lambda state: random.standard_normal(state.shape), hx)
    moved = [tuple(s + sign * step * w for s, w in zip(as_tuple(hx), as_tuple(ways), strict=True)) for sign in (1, -1)]
    ahead, behind = moved if isinstance(hx, tuple) else (moved[0][0], moved[1][0])
    slope = (value(x, ahead) - value(x, behind)) / (2 * step)
    expected = sum((g * w).sum() for g, w in zip(as_tuple(gradients.hx), as_tuple(ways), strict=True))
    assert np.isclose(slope, expected, rtol=1e-6, atol=1e-7)
    for name, array in list(layer.named_parameters()):
        direction = random.standard_normal(array.shape)
        values = []
        for sign in (1, -1):
            layer.set_parameters({name: array + sign * step * direction})
            values.append(value(x, hx))
        layer.set_parameters({name: array})
        expected = (gradients.parameters[name] * direction).sum()
        assert np.isclose((values[0] - values[1]) / (2 * step), expected, rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [None, [3, 25, 17, 1, 25]], ids=["whole", "lengths"])
def test_every_split_gives_the_same_bits(kind: str, lengths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"proj_size": 20} if kind == "LSTM" else {}
    layer = KINDS[kind](7, 48, 2, bidirectional=True, seed=0, **own)
    x, hx = random_inputs(layer, 25, 5)
    monkeypatch.setattr(way_back, "ROWS_AT_ONCE", 40)
    monkeypatch.setattr(way_back, "_BYTES_AT_ONCE", 0)
    monkeypatch.setattr(plan, "_LAUNCH", 0)
    with nblstm.num_threads(1):
        (output, states), backward = layer.vjp(x, hx, lengths=lengths)
        asked = gradients_of(output, states, 0)
        expected = flat(backward(*asked))
    for split in PLANS:
        monkeypatch.setattr(plan, "choose", lambda *arguments, split=split: split)
        monkeypatch.setattr(plan, "choose_for_layers", lambda *arguments: None)
        layer.to(np.float64).to(np.float32)  # another version of the weights, which has no plans yet
        with nblstm.num_threads(2):
            _, backward = layer.vjp(x, hx, lengths=lengths)
            for _ in range(2):
                got = flat(backward(*asked))
                assert all(np.array_equal(got[name], array) for name, array in expected.items()), split


def test_forms_of_input_hold_the_same_gradients() -> None:
    time_first, batch_first = GRU(4, 9, 2, seed=0), GRU(4, 9, 2, batch_first=True, seed=0)
    x, hx = random_inputs(time_first, 6, 3)
    lengths = np.array([4, 6, 1])
    (output, h_n), backward = time_first.vjp(x, hx, lengths=lengths)
    d_output, d_state = gradients_of(output, h_n, 0)
    expected = flat(backward(d_output, d_state))
    _, backward = batch_first.vjp(x.swapaxes(0, 1), hx, lengths=lengths)
    other = flat(backward(d_output.swapaxes(0, 1), d_state))
    assert np.array_equal(other.pop("input").swapaxes(0, 1), expected["input"])
    assert all(np.array_equal(array, expected[name]) for name, array in other.items())
    packed = nblstm.pack_padded_sequence(x, lengths, enforce_sorted=False)
    _, backward = time_first.vjp(packed, hx)
    d_packed = nblstm.pack_padded_sequence(d_output, lengths, enforce_sorted=False)
    for d_given in (d_packed, d_packed.data):
        other = flat(backward(d_given, d_state))
        padded, _ = nblstm.pad_packed_sequence(other.pop("input"), total_length=6)
        assert np.array_equal(padded, expected["input"])
        assert all(np.array_equal(array, expected[name]) for name, array in other.items())
    (output, h_n), backward = time_first.vjp(x[:, 1], hx[:, 1])
    gradients = backward(np.ones_like(output), np.ones_like(h_n))
    assert gradients.input.shape == (6, 4) and gradients.hx.shape == (2, 9)


def test_padding_is_never_read() -> None:
    layer = LSTM(4, 9, 2, bidirectional=True, seed=0)
    x, hx = random_inputs(layer, 6, 3)
    lengths = [4, 6, 1]
    spoilt, found = x.copy(), []
    for row, length in enumerate(lengths):
        spoilt[length:, row] = np.nan
    for padded in (x, spoilt):
        (output, states), backward = layer.vjp(padded, hx, lengths=lengths)
        d_output, d_state = gradients_of(output, states, 0)
        d_output[1:, 2] = np.nan
        found.append(flat(backward(d_output, d_state)))
    for name, array in found[0].items():
        assert np.isfinite(array).all() and np.array_equal(array, found[1][name]), name
    assert not found[0]["input"][1:, 2].any()


def test_dropout_has_the_mask_of_the_call(torch: Any) -> None:
    layer = LSTM(4, 30, 2, dropout=0.5, seed=0, dtype=np.float64)
    x, hx = random_inputs(layer, 6, 3)
    (output, _), backward = layer.vjp(x, hx, dropout_call=7)
    assert np.array_equal(output, layer(x, hx, dropout_call=7)[0])
    gradients = backward(np.ones_like(output))
    step, direction = 1e-6, np.random.default_rng(0).standard_normal(x.shape)
    ahead, behind = (layer(x + s * step * direction, hx, dropout_call=7)[0].sum() for s in (1, -1))
    assert np.isclose((ahead - behind) / (2 * step), (gradients.input * direction).sum(), rtol=1e-6)


def test_four_threads_at_once() -> None:
    layer = LSTM(8, 32, 2, seed=0)
    inputs = [random_inputs(layer, 20, 6, seed=n) for n in range(4)]

    def gradients(n: int) -> dict[str, Any]:
        (output, _), backward = layer.vjp(*inputs[n])
        return flat(backward(output))

    expected, found = [gradients(n) for n in range(4)], [{}] * 4

    def work(n: int) -> None:
        for _ in range(5):
            found[n] = gradients(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for got, wanted in zip(found, expected, strict=True):
        assert all(np.array_equal(got[name], array) for name, array in wanted.items())


def test_inputs_and_weights_may_change_before_the_way_back() -> None:
    layer = GRU(4, 9, seed=0)
    x, hx = random_inputs(layer, 6, 3)
    (output, _), backward = layer.vjp(x, hx)
    ones = np.ones_like(output)
    expected = flat(backward(ones))
    hx[...] = 7
    with pytest.raises(ValueError, match="read-only"):
        output[...] = 7
    layer.set_parameters({"weight_hh_l0": 2 * layer.weight_hh_l0})
    assert all(np.array_equal(array, expected[name]) for name, array in flat(backward(ones)).items())


def test_truncated_in_pieces() -> None:
    layer = LSTM(4, 9, seed=0, dtype=np.float64)
    x, hx = random_inputs(layer, 8, 3)
    (whole, _), _ = layer.vjp(x, hx)
    (first, state), _ = layer.vjp(x[:5], hx)
    (second, _), backward = layer.vjp(x[5:], state)
    assert np.array_equal(np.concatenate([first, second]), whole)
    assert backward(np.ones_like(second)).input.shape == (3, 3, 4)


def test_what_is_not_asked_for() -> None:
    layer = RNN(4, 9, seed=0)
    x, _ = random_inputs(layer, 6, 3)
    (output, _), backward = layer.vjp(x, input=False)
    gradients = backward(np.ones_like(output))
    assert gradients.input is None and gradients.hx.shape == (1, 3, 9)


def test_empty_batch() -> None:
    layer = LSTM(4, 9, seed=0)
    (output, _), backward = layer.vjp(np.ones((6, 0, 4), np.float32))
    gradients = backward(output)
    assert gradients.input.shape == (6, 0, 4) and not gradients.parameters["weight_ih_l0"].any()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "GRU backward: expected d_output or d_state, got neither"),
        ({"d_output": np.ones((6, 3, 8), np.float32)}, ValueError, r"GRU backward d_output: expected \(6, 3, 9\)"),
        ({"d_output": np.ones((6, 3, 9))}, ValueError, "dtype float32, got dtype float64"),
        ({"d_state": np.ones((2, 3, 9), np.float32)}, ValueError, r"GRU backward d_state: expected \(1, 3, 9\)"),
        ({"d_state": (np.ones((1, 3, 9), np.float32),)}, TypeError, "GRU backward d_state: expected one array"),
        ({"d_output": "words"}, TypeError, "GRU backward d_output: expected an array"),
    ],
)
def test_bad_gradients(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    _, backward = GRU(4, 9, seed=0).vjp(np.ones((6, 3, 4), np.float32))
    with pytest.raises(error, match=words):
        backward(**arguments)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_row_has_the_same_gradients_alone(kind: str) -> None:
    """Also where the rows of all steps are cut into chunks, others for one row than for many."""
    layer = KINDS[kind](8, 64, seed=0)
    x, hx = random_inputs(layer, 300, 12)
    (output, states), backward = layer.vjp(x, hx)
    d_output, d_state = gradients_of(output, states, 0)
    together = backward(d_output, d_state)
    for row in (0, 7, 11):
        own = slice(row, row + 1)
        (_, _), backward = layer.vjp(x[:, own], of_each(lambda state, own=own: state[:, own], hx))
        alone = backward(d_output[:, own], of_each(lambda state, own=own: state[:, own], d_state))
        assert np.array_equal(alone.input, together.input[:, own])
        for one, all_rows in zip(as_tuple(alone.hx), as_tuple(together.hx), strict=True):
            assert np.array_equal(one, all_rows[:, own])


def test_dropout_where_all_rows_are_shorter() -> None:
    layer = LSTM(3, 5, 3, dropout=0.5, bidirectional=True, seed=0)
    x, hx = random_inputs(layer, 40, 4)
    lengths = [7, 2, 5, 7]
    (output, states), backward = layer.vjp(x, hx, lengths=lengths, dropout_call=3)
    d_output, d_state = gradients_of(output, states, 0)
    (_, _), short = layer.vjp(x[:7], hx, lengths=lengths, dropout_call=3)
    got, expected = flat(backward(d_output, d_state)), flat(short(d_output[:7], d_state))
    assert not got["input"][7:].any()
    got["input"] = got["input"][:7]
    assert all(np.array_equal(got[name], array) for name, array in expected.items())


def test_a_packed_gradient_must_lie_as_the_output_does() -> None:
    layer = LSTM(3, 5, seed=0)
    x, _ = random_inputs(layer, 6, 3)
    (output, _), backward = layer.vjp(nblstm.pack_padded_sequence(x, [4, 6, 4], enforce_sorted=False))
    expected = backward(output)
    assert np.array_equal(backward(output.data).parameters["weight_ih_l0"], expected.parameters["weight_ih_l0"])
    order = output.sorted_indices[[0, 2, 1]]
    swapped = output._replace(sorted_indices=order, unsorted_indices=np.argsort(order))
    others = nblstm.pack_padded_sequence(np.ones((6, 3, 5), np.float32), [5, 6, 3], enforce_sorted=False)
    for other, words in ((swapped, "sorted_indices"), (others, "batch_sizes")):
        with pytest.raises(ValueError, match=f"expected the {words} of the output"):
            backward(other)


def test_a_small_call_starts_no_threads() -> None:
    script = """
import numpy as np, nblstm
from nblstm.training import Linear
(output, _), backward = nblstm.GRU(2, 3, seed=0).vjp(np.ones((2, 1, 2), np.float32))
backward(output)
output, backward = Linear(2, 2, seed=0).vjp(np.ones((2, 2), np.float32))
backward(output)
from nblstm.kernels import team
assert not team._team.helpers
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(nblstm.__file__).parents[1], timeout=300)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("hidden_size", [3, 12, 20])
@pytest.mark.parametrize("arguments", [{}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_infinite_inputs_have_the_gradients_of_huge_ones(
    kind: str, hidden_size: int, arguments: dict[str, Any], packed: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saturate the gates; but infinity times the zero weights of a padded unit is no number.

    Not so of a relu, whose states would be infinite, nor of the gradients of the weights: infinity times the slope of
    a saturated gate, which is zero.
    """
    if kind != "LSTM" and "proj_size" in arguments:
        pytest.skip("only an LSTM has a projection")
    layer = KINDS[kind](4, hidden_size, **arguments, dtype=dtype, seed=1)
    lengths = [3, 1, 2, 3, 1] if packed else None
    monkeypatch.setattr(plan, "choose_for_layers", lambda *arguments: None)
    for split in PLANS:
        monkeypatch.setattr(plan, "choose", lambda *arguments, split=split: split)
        infinite, huge = (gradients_at(layer, value, lengths, dtype) for value in (np.inf, 1e30))
        assert np.isfinite(huge.input).all()
        assert_same_bits(infinite.input, huge.input)
        assert_same_bits(infinite.hx, huge.hx)


def gradients_at(layer: Any, value: float, lengths: Any, dtype: Any) -> Any:
    """Return the gradients of the sum of the output where one number of the input has this value."""
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(dtype)
    x[1, 2, 3] = value
    (output, _), backward = layer.vjp(x, lengths=lengths)
    return backward(np.ones_like(output))

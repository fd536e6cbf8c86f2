"""The oracle itself: against values recorded from torch, against live torch, and against its own equations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, KINDS, Case, assert_parity, flat, float32_reference, of_each, oracle, own_options, torch_result

from nblstm import LSTM, RNN, reference

GOLDEN = Path(__file__).parent / "data" / "golden.npz"


def _golden() -> dict[str, dict[str, Any]]:
    """Return the recorded arrays by case and name."""
    found: dict[str, dict[str, Any]] = {}
    with np.load(GOLDEN) as file:
        for name in file.files:
            case, array = name.split("/")
            found.setdefault(case, {})[array] = file[name]
    return found


@dataclass
class Golden:
    """One case: a layer with the recorded parameters, a recorded call, and what torch made of it in float64."""

    layer: Any
    x: Any
    hx: Any
    lengths: Any
    result: Any


@pytest.fixture(params=_golden().items(), ids=lambda item: item[0])
def golden(request: pytest.FixtureRequest) -> Golden:
    name, arrays = request.param
    (case,) = (case for case in CASES if case.name == name)
    twin = case.layer()
    parameters = {name: array for name, array in arrays.items() if name.startswith(("weight", "bias"))}
    layer = type(twin).from_state_dict(parameters, dtype=np.float64, **own_options(twin))

    def states(h: str, c: str) -> Any:
        return (arrays[h], arrays[c]) if c in arrays else arrays[h]

    result = arrays["output"], states("h_n", "c_n")
    return Golden(layer, arrays["x"], states("h_0", "c_0"), arrays["lengths"], result)


def test_recorded_values(golden: Golden) -> None:
    assert_parity(oracle(golden.layer, golden.x, golden.hx, golden.lengths), golden.result)


def test_layer_gives_recorded_values(golden: Golden, dtype: Any) -> None:
    layer = golden.layer.to(dtype)
    x, hx = golden.x.astype(dtype), of_each(lambda state: state.astype(dtype), golden.hx)
    peer = float32_reference(layer, x, hx, golden.lengths)
    assert_parity(layer(x, hx, lengths=golden.lengths), golden.result, peer)


def test_every_kind_is_recorded() -> None:
    assert {name.split(":")[0] for name in _golden()} == set(KINDS)


def test_golden_file_is_small() -> None:
    assert GOLDEN.stat().st_size < 120_000


def test_live_torch(case: Case, torch: Any) -> None:
    layer = case.layer(np.float64)
    x, hx = case.inputs(np.float64)
    lengths = np.random.default_rng(3).integers(1, case.steps + 1, case.batch)
    for states, valid in ((None, None), (hx, None), (hx, lengths)):
        assert_parity(oracle(layer, x, states, valid), torch_result(torch, layer, x, states, valid))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_any_dtype(case: Case, dtype: Any) -> None:
    layer = case.layer()
    run, options = getattr(reference, type(layer).__name__.lower()), own_options(layer)
    x, hx = case.inputs(dtype)
    result = run(x, layer.state_dict(), hx, **options)
    assert {array.dtype for array in flat(result)} == {np.dtype(dtype)}
    exact, _ = run(x.astype(np.longdouble), layer.state_dict(), hx, **options)
    np.testing.assert_allclose(result[0], exact, rtol=0, atol=2000 * np.finfo(dtype).eps)


def test_sigmoid_at_the_ends() -> None:
    x = np.array([-np.inf, -1e300, -710, -1, 0, 1, 710, 1e300, np.inf, np.nan])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        found = reference.sigmoid(x)
    np.testing.assert_array_equal(found[[0, 1, 4, 7, 8, 9]], [0, 0, 0.5, 1, 1, np.nan])
    np.testing.assert_allclose(found[3] + found[5], 1)
    assert 0 < found[2] < 1e-300


def test_padding_has_no_effect() -> None:
    layer = LSTM(3, 4, 2, bidirectional=True, seed=1)
    x = np.random.default_rng(1).standard_normal((5, 2, 3))
    padded = np.concatenate([x, np.full((2, 2, 3), np.nan)])
    got, states = oracle(layer, padded, lengths=[5, 5])
    expected, expected_states = oracle(layer, x)
    np.testing.assert_array_equal(got[:5], expected)
    np.testing.assert_array_equal(states, expected_states)
    assert not got[5:].any()


def _sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_lstm_step_by_hand() -> None:
    """One unit, one feature, every weight and bias its own number."""
    i, f, g, o = (
        0.1 * 2 + 0.5 * 3 + 1 + 5,
        0.2 * 2 - 0.6 * 3 + 2 + 6,
        0.3 * 2 - 0.7 * 3 + 3 - 7,
        0.4 * 2 + 0.8 * 3 - 4,
    )
    c_expected = _sigmoid(f) * 0.25 + _sigmoid(i) * np.tanh(g)
    h_expected = -2 * _sigmoid(o) * np.tanh(c_expected)
    column = np.transpose
    h, c = reference.lstm_step(
        np.array([[2.0]]),
        np.array([[3.0]]),
        np.array([[0.25]]),
        column([[0.1, 0.2, 0.3, 0.4]]),
        column([[0.5, -0.6, -0.7, 0.8]]),
        np.array([1.0, 2.0, 3.0, -4.0]),
        np.array([5.0, 6.0, -7.0, 0.0]),
        np.array([[-2.0]]),
    )
    assert c.item() == pytest.approx(c_expected, rel=1e-15)
    assert h.item() == pytest.approx(h_expected, rel=1e-15)


def test_gru_step_by_hand() -> None:
    r = _sigmoid(0.1 * 2 + 0.5 * 3 + 1 - 4)
    z = _sigmoid(0.2 * 2 - 0.6 * 3 + 2 - 1)
    n = np.tanh(0.3 * 2 - 1 + r * (-0.7 * 3 + 5))
    h = reference.gru_step(
        np.array([[2.0]]),
        np.array([[3.0]]),
        np.transpose([[0.1, 0.2, 0.3]]),
        np.transpose([[0.5, -0.6, -0.7]]),
        np.array([1.0, 2.0, -1.0]),
        np.array([-4.0, -1.0, 5.0]),
    )
    assert h.item() == pytest.approx((1 - z) * n + z * 3, rel=1e-15)


@pytest.mark.parametrize(("nonlinearity", "of_sum"), [("tanh", np.tanh(-0.3)), ("relu", 0.0)])
def test_rnn_step_by_hand(nonlinearity: str, of_sum: float) -> None:
    x, h, w_ih, w_hh = (np.array([[value]]) for value in (2.0, 3.0, 0.1, -0.5))
    step = partial(reference.rnn_step, x, h, w_ih, nonlinearity=nonlinearity)
    assert step(w_hh, np.array([0.25]), np.array([0.75])).item() == pytest.approx(of_sum, rel=1e-15)
    assert step(-w_hh).item() == pytest.approx(np.tanh(1.7) if nonlinearity == "tanh" else 1.7, rel=1e-15)


def test_unknown_nonlinearity() -> None:
    with pytest.raises(ValueError, match="nonlinearity: expected 'tanh' or 'relu', got 'sine'"):
        reference.rnn(np.zeros((1, 1, 1)), RNN(1, 1).state_dict(), nonlinearity="sine")

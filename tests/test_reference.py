"""The oracle itself: against values recorded from torch, against live torch, and against its own equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case, assert_parity, float32_reference, oracle, torch_result

from nblstm import LSTM, reference

GOLDEN = Path(__file__).parent / "data" / "golden_lstm.npz"


def _golden() -> dict[str, dict[str, Any]]:
    """Return the recorded arrays by case and name."""
    found: dict[str, dict[str, Any]] = {}
    with np.load(GOLDEN) as file:
        for name in file.files:
            case, array = name.split("/")
            found.setdefault(case, {})[array] = file[name]
    return found


@pytest.fixture(params=_golden().values(), ids=list(_golden()))
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One case: parameters, x, h_0, c_0 and lengths, and torch's float64 output, h_n and c_n."""
    return dict(request.param)


def _recorded(golden: dict[str, Any]) -> Any:
    return golden["output"], (golden["h_n"], golden["c_n"])


def test_recorded_values(golden: dict[str, Any]) -> None:
    wide = {name: array.astype(np.float64) for name, array in golden.items() if array.dtype == np.float32}
    got = reference.lstm(wide["x"], wide, (wide["h_0"], wide["c_0"]), lengths=golden["lengths"])
    assert_parity(got, _recorded(golden))


def test_layer_gives_recorded_values(golden: dict[str, Any], dtype: Any) -> None:
    parameters = {name: array for name, array in golden.items() if name.startswith(("weight", "bias"))}
    layer = LSTM.from_state_dict(parameters, dtype=dtype)
    x, h_0, c_0 = (golden[name].astype(dtype) for name in ("x", "h_0", "c_0"))
    peer = float32_reference(layer, x, (h_0, c_0), golden["lengths"])
    assert_parity(layer(x, (h_0, c_0), lengths=golden["lengths"]), _recorded(golden), peer)


def test_golden_file_is_small() -> None:
    assert GOLDEN.stat().st_size < 100_000


def test_live_torch(case: Case, torch: Any) -> None:
    layer = case.layer(np.float64)
    x, hx = case.inputs(np.float64)
    lengths = np.random.default_rng(3).integers(1, case.steps + 1, case.batch)
    for states, valid in ((None, None), (hx, None), (hx, lengths)):
        assert_parity(oracle(layer, x, states, valid), torch_result(torch, layer, x, states, valid))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_any_dtype(case: Case, dtype: Any) -> None:
    x, hx = case.inputs(dtype)
    parameters = case.layer().state_dict()
    output, states = reference.lstm(x, parameters, hx)
    for array in (output, *states):
        assert array.dtype == dtype
    exact, _ = reference.lstm(x.astype(np.longdouble), parameters, hx)
    np.testing.assert_allclose(output, exact, rtol=0, atol=2000 * np.finfo(dtype).eps)


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


def test_step_by_hand() -> None:
    """One unit, one feature, every weight and bias its own number."""
    i, f, g, o = (
        0.1 * 2 + 0.5 * 3 + 1 + 5,
        0.2 * 2 - 0.6 * 3 + 2 + 6,
        0.3 * 2 - 0.7 * 3 + 3 - 7,
        0.4 * 2 + 0.8 * 3 - 4,
    )

    def sigmoid(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    c_expected = sigmoid(f) * 0.25 + sigmoid(i) * np.tanh(g)
    h_expected = -2 * sigmoid(o) * np.tanh(c_expected)
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

"""`nblstm.functional`: the same numbers as torch's layers, and as ours; bad arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm import functional

RANDOM = np.random.default_rng(0)


def arrays(*shapes: tuple[int, ...], dtype: Any = np.float64) -> list[Any]:
    return [RANDOM.uniform(-1, 1, shape).astype(dtype) for shape in shapes]


def weights(gates: int, inputs: int = 4, units: int = 5, outputs: int = 5, dtype: Any = np.float64) -> list[Any]:
    rows = gates * units
    return arrays((rows, inputs), (rows, outputs), (rows,), (rows,), dtype=dtype)


def from_torch(torch: Any, kind: str, names: dict[str, Any], x: Any, hx: Any, **arguments: Any) -> Any:
    layer = getattr(torch.nn, kind)(**arguments, dtype=torch.float64)
    layer.load_state_dict({name: torch.tensor(array) for name, array in names.items()})
    states = tuple(map(torch.tensor, hx)) if isinstance(hx, tuple) else torch.tensor(hx)
    with torch.no_grad():
        output, states = layer(torch.tensor(x), states)
    return output.numpy(), tuple(s.numpy() for s in states) if isinstance(states, tuple) else states.numpy()


def test_lstm_with_a_projection_is_torchs(torch: Any) -> None:
    w_ih, w_hh, b_ih, b_hh = weights(4, outputs=3)
    (w_hr,) = arrays((3, 5))
    x, h_0, c_0 = arrays((2, 7, 4), (2, 3), (2, 5))
    output, (h_n, c_n) = functional.lstm(x, (h_0, c_0), w_ih, w_hh, b_ih, b_hh, w_hr)
    names = {"weight_ih_l0": w_ih, "weight_hh_l0": w_hh, "bias_ih_l0": b_ih, "bias_hh_l0": b_hh, "weight_hr_l0": w_hr}
    sizes = {"input_size": 4, "hidden_size": 5, "proj_size": 3, "batch_first": True}
    expected, (h, c) = from_torch(torch, "LSTM", names, x, (h_0[None], c_0[None]), **sizes)
    for got, wanted in ((output, expected), (h_n, h[0]), (c_n, c[0])):
        assert got.shape == wanted.shape and np.allclose(got, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_bidirectional_rnn_is_torchs(torch: Any, nonlinearity: str) -> None:
    forward, reverse = weights(1), weights(1)
    x, h_0 = arrays((2, 7, 4), (2, 2, 5))
    output, h_n = functional.bidirectional_rnn(x, h_0, *forward, *reverse, nonlinearity)
    kinds = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    names = {f"{kind}_l0": array for kind, array in zip(kinds, forward, strict=True)}
    names |= {f"{kind}_l0_reverse": array for kind, array in zip(kinds, reverse, strict=True)}
    sizes = {"input_size": 4, "hidden_size": 5, "nonlinearity": nonlinearity, "bidirectional": True}
    expected, h = from_torch(torch, "RNN", names, x, h_0, batch_first=True, **sizes)
    assert np.allclose(output, expected, rtol=0, atol=1e-13) and np.allclose(h_n, h, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "gates", "kind"), [("lstm", 4, "LSTM"), ("gru", 3, "GRU"), ("rnn", 1, "RNN")])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "no hx"])
def test_a_function_is_the_layer_to_the_bit(
    name: str, gates: int, kind: str, dtype: Any, bias: bool, given: bool
) -> None:
    w_ih, w_hh, b_ih, b_hh = weights(gates, dtype=dtype)
    x, h, c = arrays((2, 7, 4), (2, 5), (2, 5), dtype=dtype)
    layer = getattr(nblstm, kind)(4, 5, batch_first=True, bias=bias, dtype=dtype)
    values = {"weight_ih_l0": w_ih, "weight_hh_l0": w_hh, "bias_ih_l0": b_ih, "bias_hh_l0": b_hh}
    layer.load_state_dict({key: values[key] for key in layer.state_dict()})
    function, two = getattr(functional, name), name == "lstm"
    hx = ((h, c) if two else h) if given else None
    layer_hx = ((h[None], c[None]) if two else h[None]) if given else None
    output, states = function(x, hx, w_ih, w_hh, *([b_ih, b_hh] if bias else []))
    expected, layer_states = layer(x, layer_hx)
    assert np.array_equal(output, expected)
    for got, wanted in zip(states if two else [states], layer_states if two else [layer_states], strict=True):
        assert np.array_equal(got, wanted[0])
    row_hx = (tuple(s[1] for s in hx) if two else hx[1]) if given else None
    row, _ = function(x[1], row_hx, w_ih, w_hh, *([b_ih, b_hh] if bias else []))
    assert np.array_equal(row, expected[1])


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_a_cell_is_one_step(name: str, gates: int) -> None:
    parameters = weights(gates)
    x, h, c = arrays((2, 4), (2, 5), (2, 5))
    hx = (h, c) if name == "lstm" else h
    got = getattr(functional, f"{name}_cell")(x, hx, *parameters)
    _, expected = getattr(functional, name)(x[:, None], hx, *parameters)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_one_bias_is_enough() -> None:
    w_ih, w_hh, b_ih, _ = weights(3)
    (x,) = arrays((2, 7, 4))
    alone, _ = functional.gru(x, None, w_ih, w_hh, b_ih)
    assert np.array_equal(alone, functional.gru(x, None, w_ih, w_hh, b_ih, np.zeros(15))[0])
    assert not np.array_equal(alone, functional.gru(x, None, w_ih, w_hh)[0])


def test_weights_are_read_at_every_call() -> None:
    w_ih, w_hh, _, _ = weights(1)
    (x,) = arrays((2, 7, 4))
    before, _ = functional.rnn(x, None, w_ih, w_hh)
    w_ih[0, 0] += 1
    assert not np.array_equal(functional.rnn(x, None, w_ih, w_hh)[0], before)


X, W_IH, W_HH = np.ones((2, 7, 4)), np.ones((15, 4)), np.ones((15, 5))
BIDIRECTIONAL = [np.ones((5, 4)), np.ones((5, 5)), None, None]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: functional.gru(X, None, W_IH, W_HH.T), RuntimeError, r"gru w_ih: expected \(45, 4\) because H=15"),
        (lambda: functional.gru(X, None, W_IH[0], W_HH), ValueError, "gru w_ih: expected two axes"),
        (lambda: functional.gru(X, None, W_IH, W_HH, W_IH[:, 0], W_IH), ValueError, "gru b_hh: expected one axis"),
        (lambda: functional.gru(X, None, W_IH, W_HH, np.ones(5)), RuntimeError, r"gru b_ih: expected \(15,\)"),
        (
            lambda: functional.gru(X, None, W_IH, W_HH.astype(np.float32)),
            ValueError,
            "gru w_hh: expected dtype float64",
        ),
        (lambda: functional.gru(X, None, W_IH.astype(int), W_HH), TypeError, "gru w_ih dtype: expected float32 or"),
        (lambda: functional.gru(X, None, None, W_HH), TypeError, "gru w_ih: expected an array"),
        (lambda: functional.gru(X[..., :3], None, W_IH, W_HH), RuntimeError, r"gru input: expected \(B, T, 4\)"),
        (
            lambda: functional.gru(X, np.ones((3, 5)), W_IH, W_HH),
            RuntimeError,
            r"gru hx: Expected hidden size \(2, 5\), got \[3, 5\]",
        ),
        (lambda: functional.gru(X, np.ones((1, 2, 5)), W_IH, W_HH), RuntimeError, "hx should also be 2-D but got 3-D"),
        (lambda: functional.gru(X, (np.ones((2, 5)),), W_IH, W_HH), TypeError, "gru hx: expected one array"),
        (lambda: functional.lstm(X, None, W_IH, W_HH, w_hr=np.ones((5, 3))), RuntimeError, "lstm w_hr: expected"),
        (lambda: functional.gru(nblstm.pack_sequence([X[0]]), None, W_IH, W_HH), TypeError, "a packed sequence"),
        (
            lambda: functional.lstm(X, np.ones((2, 5)), W_IH[:12], np.ones((12, 3))),
            TypeError,
            "lstm hx: expected a tuple",
        ),
        (lambda: functional.lstm(X, None, W_IH, W_HH), RuntimeError, r"lstm w_ih: expected \(20, 4\)"),
        (
            lambda: functional.rnn(X, None, W_IH[:5], W_HH[:5], nonlinearity="sin"),
            ValueError,
            "Unknown nonlinearity 'sin'",
        ),
        (
            lambda: functional.bidirectional_rnn(X, None, *BIDIRECTIONAL, np.ones((5, 3)), np.ones((5, 5))),
            RuntimeError,
            r"bidirectional_rnn w_ih_reverse: expected \(5, 4\), as w_ih has, got \(5, 3\)",
        ),
        (
            lambda: functional.bidirectional_rnn(
                X, None, *BIDIRECTIONAL, *(np.ones((5, n), np.float32) for n in (4, 5))
            ),
            ValueError,
            "bidirectional_rnn w_ih_reverse: expected dtype float64, as w_ih has",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()

"""One layer as a function of plain arrays, as textbooks and papers write it: batch-first input, states of one layer.

The weights are torch's: one row for each gate and unit, gates in torch's order, ``w_ih`` over the input features and
``w_hh`` over h. A bias may be None. In letters: B rows of the batch, T steps, I input features, H hidden units, P the
size of h: H, or that of a projection. Arrays are float32 or float64, all of one dtype; without the batch axis, in input
and states alike, all functions work too. A call packs the weights anew: for many calls make a layer of them once.

All raise ValueError for another number of axes and for arrays of different dtypes, RuntimeError for sizes that do not
fit one another, and TypeError for what is no array of float32 or float64.

Exercise "my LSTM equals nn.LSTM":

>>> import numpy as np
>>> random = np.random.default_rng(0)
>>> w_ih, w_hh, b_ih, b_hh, w_hr = (random.standard_normal(s) for s in [(20, 4), (20, 3), 20, 20, (3, 5)])
>>> x, h_0, c_0 = (random.standard_normal(shape) for shape in [(2, 7, 4), (2, 3), (2, 5)])
>>> output, (h_n, c_n) = lstm(x, (h_0, c_0), w_ih, w_hh, b_ih, b_hh, w_hr)
>>> output.shape, h_n.shape, c_n.shape
((2, 7, 3), (2, 3), (2, 5))
>>> h, c = h_0, c_0
>>> for t in range(7):
...     i, f, g, o = np.split(x[:, t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh, 4, axis=1)
...     c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
...     h = np.tanh(c) / (1 + np.exp(-o)) @ w_hr.T
>>> bool(np.allclose(h, h_n, rtol=0, atol=1e-12))
True
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nblstm.arrays import Array, as_array, float_dtype
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.cells import GRUCell, LSTMCell, RNNCell
from nblstm.layers.gru import GRU
from nblstm.layers.lstm import LSTM
from nblstm.layers.rnn import RNN

_NAMES = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}


def lstm(
    input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None, w_hr: Any = None
) -> tuple[Array, tuple[Array, Array]]:
    """Run one LSTM layer; equations: `nblstm.reference.lstm_step`.

    Shapes: input (B, T, I); hx (h_0 (B, P), c_0 (B, H)), or None for zeros; w_ih (4H, I), w_hh (4H, P), b_ih and b_hh
    (4H,), w_hr (P, H) for a projection. Returns the output (B, T, P) and (h_n, c_n), shaped like hx.
    """
    weights = _checked("lstm", 4, w_ih, w_hh, b_ih, b_hh, w_hr)
    options = {} if w_hr is None else {"proj_size": weights["w_hh"].shape[1]}
    output, (h_n, c_n) = _run(LSTM, "lstm", weights, input, hx, **options)
    return output, (h_n, c_n)


def gru(input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> tuple[Array, Array]:
    """Run one GRU layer; equations: `nblstm.reference.gru_step`.

    Shapes: input (B, T, I); hx (B, H), or None for zeros; w_ih (3H, I), w_hh (3H, H), b_ih and b_hh (3H,). Returns the
    output (B, T, H) and h_n, shaped like hx.

    >>> import numpy as np
    >>> output, h_n = gru(np.ones((2, 5, 4)), None, np.ones((9, 4)), np.ones((9, 3)))
    >>> output.shape, bool((output[:, -1] == h_n).all())
    ((2, 5, 3), True)
    """
    output, (h_n,) = _run(GRU, "gru", _checked("gru", 3, w_ih, w_hh, b_ih, b_hh), input, hx)
    return output, h_n


def rnn(
    input: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    nonlinearity: str = "tanh",
) -> tuple[Array, Array]:
    """Run one plain recurrent layer; equation: `nblstm.reference.rnn_step`.

    Shapes: input (B, T, I); hx (B, H), or None for zeros; w_ih (H, I), w_hh (H, H), b_ih and b_hh (H,). Returns the
    output (B, T, H) and h_n, shaped like hx.

    >>> import numpy as np
    >>> output, h_n = rnn(np.ones((1, 3, 2)), None, np.ones((1, 2)), np.ones((1, 1)), nonlinearity="relu")
    >>> output.tolist()
    [[[2.0], [4.0], [6.0]]]
    """
    weights = _checked("rnn", 1, w_ih, w_hh, b_ih, b_hh)
    output, (h_n,) = _run(RNN, "rnn", weights, input, hx, nonlinearity=nonlinearity)
    return output, h_n


def bidirectional_rnn(
    input: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    w_ih_reverse: Any,
    w_hh_reverse: Any,
    b_ih_reverse: Any = None,
    b_hh_reverse: Any = None,
    nonlinearity: str = "tanh",
) -> tuple[Array, Array]:
    """Run two plain recurrent layers over one input, the second one from its end, and put their outputs side by side.

    Shapes: those of `rnn` for the weights of each direction; hx (2, B, H), or None for zeros. Returns the output
    (B, T, 2H) and h_n, shaped like hx.

    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> output, h_n = bidirectional_rnn([[[1.0], [2.0]]], None, one, one, None, None, one, one, nonlinearity="relu")
    >>> output.tolist(), h_n.tolist()
    ([[[1.0, 3.0], [3.0, 2.0]]], [[[3.0]], [[3.0]]])
    """
    name = "bidirectional_rnn"
    weights = _checked(name, 1, w_ih, w_hh, b_ih, b_hh)
    reverse = _checked(name, 1, w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, ending="_reverse")
    if reverse["w_ih"].dtype != weights["w_ih"].dtype:
        expected, got = f"dtype {weights['w_ih'].dtype}, as w_ih has", f"dtype {reverse['w_ih'].dtype}"
        raise ValueError(message(f"{name} w_ih_reverse", expected, got))
    if reverse["w_ih"].shape != weights["w_ih"].shape:
        expected = f"{weights['w_ih'].shape}, as w_ih has"
        raise RuntimeError(message(f"{name} w_ih_reverse", expected, reverse["w_ih"].shape))
    parameters = {**_named(weights, "_l0"), **_named(reverse, "_l0_reverse")}
    options: dict[str, Any] = {"nonlinearity": nonlinearity, "batch_first": True, "dtype": weights["w_ih"].dtype}
    layer = RNN._with_parameters(parameters, *_sizes(weights), bidirectional=True, **options)
    return layer(_unpacked(name, input), hx)


def lstm_cell(input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> tuple[Array, Array]:
    """Take one step of an LSTM: input (B, I), hx (h, c) of (B, H) each or None, weights as of `lstm`; returns (h, c).

    >>> import numpy as np
    >>> h, c = lstm_cell(np.ones((2, 4)), None, np.ones((12, 4)), np.ones((12, 3)))
    >>> h.shape, c.shape
    ((2, 3), (2, 3))
    """
    weights = _checked("lstm_cell", 4, w_ih, w_hh, b_ih, b_hh)
    return LSTMCell._with_parameters(_named(weights), *_sizes(weights), dtype=weights["w_ih"].dtype)(input, hx)


def gru_cell(input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Array:
    """Take one step of a GRU: input (B, I), hx (B, H) or None, weights as of `gru`; returns the next h.

    >>> import numpy as np
    >>> gru_cell(np.ones((2, 4)), np.zeros((2, 3)), np.ones((9, 4)), np.ones((9, 3))).shape
    (2, 3)
    """
    weights = _checked("gru_cell", 3, w_ih, w_hh, b_ih, b_hh)
    return GRUCell._with_parameters(_named(weights), *_sizes(weights), dtype=weights["w_ih"].dtype)(input, hx)


def rnn_cell(
    input: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    nonlinearity: str = "tanh",
) -> Array:
    """Take one step of a plain RNN: input (B, I), hx (B, H) or None, weights as of `rnn`; returns the next h.

    >>> import numpy as np
    >>> rnn_cell(np.ones((1, 2)), np.full((1, 1), 3.0), np.ones((1, 2)), np.ones((1, 1)), nonlinearity="relu").tolist()
    [[5.0]]
    """
    weights = _checked("rnn_cell", 1, w_ih, w_hh, b_ih, b_hh)
    options: dict[str, Any] = {"nonlinearity": nonlinearity, "dtype": weights["w_ih"].dtype}
    return RNNCell._with_parameters(_named(weights), *_sizes(weights), **options)(input, hx)


def _run(
    kind: type[LSTM] | type[GRU] | type[RNN], name: str, weights: dict[str, Array], input: Any, hx: Any, **options: Any
) -> tuple[Array, tuple[Array, ...]]:
    """Return the output and the last states of one layer, in one direction, without the axis of layers."""
    dtype, (inputs, units) = weights["w_ih"].dtype, _sizes(weights)
    layer = kind._with_parameters(_named(weights, "_l0"), inputs, units, batch_first=True, dtype=dtype, **options)
    x = checks.check_array(f"{name} input", _unpacked(name, input), dtype)
    checks.check_sequence_input(name, x, inputs, batch_first=True)
    states: Any = None
    if hx is not None:
        sizes = [weights["w_hh"].shape[1], units][: 2 if kind is LSTM else 1]
        given = checks.check_states(name, hx, len(sizes), dtype)
        checks.check_state_shapes(name, given, [(*x.shape[:-2], size) for size in sizes], x.ndim == 3)
        states = tuple(state[None] for state in given)
        states = states if kind is LSTM else states[0]
    output, last = layer(x, states)
    return output, tuple(state[0] for state in (last if isinstance(last, tuple) else (last,)))


def _unpacked(name: str, input: Any) -> Any:
    if hasattr(input, "batch_sizes"):
        raise TypeError(message(f"{name} input", "an array", "a packed sequence", hint="A layer takes one"))
    return input


def _checked(
    name: str, gates: int, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, w_hr: Any = None, ending: str = ""
) -> dict[str, Array]:
    """Return one direction's weights as arrays of one dtype that fit one another; a bias that is None is zeros."""
    given = {"w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh, "w_hr": w_hr}
    required = {"w_ih", "w_hh"}
    arrays = {
        argument: as_array(f"{name} {argument}{ending}", value)
        for argument, value in given.items()
        if value is not None or argument in required
    }
    dtype = float_dtype(f"{name} w_ih{ending} dtype", arrays["w_ih"].dtype)
    for argument, array in arrays.items():
        if array.dtype != dtype:
            expected = f"dtype {dtype}, as w_ih has"
            raise ValueError(message(f"{name} {argument}{ending}", expected, f"dtype {array.dtype}"))
        axes = 1 if argument.startswith("b") else 2
        if array.ndim != axes:
            expected = "one axis" if axes == 1 else "two axes"
            raise ValueError(message(f"{name} {argument}{ending}", expected, array.shape))
    outputs, units = arrays["w_hr"].shape if w_hr is not None else [arrays["w_hh"].shape[1]] * 2
    if units == 0 or (w_hr is not None and not 0 < outputs < units):
        expected = "at least one hidden unit" if w_hr is None else "(P, H) with 0 < P < H"
        which = "w_hh" if w_hr is None else "w_hr"
        raise RuntimeError(message(f"{name} {which}{ending}", expected, arrays[which].shape))
    shapes: dict[str, tuple[int, ...]] = {
        "w_ih": (gates * units, arrays["w_ih"].shape[1]),
        "w_hh": (gates * units, outputs),
        "b_ih": (gates * units,),
        "b_hh": (gates * units,),
        "w_hr": (outputs, units),
    }
    for argument, array in arrays.items():
        if array.shape != shapes[argument]:
            because = f"H={units} by {'w_hh' if w_hr is None else 'w_hr'} and there are {gates} gates"
            raise RuntimeError(
                message(f"{name} {argument}{ending}", str(shapes[argument]), array.shape, because=because)
            )
    zeros = np.zeros(gates * units, dtype)
    return {"b_ih": zeros, "b_hh": zeros, **arrays}


def _named(weights: dict[str, Array], ending: str = "") -> dict[str, Array]:
    """Return the weights under torch's names."""
    return {_NAMES[argument] + ending: array for argument, array in weights.items()}


def _sizes(weights: dict[str, Array]) -> tuple[int, int]:
    """Return I and H."""
    return weights["w_ih"].shape[1], weights["w_hr" if "w_hr" in weights else "w_hh"].shape[1]

"""Every equation once, in plain NumPy and in any floating dtype. The textbook, and the oracle of the tests.

Nothing here is fast, and nothing here is shared with the compiled kernels: an error would have to be made twice to
stay hidden. A cell is a function of one time step: `lstm_step`, `gru_step`, `rnn_step`. What makes a network of a cell
(steps, directions, layers, dropout) stands once for all, in `run_direction` and `run_network`. `lstm`, `gru` and `rnn`
put the two together. Letters used for shapes throughout the package:

====  =======================================================================================
T     time steps
B     rows of the batch
I     input features of a layer: ``input_size``, or D * P for a layer above the first
H     hidden units: ``hidden_size``
P     size of h: ``proj_size``, or H where there is no projection
L, D  layers, directions (1, or 2 if bidirectional)
====  =======================================================================================

The equations of each cell and their source stand with it. Two directions: M. Schuster, K. Paliwal, "Bidirectional
Recurrent Neural Networks", IEEE Transactions on Signal Processing 45(11), 1997. Names, gate order and layout of the
parameters: ``torch.nn``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message

# What a cell hands from one step to the next: h, which is its output, and for an LSTM c; each (B, size).
States: TypeAlias = tuple[Array, ...]
# One time step: step(x, *states, **weights) returns the next states, or the next h where there is but one.
Step: TypeAlias = Callable[..., "States | Array"]

_KINDS = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) elementwise, without overflow at either end.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    tail = np.exp(-np.abs(x))
    result: Array = np.where(x >= 0, 1, tail) / (1 + tail)
    return result


_NONLINEARITIES: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}


def lstm_step(
    x: Array,
    h: Array,
    c: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    w_hr: Array | None = None,
) -> tuple[Array, Array]:
    """One time step of an LSTM: of one layer in one direction.

    With * the elementwise product and the rows of the weights in the order i, f, g, o::

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      input gate
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)      forget gate
        g = tanh   (W_ig x + b_ig + W_hg h + b_hg)      candidate
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)      output gate
        c' = f * c + i * g                              cell state
        h' = o * tanh(c')                               hidden state, without a projection
        h' = W_hr (o * tanh(c'))                        hidden state, with one

    Shapes: x (B, I), h (B, P), c (B, H), w_ih (4H, I), w_hh (4H, P), b_ih and b_hh (4H,), w_hr (P, H).
    Returns h' (B, P) and c' (B, H).

    S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997, with the forget gate of
    F. Gers, J. Schmidhuber, F. Cummins, "Learning to Forget", Neural Computation 12(10), 2000; the projection: H. Sak,
    A. Senior, F. Beaufays, arXiv:1402.1128, 2014.

    >>> zero, one = np.zeros((1, 1)), np.ones((4, 1))
    >>> h, c = lstm_step(zero, zero, zero, one, one)
    >>> h.item(), c.item()
    (0.0, 0.0)
    """
    gates = x @ w_ih.T + h @ w_hh.T
    if b_ih is not None and b_hh is not None:
        gates = gates + (b_ih + b_hh)
    i, f, g, o = np.split(gates, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h if w_hr is None else h @ w_hr.T), c


def gru_step(
    x: Array, h: Array, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None
) -> Array:
    """One time step of a GRU: of one layer in one direction.

    With * the elementwise product and the rows of the weights in the order r, z, n::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)          reset gate
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)          update gate
        n = tanh   (W_in x + b_in + r * (W_hn h + b_hn))    candidate
        h' = (1 - z) * n + z * h                            hidden state

    Shapes: x (B, I), h (B, H), w_ih (3H, I), w_hh (3H, H), b_ih and b_hh (3H,). Returns h' (B, H).

    K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", arXiv:1406.1078, 2014. As in torch and
    cuDNN, the reset gate comes after the product with h, as in version 1 of that paper; in its version 3, and in
    J. Chung et al., arXiv:1412.3555, 2014, it comes before: W_hn (r * h). The two are not the same numbers.

    >>> zero, one = np.zeros((1, 1)), np.ones((3, 1))
    >>> gru_step(zero, np.ones((1, 1)), one, 0 * one).item()
    0.5
    """
    from_x, from_h = x @ w_ih.T, h @ w_hh.T
    if b_ih is not None and b_hh is not None:
        from_x, from_h = from_x + b_ih, from_h + b_hh
    (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(from_x, 3, axis=1), np.split(from_h, 3, axis=1)
    r = sigmoid(r_x + r_h)
    z = sigmoid(z_x + z_h)
    n = np.tanh(n_x + r * n_h)
    following: Array = (1 - z) * n + z * h
    return following


def rnn_step(
    x: Array,
    h: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Array:
    """One time step of a plain RNN: of one layer in one direction.

    ::

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh)        or relu instead of tanh

    Shapes: x (B, I), h (B, H), w_ih (H, I), w_hh (H, H), b_ih and b_hh (H,). Returns h' (B, H). Raises ValueError for
    another `nonlinearity` than tanh and relu.

    J. Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.

    >>> two = np.full((1, 1), 2.0)
    >>> rnn_step(two, two, two, two, nonlinearity="relu").item()
    8.0
    """
    if nonlinearity not in _NONLINEARITIES:
        raise ValueError(message("nonlinearity", "'tanh' or 'relu'", repr(nonlinearity)))
    sums = x @ w_ih.T + h @ w_hh.T
    if b_ih is not None and b_hh is not None:
        sums = sums + (b_ih + b_hh)
    return _NONLINEARITIES[nonlinearity](sums)


def run_direction(
    step: Step, x: Array, states: States, weights: Mapping[str, Array], lengths: Array, reverse: bool
) -> tuple[Array, States]:
    """Take one cell over a whole sequence: one layer in one direction.

    A row takes part in a step only while that step is within its length. So the forward direction ends, and the reverse
    direction starts, at each row's own last valid step; outputs past it are zero, inputs past it have no effect.

    Shapes: x (T, B, I), states (B, size) each, lengths (B,); weights: what `step` takes by keyword. Returns the output
    (T, B, P) and the states after the last step taken.
    """
    output = np.zeros((len(x), *states[0].shape), x.dtype)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        found = step(x[t], *states, **weights)
        valid = (t < lengths)[:, None]
        after = found if isinstance(found, tuple) else (found,)
        states = tuple(np.where(valid, new, old) for new, old in zip(after, states, strict=True))
        output[t] = np.where(valid, states[0], 0)
    return output, states


def run_network(
    step: Step,
    sizes: Sequence[int],
    x: Array,
    parameters: Mapping[str, Array],
    hx: States | None,
    lengths: Array | None,
    masks: Sequence[Array] | None,
) -> tuple[Array, States]:
    """Run L layers of one cell in D directions, each layer on the outputs of all directions of the one below.

    `parameters` holds torch's names (``weight_ih_l0``, ``bias_hh_l1_reverse``, ...); which of them are there says how
    many layers and directions there are, with or without biases and projection. Everything is computed in the dtype
    of `x`.

    Shapes: x (T, B, I); hx: (L*D, B, size) for each state of the cell and its size in `sizes`, zeros if None; lengths
    (B,): the valid steps of each row, all T if None; masks: what multiplies the outputs of each layer but the last
    (dropout), each (T, B, D*P). Returns the output (T, B, D*P) and the last states, shaped like hx.
    """
    suffixes = [name.removeprefix("weight_ih") for name in parameters if name.startswith("weight_ih_l")]
    directions = 2 if "weight_ih_l0_reverse" in parameters else 1
    steps, batch, _ = x.shape
    hx = tuple(np.zeros((len(suffixes), batch, size), x.dtype) for size in sizes) if hx is None else hx
    lengths = np.full(batch, steps) if lengths is None else lengths
    outputs: list[Array] = []
    last: list[States] = []
    for index, suffix in enumerate(suffixes):
        layer, reverse = divmod(index, directions)
        if layer > 0 and not reverse:
            x = np.concatenate(outputs, axis=2)
            x = x if masks is None else x * masks[layer - 1]
            outputs = []
        names = {argument: kind + suffix for argument, kind in _KINDS.items() if kind + suffix in parameters}
        weights = {argument: parameters[name].astype(x.dtype) for argument, name in names.items()}
        output, states = run_direction(step, x, tuple(state[index] for state in hx), weights, lengths, bool(reverse))
        outputs.append(output)
        last.append(states)
    return np.concatenate(outputs, axis=2), tuple(np.stack(states) for states in zip(*last, strict=True))


def lstm(
    x: Array,
    parameters: Mapping[str, Array],
    hx: tuple[Array, Array] | None = None,
    *,
    lengths: Array | None = None,
    masks: Sequence[Array] | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Run an LSTM of any number of layers and directions; see `run_network`.

    Shapes: x (T, B, I); hx (h_0, c_0): (L*D, B, P) and (L*D, B, H), zeros if None. Returns the output (T, B, D*P) and
    (h_n, c_n), shaped like hx.

    >>> parameters = {"weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 2))}
    >>> output, (h_n, c_n) = lstm(np.ones((5, 1, 3)), parameters)
    >>> output.shape, h_n.shape, c_n.shape
    ((5, 1, 2), (1, 1, 2), (1, 1, 2))
    >>> bool((output[-1] == h_n[0]).all())
    True
    """
    rows, outputs = parameters["weight_hh_l0"].shape
    output, (h_n, c_n) = run_network(lstm_step, (outputs, rows // 4), x, parameters, hx, lengths, masks)
    return output, (h_n, c_n)


def gru(
    x: Array,
    parameters: Mapping[str, Array],
    hx: Array | None = None,
    *,
    lengths: Array | None = None,
    masks: Sequence[Array] | None = None,
) -> tuple[Array, Array]:
    """Run a GRU of any number of layers and directions; see `run_network`.

    Shapes: x (T, B, I); hx, which is h_0: (L*D, B, H), zeros if None. Returns the output (T, B, D*H) and h_n, shaped
    like hx.

    >>> parameters = {"weight_ih_l0": np.ones((6, 3)), "weight_hh_l0": np.ones((6, 2))}
    >>> output, h_n = gru(np.ones((5, 1, 3)), parameters)
    >>> output.shape, h_n.shape
    ((5, 1, 2), (1, 1, 2))
    """
    sizes, states = parameters["weight_hh_l0"].shape[1:], None if hx is None else (hx,)
    output, (h_n,) = run_network(gru_step, sizes, x, parameters, states, lengths, masks)
    return output, h_n


def rnn(
    x: Array,
    parameters: Mapping[str, Array],
    hx: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Array | None = None,
    masks: Sequence[Array] | None = None,
) -> tuple[Array, Array]:
    """Run a plain RNN of any number of layers and directions, with the shapes of `gru`; see `run_network`.

    >>> parameters = {"weight_ih_l0": np.ones((2, 3)), "weight_hh_l0": np.zeros((2, 2))}
    >>> output, h_n = rnn(np.ones((5, 1, 3)), parameters, nonlinearity="relu")
    >>> h_n.tolist()
    [[[3.0, 3.0]]]
    """
    step = partial(rnn_step, nonlinearity=nonlinearity)
    sizes, states = parameters["weight_hh_l0"].shape[1:], None if hx is None else (hx,)
    output, (h_n,) = run_network(step, sizes, x, parameters, states, lengths, masks)
    return output, h_n

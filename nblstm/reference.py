"""The LSTM in plain NumPy: every equation once, in any floating dtype. The textbook and the oracle of the tests.

Nothing here is fast, and nothing here is shared with the compiled kernels: an error would have to be made twice to
stay hidden. Letters used for shapes throughout the package:

====  =======================================================================================
T     time steps
B     rows of the batch
I     input features of a layer: ``input_size``, or D * P for a layer above the first
H     hidden units: ``hidden_size``
P     size of h: ``proj_size``, or H where there is no projection
L, D  layers, directions (1, or 2 if bidirectional)
====  =======================================================================================

Sources of the equations:

* the cell: S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997, with the forget gate
  of F. Gers, J. Schmidhuber, F. Cummins, "Learning to Forget", Neural Computation 12(10), 2000;
* the projection: H. Sak, A. Senior, F. Beaufays, arXiv:1402.1128, 2014;
* two directions: M. Schuster, K. Paliwal, "Bidirectional Recurrent Neural Networks", IEEE Trans. Signal Proc. 45, 1997;
* names, gate order and layout of the parameters: ``torch.nn.LSTM``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nblstm.arrays import Array

_KINDS = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) elementwise, without overflow at either end.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    tail = np.exp(-np.abs(x))
    result: Array = np.where(x >= 0, 1, tail) / (1 + tail)
    return result


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
    """One time step of one layer in one direction.

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


def lstm_direction(
    x: Array, h: Array, c: Array, weights: Mapping[str, Array], lengths: Array, reverse: bool
) -> tuple[Array, Array, Array]:
    """One layer in one direction over a whole sequence.

    A row takes part in a step only while that step is within its length. So the forward direction ends, and the reverse
    direction starts, at each row's own last valid step; outputs past it are zero, inputs past it have no effect.

    Shapes: x (T, B, I), h (B, P), c (B, H), lengths (B,); weights: w_ih, w_hh and, where there are such, b_ih, b_hh and
    w_hr, as `lstm_step` takes them. Returns the output (T, B, P), h (B, P) and c (B, H) after the last step taken.
    """
    steps = len(x)
    output = np.zeros((steps, *h.shape), x.dtype)
    for t in reversed(range(steps)) if reverse else range(steps):
        h_next, c_next = lstm_step(x[t], h, c, **weights)
        valid = (t < lengths)[:, None]
        h, c = np.where(valid, h_next, h), np.where(valid, c_next, c)
        output[t] = np.where(valid, h_next, 0)
    return output, h, c


def lstm(
    x: Array,
    parameters: Mapping[str, Array],
    hx: tuple[Array, Array] | None = None,
    *,
    lengths: Array | None = None,
    masks: Sequence[Array] | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Run the whole network: L layers in D directions, each layer on the outputs, of both directions, of the one below.

    `parameters` holds torch's names (``weight_ih_l0``, ``bias_hh_l1_reverse``, ...); which of them are there says how
    many layers and directions there are, with or without biases and projection. Everything is computed in the dtype
    of `x`.

    Shapes: x (T, B, I); hx (h_0, c_0): (L*D, B, P) and (L*D, B, H), zeros if None; lengths (B,): the valid steps of
    each row, all T if None; masks: what multiplies the outputs of each layer but the last (dropout), each (T, B, D*P).
    Returns the output (T, B, D*P) and (h_n, c_n), shaped like hx.

    >>> parameters = {"weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 2))}
    >>> output, (h_n, c_n) = lstm(np.ones((5, 1, 3)), parameters)
    >>> output.shape, h_n.shape, c_n.shape
    ((5, 1, 2), (1, 1, 2), (1, 1, 2))
    >>> bool((output[-1] == h_n[0]).all())
    True
    """
    suffixes = [name.removeprefix("weight_ih") for name in parameters if name.startswith("weight_ih_l")]
    directions = 2 if "weight_ih_l0_reverse" in parameters else 1
    (steps, batch, _), (gates, size) = x.shape, parameters["weight_hh_l0"].shape
    if hx is None:
        hx = np.zeros((len(suffixes), batch, size), x.dtype), np.zeros((len(suffixes), batch, gates // 4), x.dtype)
    if lengths is None:
        lengths = np.full(batch, steps)
    outputs: list[Array] = []
    h_n, c_n = [], []
    for index, suffix in enumerate(suffixes):
        layer, direction = divmod(index, directions)
        if direction == 0 and layer > 0:
            x = np.concatenate(outputs, axis=2)
            x = x if masks is None else x * masks[layer - 1]
            outputs = []
        names = {argument: kind + suffix for argument, kind in _KINDS.items() if kind + suffix in parameters}
        weights = {argument: parameters[name].astype(x.dtype) for argument, name in names.items()}
        output, h, c = lstm_direction(x, hx[0][index], hx[1][index], weights, lengths, reverse=direction == 1)
        outputs.append(output)
        h_n.append(h)
        c_n.append(c)
    return np.concatenate(outputs, axis=2), (np.stack(h_n), np.stack(c_n))
